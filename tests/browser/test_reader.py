"""What is there for the reader: a quiz, ticks that stay in the browser, folds, a way home."""

import re

import pytest
from test_site import violations
from visit import Visit, width

from collage.page import claims
from tools.site import HTML, PREFIX, chromium, pages

pytestmark = pytest.mark.browser
if not chromium():
    pytest.skip("no Chromium here", allow_module_level=True)

PHONE = {"width": 390, "height": 844}
SECTIONS = "article.bd-article > section > section"


def test_a_quiz_by_keyboard(window, site):
    """Choose with the arrows, press Check, hear what the choice is worth; then with the folds open, axe."""
    with Visit(window, site, "chapters/sam.html", viewport=PHONE) as visit:
        tab = visit.tab
        question = tab.locator(".quiz-question").first
        said, right = question.locator("[role=status]"), question.locator("details [data-right]")
        place = right.evaluate("li => [...li.parentElement.children].indexOf(li)")
        choices = question.get_by_role("radio")
        assert tab.locator(".quiz-question fieldset > legend").count() == 5
        question.get_by_role("button", name="Check").focus()
        tab.keyboard.press("Enter")
        assert said.inner_text() == "Choose an answer first."
        choices.nth(0).focus()
        tab.keyboard.press("Space")
        for step in range(choices.count()):
            assert choices.nth(step).is_checked() and said.inner_text() == ""
            tab.keyboard.press("Tab")
            tab.keyboard.press("Enter")
            assert said.inner_text().startswith("Right." if step == place else "Not so.")
            why = question.locator("details li").nth(step).text_content()
            assert said.inner_text() == why
            tab.keyboard.press("Shift+Tab")
            tab.keyboard.press("ArrowDown")
        tab.evaluate("document.querySelectorAll('.quiz details').forEach(d => d.open = true)")
        for theme in ("light", "dark"):
            tab.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
            assert violations(tab, ".quiz") == [], theme
        assert (
            tab.evaluate("Object.keys(localStorage).filter(k => /quiz|ml-collage/.test(k))") == []
        )
        assert visit.strangers == visit.complaints == []


def test_every_chapter_has_a_quiz_that_needs_no_script():
    for name in claims():
        text = (HTML / "chapters" / f"{name}.html").read_text()
        assert text.count('class="quiz-question"') == text.count("<li data-right>") == 5
        assert text.index('id="what-to-remember"') < text.index('id="quiz"')
        assert 'href="#quiz"' in text, "not in the contents"


def test_ticks_are_kept_and_forgotten(window, site):
    """By keyboard; on the card; gone at one press; the clearing button is there only then."""
    with Visit(window, site, "chapters/sam.html") as visit:
        tab = visit.tab
        sections = tab.evaluate(f"[...document.querySelectorAll('{SECTIONS}')].map(s => s.id)")
        assert tab.locator("button.tick").count() == sections.index("appendix") > 8
        tick = tab.locator("#the-method > button.tick")
        named = tab.get_by_role("button", name="Mark as read: The method", exact=True)
        assert named.count() == 1 and tick.inner_text() == "Mark as read"
        tick.focus()
        tab.keyboard.press("Enter")
        assert tick.get_attribute("aria-pressed") == "true" and "✓" in tick.inner_text()
        named = tab.get_by_role("button", name="✓ Read: The method", exact=True)
        assert named.count() == 1 and tick.inner_text() == "✓ Read"
        assert tab.locator(".bd-sidebar-secondary a.read").get_attribute("href") == "#the-method"
        tab.reload()
        assert tick.get_attribute("aria-pressed") == "true"
        tab.goto(site + "index.html")
        card = tab.locator("li.paper", has=tab.locator("a[href='chapters/sam.html']"))
        assert f"1 of {sections.index('appendix')} sections read" in card.inner_text()
        assert tab.locator("p.read").count() == 1
        assert violations(tab, "ul.gallery") == []
        tab.get_by_role("button", name="Clear my ticks").press("Enter")
        assert tab.locator("p.read").count() == 0
        assert tab.evaluate("localStorage.getItem('ml-collage:read')") is None
        assert tab.get_by_role("button", name="Clear my ticks").is_hidden()
        assert visit.strangers == visit.complaints == []


BLOCKED = """Object.defineProperty(window, "localStorage",
  {get() { throw new DOMException("no", "SecurityError"); }})"""


def test_ticks_without_a_place_to_keep_them(window, site):
    """A blocked store costs the memory, not the page."""
    context = window.new_context()
    tab, errors = context.new_page(), []
    # The theme reads the store without asking: its complaints are not ours.
    tab.on("pageerror", lambda error: errors.append(error.stack))
    tab.add_init_script(BLOCKED)
    tab.goto(site + "chapters/claims.html")
    assert tab.evaluate("(() => { try { localStorage } catch { return true } })()")
    tab.goto(site + "chapters/sam.html")
    tick = tab.locator("#the-method > button.tick")
    for pressed in ("true", "false"):
        tick.click()
        assert tick.get_attribute("aria-pressed") == pressed
    assert not [e for e in errors if re.search(r"_static/(progress|quiz|folds)", e)]
    context.close()


