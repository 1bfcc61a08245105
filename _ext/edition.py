"""Which edition a page is, what run wrote its outputs, and how to cite it."""

import datetime
import html
import json
from functools import cache

import yaml
from docutils import nodes
from links import CLAIMS, room_of
from root import ROOT

from tools.edition import edition

DEVICES = {"cpu": "a CPU", "cuda": "a GPU"}


@cache
def verified(page: str) -> dict[str, str]:
    """Date, torch and device of the run that wrote a page's outputs; empty where it left no word."""
    path = ROOT / f"{page}.ipynb"
    return json.loads(path.read_text())["metadata"].get("verified", {}) if path.exists() else {}


def spoken(date: str) -> str:
    """
    >>> spoken("2026-01-09")
    '9 January 2026'
    """
    day = datetime.date.fromisoformat(date)
    return f"{day.day} {day:%B %Y}"


def line(runs: list[dict[str, str]]) -> str:
    """Edition, and when and with what all the runs were made.

    >>> line([{"date": "2026-01-09", "torch": "2.13.0", "device": "cpu"}]).partition(" · ")[2]
    'verified on 9 January 2026 with PyTorch 2.13.0 on a CPU'
    """
    parts = [f"Edition {edition()}"]
    if runs and all(runs):
        days, versions, devices = (sorted({run[key] for run in runs})
                                   for key in ("date", "torch", "device"))  # fmt: skip
        days = [spoken(day) for day in (days[0], days[-1])]
        when = f"on {days[0]}" if days[0] == days[1] else f"from {days[0]} to {days[1]}"
        where = " and ".join(DEVICES.get(device, device) for device in devices)
        parts.append(f"verified {when} with PyTorch {', '.join(versions)} on {where}")
    return " · ".join(parts)


def bibtex(room: str | None = None) -> str:
    """The book, or one chapter of it, for a reference manager."""
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    book, year, url = about["title"], about["date-released"].year, about["url"]
    fields = {"author": "{The ML Collage contributors}", "title": book, "edition": edition(),
              "year": year, "url": url}  # fmt: skip
    if room:
        chapter = CLAIMS[room]
        fields |= {"title": chapter["short"], "chapter": chapter["number"], "booktitle": book,
                   "url": f"{url}chapters/{room}.html"}  # fmt: skip
    kind, key = ("incollection", f"mlcollage-{room}") if room else ("book", "mlcollage")
    body = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return f"@{kind}{{{key},\n{body}}}"


def fold(runs, room=None):
    """The line of an edition; unfolded, what to cite."""
    what = "chapter" if room else "book"
    paper = (' It is about a paper: cite that, too (<a href="references.html">References</a>).'
             if room else "")  # fmt: skip
    text = bibtex(room)
    return [
        nodes.raw("", f'<details class="edition"><summary>{html.escape(line(runs))} · <span>How to cite this {what}'
                  f"</span></summary><p>BibTeX for this {what}, in the edition that you are reading.{paper}</p>",
                  format="html"),
        nodes.literal_block(text, text, language="bibtex"),
        nodes.raw("", "</details>", format="html"),
    ]  # fmt: skip


def dated(app, doctree, page):
    """The line under a page's title, the book's at the foot of the landing page; the chapter's code."""
    room, run = room_of(page), verified(page)
    title = next(iter(doctree.findall(nodes.title)), None)
    if title is None:
        return
    section = title.parent
    if app.builder.name != "html":
        if room:
            section.insert(1, nodes.paragraph("", line([run]), classes=["edition"]))
        return
    if page == app.config.root_doc:
        section += fold([verified(f"chapters/{name}") for name in CLAIMS])
    elif room:
        section[1:1] = fold([run], room)
    elif run:
        section.insert(1, nodes.paragraph("", line([run]), classes=["edition"]))
    for paragraph in doctree.findall(nodes.paragraph) if room else ():
        if paragraph.astext().startswith("Open in Colab"):
            code = nodes.reference("", "", refuri=f"api.html#collage.{room}", internal=True)
            code += nodes.literal("", f"collage.{room}")
            paragraph += [nodes.Text(" · its code: "), code]
            break


def footer(app, config):
    config.html_theme_options["extra_footer"] += f"<p>Edition {edition()}</p>"


def setup(app):
    app.connect("config-inited", footer)
    app.connect("env-purge-doc", lambda *_: verified.cache_clear())
    app.connect("doctree-resolved", dated, priority=700)  # what it adds is no text of the chapter
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
