"""What nbval does not see: hygiene, the shape of a chapter, the claims, the badges."""

import ast
import base64
import html
import json
import re
from pathlib import Path

import pytest
import yaml

import collage
from collage.page import claims
from collage.page.exercises import CHECKERS

ROOT = Path(__file__).parent.parent
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
REPOSITORY = CONFIG["repository"]["url"]
BRANCH = CONFIG["repository"]["branch"]
NOTEBOOKS = sorted((ROOT / "chapters").glob("*.ipynb"))
CHAPTERS = [p for p in NOTEBOOKS if p.stem in claims()]
PARTS = [
    "The summary",
    "Move it",
    "The method",
    "The math",
    "The experiment",
    "How the claims fared",
    "What to remember",
    "At scale",
    "Details that are often wrong",
    "What came after",
    "Appendix",
    "References",
]

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
chapters = pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
FOLDED = {"hide-input", "hide-cell", "remove-input"}


def read(path):
    return json.loads(path.read_text())["cells"]


def source(cell):
    return "".join(cell["source"])


def code(path):
    return [c for c in read(path) if c["cell_type"] == "code"]


def headings(path):
    text = "\n".join(source(c) for c in read(path) if c["cell_type"] == "markdown")
    return re.findall(r"^(#+) (.+)$", text, re.M)


