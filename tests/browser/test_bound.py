"""The book as EPUB and PDF: whole, lawful, nothing left that needs the site."""

import doctest
import io
import re
import zipfile
from pathlib import PurePosixPath
from urllib.parse import unquote, urldefrag
from xml.etree import ElementTree

import pytest
from PIL import Image

from tools.bound import epub, formulas, pages, pdf
from tools.site import HTML, chromium

pytestmark = pytest.mark.browser
if not chromium():
    pytest.skip("no Chromium here: EPUB and PDF are not made", allow_module_level=True)
SOME = ("sam", "glossary")
XHTML = "{http://www.w3.org/1999/xhtml}"
MATH = "{http://www.w3.org/1998/Math/MathML}math"
OPF = "{http://www.idpf.org/2007/opf}"


@pytest.fixture(scope="module")
def book(window, site, tmp_path_factory):
    """The files of an EPUB of two pages."""
    made = epub.build(tmp_path_factory.mktemp("epub") / "some.epub", window, site, SOME)
    with zipfile.ZipFile(made) as archive:
        first = archive.infolist()[0]
        assert (first.filename, first.compress_type) == ("mimetype", zipfile.ZIP_STORED)
        return {name: archive.read(name) for name in archive.namelist()}


def trees(book):
    return {
        name: ElementTree.fromstring(data) for name, data in book.items() if name.endswith(".xhtml")
    }


def test_the_epub_lists_all_its_files(book):
    package = ElementTree.fromstring(book["book/book.opf"])
    listed = {item.get("id"): item.get("href") for item in package.iter(f"{OPF}item")}
    there = {name.removeprefix("book/") for name in book if name.startswith("book/")} - {"book.opf"}
    assert set(listed.values()) == there
    order = [listed[item.get("idref")] for item in package.iter(f"{OPF}itemref")]
    assert order == [
        "cover.xhtml",
        "preface.xhtml",
        "contents.xhtml",
        "sam.xhtml",
        "glossary.xhtml",
    ]
    assert Image.open(io.BytesIO(book["book/images/cover.jpg"])).size == (1200, 1800)


def test_every_picture_has_its_kind_and_a_name_of_its_own(tmp_path, monkeypatch):
    """What a page holds itself keeps its kind; two files of one name stay two."""
    found = doctest.testmod(epub)
    assert found.attempted and not found.failed
    monkeypatch.setattr(epub, "HTML", tmp_path)
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(folder.replace("c", "a").encode())
    (tmp_path / "cover.jpg").write_bytes(b"no cover")
    body = pages.parse('<img src="a/x.png"><img src="b/x.png"><img src="c/x.png"><img src="cover.jpg">'
                       '<img src="data:image/jpeg;base64,R0lG">')  # fmt: skip
    page = pages.Page("some", "some.html", "", body)
    made = epub.pictures([page], {"images/cover.jpg": b"the cover"})
    shown = [image["src"] for image in body.select("img")]
    assert [made[name] for name in shown] == [b"a", b"b", b"a", b"no cover", b"GIF"]
    assert shown[4].endswith(".jpg") and made["images/cover.jpg"] == b"the cover"
    assert len(made) == 5
    package = epub.package(made, shown).decode()
    keys = re.findall(r'<item id="([^"]+)"', package)
    assert len(set(keys)) == 5 and set(re.findall(r'idref="([^"]+)"', package)) < set(keys)
    with pytest.raises(ValueError, match="image/tiff"):
        epub.embedded("data:image/tiff;base64,R0lG")


def test_every_link_of_the_epub_leads_somewhere(book):
    found = trees(book)
    ids = {name: {e.get("id") for e in tree.iter() if e.get("id")} for name, tree in found.items()}
    links = 0
    for name, tree in found.items():
        for element in tree.iter():
            address = element.get("src") or element.get("href") or ""
            if not address or re.match(r"[a-z]+:", address):
                continue
            path, fragment = urldefrag(address)
            target = f"book/{path}" if path else name
            assert target in book, f"{name}: {address}"
            assert not fragment or unquote(fragment) in ids[target], f"{name}: {address}"
            links += 1
    assert links > 50


