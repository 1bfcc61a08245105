"""What the book adds to Jupyter Book: a gallery of chapters, social cards, and fewer requests."""

import html
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from collage.page.claims import OUTCOMES, claims  # noqa: E402

PARTS = {1: "Part I · December 2021", 2: "Part II · January 2022"}


def card(name, entry):
    """A chapter as a card: its collage, what it is about, and how its claims fared."""
    title, line = html.escape(entry["short"]), html.escape(entry["line"])
    found = Counter(c["outcome"] for c in entry["claims"])
    fared = ", ".join(f"{found[key]} {label}" for key, (_, label) in OUTCOMES.items() if found[key])
    return (f'<li class="paper part{entry["part"]}">'
            f'<img src="_static/collages/{name}.png" width="1600" height="900" '
            f'alt="Collage: {title} on one slide">'
            f'<div><h3><a href="chapters/{name}.html">{entry["number"]} · {title}</a></h3>'
            f'<p>{line}</p>{try_it(name)}<p class="time">read {entry["minutes"]} min · run {entry["run"]}</p>'
            f'<p class="fared">{len(entry["claims"])} claims: {fared}</p></div></li>')  # fmt: skip


def try_it(name):
    """A link to a chapter's live figure, where it has one."""
    there = (ROOT / "assets" / "live" / f"{name}.js").exists()
    return (
        f'<p class="try"><a href="chapters/{name}.html#demo">Move it yourself</a></p>'
        if there
        else ""
    )


class Tally(Directive):
    """All claims as one bar: how many hold, hold in part, do not, or are only the paper's."""

    def run(self):
        every = [c for entry in claims().values() for c in entry["claims"]]
        found = Counter(c["outcome"] for c in every)
        parts = "".join(f'<a class="{key}" style="flex-grow:{found[key]}" href="chapters/claims.html">'
                        f"<strong>{found[key]}</strong> {mark} {label}</a>"
                        for key, (mark, label) in OUTCOMES.items() if found[key])  # fmt: skip
        return [nodes.raw("", f'<div class="tally">{parts}</div>', format="html")]


class Gallery(Directive):
    """Eight cards, in the order of the posts."""

    def run(self):
        parts = []
        for part, caption in PARTS.items():
            cards = [card(n, e) for n, e in claims().items() if e["part"] == part]
            section = nodes.section(ids=[f"part-{part}"])
            section += nodes.title(text=caption)
            section += nodes.raw("", f'<ul class="gallery">{"".join(cards)}</ul>', format="html")
            parts.append(section)
        return parts


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
    app.add_directive("gallery", Gallery)
    app.add_directive("tally", Tally)
    app.connect("config-inited", no_thebe, priority=900)
    app.connect("html-page-context", page_context, priority=100)  # before opengraph reads it
    app.connect("build-finished", fewer_files, priority=900)
    app.connect("build-finished", for_programs)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
