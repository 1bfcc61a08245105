"""The glossary where it is needed: a word's first use in a chapter leads to it, and shows what it says.

Everything is read from chapters/glossary.md when the book is built. A word of the trade ("Hessian",
"meta-gradient", "convex hull") is linked in every chapter; an everyday word ("return", "value") only in
the chapters that its line names, since elsewhere it may mean what it always means.
"""

import html
import re
from functools import cache
from typing import NamedTuple

from docutils import nodes
from links import room_of, sign
from root import ROOT
from sphinx.addnodes import index

GLOSSARY = "chapters/glossary"
ROW = re.compile(r"^\| (?!word |---)(.+?) \| (.+?) \| (.+?) \|$", re.M)
NOT_IN = (nodes.title, nodes.reference, nodes.literal, nodes.literal_block, nodes.math, nodes.raw,
          nodes.math_block, nodes.table, nodes.caption)  # fmt: skip


class Term(NamedTuple):
    anchor: str  # on the Glossary page
    words: tuple[str, ...]  # how it may be called
    meaning: str
    chapters: tuple[str, ...]  # that explain it, best first


@cache
def glossary(text: str | None = None) -> tuple[Term, ...]:
    """The lines of the Glossary page.

    >>> glossary("| return, return-to-go | a sum | [34](decision_transformer.ipynb) |")[0].words
    ('return', 'return-to-go')
    """
    text = (ROOT / f"{GLOSSARY}.md").read_text() if text is None else text
    found = []
    for name, meaning, see in ROW.findall(text):
        words = tuple(re.sub(r" \(.*\)", "", name).split(", "))
        found.append(
            Term(anchor(name), words, meaning, tuple(re.findall(r"\((\w+)\.ipynb\)", see)))
        )
    return tuple(found)


def anchor(name: str) -> str:
    first = re.sub(r" \(.*\)", "", name).split(", ")[0]
    return "term-" + re.sub(r"\W+", "-", first.lower())


def everyday(word: str) -> bool:
    return word.isalpha() and word.islower()


def pattern(word: str) -> re.Pattern[str]:
    """The word alone, in the singular or the plural; a line may end within it.

    >>> bool(pattern("policy").search("two policies")), bool(pattern("ridge").search("ridge-rider"))
    (True, False)
    """
    stem = r"\s+".join(map(re.escape, word.split()))
    end = f"{stem[:-1]}(?:y|ies)" if word.endswith("y") else f"{stem}(?:s|es)?"
    return re.compile(rf"(?<![\w-]){end}(?![\w-])")


def wanted(room: str) -> list[tuple[re.Pattern[str], Term]]:
    """What is looked for in a chapter; the longest first, so that parts of it do not take its place."""
    pairs = [(word, term) for term in glossary() for word in term.words
             if not everyday(word) or room in term.chapters]  # fmt: skip
    return [(pattern(word), term) for word, term in sorted(pairs, key=lambda p: -len(p[0]))]


def in_prose(text: nodes.Text) -> bool:
    """Whether a word stands in a sentence: no heading, link, code, formula, table, output or source."""
    above, inside = text.parent, False
    while above is not None:
        if isinstance(above, NOT_IN) or above.get("nb_element") == "cell_code_output":
            return False
        inside |= isinstance(above, nodes.paragraph)
        if isinstance(above, nodes.paragraph) and above.astext().startswith("Paper:"):
            return False
        if isinstance(above, nodes.section) and "references" in above["ids"]:
            return False
        above = above.parent
    return inside


def link(word: str, term: Term) -> str:
    return (f'<a class="term" id="use-{term.anchor}" href="glossary.html#{term.anchor}"'
            f' title="{html.escape(term.meaning)}">{html.escape(word)}</a>')  # fmt: skip


def first_uses(doctree: nodes.document, room: str) -> list[Term]:
    """Link the first use of each term in a chapter; the terms that were found."""
    left, seen = wanted(room), []
    for text in [t for t in doctree.findall(nodes.Text) if in_prose(t)]:
        whole, hits = text.astext(), []
        for look, term in left:
            found = look.search(whole)
            if (found and term not in seen
                    and not any(found.start() < end and begin < found.end() for begin, end, _ in hits)):  # fmt: skip
                hits.append((*found.span(), term))
                seen.append(term)
        at, parts = 0, []
        for begin, end, term in sorted(hits):
            parts += [
                nodes.Text(whole[at:begin]),
                nodes.raw("", link(whole[begin:end], term), format="html"),
            ]
            at = end
        if hits:
            text.parent.replace(text, [*parts, nodes.Text(whole[at:])])
    return seen


def entries(doctree: nodes.document, room: str, seen: list[Term]) -> None:
    """Search finds a term in the chapter that explains it best before all others."""
    for term in seen:
        if term.chapters[:1] == (room,):
            words = [("single", word, f"use-{term.anchor}", "main", None) for word in term.words]
            doctree += index(entries=words)


def own_page(doctree: nodes.document) -> None:
    """A line of the glossary is a place to link to."""
    for row in doctree.findall(nodes.row):
        if isinstance(row.parent, nodes.tbody):
            name = anchor(row.children[0].astext())
            row["ids"].append(name)
            row.children[0].children[0] += sign(name, "word")


def terms(app, doctree, page):
    if app.builder.name != "html":
        return
    if page == GLOSSARY:
        own_page(doctree)
    elif room := room_of(page):
        entries(doctree, room, first_uses(doctree, room))


def on_search_page(app, page, template, context, doctree):
    if page == "search":
        app.add_js_file("search.js", loading_method="defer")
    elif room_of(page):
        app.add_js_file("terms.js", loading_method="defer")


def setup(app):
    app.connect("env-purge-doc", lambda *_: glossary.cache_clear())
    app.connect(
        "doctree-resolved", terms, priority=600
    )  # after the other links, which it leaves alone
    app.connect("html-page-context", on_search_page)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