def slug(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def problems(cells, meta):
    """Everything wrong with the cells of a notebook, in words."""
    found, count = [], 0
    if "widgets" in meta:
        found.append("widget state is saved")
    if meta.get("language_info", {}).get("pygments_lexer") != "ipython3":
        found.append("no language_info")
    for i, cell in enumerate(cells):
        if "execution" in cell["metadata"]:
            found.append(f"cell {i}: execution timestamps")
        if cell["cell_type"] != "code":
            continue
        text, tags = source(cell), cell["metadata"].get("tags", [])
        count += 1
        if cell["execution_count"] != count:
            found.append(f"cell {i}: executed as {cell['execution_count']}, wanted {count}")
        if text.rstrip().endswith(";"):
            found.append(f"cell {i}: trailing semicolon")
        long = [line for line in text.split("\n") if len(line) > 72]
        if long:
            found.append(f"cell {i}: {len(long[0])} characters: {long[0]}")
        if len(text.split("\n")) > (45 if FOLDED & set(tags) else 21):
            found.append(f"cell {i}: {len(text.splitlines())} lines")
        for output in cell["outputs"]:
            kind, data = output["output_type"], output.get("data", {})
            if kind == "error" and "raises-exception" not in tags:
                found.append(f"cell {i}: an error output")
            if output.get("name") == "stderr":
                found.append(f"cell {i}: stderr output")
            if "image/png" in data:
                if not cell["metadata"].get("mystnb", {}).get("image", {}).get("alt"):
                    found.append(f"cell {i}: a figure without alt text")
                base64.b64decode(data["image/png"], validate=False)
            if any("widget-view" in key for key in data):
                found.append(f"cell {i}: a widget view is saved")
    return found


@notebooks
def test_hygiene(path):
    whole = json.loads(path.read_text())
    assert problems(whole["cells"], whole["metadata"]) == []
    text = path.read_text()
    assert not re.search(r"(?<![\w.])/(home|root|work|tmp)/", text), "a machine path"
    plain = re.sub(r"[A-Za-z0-9+/]{200,}", "", text)  # pictures may hold anything
    assert not re.search(r"0x[0-9a-f]{6,}", plain), "an object's address"
    assert path.stat().st_size < 1_200_000


def test_hygiene_sees_a_bad_notebook():
    cell = {"cell_type": "code", "execution_count": 1, "metadata": {}, "source": ["x = 1"],
            "outputs": []}  # fmt: skip
    meta = {"language_info": {"pygments_lexer": "ipython3"}}
    assert problems([cell], meta) == []
    png = {"output_type": "display_data", "data": {"image/png": "aGk="}}
    bad = [{"execution_count": None}, {"execution_count": 2}, {"source": ["plot();"]},
           {"source": ["x" * 80]}, {"source": ["x\n"] * 30},
           {"source": ["x\n"] * 50, "metadata": {"tags": ["hide-input"]}}, {"outputs": [{"output_type": "error"}]},
           {"outputs": [{"output_type": "stream", "name": "stderr"}]}, {"outputs": [png]},
           {"metadata": {"execution": {}}}]  # fmt: skip
    assert all(len(problems([{**cell, **change}], meta)) == 1 for change in bad)
    assert problems([cell], {**meta, "widgets": {}}) and problems([cell], {})


@chapters
def test_twelve_parts_in_order(path):
    entry = claims(path.stem)
    assert source(read(path)[0]).startswith(f"# {entry['number']} · ")
    seconds = [text for level, text in headings(path) if level == "##"]
    assert [h for h in seconds if h in PARTS] == PARTS


def main_line(path):
    """The cells of a chapter above its appendix."""
    cells = read(path)
    ends = [i for i, cell in enumerate(cells) if source(cell).startswith("## Appendix")]
    return cells[: ends[0]]


def words(cells):
    return sum(len(source(c).split()) for c in cells if c["cell_type"] == "markdown")


def visible_lines(cells):
    """Lines of code that a reader meets unfolded."""
    return sum(len(source(c).split("\n")) for c in cells
               if c["cell_type"] == "code" and not FOLDED & set(c["metadata"].get("tags", [])))  # fmt: skip


@chapters
def test_a_chapter_is_short(path):
    cells = main_line(path)
    assert len(cells) <= 60 and words(cells) <= 3300 and visible_lines(cells) <= 220
    summary = next(source(c) for c in cells if source(c).startswith("## The summary"))
    assert len(summary.split("\n", 1)[1].split()) <= 110


@chapters
def test_a_chapter_begins_with_the_idea(path):
    """A picture at once, something to move next, the method's equation and plain code within a third."""
    cells = main_line(path)
    shows = [any("image/png" in o.get("data", {}) for o in c.get("outputs", [])) for c in cells]
    assert shows.index(True) <= 2 and "?" in source(cells[0])
    moves = [i for i, c in enumerate(cells) if re.search(r"\b(flipbook|demo)\(", source(c))]
    plain = [i for i, c in enumerate(cells) if "plain" in c["metadata"].get("tags", [])]
    equation = next(i for i, c in enumerate(cells) if r"\tag{1}" in source(c))
    assert moves[0] < equation < plain[0] < len(cells) / 3
    package = f"from collage.{path.stem}"
    first_use = next(i for i, c in enumerate(cells)
                     if c["cell_type"] == "code" and package in source(c))  # fmt: skip
    assert first_use > plain[0], "the package comes after the plain method"


@chapters
def test_folded_cells_are_forms_in_colab(path):
    for cell in code(path):
        if "hide-cell" in cell["metadata"].get("tags", []):
            assert source(cell).startswith("# @title"), source(cell)[:50]


@chapters
def test_pictures_and_interaction(path):
    cells = code(path)
    figures = sum("image/png" in o.get("data", {}) for c in cells for o in c["outputs"])
    assert figures >= 5
    frames = [o["data"]["text/html"] for c in cells for o in c["outputs"]
              if 'class="flipbook"' in "".join(o.get("data", {}).get("text/html", ""))]  # fmt: skip
    demos = [c for c in cells if f'demo("{path.stem}"' in source(c)]
    assert frames or demos, "nothing to move without a kernel"
    assert all("".join(f).count("<img alt=") > 5 for f in frames)
    live = [c for c in cells if "live(" in source(c) and "ipywidgets" in source(c)]
    tags = {"remove-output", "nbval-ignore-output"}
    assert live and all(tags <= set(c["metadata"]["tags"]) for c in live)
    assert sum("$$" in source(c) for c in read(path) if c["cell_type"] == "markdown") >= 3


@chapters
def test_every_claim_has_its_row_and_is_settled(path):
    """The cards name every claim; a cell settles it; the section it points to exists."""
    entry = claims(path.stem)
    shown = next(c for c in code(path) if f'fared("{path.stem}")' in source(c))["outputs"][0]
    cards = html.unescape("".join(shown["data"]["text/html"]))
    lines = re.findall(r"<strong>. (\d)\. (.*?)</strong><br>.*?<a href=\"#([^\"]+)", cards)
    table = "\n".join(f"| {i} | {text} | [shown](#{where}) |" for i, text, where in lines)
    slugs = {slug(h) for _, h in headings(path)}
    for i, claim in enumerate(entry["claims"], 1):
        row = re.search(rf"^\| {i} \| (.+)$", table, re.M)
        assert row, f"claim {i} has no row"
        assert row[1].split(" | ")[0].strip() == claim["text"], f"claim {i} is worded otherwise"
        for target in re.findall(r"\]\(#([^)]+)\)", row[1]):
            assert target in slugs, f"claim {i} points to #{target}"
        assert {"how", "where", "verdict"} <= set(claim), f"claim {i} has no verdict"
        assert slug(claim["where"]) in slugs, f"claim {i}: no section {claim['where']!r}"
        if claim["how"] == "shown":
            settled = [c for c in code(path) if f'settles="{path.stem}-{i}"' in source(c)]
            assert settled, f"no cell settles claim {i}"
            shown = json.dumps([c["outputs"] for c in settled], ensure_ascii=False)
            assert f"bears on claim {i}" in shown and "✓" in shown


@chapters
def test_claims_have_conditions(path):
    """A verdict that is always true is no verdict (one after a loop of asserts may be)."""
    for cell in code(path):
        text = re.sub(r"^(\s*)%", r"\1pass #", source(cell), flags=re.M)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "claim":
                constant = isinstance(node.args[1], ast.Constant)
                assert not constant or "assert " in text, ast.unparse(node)


@chapters
def test_exercises(path):
    """Four or more; the folded solution is executed and right, the blank attempt is not."""
    names = [name for name in CHECKERS if name.startswith(f"{path.stem}-")]
    assert len(names) >= 4
    cells = code(path)
    for name in names:
        tries = [c for c in cells if f'check("{name}"' in source(c)]
        shown = [json.dumps(c["outputs"], ensure_ascii=False) for c in tries]
        assert len(tries) == 2, f"{name}: wanted an attempt and a solution"
        assert f"{name}: right" not in shown[0]
        assert f"✓ {name}: right" in shown[1] and "hide-cell" in tries[1]["metadata"]["tags"]


@notebooks
def test_the_last_cell_fails_where_a_claim_did(path):
    """And nothing claims below it."""
    *above, last = code(path)
    assert source(last).endswith("conclude()") and "hide-input" in last["metadata"]["tags"]
    assert not any("conclude()" in source(c) for c in above)
    shown = json.dumps(last["outputs"], ensure_ascii=False)
    assert "✓ every claim on this page held" in shown


@notebooks
def test_links_name_the_public_repository(path):
    text = path.read_text()
    owner = REPOSITORY.removeprefix("https://github.com/")
    for found in re.findall(r"github\.com/([\w.-]+/[\w.-]+?)(?=[/@)\"\\\s]|$)", text):
        theirs = {"google-research/sam", "davda54/sam", "google-research/google-research",
                  "RobertTLange/evosax", "EMI-Group/evox", "google/learned_optimization", "ServiceNow/N-BEATS",
                  "Nixtla/neuralforecast", "unit8co/darts", "philipperemy/n-beats", "kzl/decision-transformer",
                  "google/brain-tokyo-workshop"}  # fmt: skip
        assert found in theirs | {owner}, f"{path.name} names {found}, _config.yml names {owner}"
    for found in re.findall(r"colab\.research\.google\.com/github/([^)\s\"]+)", text):
        assert found == f"{owner}/blob/{BRANCH}/chapters/{path.name}"
        assert (ROOT / found.removeprefix(f"{owner}/blob/{BRANCH}/")).exists()
    for found in re.findall(
        rf"{re.escape(REPOSITORY)}/(?:blob|tree)/{BRANCH}/([^)\s\"\\#]+)", text
    ):
        assert (ROOT / found).exists(), f"{path.name} links to {found}, which is not there"


@chapters
def test_install_cell_is_quiet_and_leaves_torch_alone(path):
    first = source(code(path)[0])
    addresses = [f"git+{REPOSITORY}@{at}" for at in (BRANCH, f"v{collage.__version__}")]
    assert "import collage" in first and any(address in first for address in addresses)
    assert "%pip install -q --no-deps" in first and "capture_output" in first
    text = "".join(source(c) for c in code(path)[1:])
    needs = {"scikit-learn": "sklearn" in text or re.search(r"data\.digits|digits\(\)", text),
             "statsmodels": re.search(r"data\.(panel|series)\(|statsmodels", text)}  # fmt: skip
    assert {name for name in needs if name in first} == {
        name for name, used in needs.items() if used
    }
    assert "print(pip.stdout, pip.stderr)" in first  # what went wrong is not hidden
    outputs = code(path)[0]["outputs"]
    assert not [o for o in outputs if o["output_type"] == "stream"]


def test_the_rest_of_the_repository_follows_config():
    owner = REPOSITORY.removeprefix("https://github.com/")
    site = CONFIG["html"]["baseurl"]
    assert CONFIG["sphinx"]["config"]["ogp_site_url"] == site
    assert CONFIG["sphinx"]["config"]["notfound_urls_prefix"] == f"/{owner.split('/')[1]}/"
    assert site.endswith(f"/{owner.split('/')[1]}/")
    for name in ("README.md", "CONTRIBUTING.md", "CITATION.cff", "CHANGELOG.md", "index.md"):
        text = (ROOT / name).read_text()
        for found in re.findall(r"github\.com/([\w-]+/[\w-]+)", text):
            assert found == owner, f"{name} names {found}"
        for found in re.findall(r"https://[\w-]+\.github\.io/[\w-]+/", text):
            assert found == site, f"{name} names {found}"


def test_toc_lists_every_chapter_in_the_order_of_the_posts():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = [c["file"] for part in toc["parts"] for c in part["chapters"]]
    assert {f"chapters/{p.stem}" for p in NOTEBOOKS} <= set(listed)
    numbers = [claims(Path(f).stem)["number"] for f in listed if Path(f).stem in claims()]
    assert numbers == sorted(numbers)
    assert all(any((ROOT / f"{f}{end}").exists() for end in (".md", ".ipynb")) for f in listed)


def test_the_47_claims():
    counts = {name: len(chapter["claims"]) for name, chapter in claims().items()}
    assert counts == {"sensory_neuron": 6, "decision_transformer": 6, "pes": 6, "sam": 6,
                      "bmg": 6, "nbeats": 6, "convex_hull": 5, "ridge_rider": 6}  # fmt: skip


def rows(name):
    """Cells of the rows below the head of a page's table."""
    lines = [x for x in (ROOT / "chapters" / name).read_text().splitlines() if x.startswith("|")]
    return [[c.strip() for c in line.strip("|").split(" | ")] for line in lines[2:]]


def test_the_course_knows_every_chapter():
    """Every chapter once, with the reading time it says itself and as many exercises as it has."""
    found = {}
    for row in rows("course.md"):
        number, name = re.search(r"\[(\d+) · [^]]+\]\((\w+)\.ipynb\)", row[1]).groups()
        found[name] = (int(number), row[3], int(row[4].strip("| ")))
    known = {name: (c["number"], f"{c['minutes']} min", sum(e.startswith(f"{name}-") for e in CHECKERS))
             for name, c in claims().items()}  # fmt: skip
    assert found == known


@pytest.mark.slow
def test_the_glossary_is_sorted_and_points_to_chapters():
    words = [row[0].lower() for row in rows("glossary.md")]
    assert words == sorted(words, key=lambda w: re.sub(r"[^a-z ]", "", w)) and len(words) > 40
    assert len(set(words)) == len(words)
    for row in rows("glossary.md"):
        for number, target in re.findall(r"\[([^]]+)\]\(([^)]+)\)", row[2]):
            assert (ROOT / "chapters" / target).resolve().exists(), target
            name = target.removesuffix(".ipynb")
            assert not number.isdigit() or claims()[name]["number"] == int(number), row


@notebooks
def test_every_notebook_brings_the_package_to_colab(path):
    first = next(c for c in read(path) if c["cell_type"] == "code")
    assert "except ImportError:" in source(first) and "# on Colab" in source(first)


@chapters
def test_no_chapter_is_an_orphan(path):
    """It points to at least two others."""
    text = "".join(source(c) for c in read(path) if c["cell_type"] == "markdown")
    found = set(re.findall(r"\]\((\w+)\.ipynb", text)) & set(claims())
    assert len(found - {path.stem}) >= 2
