"""The book as one EPUB: python -m tools.bound.epub"""

import base64
import hashlib
import html
import re
import sys
import time
import uuid
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote_to_bytes, urljoin

from tools import bound
from tools.bound.formulas import to_mathml
from tools.bound.pages import Page, bind, cover, parse, read, released, relink, style
from tools.site import HTML

XHTML = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE html>
<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops" lang="{lang}" xml:lang="{lang}">
<head><title>{title}</title><link rel="stylesheet" href="book.css"/></head>
<body id="top">{body}</body></html>
"""
CONTAINER = """<?xml version="1.0"?>
<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>
<rootfile full-path="book/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>
"""
PACKAGE = """<?xml version="1.0" encoding="utf-8"?>
<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="id" xml:lang="{lang}">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
<dc:identifier id="id">urn:uuid:{identifier}</dc:identifier>
<dc:title id="title">{title}</dc:title><meta refines="#title" property="title-type">main</meta>
<dc:title id="sub">{subtitle}</dc:title><meta refines="#sub" property="title-type">subtitle</meta>
<dc:creator>{author}</dc:creator><dc:language>{lang}</dc:language><dc:date>{date}</dc:date>
<dc:source>{base}</dc:source><dc:rights>Code: MIT. Text and figures: CC BY 4.0.</dc:rights>
<meta property="dcterms:modified">{modified}</meta>
<meta property="schema:accessMode">textual</meta><meta property="schema:accessMode">visual</meta>
<meta property="schema:accessModeSufficient">textual</meta>
<meta property="schema:accessibilityFeature">alternativeText</meta>
<meta property="schema:accessibilityFeature">MathML</meta>
<meta property="schema:accessibilityFeature">tableOfContents</meta>
<meta property="schema:accessibilityHazard">none</meta>
</metadata>
<manifest>{manifest}</manifest>
<spine>{spine}</spine>
</package>
"""
PICTURES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}
KINDS = {".xhtml": "application/xhtml+xml", ".css": "text/css", **PICTURES}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:20]


def embedded(address: str) -> tuple[bytes, str]:
    """A picture that a data URI holds: its bytes, and how the name of such a file ends.

    Raises ValueError for a kind that no EPUB may hold.

    >>> embedded("data:image/gif;base64,R0lG"), embedded("data:image/svg+xml,%3Csvg/%3E")
    ((b'GIF', '.gif'), (b'<svg/>', '.svg'))
    """
    head, _, body = address.removeprefix("data:").partition(",")
    kind, *marks = head.split(";")
    end = next((end for end, known in PICTURES.items() if known == kind), None)
    if end is None:
        raise ValueError(
            f"a picture of kind {kind!r}; wanted one of {', '.join(sorted({*PICTURES.values()}))}"
        )
    return base64.b64decode(body) if "base64" in marks else unquote_to_bytes(body), end


def pictures(pages: list[Page], there: dict[str, bytes] | None = None) -> dict[str, bytes]:
    """The pictures by their names within the EPUB; those that a page holds itself become files.

    there: what has its name already. Another picture of the same name gets a name of its own.
    """
    found = dict(there or {})
    for page in pages:
        for image in page.body.select("img"):
            source = image["src"]
            if source.startswith("data:"):
                data, end = embedded(source)
                name = digest(data) + end
            else:
                path = HTML / urljoin(f"/{page.path}", source).lstrip("/")
                data, name = path.read_bytes(), path.name
                if found.get(f"images/{name}", data) != data:
                    name = f"{path.stem}-{digest(data)}{path.suffix}"
            found[f"images/{name}"] = data
            image["src"] = f"images/{name}"
            image.attrs.setdefault("alt", "")
            width = re.search(r"width:\s*(\d+)px", image.get("style", ""))
            image["style"] = f"width: {width[1]}px" if width else "width: 100%"
    return found


def lawful(page: Page) -> None:
    """Mend what browsers forgive and XHTML does not."""
    for found in page.body.find_all(True):
        for key in ("role", "align", "border", "valign", "xmlns:xlink"):
            found.attrs.pop(key, None)
    for box in page.body.select("p div, span div, p p"):
        if box.find_parent("p"):
            box.find_parent("p").name = "div"
    page.body.name = "section"


def xhtml(title: str, body: str) -> bytes:
    text = XHTML.format(lang=bound.LANGUAGE, title=html.escape(title), body=body)
    return text.encode("utf-8")


def navigation(pages: list[Page]) -> bytes:
    """The table of contents: parts, chapters, their sections."""
    parts: dict[str, list[str]] = {}
    for page in pages:
        below = "".join(f'<li><a href="{page.name}.xhtml#{anchor}">{html.escape(heading)}</a></li>'
                        for anchor, heading in page.sections)  # fmt: skip
        below = f"<ol>{below}</ol>" if below else ""
        entry = f'<li><a href="{page.name}.xhtml">{html.escape(page.title)}</a>{below}</li>'
        parts.setdefault(page.part, []).append(entry)
    body = '<li><a href="preface.xhtml">About this edition</a></li>' + "".join(
        f"<li><span>{html.escape(part)}</span><ol>{''.join(entries)}</ol></li>"
        for part, entries in parts.items()
    )
    start = pages[0].name
    return xhtml("Contents",
                 f'<nav epub:type="toc" id="toc"><h1>Contents</h1><ol>{body}</ol></nav>'
                 '<nav epub:type="landmarks" hidden=""><ol>'
                 '<li><a epub:type="cover" href="cover.xhtml">Cover</a></li>'
                 '<li><a epub:type="toc" href="contents.xhtml">Contents</a></li>'
                 f'<li><a epub:type="bodymatter" href="{start}.xhtml">Start</a></li></ol></nav>')  # fmt: skip


def package(files: dict[str, bytes], order: list[str]) -> bytes:
    """The list of all files with what they are, and the order of reading."""
    rows, keys = [], {name: f"f-{number}" for number, name in enumerate(files)}
    for name, data in files.items():
        path = PurePosixPath(name)
        marks = {"contents.xhtml": "nav", "images/cover.jpg": "cover-image"}.get(name, "")
        if path.suffix == ".xhtml" and b"<math" in data:
            marks = "mathml"
        rows.append(f'<item id="{keys[name]}" href="{name}" media-type="{KINDS[path.suffix]}"'
                    + (f' properties="{marks}"' if marks else "") + "/>")  # fmt: skip
    spine = "".join(f'<itemref idref="{keys[name]}"/>' for name in order)
    when = time.gmtime(released())
    return PACKAGE.format(
        lang=bound.LANGUAGE, title=bound.TITLE, subtitle=bound.SUBTITLE, author=bound.AUTHOR, base=bound.BASE,
        identifier=uuid.uuid5(uuid.NAMESPACE_URL, f"{bound.BASE}{bound.VERSION}"),
        date=time.strftime("%Y-%m-%d", when), modified=time.strftime("%Y-%m-%dT%H:%M:%SZ", when),
        manifest="\n".join(rows), spine=spine,
    ).encode()  # fmt: skip


def photograph(window, address: str) -> bytes:
    """The cover as a picture."""
    tab = window.new_page(viewport={"width": 1200, "height": 1800})
    page = f'<!DOCTYPE html><meta charset="utf-8"><style>{style("book.css", "cover.css")}</style>{cover(address)}'
    tab.route(address + "cover", lambda route: route.fulfill(body=page, content_type="text/html"))
    tab.goto(address + "cover", wait_until="networkidle")
    picture = tab.screenshot(type="jpeg", quality=88)
    tab.close()
    return picture


def build(target: Path, window: Any, address: str, only: tuple[str, ...] = ()) -> Path:
    """Write the EPUB of all pages, or of those named."""
    pages = read(only)
    tab = window.new_page()
    tab.goto(address + "chapters/notation.html")  # a page that has MathJax
    to_mathml(pages, tab)
    tab.close()
    files = pictures(pages, {"images/cover.jpg": photograph(window, address)})
    relink(pages, "{name}.xhtml#{id}")
    files["book.css"] = style("book.css").encode()
    files["cover.xhtml"] = xhtml(bound.TITLE, '<section epub:type="cover" class="picture">'
                                 f'<img src="images/cover.jpg" alt="{bound.TITLE}: the eight collages"/></section>')  # fmt: skip
    files["contents.xhtml"] = navigation(pages)
    files["preface.xhtml"] = xhtml(
        "About this edition", parse(bound.PREFACE).decode(formatter="minimal")
    )
    for page in pages:
        lawful(page)
        files[f"{page.name}.xhtml"] = xhtml(page.title, page.body.decode(formatter="minimal"))
    order = [
        "cover.xhtml",
        "preface.xhtml",
        "contents.xhtml",
        *(f"{page.name}.xhtml" for page in pages),
    ]
    files = {"book.opf": package(files, order), **files}
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w") as book:  # the same pages give the same bytes
        add(book, "mimetype", b"application/epub+zip", zipfile.ZIP_STORED)
        add(book, "META-INF/container.xml", CONTAINER.encode())
        for name, data in files.items():
            add(book, f"book/{name}", data)
    return target


def add(book: zipfile.ZipFile, name: str, data: bytes, how: int = zipfile.ZIP_DEFLATED) -> None:
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.compress_type, entry.external_attr = how, 0o644 << 16
    book.writestr(entry, data)


if __name__ == "__main__":
    sys.exit(bind("epub", build))
