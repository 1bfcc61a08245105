"""The pages of the built book as a bound edition has them.

The site's pages are the source, so that an edition says what the site says. What needs a mouse or a
kernel goes: buttons, sliders, the code behind figures and checks, answers not given yet. What is folded
is unfolded, and the solutions of the exercises stand at the end of their chapter.
"""

import html
import os
import posixpath
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urljoin, urlsplit

import yaml
from bs4 import BeautifulSoup, Tag

from collage.page.claims import claims
from tools import bound
from tools.site import HTML, ROOT, browser, chromium, served

DROPPED = (
    "script, style, template, dialog, button, input, select, textarea, svg, nav, [hidden], .noprint, "
    ".headerlink, .tag_hide-input > details.hide, .verdict.open, .flipbook label, details.api > summary"
)
NOT_OFFERED = '<p id="downloads" hidden></p>'  # what the landing page holds where there is none


@dataclass
class Page:
    """One page: its name (`sam`), its address below the site's root, the heading above it, its body."""

    name: str
    path: str
    part: str
    body: Tag
    title: str = ""
    sections: list[tuple[str, str]] = field(default_factory=list)  # (id, heading) of each h2


def parse(text: str) -> BeautifulSoup:
    return BeautifulSoup(text, "html.parser")


def element(name: str, text: str = "", **attributes: str) -> Tag:
    made = parse("").new_tag(name, attrs=attributes)
    if text:
        made.string = text
    return made


