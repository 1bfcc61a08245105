"""What the book adds to Jupyter Book: a gallery of chapters, social cards, and fewer requests."""

import html
import shutil
import sys
from pathlib import Path

from bs4 import BeautifulSoup
from docutils import nodes
from docutils.parsers.rst import Directive

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from collage.page.claims import claims  # noqa: E402

PARTS = {1: "Part I · December 2021", 2: "Part II · January 2022"}


def written(name):
    return (ROOT / "chapters" / f"{name}.ipynb").exists()


def card(name, entry):
    """A chapter as a card: its collage where it is written, its number where it is coming."""
    picture = ROOT / "assets" / "collages" / f"{name}.png"
    title, line = html.escape(entry["short"]), html.escape(entry["line"])
    if written(name) and picture.exists():
        art = (f'<img src="_static/collages/{name}.png" width="1600" height="900" '
               f'alt="Collage: {title} on one slide">')  # fmt: skip
    else:
        art = f'<span class="art" aria-hidden="true">{entry["number"]}</span>'
    if written(name):
        time = f"read {entry['minutes']} min · run {entry['run']}"
        head = f'<a href="chapters/{name}.html">{entry["number"]} · {title}</a>'
    else:
        time, head = "coming", f"{entry['number']} · {title}"
    state = "written" if written(name) else "coming"
    return (f'<li class="paper part{entry["part"]} {state}">{art}<div><h3>{head}</h3>'
            f'<p>{line}</p><p class="time">{time}</p></div></li>')  # fmt: skip


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
        line = (
            "Eight deep-learning papers as executable tutorials, every sentence checked by a cell."
        )
        meta.setdefault("og:description", line)
        meta.setdefault("description", line)


def sidebar(app, page, template, context, doctree):
    """The chapters that are coming, in their places in the sidebar, without links."""
    every = claims()
    toctree = context.get("generate_toctree_html")
    if toctree:

        def with_coming(*args, **kwargs):
            found = toctree(*args, **kwargs)
            return add_coming(str(found), every) if kwargs.get("kind") == "sidebar" else found

        context["generate_toctree_html"] = with_coming


def add_coming(found, every):
    """Insert the unwritten chapters, without links, where they will be."""
    soup = BeautifulSoup(found, "html.parser")
    for part, caption in PARTS.items():
        heads = [p for p in soup.select("p.caption") if p.get_text(strip=True) == caption]
        if heads:
            items = heads[0].find_next_sibling("ul")
        else:
            anchor = soup.select("p.caption")[-1]
            head = soup.new_tag(
                "p", attrs={"class": "caption", "role": "heading", "aria-level": "2"}
            )
            text = soup.new_tag("span", attrs={"class": "caption-text"})
            text.string = caption
            head.append(text)
            items = soup.new_tag("ul", attrs={"class": "nav bd-sidenav"})
            anchor.insert_before(head, items)
        there = items.find_all("li", recursive=False)
        for name, entry in every.items():
            if entry["part"] == part and not written(name):
                item = soup.new_tag("li", attrs={"class": "toctree-l1 coming"})
                item.string = f"{entry['number']} · {entry['short']} (coming)"
                later = [i for i in there if number(i) > entry["number"]]
                later[0].insert_before(item) if later else items.append(item)
    return str(soup)


def number(item):
    digits = item.get_text(strip=True)[:2]
    return int(digits) if digits.isdigit() else 99


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


def no_thebe(app, config):
    """Jupyter Book always loads sphinx-thebe, which puts a third-party script on every page."""
    for listeners in app.events.listeners.values():
        listeners[:] = [l for l in listeners if not l.handler.__module__.startswith("sphinx_thebe")]
    files = app.registry.css_files
    files[:] = [f for f in files if "thebe" not in str(f[0])]


def setup(app):
    app.add_directive("gallery", Gallery)
    app.connect("config-inited", no_thebe, priority=900)
    app.connect("html-page-context", page_context, priority=100)  # before opengraph reads it
    app.connect("html-page-context", sidebar, priority=900)  # after the theme has put it there
    app.connect("build-finished", fewer_files, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
