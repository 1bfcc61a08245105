"""The live figures: they start, answer hand and keyboard, and stop rather than show what is no number."""

import json

import pytest
import torch
from live import calls
from visit import Visit

from tools.site import HTML, ROOT, chromium, pages

pytestmark = pytest.mark.browser
if not chromium():
    pytest.skip("no Chromium here", allow_module_level=True)

LIVE = ROOT / "assets" / "live"
SHARED = {"adam", "live", "pen", "random"}
ALIVE = [p for p in pages() if 'class="demo"' in (HTML / p).read_text()]
DEMOS = [p for p in ALIVE if p != "index.html"]  # which shows one chapter's
with_demo = pytest.mark.parametrize("page", DEMOS)
SAID = "figure.demo .demo-say"


def started(visit):
    visit.tab.locator("figure.demo canvas").scroll_into_view_if_needed()
    visit.tab.wait_for_function("document.querySelector('figure.demo').live?.model")
    return visit.tab


def pixels(tab):
    return tab.evaluate("document.querySelector('figure.demo canvas').toDataURL()")


def test_every_module_is_on_its_page():
    modules = {p.stem for p in LIVE.glob("*.js")} - SHARED
    assert modules == {p.removeprefix("chapters/").removesuffix(".html") for p in DEMOS} != set()


@with_demo
def test_a_demo_answers_hand_and_keyboard(window, site, page):
    with Visit(window, site, page) as visit:
        tab = started(visit)
        assert tab.locator("figure.demo img").is_hidden() and tab.locator(SAID).inner_text()
        tab.evaluate("document.querySelector('figure.demo').live.playing = false")
        for control in tab.locator("figure.demo input[type=range]").all():
            before = control.input_value()
            control.focus()
            tab.keyboard.press("ArrowRight")
            tab.keyboard.press("ArrowRight")
            assert control.input_value() != before or before == control.get_attribute("max")
            label = control.get_attribute("aria-valuetext")
            assert label == control.locator("xpath=..").locator("output").inner_text()
        for group in tab.locator("figure.demo fieldset").all():
            group.locator("input").last.check()
        link = tab.locator("figure.demo a", has_text="Link to this setting").get_attribute("href")
        state = tab.evaluate("({...document.querySelector('figure.demo').live.state})")
        assert link.startswith("#demo?")
        moves = tab.evaluate("document.querySelector('figure.demo').live.demo.moves ?? []")
        if moves:
            tab.locator("figure.demo canvas").focus()
            tab.keyboard.press("ArrowRight")
            after = tab.evaluate("({...document.querySelector('figure.demo').live.state})")
            assert after[moves[0]] != state[moves[0]]
        for button in tab.locator("figure.demo button").all():
            button.focus()
            tab.keyboard.press("Enter")
        assert "stopped" not in tab.locator(SAID).inner_text()
        assert visit.complaints == [] and visit.strangers == []
    with Visit(window, site, page + link) as visit:
        there = started(visit).evaluate("({...document.querySelector('figure.demo').live.state})")
        assert there == state, "the link carries the setting"


@with_demo
def test_a_setting_that_makes_no_sense_is_the_default(window, site, page):
    """Of an address: words, nothing, NaN, numbers out of range, a name that every object has."""
    name = page.removeprefix("chapters/").removesuffix(".html")
    with Visit(window, site, "404.html") as visit:
        states, defaults = visit.tab.evaluate("""async ([folder, name, values]) => {
          const { stateFrom } = await import(folder + 'live.js');
          const { controls } = (await import(folder + name + '.js')).demo;
          const asked = (value) => '#demo?' + Object.keys(controls).map((k) => k + '=' + value).join('&');
          const defaults = Object.fromEntries(Object.entries(controls).map(([k, c]) => [k, c.value]));
          return [values.map((value) => stateFrom(controls, asked(value))), defaults];
        }""", [f"{site}_static/live/", name, ["nothing", "", "NaN", "1e99", "-Infinity", "__proto__", "toString"]])  # fmt: skip
    assert defaults and all(state == defaults for state in states)


@with_demo
def test_less_motion_and_the_dark(window, site, page):
    """Nothing moves by itself where the reader asked for that; the colours follow the page."""
    with Visit(window, site, page, reduced_motion="reduce") as visit:
        tab = started(visit)
        before = pixels(tab)
        tab.wait_for_timeout(400)
        assert pixels(tab) == before
        tab.evaluate("document.documentElement.dataset.theme = 'dark'")
        tab.wait_for_timeout(200)
        assert pixels(tab) != before


@with_demo
def test_what_is_no_number_stops_the_demo(window, site, page):
    with Visit(window, site, page) as visit:
        tab = started(visit)
        tab.evaluate("""() => {
          const live = document.querySelector('figure.demo').live, at = live.pen.at;
          live.pen.at = function (point, what) { return at.call(this, [NaN, point[1]], what); };
          live.show();
        }""")
        assert "The demo stopped:" in tab.locator(SAID).inner_text()
        assert "is not a number" in tab.locator(SAID).inner_text()
        assert visit.complaints == []


def broken_by(body):
    """An answer to a request: none, or this text."""
    if body is None:
        return lambda route: route.abort()
    return lambda route: route.fulfill(body=body, content_type="application/json")


@with_demo
def test_without_its_file_or_script_the_picture_stays(window, site, page):
    name = page.removeprefix("chapters/").removesuffix(".html")
    broken = [(f"{name}.js", None)]
    if (LIVE / f"{name}.json").exists():
        broken += [(f"{name}.json", None), (f"{name}.json", "{"), (f"{name}.json", "{}")]
    for file, body in broken:
        context = window.new_context()
        tab = context.new_page()
        tab.route(f"**/live/{file}", broken_by(body))
        tab.goto(site + page)
        tab.wait_for_selector(SAID)
        assert "could not start" in tab.locator(SAID).inner_text(), (file, body)
        assert tab.locator("figure.demo img").is_visible()
        assert tab.locator("figure.demo canvas").count() == 0
        context.close()
    context = window.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(site + page)
    assert tab.locator("figure.demo img").is_visible()
    context.close()


@with_demo
def test_a_page_loads_little(page):
    name = page.removeprefix("chapters/").removesuffix(".html")
    scripts = [LIVE / f"{part}.js" for part in (*SHARED, name)]
    assert sum(p.stat().st_size for p in scripts) <= 60_000
    assert sum(p.stat().st_size for p in LIVE.glob(f"{name}.json")) <= 200_000
    assert len((LIVE / f"{name}.js").read_text().splitlines()) <= 200
    for path in LIVE.glob(f"{name}.json"):
        json.loads(path.read_text())


def test_only_pages_with_a_demo_load_its_script():
    for page in pages():
        assert ("live/live.js" in (HTML / page).read_text()) == (page in ALIVE)


def test_the_noise_is_normal(window, site):
    (z,) = calls(
        window,
        site,
        "random",
        "(m, n) => { const f = m.normals(1); return Array.from({length: n}, f); }",
        [20_000],
    )
    z = torch.tensor(z).double()
    assert (
        z.mean().abs() < 0.03
        and abs(z.std() - 1) < 0.03
        and abs((z.abs() < 1).double().mean() - 0.683) < 0.015
    )
