"""The built book in headless Chromium: quiet, self-contained, typeset, reachable by everyone."""

import importlib
import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlparse

import pytest
from visit import Visit, width

from collage.page import claims
from tools.site import HTML, PREFIX, ROOT, chromium, pages

pytestmark = pytest.mark.browser
AXE_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]

if not chromium() and not os.environ.get("CI"):
    pytest.skip("no Chromium here: the browser tests are skipped (set CHROMIUM to its path)",
                allow_module_level=True)  # fmt: skip
assert chromium(), "CI needs a Chromium for the browser tests"
assert (HTML / "index.html").exists(), "build the book first: make book"


every_page = pytest.mark.parametrize("page", pages())


@every_page
def test_page(window, site, page):
    """One visit as three readers: at a desk, in the dark, on a phone."""
    with Visit(window, site, page, color_scheme="light") as visit:
        tab = visit.tab
        formulas = tab.locator(".math").count()
        assert tab.locator("mjx-container").count() >= formulas
        assert tab.locator("mjx-merror, .MathJax_Error").count() == 0
        assert tab.title()
        assert violations(tab) == [], "in light"
        tab.emulate_media(color_scheme="dark")
        tab.wait_for_function("document.documentElement.dataset.theme === 'dark'")
        tab.evaluate("Promise.allSettled(document.getAnimations().map(a => a.finished))")
        assert violations(tab) == [], "in the dark"
        tab.set_viewport_size({"width": 390, "height": 844})
        page_width, window_width = width(tab)
        assert page_width <= window_width, "sideways scroll on a phone"
        assert visit.strangers == []
        assert visit.complaints == []


def violations(tab, within=None):
    """What keeps somebody out: axe's serious and critical findings, within what a selector names."""
    from axe_playwright_python.sync_playwright import Axe

    # Without preload: axe asks for imported style sheets at the wrong address.
    options = {"runOnly": {"type": "tag", "values": AXE_TAGS}, "preload": False}
    found = Axe().run(tab, within, options).response["violations"]
    return [(v["id"], v["impact"], [n["html"][:120] for n in v["nodes"][:3]])
            for v in found if v["impact"] in ("serious", "critical")]  # fmt: skip


@every_page
def test_links_inside_the_book_lead_somewhere(page):
    text = (HTML / page).read_text()
    base = (HTML / page).parent
    for link in re.findall(r'href="([^"#?]+)(?:[#?][^"]*)?"', text):
        if urlparse(link).scheme or link.startswith("//"):
            continue
        public = link.startswith(PREFIX)
        target = HTML / link.removeprefix(PREFIX) if public else base / link
        assert target.exists() or link == PREFIX, f"{page} links to {link}"


def test_social_cards_sitemap_and_404(window, site):
    card = (HTML / "chapters" / "sam.html").read_text()
    assert re.search(r'property="og:image" content="https://[^"]+/_static/collages/sam\.png"', card)
    assert re.search(r'property="og:description" content="[^"$\\]+"', card)
    assert "<loc>https://" in (HTML / "sitemap.xml").read_text()
    with Visit(window, site, "no/such/page.html") as visit:
        assert "404" in visit.tab.content() or "not found" in visit.tab.content().lower()
        assert visit.strangers == []
        assert not [c for c in visit.complaints if "no/such/page" not in c and "404" not in c]


def test_every_page_has_a_twin_for_programs():
    """Markdown without pictures' bytes, listed in llms.txt; prose, code and verdicts are in it."""
    listed = (HTML / "llms.txt").read_text()
    for page in pages():
        if page != "404.html":
            name = page.removesuffix(".html")
            assert f"/{name}.md)" in listed, page
            text = (HTML / f"{name}.md").read_text()
            assert "base64" not in text and len(text) < 200_000
    text = (HTML / "chapters" / "sam.md").read_text()
    assert "## What to remember" in text and "def sam_step(" in text and "✓ five lines" in text
    assert "*Figure: " in text and claims("sam")["line"] in listed


def test_gallery(window, site):
    with Visit(window, site, "index.html") as visit:
        assert visit.tab.locator("ul.gallery li.paper").count() == 8
        links = visit.tab.locator("ul.gallery h3 a")
        order = re.findall(r"\]\((\w+)\.ipynb\) \|", (ROOT / "chapters" / "course.md").read_text())
        assert [a.get_attribute("href") for a in links.all()] == [
            f"chapters/{n}.html" for n in order
        ]
        counts = visit.tab.locator(".tally strong").all_inner_texts()
        assert sum(map(int, counts)) == 47
        picture = visit.tab.locator("ul.gallery img[src*=collages]").first
        assert picture.evaluate("i => i.complete && i.naturalWidth") == 1600
        links.first.click()
        assert visit.tab.locator("h1").first.inner_text()[:2].isdigit()


