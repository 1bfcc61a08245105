"""The book as one PDF, printed by headless Chromium: python -m tools.bound.pdf"""

import html
import io
import logging
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib

from tools import bound
from tools.bound.pages import Page, bind, cover, lines, read, released, relink, style

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
SHORT = 30  # a code block of so many lines stands on one page
MATHJAX = (
    '<script>window.MathJax = {options: {processHtmlClass: "math", enableMenu: false}}</script>'
)
READY = """async () => {
  await MathJax.startup.promise;
  await document.fonts.ready;
  await Promise.all([...document.images].map((image) => image.decode()));
}"""


WIDTH = 657  # of a printed line in CSS pixels: A4 less its margins
FIT = """(width) => [...document.querySelectorAll("table, pre, img, mjx-math")].flatMap((box) => {
  const too = () => box.getBoundingClientRect().right / width;
  if (too() > 1.002 && !box.closest(".cover")) box.style.zoom = 1 / too();
  return too() > 1.002 && !box.closest(".cover") ? [box.textContent.slice(0, 60) || box.src] : [];
})"""
NUMBERED = """(numbers) => document.querySelectorAll(".contents a").forEach((link) => {
  link.dataset.page = numbers[decodeURIComponent(link.hash.slice(1))];
})"""


def join(pages: list[Page]) -> None:
    """Give every id the page's name, as all pages become one; links and pictures follow."""
    for page in pages:
        for found in page.body.find_all(id=True):
            found["id"] = f"{page.name}--{found['id']}"
        page.sections = [(f"{page.name}--{anchor}", heading) for anchor, heading in page.sections]
        for image in page.body.select("img[src^='../']"):
            image["src"] = image["src"].removeprefix("../")
        for block in page.body.select("pre"):
            if len(block.get_text().splitlines()) <= SHORT:
                block["class"] = [*block.get("class", []), "short"]


def contents(pages: list[Page]) -> str:
    """The table of contents; `NUMBERED` writes the pages' numbers into it."""

    def line(anchor: str, heading: str) -> str:
        return f'<a href="#{anchor}">{html.escape(heading)}<span></span></a>'

    parts, about, last = [], lines(), ""
    for page in pages:
        if page.part != last:
            parts.append(f"<h2>{html.escape(page.part)}</h2>")
            last = page.part
        words = (
            f'<p class="about">{html.escape(about[page.name])}</p>' if page.name in about else ""
        )
        below = "".join(f"<li>{line(*section)}</li>" for section in page.sections)
        parts.append(f'<ol><li class="chapter-line">{line(f"{page.name}--top", page.title)}</li>'
                     f"{words}<li><ol>{below}</ol></li></ol>")  # fmt: skip
    return f'<nav class="contents"><h1>Contents</h1>{"".join(parts)}</nav>'


def running(page: Page) -> str:
    """The page's title above each of its printed pages."""
    title = page.title.replace("\\", "").replace('"', "")
    return (f'@page p-{page.name} {{ @top-right {{ content: "{title}"; font: 9.5pt Book, serif; color: #444; }} }}'
            f" #{page.name}--top {{ page: p-{page.name}; }}")  # fmt: skip


def sheet(pages: list[Page]) -> str:
    """All of the book as one page of HTML."""
    chapters = "".join(f'<section class="chapter" id="{page.name}--top"><p class="part">{html.escape(page.part)}</p>'
                       f"{page.body.decode(formatter='minimal')}</section>" for page in pages)  # fmt: skip
    heads = "".join(running(page) for page in pages)
    return (f'<!DOCTYPE html><html lang="{bound.LANGUAGE}"><head><meta charset="utf-8"><title>{bound.TITLE}</title>'
            f"<style>{style('book.css', 'cover.css', 'pdf.css')}{heads}</style>{MATHJAX}"
            '<script defer src="_static/mathjax/tex-chtml.js"></script></head><body>'
            f'{cover("")}<div class="preface">{bound.PREFACE}</div>{contents(pages)}{chapters}</body></html>')  # fmt: skip


def printed(tab, address: str, text: str) -> bytes:
    """Chromium's print of a page of HTML that lies at the root of the site."""

    def font(route) -> None:
        route.fulfill(path=FONTS / route.request.url.rpartition("/")[2])

    def print_it() -> bytes:
        return tab.pdf(prefer_css_page_size=True, print_background=True, outline=True, tagged=True)

    tab.route(address + "print", lambda route: route.fulfill(body=text, content_type="text/html"))
    tab.route(address + "fonts/*", font)
    tab.set_viewport_size({"width": WIDTH, "height": 950})
    tab.emulate_media(media="print")
    tab.goto(address + "print", wait_until="load")
    tab.evaluate(READY)
    if cut := tab.evaluate(FIT, WIDTH):
        raise ValueError(f"wider than a printed page, even when it is made smaller: {cut}")
    tab.evaluate(NUMBERED, page_numbers(print_it()))  # the first print tells where everything is
    return print_it()


def page_numbers(data: bytes) -> dict[str, int]:
    """On which page the target of each link of a PDF lies."""
    from pypdf import PdfReader

    reader = PdfReader(io.BytesIO(data))
    found = reader.named_destinations.items()
    return {
        name.removeprefix("/"): reader.get_destination_page_number(target) + 1
        for name, target in found
    }


def described(data: bytes, target: Path) -> Path:
    """Write a PDF with what catalogues want to know about it."""
    from pypdf import PdfWriter

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # Chromium counts its objects too low
    when = time.strftime("D:%Y%m%d%H%M%SZ", time.gmtime(released()))
    writer = PdfWriter(clone_from=io.BytesIO(data))
    writer.add_metadata({"/Title": f"{bound.TITLE}: {bound.SUBTITLE}", "/Author": bound.AUTHOR, "/Subject": f"Edition {bound.EDITION}",
                         "/CreationDate": when, "/ModDate": when})  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    writer.write(target)
    return target


def build(target: Path, window: Any, address: str, only: tuple[str, ...] = ()) -> Path:
    """Write the PDF of all pages, or of those named."""
    pages = read(only)
    relink(pages, "#{name}--{id}")
    join(pages)
    tab = window.new_page()
    data = printed(tab, address, sheet(pages))
    tab.close()
    return described(data, target)


if __name__ == "__main__":
    sys.exit(bind("pdf", build))