def test_a_full_store_costs_no_tick(window, site):
    """What can be read and not written is older than the page: a second tick does not undo the first."""
    context = window.new_context()
    tab = context.new_page()
    tab.add_init_script(
        "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }"
    )
    tab.goto(site + "chapters/sam.html")
    ticks = tab.locator("button.tick")
    for place in (0, 1):
        ticks.nth(place).click()
    assert [t.get_attribute("aria-pressed") for t in ticks.all()[:3]] == ["true", "true", "false"]
    context.close()


def test_a_damaged_store_counts_as_empty(window, site):
    with Visit(window, site, "index.html") as visit:
        for kept in (
            "[]",
            "{",
            "7",
            '{"sam": {"read": 7}}',
            '{"sam": null}',
            '{"sam": {"read": ["a"]}}',
        ):
            visit.tab.evaluate("kept => localStorage.setItem('ml-collage:read', kept)", kept)
            visit.tab.reload()
            assert (
                visit.tab.locator(".forget").is_hidden()
                and visit.tab.locator("p.read").count() == 0
            )
        assert visit.complaints == []


def test_the_first_card_is_alive(window, site):
    """Its figure runs, and a press on it does not open the chapter; without scripts its picture stands."""
    with Visit(window, site, "index.html", viewport=PHONE) as visit:
        tab = visit.tab
        words = tab.locator("h1 ~ p").all_inner_texts()
        assert "training loop" in words[0] and "digests" in words[1]
        tally = tab.locator(".tally").bounding_box()
        assert tally["y"] + tally["height"] < PHONE["height"], "not in the first screen"
        canvas = tab.locator("li.first figure.demo canvas")
        canvas.scroll_into_view_if_needed()
        tab.wait_for_function("document.querySelector('figure.demo').live?.model")
        canvas.click()
        assert tab.url.startswith(site + "index.html")
        assert width(tab)[0] <= PHONE["width"]
        tab.locator("li.first h3 a").click()
        assert "chapters/sam.html" in tab.url
        assert visit.strangers == visit.complaints == []
    with Visit(window, site, "index.html", java_script_enabled=False) as visit:
        picture = visit.tab.locator("li.first figure.demo img")
        assert picture.is_visible() and picture.get_attribute("alt")


def test_claims_and_results_on_a_phone(window, site):
    """Short pages of folds, each readable when it is open; an address opens what it points at."""
    for page, fold, most in (
        ("claims", "details.claim", 10_500),
        ("results", "details.record", 15_000),
    ):
        address = f"chapters/{page}.html"
        with Visit(window, site, address, viewport=PHONE) as visit:
            tab = visit.tab
            assert tab.evaluate("document.documentElement.scrollHeight") <= most
            assert tab.locator(f"{fold}[open]").count() == 0
            name = {"claims": "claim-sam-3", "results": "record-sam-steps_cpu"}[page]
            tab.evaluate(f"location.hash = '{name}'")
            tab.wait_for_selector(f"#{name}[open] p >> nth=0")
            tab.evaluate("document.querySelectorAll('main details').forEach(d => d.open = true)")
            assert width(tab)[0] <= PHONE["width"]
            one = f"[id='{name}']"
            for theme in ("light", "dark"):
                tab.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
                assert violations(tab, one) == [], (page, theme)
    names = re.findall(r'id="claim-(\w+-\d)"', (HTML / "chapters" / "claims.html").read_text())
    assert names == [f"{name}-{i}" for name, c in claims().items()
                     for i in range(1, len(c["claims"]) + 1)]  # fmt: skip


def test_claims_link_to_sections_that_exist():
    text = (HTML / "chapters" / "claims.html").read_text()
    links = re.findall(r'href="(\w+\.html)#([^"]+)">(?:<[^>]+>)?(?:Shown|Recorded|Paper)', text)
    assert len(links) == 47
    for page, anchor in links:
        assert f'id="{anchor}"' in (HTML / "chapters" / page).read_text(), f"{page}#{anchor}"


def test_a_page_that_is_not_there_leads_home_on_a_phone(window, site):
    with Visit(window, site, "no/such/page.html", viewport=PHONE) as visit:
        links = visit.tab.locator("article a:visible").evaluate_all(
            "all => all.map(a => a.pathname)"
        )
        assert {PREFIX + f"chapters/{name}.html" for name in claims()} < set(links)
        assert {link.removeprefix(PREFIX) for link in links} <= {*pages(), "search.html"}
