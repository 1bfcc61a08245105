"""Anchors, the glossary in the chapters, the edition of a page: what _ext makes of the sources."""

import doctest
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest

from collage.page import claims
from tools import chapters
from tools import edition as release

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "_ext"))

import edition  # noqa: E402
import landing  # noqa: E402
import links  # noqa: E402
import terms  # noqa: E402


@pytest.mark.parametrize("module", [edition, release, terms], ids=lambda m: m.__name__)
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


def test_one_file_says_where_the_repository_is():
    found = [path.name for path in (ROOT / "_ext").glob("*.py") if "ROOT = " in path.read_text()]
    assert found == ["root.py"]


def test_every_chapter_has_its_card(tmp_path, monkeypatch):
    """A table of the course that is read wrongly, or not at all, stops the build."""
    page = tmp_path / "chapters" / "course.md"
    page.parent.mkdir()
    monkeypatch.setattr(landing, "ROOT", tmp_path)
    text = (ROOT / "chapters" / "course.md").read_text(encoding="utf-8")
    page.write_text(text)
    assert sorted(landing.course()) == sorted(claims())
    for changed in (text.replace("](sam.ipynb)", "](sam.md)"), text.replace("| 1 |", "| one |"),
                    text.replace("](bmg.ipynb)", "](pes.ipynb)"), ""):  # fmt: skip
        assert changed != text
        page.write_text(changed)
        with pytest.raises(ValueError, match=r"course\.md"):
            landing.course()


def test_a_stranger_is_told_where_to_go_on():
    """Docstrings that name the other place of what they are about; each of those is there."""
    from importlib.util import find_spec

    from collage.common.environments import SwingUp
    from collage.page import exercises

    copies = re.findall(r"collage\.sensory_neuron\.fast\.\w+", SwingUp.__doc__)
    assert len(copies) == 2 and all(map(find_spec, copies))  # one needs Triton
    for room, entry in claims().items():
        assert f"chapter {entry['number']}," in getattr(exercises, room).__doc__


@pytest.mark.parametrize("room", claims())
def test_every_claim_that_is_shown_has_the_cells_that_settle_it(room):
    names = {cell["id"] for cell in links.cells(f"chapters/{room}")}
    for number, entry in enumerate(claims(room)["claims"], 1):
        there = links.settling(room).get(number, [])
        assert there or entry["how"] != "shown", f"{room}-{number}"
        assert {anchor.removeprefix("cell-") for anchor, _ in there} <= names
        assert all(title for _, title in there)


def test_a_card_gets_its_anchor_its_cells_and_the_way_to_the_other_page():
    card = '<div class="verdict" style="x"><strong>✓ 2. Sure.</strong><br>Held.</div>'
    cell = links.settling("sam")[2][0][0]
    here, there = links.cards(card, "sam", True), links.cards(card, "sam", False)
    assert '<div class="verdict" id="claim-sam-2" style="x">' in here
    assert f'href="#{cell}"' in here and 'href="claims.html#claim-sam-2"' in here
    assert f'href="sam.html#{cell}"' in there and 'href="sam.html#claim-sam-2"' in there
    check = '<div class="verdict check"><strong>✓</strong> 2. is no claim</div>'
    assert links.cards(check, "sam", True) == check


def test_a_claim_that_is_a_fold_ends_with_where_it_leads():
    from docutils import nodes

    begin, end = '<details class="claim holds" id="claim-sam-2">', "</details>"
    parts = [nodes.raw("", begin, format="html"), nodes.paragraph("", "Derived."),
             nodes.raw("", end, format="html")]  # fmt: skip
    cell = nodes.container("", *parts)
    links.folds(cell, "sam")
    assert [part.astext() for part in cell.children if part in parts] == [begin, "Derived.", end]
    assert cell.children[-1] is parts[-1] and len(cell.children) == 4
    line = cell.children[2].astext()
    assert f'href="sam.html#{links.settling("sam")[2][0][0]}"' in line
    assert 'href="sam.html#claim-sam-2"' in line and 'href="#claim-sam-2"' in line


def test_the_glossary_has_the_words_of_the_trade_and_every_line_is_read():
    found = terms.glossary()
    lines = [line for line in (ROOT / "chapters/glossary.md").read_text().splitlines()
             if line.startswith("| ")]  # fmt: skip
    assert len(found) == len(lines) - 1
    assert len({term.anchor for term in found}) == len(found)
    words = [word for term in found for word in term.words]
    assert {"self-play", "sMAPE", "MASE", "OWA", "MAML", "ride", "polish", "natural gradient",
            "Fisher information"} <= set(words)  # fmt: skip
    order = [term.anchor.replace("-", "") for term in found]
    assert order == sorted(order)


