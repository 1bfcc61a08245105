"""Anchors, the glossary's words, search and what to cite, as a reader of the built book meets them."""

import importlib
import json
import re
from functools import cache

import pytest
from test_site import pytestmark  # noqa: F401  (no browser: skipped)
from visit import Visit

from collage.page import claims
from tools.site import HTML, ROOT

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
SEEN = """e => { const b = e.getBoundingClientRect();
  return b.height > 0 && b.top >= 0 && b.top < innerHeight; }"""


@cache
def text(page):
    return (HTML / "chapters" / f"{page}.html").read_text()


@cache
def ids(page):
    return re.findall(r'\bid="([^"]+)"', text(page))


def numbered(page, kind):
    return [int(n) for n in re.findall(rf'id="{kind}-(\d+)"', text(page))]


@pytest.mark.parametrize("room", claims())
def test_every_claim_equation_and_exercise_has_its_anchor(room):
    cells = json.loads((ROOT / "chapters" / f"{room}.ipynb").read_text())["cells"]
    prose = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    tags = list(map(int, re.findall(r"\\tag\{(\d+)\}", prose)))
    exercises = list(map(int, re.findall(r"^\*\*Exercise (\d+) ", prose, re.M)))
    every = list(range(1, len(claims(room)["claims"]) + 1))
    assert tags and numbered(room, f"{room}-eq") == tags
    assert len(exercises) >= 4 and numbered(room, f"{room}-exercise") == exercises
    assert numbered(room, f"claim-{room}") == every
    assert numbered("claims", f"claim-{room}") == every
    for kind, numbers in (("eq", tags), ("exercise", exercises)):
        for number in numbers:  # the sign stands right behind the place's own first part
            sign = rf'</(?:div|strong)>\s*<a class="headerlink" href="#{room}-{kind}-{number}"'
            assert re.search(sign, text(room)), f"{kind} {number}"


@pytest.mark.parametrize("page", [*claims(), "claims", "glossary", "api"])
def test_links_to_places_lead_to_them(page):
    """An anchor stands once, and what names one in the book finds it."""
    assert len(ids(page)) == len(set(ids(page)))
    for other, name in re.findall(r'href="(?:(\w+)\.html)?#([^"]+)"', text(page)):
        assert name in ids(other or page), f"{page}: {other}#{name}"


def test_from_a_claim_to_its_cell_and_back(window, site):
    with Visit(window, site, "chapters/claims.html") as visit:
        tab = visit.tab
        claim = tab.locator("#claim-sam-2")
        claim.evaluate("c => { c.open = true; }")  # where it is a fold
        claim.get_by_role("link", name="Check 1").click()
        tab.wait_for_url("**/sam.html#cell-*")
        cell = tab.locator(tab.evaluate("location.hash"))
        assert cell.evaluate(SEEN)
        cell.get_by_role("link", name="bears on claim 2").first.click()
        card = tab.locator("#claim-sam-2")
        assert tab.url.endswith("#claim-sam-2") and card.evaluate(SEEN)
        sign = card.locator(".headerlink")
        tab.mouse.move(0, 0)
        assert sign.evaluate("s => getComputedStyle(s).opacity") == "0"
        card.hover()
        assert sign.evaluate("s => getComputedStyle(s).opacity") == "1"
        card.get_by_role("link", name="among all claims").click()
        tab.wait_for_url("**/claims.html#claim-sam-2")
        assert tab.locator("#claim-sam-2").evaluate(SEEN)
        assert visit.complaints == []


@pytest.mark.parametrize("room", claims())
def test_a_word_of_the_glossary_is_linked_once_and_in_sentences_only(room):
    found = re.findall(r'class="term" id="use-([^"]+)" href="glossary\.html#([^"]+)"', text(room))
    assert len(found) > 2 and len(found) == len(set(found))
    assert all(use == term and term in ids("glossary") for use, term in found)
    body = re.sub(r'<a class="term".*?</a>', "TERM", text(room), flags=re.DOTALL)
    tags = ("h1", "h2", "h3", "pre", "code", "table", "a", "figure")
    parts = [rf"<{tag}\b[^>]*>(.*?)</{tag}>" for tag in tags]
    parts += [r'<(?:span|div) class="math[^>]*>(.*?)</(?:span|div)>']
    for part in parts:
        for inside in re.findall(part, body, re.DOTALL):
            assert "TERM" not in inside, part


