"""What the book adds to Jupyter Book: social cards, twins for programs, and fewer requests."""

import json
import shutil
from pathlib import Path

from root import ROOT

from collage.page.claims import claims


def page_context(app, page, template, context, doctree):
    """Description and social card of a page."""
    if 'class="demo"' in context.get("body", ""):  # only pages with a live figure load its script
        app.add_js_file("live/live.js", type="module")
    if "body" in context:  # a role that its children do not fit
        context["body"] = context["body"].replace(' role="list" class="citation-list"',
                                                  ' class="citation-list"')  # fmt: skip
    name = page.rpartition("/")[2]
    every = claims()
    meta = context["meta"] = dict(context.get("meta") or {})
    base = app.config.ogp_site_url
    picture = name if name in every else "sam"
    if (ROOT / "assets" / "collages" / f"{picture}.png").exists():
        meta.setdefault("og:image", f"{base}_static/collages/{picture}.png")
        meta.setdefault("og:image:alt", f"Collage: {every[picture]['short']} on one slide")
    if name in every:
        meta.setdefault("og:description", every[name]["line"])
        meta.setdefault("description", every[name]["line"])
    elif page == app.config.root_doc:
        line = "Eight deep-learning papers as executable tutorials, with checks that could have failed."
        meta.setdefault("og:description", line)
        meta.setdefault("description", line)


def fewer_files(app, error):
    """Keep of MathJax only what pages load: 24 MB become 2."""
    folder = Path(app.outdir) / "_static" / "mathjax"
    if error or not folder.is_dir():
        return
    keep = ("tex-chtml.js", "output/chtml/fonts", "input/tex/extensions", "a11y/assistive-mml.js")
    for file in folder.rglob("*"):
        if file.is_file() and not str(file.relative_to(folder)).startswith(keep):
            file.unlink()
    for sub in ("sre", "adaptors"):
        shutil.rmtree(folder / sub, ignore_errors=True)


def twin(path):
    """A page as Markdown for programs: prose, code and printed lines, without pictures' bytes."""
    if path.suffix == ".md":
        return path.read_text()
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt")
        parts += [f"*Figure: {alt}*"] if alt else []
        for output in cell["outputs"]:
            data = output.get("data", {})
            said = "".join(
                output.get("text", data.get("text/markdown", data.get("text/plain", "")))
            )
            if said.strip() and not said.startswith("<"):
                parts.append(
                    f"```text\n{said.rstrip()}\n```" if "text/markdown" not in data else said
                )
    return "\n\n".join(parts) + "\n"


def for_programs(app, error):
    """llms.txt, and a Markdown twin beside every page."""
    if error or app.builder.name != "html":
        return
    out, base = Path(app.outdir), app.config.ogp_site_url
    lines = ["# ML Collage", "", "> Eight deep-learning papers as executable tutorials, with checks that could"
             " have failed. Every page has a Markdown twin: the same address, ending in .md.", ""]  # fmt: skip
    titles = {name: f"{entry['number']} · {entry['short']}" for name, entry in claims().items()}
    for page in sorted(app.env.found_docs):
        source = next(p for end in (".ipynb", ".md") if (p := ROOT / f"{page}{end}").exists())
        target = out / f"{page}.md"
        target.write_text(twin(source), encoding="utf-8")
        name = page.rpartition("/")[2]
        line = claims()[name]["line"] if name in titles else ""
        title = titles.get(name) or app.env.titles[page].astext()
        lines.append(f"- [{title}]({base}{page}.md)" + (f": {line}" if line else ""))
    (out / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def no_thebe(app, config):
    """Jupyter Book always loads sphinx-thebe, which puts a third-party script on every page."""
    for listeners in app.events.listeners.values():
        listeners[:] = [l for l in listeners if not l.handler.__module__.startswith("sphinx_thebe")]
    files = app.registry.css_files
    files[:] = [f for f in files if "thebe" not in str(f[0])]


def setup(app):
    app.connect("config-inited", no_thebe, priority=900)
    app.connect("html-page-context", page_context, priority=100)  # before opengraph reads it
    app.connect("build-finished", fewer_files, priority=900)
    app.connect("build-finished", for_programs)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