def test_a_saddle_is_what_chapter_40_calls_one():
    prose = " ".join("".join(c["source"]) for c in links.cells("chapters/ridge_rider"))
    assert "*saddle* for any point without slope and with a negative eigenvalue" in prose
    saddle = next(term for term in terms.glossary() if "saddle" in term.words)
    assert "without slope" in saddle.meaning and "is negative" in saddle.meaning


def test_an_everyday_word_is_explained_where_it_is_one_of_the_trade():
    def looks(room, text):
        return {term.words[0] for look, term in terms.wanted(room) if look.search(text)}

    assert looks("decision_transformer", "the return of a policy") == {"return", "policy"}
    assert looks("sam", "the return of a policy") == set()
    assert looks("sam", "two convex\nhulls, Hessians") == {"convex hull", "Hessian"}
    assert looks("ridge_rider", "the Ridge Rider, a bridge, ridge-like") == set()


def test_a_page_names_its_run_or_no_date_at_all():
    run = {"date": "2026-03-01", "torch": "2.13.0", "device": "cuda"}
    later = run | {"date": "2026-03-04"}
    assert edition.line([run]).endswith("verified on 1 March 2026 with PyTorch 2.13.0 on a GPU")
    assert "from 1 March 2026 to 4 March 2026" in edition.line([later, run])
    assert edition.line([run, {}]) == edition.line([]) == f"Edition {edition.edition()}"


@pytest.mark.parametrize("room", [None, *claims()])
def test_what_to_cite_is_bibtex(room):
    from pybtex.database import parse_string

    [entry] = parse_string(edition.bibtex(room), "bibtex").entries.values()
    assert str(entry.persons["author"][0]) == "{The ML Collage contributors}"
    assert entry.fields["edition"] == edition.edition() and entry.fields["year"].isdigit()
    end = f"chapters/{room}.html" if room else "/ml-collage/"
    assert entry.fields["url"].endswith(end)


@pytest.mark.slow
def test_a_run_writes_when_and_with_what_it_ran(tmp_path, monkeypatch):
    import datetime

    import torch

    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    monkeypatch.setenv("COLLAGE_ASSETS", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = tmp_path / "small.ipynb"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(1 + 1)")])
    nbformat.write(book, path)
    chapters.run(path)
    written = json.loads(path.read_text())
    run = written["metadata"]["verified"]
    assert [cell["source"] for cell in written["cells"]] == [["print(1 + 1)"]]
    assert abs((datetime.date.fromisoformat(run["date"]) - datetime.date.today()).days) <= 1
    assert run["torch"] == torch.__version__.split("+")[0] and run["device"] in edition.DEVICES
    assert "verified on" in edition.line([run])


def test_an_edition_is_written_wherever_it_stands(tmp_path):
    (tmp_path / "collage").mkdir()
    (tmp_path / "chapters").mkdir()
    for name in ("collage/__init__.py", "CITATION.cff", "chapters/sam.ipynb"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    cell = nbformat.v4.new_code_cell('tag = "main"\nstage = "main"\n!git clone -b {tag} x')
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "chapters/claims.ipynb")
    names = ["CITATION.cff", "chapters/claims.ipynb", "chapters/sam.ipynb", "collage/__init__.py"]
    assert sorted(release.write(tmp_path, "7.8.9", "2031-01-02", check=True)) == names
    assert sorted(release.write(tmp_path, "7.8.9", "2031-01-02")) == names
    assert release.write(tmp_path, "7.8.9", "2031-01-02") == []
    texts = {name: (tmp_path / name).read_text() for name in names}
    assert '__version__ = "7.8.9"' in texts["collage/__init__.py"]
    assert re.search(
        r"^version: 7\.8\.9$\n^date-released: 2031-01-02$", texts["CITATION.cff"], re.M
    )
    assert "ml-collage@v7.8.9" in texts["chapters/sam.ipynb"]
    assert "blob/main/chapters/sam.ipynb" in texts["chapters/sam.ipynb"]  # addresses stay
    source = "".join(json.loads(texts["chapters/claims.ipynb"])["cells"][0]["source"])
    assert source == 'tag = "v7.8.9"\nstage = "main"\n!git clone -b {tag} x'


@pytest.mark.parametrize("version", ["0.2", "v0.2.0", "main", ""])
def test_a_version_is_three_numbers(version, capsys):
    with pytest.raises(ValueError, match="version"):
        release.write(ROOT, version, check=True)
    assert release.main([version]) == 2
    assert capsys.readouterr().err.count("\n") == 1
