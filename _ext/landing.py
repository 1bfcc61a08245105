"""The landing page: how the claims fared, and the eight chapters as cards, the first of them alive.

Also the way home from a page that is not there.
"""

import functools
import html
import json
import re
from collections import Counter

from docutils import nodes
from docutils.parsers.rst import Directive
from root import ROOT

from collage.page.claims import OUTCOMES, claims

PARTS = {1: "December 2021", 2: "January 2022"}


def course():
    """The chapters in the order of the course, as its page has it; ValueError where one is missing."""
    text = (ROOT / "chapters" / "course.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| \d+ \| \[[^]]+\]\((\w+)\.ipynb\)", text, re.M)
    if sorted(names) != sorted(claims()):
        raise ValueError(
            f"chapters/course.md: got rows on {names}, wanted one on each of {[*claims()]}"
        )
    return names


@functools.cache
def still(name):
    """Picture and alt text of a chapter's live figure: (data URI, what it shows)."""
    for cell in json.loads((ROOT / "chapters" / f"{name}.ipynb").read_text())["cells"]:
        for output in cell.get("outputs", []):
            page = "".join(output.get("data", {}).get("text/html", ""))
            if found := re.search(
                r'<figure class="demo".*?<img alt="([^"]*)"[^>]*src="([^"]+)"', page
            ):
                return found[2], found[1]
    raise ValueError(f"name: got {name!r}, a chapter without a live figure")


def picture(name, title, alive):
    """What a card shows: the collage, or the chapter's live figure."""
    if not alive:
        return (f'<img src="_static/collages/{name}.png" width="1600" height="900" '
                f'alt="Collage: {title} on one slide">')  # fmt: skip
    source, alt = still(name)
    return (f'<figure class="demo" id="demo" data-demo="{name}"><img alt="{alt}" src="{source}">'
            f'<figcaption><a href="chapters/{name}.html#demo">Move it yourself</a></figcaption>'
            "</figure>")  # fmt: skip


def card(place, name, entry):
    """A chapter as a card: its picture, what it is about, and how its claims fared."""
    title, line, first = html.escape(entry["short"]), html.escape(entry["line"]), place == 1
    found = Counter(c["outcome"] for c in entry["claims"])
    fared = ", ".join(f"{found[key]} {label}" for key, (_, label) in OUTCOMES.items() if found[key])
    collage = picture(name, title, False) if first else ""  # beside its live figure
    return (f'<li class="paper part{entry["part"]}{" first" if first else ""}">'
            f"{picture(name, title, first)}"
            f'<div><p class="place">{place} in the course · {PARTS[entry["part"]]}</p>'
            f'<h3><a href="chapters/{name}.html">{entry["number"]} · {title}</a></h3>'
            f'<p>{line}</p>{collage}<p class="try"><a href="chapters/{name}.html#demo">Move it yourself</a></p>'
            f'<p class="time">read {entry["minutes"]} min · run {entry["run"]}</p>'
            f'<p class="fared">{len(entry["claims"])} claims: {fared}</p></div></li>')  # fmt: skip


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
    """Eight cards, in the order of the course."""

    def run(self):
        every = claims()
        cards = "".join(card(i, name, every[name]) for i, name in enumerate(course(), 1))
        return [nodes.raw("", f'<ul class="gallery">{cards}</ul>', format="html")]


def not_found(app, config):
    """The page for an address that leads nowhere: every chapter is one press away, on a phone too."""
    home = config.notfound_urls_prefix
    links = "".join(
        f'<li><a href="{home}chapters/{name}.html">{entry["number"]} · {html.escape(entry["short"])}</a></li>'
        for name, entry in claims().items()
    )
    config.notfound_context = {
        "title": "Page not found",
        "body": "<h1>Page not found</h1><p>There is nothing at this address (404). "
        f'<a href="{home}index.html">To the first page</a>, or to a chapter:</p><ul>{links}</ul>'
        f'<p>Or <a href="{home}search.html">search the book</a>.</p>',
    }


def setup(app):
    app.add_directive("gallery", Gallery)
    app.add_directive("tally", Tally)
    app.connect("config-inited", not_found)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