def released() -> int:
    """When the book last changed, in seconds since 1970: the commit's time, or the build's."""
    run = ["git", "log", "-1", "--format=%ct"]
    try:
        return int(subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return int((HTML / "index.html").stat().st_mtime)


def contents() -> list[tuple[str, str]]:
    """(part, page) of every page behind the landing page, in the book's order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [
        (part["caption"], f"{c['file']}.html") for part in toc["parts"] for c in part["chapters"]
    ]


def unfold(body: Tag) -> None:
    """What can be opened is open, under its summary as a line of its own."""
    for fold in body.select("details"):
        first = fold.find(True)
        if first and first.name == "summary":
            first.name = "p"
            first["class"] = "unfolded"
        elif first and (before := fold.find_previous_sibling()) and before.text == first.text:
            first.decompose()  # the API page says a docstring's first line outside the fold, too
        fold.name = "div"


def collect_solutions(body: Tag, name: str) -> None:
    """Solutions go to the end, under headings of their own; a link stands where they stood."""
    cells = body.select(".tag_hide-cell")
    if not cells:
        return
    ending = element("section", id=f"{name}-solutions")
    ending.append(element("h2", "Solutions"))
    for cell in cells:
        line = re.search(r"# @title (.*?)\s*(?:\{.*\})?\n", cell.get_text())
        heading = line[1] if line else "Solution"
        anchor = f"{name}-{re.sub(r'[^a-z0-9]+', '-', heading.lower())}"
        link = element("p", **{"class": "to-solution"})
        link.append(element("a", heading, href=f"#{anchor}", id=f"{anchor}-from"))
        cell.replace_with(link)
        ending.append(element("h3", heading, id=anchor))
        for block in cell.select(".cell_input, .cell_output"):
            ending.append(block.extract())
        back = element("p", **{"class": "to-solution"})
        back.append(element("a", "Back to the exercise", href=f"#{anchor}-from"))
        ending.append(back)
    (body.find("section") or body).append(ending)


def untitled(body: Tag) -> None:
    """Lines that only give a folded cell its name in Colab say nothing in print."""
    for comment in body.select(".highlight .c1"):
        if comment.get_text().startswith("# @title"):
            after = comment.next_sibling
            comment.decompose()
            if isinstance(after, str):
                after.replace_with(after.removeprefix("\n"))


def clean(body: Tag, name: str) -> None:
    """Make of the article of a site's page what stands in an edition."""
    for found in body.select(DROPPED):
        if not found.decomposed:
            found.decompose()
    collect_solutions(body, name)
    untitled(body)
    unfold(body)
    for link in body.select("a.image-reference"):
        link.unwrap()
    for link in body.select("a.demo-open"):
        link.string = "Move it yourself online."
    for label in body.select("label, output, fieldset, legend, form"):
        label.name = "span"
    for cell in body.select(".cell, .cell_output, .cell_input"):
        if not cell.get_text(strip=True) and not cell.find("img"):
            cell.decompose()
    for block in body.select(".highlight"):
        if not block.get_text(strip=True):
            block.decompose()
    for found in body.find_all(True):
        for key in [k for k in found.attrs if k.startswith(("on", "data-")) or k in ("tabindex",)]:
            del found[key]


def resolve(
    href: str, page: Page, names: dict[str, str], ids: dict[str, set[str]]
) -> tuple[str, str]:
    """Where a link leads: ("sam", "id") within the edition, or ("", address) outside."""
    if urlsplit(href).scheme:
        return "", href
    path, fragment = urldefrag(urljoin(f"/{page.path}", href))
    name = names.get(path.lstrip("/"))
    if name is None:
        return "", urljoin(
            bound.BASE, posixpath.relpath(path, "/") + (f"#{fragment}" if fragment else "")
        )
    return name, fragment if fragment in ids[name] else ""


def unique_ids(page: Page) -> set[str]:
    """The ids of a page; one that comes twice names only the first."""
    seen: set[str] = set()
    for found in page.body.find_all(id=True):
        if found["id"] in seen:
            del found["id"]
        else:
            seen.add(found["id"])
    return seen


def relink(pages: list[Page], inside: str) -> None:
    """Lead every link to its place within the edition; `inside` is how one is written there."""
    names = {page.path: page.name for page in pages}
    ids = {page.name: unique_ids(page) for page in pages}
    for page in pages:
        for link in page.body.select("a[href]"):
            name, rest = resolve(link["href"], page, names, ids)
            link["href"] = inside.format(name=name, id=rest or "top") if name else rest
            if not name:
                link["class"] = ["external"]


def read(only: tuple[str, ...] = ()) -> list[Page]:
    """All pages, or those named, cleaned; their links still lead to the site's pages."""
    found = []
    for part, path in contents():
        name = posixpath.basename(path).removesuffix(".html")
        if only and name not in only:
            continue
        text = (HTML / path).read_text(encoding="utf-8")
        body = parse(text).select_one("article.bd-article")
        if body is None:
            raise ValueError(f"{path}: a page with an article was wanted")
        clean(body, name)
        page = Page(name, path, part, body)
        page.title = body.find("h1").get_text().strip()
        page.sections = [(s.parent["id"], s.get_text().strip())
                         for s in body.select("section[id] > h2")]  # fmt: skip
        found.append(page)
    return found


def lines() -> dict[str, str]:
    """What each chapter is about, in a line."""
    return {name: entry["line"] for name, entry in claims().items()}


def cover(address: str) -> str:
    """The title page: eight collages, the book's name and its edition; also the EPUB's cover."""
    wall = "".join(f'<img src="{address}_static/collages/{name}.png" alt="">' for name in claims())
    return (f'<section class="cover"><div class="wall">{wall}</div><p class="name">{bound.TITLE}</p>'
            f'<p class="subtitle">{html.escape(bound.SUBTITLE)}</p>'
            f'<p class="edition">Edition {bound.EDITION}<br>{html.escape(bound.AUTHOR)}</p></section>')  # fmt: skip


def style(*names: str) -> str:
    """Style sheets of this folder, and the colours of code."""
    from pygments.formatters import HtmlFormatter

    code = HtmlFormatter(style="a11y-high-contrast-light").get_style_defs(".highlight")
    sheets = [(ROOT / "tools" / "bound" / name).read_text(encoding="utf-8") for name in names]
    return "\n".join([code, *sheets])


def offer(folder: Path = HTML) -> None:
    """On the built landing page, link the editions that lie beside it; say how large they are.

    The page holds the place: `NOT_OFFERED`. The next build of the book makes it so again.
    """
    landing = folder / "index.html"
    files = [folder / "downloads" / edition_name(end) for end in ("epub", "pdf")]
    links = " · ".join(f'<a href="downloads/{p.name}">{p.suffix[1:].upper()} '
                       f"({max(1, round(p.stat().st_size / 1e6))} MB)</a>" for p in files if p.exists())  # fmt: skip
    shown = f'<p id="downloads">The whole book as a file: {links}</p>' if links else NOT_OFFERED
    text = landing.read_text(encoding="utf-8")
    if '<p id="downloads"' not in text:
        print(
            f"index.md has no {NOT_OFFERED}: the landing page does not offer the file",
            file=sys.stderr,
        )
    landing.write_text(
        re.sub(r'<p id="downloads".*?</p>', lambda _: shown, text, flags=re.S), encoding="utf-8"
    )


def edition_name(end: str) -> str:
    return f"ml-collage-{bound.VERSION}.{end}"


def bind(end: str, build: Callable[[Path, Any, str], Path]) -> int:
    """Build an edition beside the site, offer it on the landing page, and say what it weighs.

    It is built under another name: one that is not finished is neither offered nor released.
    """
    begun = time.perf_counter()
    if chromium() is None:
        print(f"The {end.upper()} is made by a headless Chromium or Chrome, and none is here"
              " (set CHROMIUM to its path).", file=sys.stderr)  # fmt: skip
        return 1
    target = bound.DOWNLOADS / edition_name(end)
    part = target.with_name(target.name + ".part")
    try:
        with served() as address, browser() as window:
            os.replace(build(part, window, address), target)
    finally:
        part.unlink(missing_ok=True)
    offer()
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1e6:.1f} MB, "
          f"in {time.perf_counter() - begun:.0f} s")  # fmt: skip
    return 0