def test_the_package_page_has_every_public_name(window, site):
    """On top and in a section each, whatever the doors export; a fold opens on the docstring."""
    names = [f"collage.{room}.{name}" for room in claims()
             for name in importlib.import_module(f"collage.{room}").__all__]  # fmt: skip
    with Visit(window, site, "chapters/api.html", viewport={"width": 390, "height": 844}) as visit:
        links = visit.tab.locator("table.api-names td + td a")
        assert [link.get_attribute("href") for link in links.all()] == [
            f"#{name}" for name in names
        ]
        sections = visit.tab.locator("section").evaluate_all("all => all.map(s => s.id)")
        assert [name for name in sections if name.count(".") == 2] == names
        fold = visit.tab.locator("details.api").first
        assert not fold.locator("pre").first.is_visible()
        fold.locator("summary").click()
        assert fold.locator("pre").first.is_visible()


def test_search_finds_a_chapter(window, site):
    with Visit(window, site, "search.html?q=sharpness") as visit:
        visit.tab.wait_for_selector("#search-results li a", timeout=15_000)
        hits = visit.tab.locator("#search-results li a").all_inner_texts()
        assert any("Sharpness" in hit for hit in hits)


def chapters_with_flipbook():
    return [p for p in pages() if 'class="flipbook"' in (HTML / p).read_text()]


@pytest.mark.parametrize("page", chapters_with_flipbook())
def test_flipbook_moves_by_mouse_and_by_keyboard(window, site, page):
    shown = "b => [...b.querySelectorAll('img')].findIndex(i => !i.hidden)"
    with Visit(window, site, page) as visit:
        for book in visit.tab.locator(".flipbook").all():
            count = "b => [...b.querySelectorAll('img')].filter(i => !i.hidden).length"
            assert book.evaluate(count) == 1
            for slider in book.locator("input").all():
                slider.evaluate("i => i.scrollIntoView({block: 'center', behavior: 'instant'})")
                box, before = slider.bounding_box(), book.evaluate(shown)
                middle = box["y"] + box["height"] / 2
                visit.tab.mouse.click(box["x"] + 3, middle)  # far left
                left = book.evaluate(shown)
                visit.tab.mouse.click(box["x"] + box["width"] - 3, middle)  # far right
                right = book.evaluate(shown)
                assert left != right and before in range(200)
                words = slider.evaluate("i => i.dataset.names.split('|').at(-1)")
                label = slider.locator("xpath=..")
                assert label.locator("output").inner_text() == words
                assert slider.get_attribute("aria-valuetext") == words
                slider.focus()
                visit.tab.keyboard.press("ArrowLeft")
                assert book.evaluate(shown) not in (right, -1)
        assert visit.complaints == []


def test_dark_mode_by_the_button(window, site):
    with Visit(window, site, "index.html") as visit:
        seen = set()
        for _ in range(3):
            visit.tab.locator("button.theme-switch-button").first.click()
            seen.add(visit.tab.evaluate("document.documentElement.dataset.theme"))
        assert seen == {"light", "dark"}


def test_live_panel_in_jupyterlab(window, tmp_path):
    """Run the live panel's own cells in a real JupyterLab, move a slider, see another picture."""
    import json
    import shutil
    import socket
    import time

    path = ROOT / "chapters" / "sam.ipynb"
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    wanted = ("import math", "def two_wells", "import ipywidgets")
    kept = [c for c in cells if any(word in "".join(c["source"]) for word in wanted)]
    assert len(kept) == 3
    for cell in kept:
        cell["outputs"], cell["execution_count"] = [], None
    book = json.loads(path.read_text()) | {"cells": kept}
    (tmp_path / "panel.ipynb").write_text(json.dumps(book))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    lab = shutil.which("jupyter-lab", path=str(Path(os.sys.executable).parent))
    assert lab, "JupyterLab is one of the pins"
    log = (tmp_path / "lab.log").open("w")
    server = subprocess.Popen(
        [lab, "--no-browser", f"--port={port}", "--ServerApp.port_retries=0", "--allow-root",
         "--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path}"],
        stdout=log, stderr=log, cwd=tmp_path, env={**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path)},
    )  # fmt: skip
    try:
        context = window.new_context(viewport={"width": 1300, "height": 1100})
        tab = context.new_page()
        address = f"http://127.0.0.1:{port}/lab/tree/panel.ipynb?reset"
        for _ in range(60):
            try:
                tab.goto(address)
                break
            except Exception:
                time.sleep(1)
        tab.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=90_000)
        tab.wait_for_timeout(2000)
        tab.locator(".lm-MenuBar-item", has_text="Run").first.click()
        tab.get_by_text("Run All Cells", exact=True).click()
        picture = ".jp-OutputArea .widget-image, .jp-OutputArea img.jupyter-widgets"
        tab.wait_for_selector(picture, timeout=120_000)
        before = tab.locator(picture).first.evaluate(PIXELS)
        slider = tab.locator(".jp-OutputArea .noUi-handle").first
        slider.focus()
        for _ in range(5):
            tab.keyboard.press("ArrowRight")
        for _ in range(60):
            tab.wait_for_timeout(500)
            after = tab.locator(picture).first.evaluate(PIXELS)
            if after != before:
                break
        assert after != before
        context.close()
    finally:
        server.terminate()
        server.wait(20)
        log.close()


PIXELS = """async image => {
  const data = await (await fetch(image.src)).arrayBuffer();
  const hash = await crypto.subtle.digest("SHA-256", data);
  return [...new Uint8Array(hash)].join(",");
}"""