def test_what_a_word_means_by_mouse_and_by_keyboard(window, site):
    with Visit(window, site, "chapters/bmg.html") as visit:
        tab, box = visit.tab, visit.tab.locator("#meaning")
        word = tab.locator("#use-term-inductive-bias")
        assert word.get_attribute("title") is None and not box.is_visible()
        word.hover()
        assert "takes for granted" in box.inner_text()
        box.hover()
        tab.wait_for_timeout(400)
        assert box.is_visible(), "the pointer may rest on it"
        tab.keyboard.press("Escape")
        assert not box.is_visible()
        tab.mouse.move(0, 0)
        word.focus()
        assert box.is_visible() and word.get_attribute("aria-describedby") == "meaning"
        tab.keyboard.press("Enter")
        tab.wait_for_url("**/glossary.html#term-inductive-bias")
        assert tab.locator("#term-inductive-bias").evaluate(SEEN)
        assert visit.complaints == []


def test_what_a_word_means_on_a_phone(window, site):
    with Visit(window, site, "chapters/bmg.html", **PHONE) as visit:
        tab, box = visit.tab, visit.tab.locator("#meaning")
        words = tab.locator("a.term").all()
        for word in (*words[:3], words[-1]):
            tab.keyboard.press("Escape")
            word.tap()
            assert box.is_visible() and "/bmg.html" in tab.url
            left, right = box.evaluate(
                "b => [b.getBoundingClientRect().left, b.getBoundingClientRect().right]"
            )
            assert left >= 0 and right <= 390
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        box.get_by_role("link", name="Glossary").tap()
        tab.wait_for_url("**/glossary.html#term-*")


@pytest.mark.parametrize(("query", "first"), [
    ("meta-gradient", "37 ·"), ("ridge", "40 ·"), ("sharpness", "36 ·"), ("convex hull", "39 ·"),
    ("perturbation", None),
])  # fmt: skip
def test_search_finds_the_chapter_that_explains_it_and_excerpts_can_be_read(
    window, site, query, first
):
    with Visit(window, site, f"search.html?q={query}") as visit:
        results = visit.tab.locator("#search-results")
        visit.tab.wait_for_selector("#search-results p.context", timeout=15_000)
        visit.tab.wait_for_load_state("networkidle")
        if first:
            assert results.locator("li a").first.inner_text().startswith(first)
        excerpts = results.locator("p.context").all_inner_texts()
        assert len(excerpts) > 1 and any(query[:5] in words for words in excerpts)
        for words in excerpts:
            assert not re.search(r"\\\w|\\[()\[\]]|\bimport \w|[_^]\{|Show the code", words), words
        assert visit.complaints == []


@pytest.mark.parametrize("page", ["index", "chapters/sam", "chapters/nbeats"])
def test_what_to_cite_is_copied_by_a_button(window, site, page):
    granted = ["clipboard-read", "clipboard-write"]
    with Visit(window, site, f"{page}.html", permissions=granted) as visit:
        fold = visit.tab.locator("details.edition")
        assert fold.locator("summary").inner_text().startswith("Edition ")
        assert not fold.locator("pre").is_visible()
        fold.locator("summary").click()
        fold.hover()
        fold.locator("button.copybtn").click()
        copied = visit.tab.evaluate("navigator.clipboard.readText()")
        assert (copied.startswith("@") and f"{page}.html" in copied) or page == "index"
        assert copied.strip() == fold.locator("pre").inner_text().strip()


def test_every_page_says_which_edition_it_is():
    for room in claims():
        start = text(room).index("</h1>", text(room).index('<article class="bd-article'))
        assert "Edition " in text(room)[start : start + 400], room
        run = json.loads((ROOT / f"chapters/{room}.ipynb").read_text())["metadata"].get("verified")
        assert ("verified on" in text(room)) == bool(run), "a date comes from a run alone"
    for page in HTML.glob("chapters/*.html"):
        assert re.search(r"<p>Edition \d+\.\d+</p>", page.read_text()), page


def test_examples_of_the_package_are_seen_and_chapters_lead_to_them(window, site):
    with Visit(window, site, "chapters/api.html") as visit:
        for room in claims():
            assert f'href="api.html#collage.{room}"' in text(room)
            door = importlib.import_module(f"collage.{room}")
            shown = 0
            for name in door.__all__:
                section = visit.tab.locator(f'[id="collage.{room}.{name}"]')
                if ">>> " not in (getattr(door, name).__doc__ or ""):
                    continue
                code = section.locator("pre", has_text=">>> ").first
                assert code.is_visible(), name
                shown += 1
            assert shown > 2, room
