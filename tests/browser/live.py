"""Functions of a live figure's module, called in a browser."""

from visit import Visit


def calls(window, site, paper, function, inputs):
    """[function(module, input) for each input], function a line of JavaScript."""
    with Visit(window, site, "404.html") as visit:
        return visit.tab.evaluate(
            f"""async ([address, inputs]) => {{
              const module = await import(address);
              return inputs.map((input) => ({function})(module, input));
            }}""",
            [f"{site}_static/live/{paper}.js", inputs],
        )