def test_formulas_are_mathml_and_figures_keep_their_pixels(book):
    page = trees(book)["book/sam.xhtml"]
    site = pages.parse((HTML / "chapters/sam.html").read_text(encoding="utf-8")).select_one(
        "article"
    )
    found = list(page.iter(MATH))
    assert len(found) == len(site.select(".math")) > 50
    assert all(formula.get("alttext") for formula in found)
    text = "".join(page.itertext())
    assert "\\(" not in text and "\\[" not in text and "\\tag" not in text
    assert "(1)" in [e.text for e in page.iter(f"{XHTML}span") if e.get("class") == "number"]
    shown = [PurePosixPath(image.get("src")).name for image in page.iter(f"{XHTML}img")]
    files = [PurePosixPath(image["src"]).name for image in site.select("img[src^='../']")]
    assert set(files) <= set(shown) and len(files) > 10
    for name in files:
        assert book[f"book/images/{name}"] == (HTML / "_images" / name).read_bytes()
    assert all(image.get("alt") for image in page.iter(f"{XHTML}img"))


def test_the_examples_of_the_formulas():
    tried = doctest.testmod(formulas)
    assert tried.attempted > 1 and tried.failed == 0


def test_what_was_folded(book):
    """Solutions at the end, the code of checks and figures out, no control that does nothing."""
    page = trees(book)["book/sam.xhtml"]
    assert [h.text for h in page.iter(f"{XHTML}h3")][-4:] == [f"Solution {i}" for i in (1, 2, 3, 4)]
    text = "".join(page.itertext())
    assert "def sam_step" in text and "def solution_1" in text and "right" in text
    assert "@title" not in text and "not answered yet" not in text and "plt.show" not in text
    left = {element.tag.removeprefix(XHTML) for element in page.iter()}
    assert not left & {"details", "button", "input", "script", "label", "svg", "form"}


def test_the_pdf(window, site, tmp_path):
    """Every line of the table of contents leads to its heading, on the page that it names."""
    from pypdf import PdfReader

    book = PdfReader(pdf.build(tmp_path / "some.pdf", window, site, SOME))
    assert book.metadata.title.startswith("ML Collage") and 15 < len(book.pages) < 60
    texts = [page.extract_text() for page in book.pages]
    for number, text in enumerate(texts[1:], start=2):
        assert str(number) in text.split(), "a page without its number"
    first = next(i for i, text in enumerate(texts) if "Contents" in text)
    targets = {name.removeprefix("/"): book.get_destination_page_number(where)
               for name, where in book.named_destinations.items()}  # fmt: skip
    bound = pages.read(SOME)
    for page in bound:
        for anchor, heading in [("top", page.title), *page.sections]:
            there = targets[f"{page.name}--{anchor}"]
            assert heading in " ".join(texts[there].split())
            line = re.search(re.escape(heading) + r"\s*(\d+)", " ".join(texts[first].split()))
            assert line and int(line[1]) == there + 1, heading
    assert not any("\\(" in text or "\\tag" in text for text in texts)
    pictures = sum(len(list(page.images)) for page in book.pages[first + 1 :])
    assert pictures == sum(len(page.body.select("img")) for page in bound)


def test_nothing_is_cut_on_the_right(window):
    """What is wider than a printed line is made smaller; what even so is too wide is named."""
    tab = window.new_page(viewport={"width": pdf.WIDTH, "height": 900})
    tab.set_content('<body style="margin:0"><table id="t" style="width:900px"><tr><td>wide</td></tr></table>'
                    '<div style="margin-left:2000px"><img src="far.png" width="9"></div></body>')  # fmt: skip
    named = tab.evaluate(pdf.FIT, pdf.WIDTH)
    assert tab.locator("#t").bounding_box()["width"] <= pdf.WIDTH + 1
    assert len(named) == 1 and named[0].endswith("far.png")
    tab.close()


def test_links_are_offered_where_the_files_are(tmp_path):
    landing = tmp_path / "index.html"
    landing.write_text(f"<p>before</p>{pages.NOT_OFFERED}<p>after</p>")
    pages.offer(tmp_path)
    assert landing.read_text() == f"<p>before</p>{pages.NOT_OFFERED}<p>after</p>"
    (tmp_path / "downloads").mkdir()
    name = pages.edition_name("epub")
    (tmp_path / "downloads" / name).write_bytes(bytes(3_400_000))
    for _ in range(2):
        pages.offer(tmp_path)
        assert landing.read_text() == ('<p>before</p><p id="downloads">The whole book as a file: '
                                       f'<a href="downloads/{name}">EPUB (3 MB)</a></p><p>after</p>')  # fmt: skip
