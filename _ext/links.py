"""Places that can be linked to: every claim, numbered equation, exercise and cell that settles a claim.

`claim-sam-3`, `sam-eq-4` and `sam-exercise-2` follow the numbers that the reader sees, `cell-...` the
cell's own id in the notebook: none of them changes when the text around it does. A claim has its
anchor twice, on the chapter's page and on the Claims page, and each leads to the other and to the
cells that settle it.
"""

import html
import importlib
import json
import re
from functools import cache

from docutils import nodes
from root import ROOT

from collage.page.claims import claims

CLAIMS = claims()  # read once: every page and cell asks
TAG = re.compile(r"\\tag\{(\d+)\}")
EXERCISE = re.compile(r"Exercise (\d+) ")
CARD = re.compile(r'<div class="verdict"([^>]*)>(\s*<strong>\S+ (\d+)\. .*?)</div>', re.DOTALL)
BEARS = re.compile(r"\(bears on claim (\d+)\)")
INK = 'style="color:inherit;text-decoration:underline"'


def room_of(page):
    """The paper that a page is about, or None."""
    name = page.rpartition("/")[2]
    return name if name in CLAIMS else None


@cache
def cells(page):
    """The cells of a notebook; none for a page that is not one."""
    path = ROOT / f"{page}.ipynb"
    return json.loads(path.read_text())["cells"] if path.exists() else []


@cache
def settling(room):
    """Which cells settle which claim: {number: [(anchor, what the cell is called), ...]}."""
    found = {}
    for cell in cells(f"chapters/{room}"):
        text = "".join(cell["source"])
        title = re.search(r"^# @title (.*?)(?: \{.*)?$", text, re.M)
        first = re.search(r'claim\(\s*"([^"]*)"', text)
        for number in sorted(set(re.findall(rf'settles="{room}-(\d+)"', text))):
            name = title[1] if title else first[1].strip() if first else "a check"
            found.setdefault(int(number), []).append((f"cell-{cell['id']}", name))
    return found


def sign(anchor, what):
    """The link sign of a place, like the one that headings have."""
    title = f"Link to this {what}"
    text = f'<a class="headerlink" href="#{anchor}" title="{title}" aria-label="{title}">#</a>'
    return nodes.raw("", text, format="html", sign=True)


def ways(room, number, page=""):
    """The cells that settle a claim, as links; page: where they are, from here."""
    there = settling(room).get(number, ())
    links = " ".join(f'<a href="{page}#{anchor}" title="{html.escape(name)}" {INK}'
                     f' aria-label="Check {i}: {html.escape(name)}">{i}</a>'
                     for i, (anchor, name) in enumerate(there, 1))  # fmt: skip
    return f'<span class="ways">Check{"s" * (len(there) > 1)} {links}</span>' if links else ""


def further(room, number, here):
    """Where a claim leads: to its cells, and to itself on the other page; here: in its chapter."""
    anchor = f"claim-{room}-{number}"
    other = (f'<a href="claims.html#{anchor}" {INK}>among all claims</a>' if here
             else f'<a href="{room}.html#{anchor}" {INK}>in the chapter</a>')  # fmt: skip
    links = [link for link in (ways(room, number, "" if here else f"{room}.html"), other) if link]
    return f"{' · '.join(links)}&nbsp;{sign(anchor, 'claim').astext()}"


def cards(text, room, here):
    """Claims that are shown as cards: an anchor each, and where it leads."""
    return CARD.sub(lambda card: f'<div class="verdict" id="claim-{room}-{card[3]}"{card[1]}>{card[2]}'
                                 f" · {further(room, int(card[3]), here)}</div>", text)  # fmt: skip


def folds(cell, room):
    """Claims that are folds, with anchors of their own: where each leads, as its last line."""
    number = None
    for raw in list(cell.findall(nodes.raw)):
        if found := re.search(rf'<details [^>]*id="claim-{room}-(\d+)"', raw.astext()):
            number = int(found[1])
        elif number and "</details>" in raw.astext():
            line = f"<p>{further(room, number, False)}</p>"
            raw.parent.insert(raw.parent.index(raw), nodes.raw("", line, format="html"))
            number = None


def claims_in(cell, page):
    """Anchors in what a cell has printed: claims, and verdicts that bear on them."""
    source = "".join(cells(page)[cell["cell_index"]]["source"])
    shown = re.search(r'(?:fared|verdicts)\("(\w+)"\)', source)
    here = room_of(page)
    for raw in cell.findall(nodes.raw):
        text = raw.astext()
        if shown:
            text = cards(text, shown[1], bool(here))
        if here:
            text = BEARS.sub(rf'(<a href="#claim-{here}-\1" {INK}>bears on claim \1</a>)', text)
        if text != raw.astext():
            raw.children[:] = [nodes.Text(text)]
            raw.rawsource = text
    if shown and not here:
        folds(cell, shown[1])


def equations(doctree, room):
    """A numbered equation stands in a box that has the anchor and its sign."""
    for block in list(doctree.findall(nodes.math_block)):
        if found := TAG.search(block.astext()):
            anchor = f"{room}-eq-{found[1]}"
            box = nodes.container(ids=[anchor], classes=["equation"])
            block.replace_self(box)
            box += [block, sign(anchor, "equation")]


def exercises(doctree, room):
    for paragraph in doctree.findall(nodes.paragraph):
        first = next((part for part in paragraph.children if part.astext()), None)
        if isinstance(first, nodes.strong) and (found := EXERCISE.match(first.astext())):
            paragraph["ids"].append(anchor := f"{room}-exercise-{found[1]}")
            paragraph["classes"].append("exercise")
            paragraph.insert(paragraph.index(first) + 1, sign(anchor, "exercise"))


def code_names(doctree, room):
    """The first time that a chapter names one of its paper's public names, it leads to its docstring."""
    left = set(importlib.import_module(f"collage.{room}").__all__)
    for word in list(doctree.findall(nodes.literal)):
        name = word.astext().removesuffix("()")
        above = word.parent
        while above is not None and not isinstance(
            above, nodes.reference | nodes.title | nodes.section
        ):
            above = above.parent
        if name in left and isinstance(above, nodes.section):
            left.remove(name)
            link = nodes.reference("", "", refuri=f"api.html#collage.{room}.{name}", internal=True)
            word.replace_self(link)
            link += word


def anchors(app, doctree, page):
    """Anchors in every kind of book; links from place to place in the one of many pages."""
    room, web = room_of(page), app.builder.name == "html"
    settles = set()
    if room:
        equations(doctree, room)
        exercises(doctree, room)
        settles = {anchor for found in settling(room).values() for anchor, _ in found}
    if room and web:
        code_names(doctree, room)
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") == "cell_code":
            if web:
                claims_in(cell, page)
            name = f"cell-{cells(page)[cell['cell_index']].get('id')}"
            if name in settles:
                cell["ids"].append(name)
    if not web:
        for mark in [raw for raw in doctree.findall(nodes.raw) if raw.get("sign")]:
            mark.parent.remove(mark)


def forget(app, env, page):
    """A page is read again: its notebook may have changed."""
    cells.cache_clear()
    settling.cache_clear()


def setup(app):
    app.connect("env-purge-doc", forget)
    app.connect("doctree-resolved", anchors)
    app.add_css_file("links.css")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
