"""The audit of the claims: what a comparison measures, what is counted, what is refused."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from collage import runtime
from tools import audit, margins, tally

ROOT = Path(__file__).parent.parent


def slacks(text, **names):
    """What the one claim in a piece of code measures: (held, {place: [linear, log]})."""
    notes, said = margins.Notes(), []
    tree = ast.fix_missing_locations(margins.Rewriter().visit(ast.parse(text)))
    names |= {"__claimed__": notes.claimed, "__compared__": notes.compared, "__close__": notes.close,
              "torch": torch, "np": np, "claim": lambda *a, **k: said.append((a, k))}  # fmt: skip
    exec(compile(tree, "cell", "exec"), names)
    ((_, entry),) = notes.claims.items()
    assert said[0][0][0] == "a"
    return entry["held"], entry["slack"]


@pytest.mark.parametrize(("text", "held", "wanted"), [
    ("claim('a', 5 > 3)", True, {"0.0": 2.0}),
    ("claim('a', 1 > 3)", False, {"0.0": -2.0}),
    ("claim('a', (x > 0).all())", True, {"0.0": 1.0}),
    ("claim('a', (x > 2).any())", True, {"0.0": 2.0}),
    ("claim('a', not (x > 5).any())", True, {"0.0": 1.0}),
    ("claim('a', not (x < 0.5).all())", True, {"0.0": 3.5}),
    ("claim('a', 0 < 2 < 5)", True, {"0.0": 2.0, "0.1": 3.0}),
    ("claim('a', (x > 2).double().mean() > 0.25)", True, {"0.0": 0.25}),
    ("claim('a', all(v < 6 for v in (1, 4, 2)))", True, {"0.0": 2.0}),
    ("claim('a', x.min() > 0 and x.max() < 5)", True, {"0.0": 1.0, "1.0": 1.0}),
    ("claim('a', torch.equal(x < 3, x < 3))", True, {}),
    ("claim('a', x.sum() == 10)", True, {}),
    ("claim('a', torch.allclose(x, x + 0.5, rtol=0, atol=1))", True, {"0.0": 0.5}),
    ("for k in (1, 2):\n    claim('a', k < 4)", True, {"0.0": 2.0}),
])  # fmt: skip
def test_the_slack_of_a_condition(text, held, wanted):
    """The distance of the worst element from its threshold, positive where it holds."""
    found, measured = slacks(text, x=torch.arange(1.0, 5).double())
    assert found == held and set(measured) == set(wanted)
    for place, value in wanted.items():
        assert measured[place][0] == pytest.approx(value)


def test_logarithms_where_both_sides_are_positive():
    assert slacks("claim('a', 8 > 2)")[1]["0.0"][1] == pytest.approx(np.log(4))
    assert slacks("claim('a', 8 > -2)")[1]["0.0"][1] is None
    assert slacks("claim('a', float('nan') > 2)") == (False, {})


def test_a_margin_is_a_mean_over_a_spread():
    assert audit.margin([[1.0, None], [3.0, None]]) == pytest.approx(1.41)
    assert audit.margin([[1.0, 2.0], [3.0, 2.2]]) == pytest.approx(14.85)  # the larger of the two
    assert audit.margin([[1.0, None], [1.0, None]]) is None  # exact
    assert audit.margin([[-1.0, None], [-3.0, None]]) < 0


def test_rows_count_what_held_and_spread_over_seeds_alone(monkeypatch):
    def run(held, slack, text="a"):
        return {"claims": {text: {"held": held, "settles": "sam-1", "slack": {"0.0": [slack, None]}}},
                "error": None, "seconds": 1}  # fmt: skip

    broken = {"claims": {}, "error": "KeyError", "seconds": 1}
    monkeypatch.setattr(audit, "processors", lambda: ["avx2", "default"])
    # one thread, two threads, the other processor, three shifts
    found = [run(True, 1.0), run(True, 90.0), run(True, 90.0), run(True, 3.0), run(False, -1.0)]
    rows = audit.judge("sam", [*found, broken], shifts=3)
    assert rows == [{"chapter": "sam", "claim": "a", "settles": "sam-1", "runs": 6, "seeds": 4,
                     "held": 4, "margin": 0.5}]  # fmt: skip


@pytest.mark.slow
def test_a_notebook_goes_on_after_a_claim_that_fails(tmp_path):
    """And stops at a cell that raises; other seeds are other draws."""
    cells = ["from collage import runtime\nfrom collage.page import claim, conclude",
             "x = runtime.generator(3).initial_seed()\nclaim('fails', x < 0, settles='sam-2')",
             "claim('holds', x == 1003)", "conclude()", "claim('after', 1 < 2)", "1 / 0",
             "claim('never', True)"]  # fmt: skip
    book = {"cells": [{"cell_type": "code", "source": [c]} for c in cells]}
    (tmp_path / "a.ipynb").write_text(json.dumps(book))
    words = [sys.executable, "-m", "tools.margins", tmp_path / "a.ipynb", tmp_path / "a.json"]
    env = {**os.environ, "COLLAGE_SEED_SHIFT": "1000"}
    subprocess.run(words, cwd=ROOT, env=env, check=True, capture_output=True)
    run = json.loads((tmp_path / "a.json").read_text())
    assert {t: c["held"] for t, c in run["claims"].items()} == {
        "fails": False, "holds": True, "after": True}  # fmt: skip
    assert run["claims"]["fails"]["settles"] == "sam-2" and "1 / 0" in run["error"]
    assert "collage/runtime.py" in run["files"]


def test_a_kept_run_is_used_until_the_code_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "ROOT", tmp_path)
    path = tmp_path / "a.py"
    path.write_text('"""One."""\n\nx = 1\n')
    run = {"files": {"a.py": audit.digest(path)}}
    assert audit.current(run)
    path.write_text('"""Two."""\n\nx = 1  # words do not change a run\n')
    assert audit.current(run)
    path.write_text('"""Two."""\n\nx = 2\n')
    assert not audit.current(run)
    path.unlink()
    assert not audit.current(run)


def test_an_audit_is_shifts_and_processors():
    found = audit.runs(3)
    kinds = audit.processors()
    assert [shift for *_, shift in found if shift] == [1000, 2000, 3000]
    assert [(kind, n) for kind, n, shift in found if not shift] == [
        (kinds[0], 1), (kinds[0], 2), *((kind, 1) for kind in kinds[1:])]  # fmt: skip
    assert set(kinds) <= set(audit.PROCESSORS) | {kinds[0]}


@pytest.mark.parametrize(("words", "shift", "said"), [
    (["--name", "nobody"], None, "NAME: got 'nobody'"), (["--shifts", "0"], None, "SHIFTS: got '0'"),
    (["--shifts", "1.5"], None, "SHIFTS: got '1.5'"), (["--shifts", "-1"], None, "SHIFTS: got"),
    ([], "ten", "COLLAGE_SEED_SHIFT: got 'ten'"), ([], "7", "COLLAGE_SEED_SHIFT is set"),
])  # fmt: skip
def test_bad_input_is_one_line_and_exit_2(words, shift, said, monkeypatch, capsys):
    if shift is not None:
        monkeypatch.setenv("COLLAGE_SEED_SHIFT", shift)
    with pytest.raises(SystemExit) as left:
        audit.arguments(["--shifts=3", *words] if "--shifts" not in words else words)
    error = capsys.readouterr().err
    assert left.value.code == 2 and said in error and error.count("\n") == 1


@pytest.mark.parametrize(("names", "shift"), [(["nobody"], "0"), ([""], "0"), ([], "0"),
                                              (["sam"], "x")])  # fmt: skip
def test_make_chapter_says_what_it_cannot_run(names, shift, monkeypatch, capsys):
    from tools import chapters

    monkeypatch.setenv("COLLAGE_SEED_SHIFT", shift)
    assert chapters.main(["--check", *names]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and ("NAME" in error or "COLLAGE_SEED_SHIFT" in error)


def test_the_record_of_the_audit():
    """Of a chapter that was audited nearly every claim that it makes now; and every one held everywhere."""
    record = json.loads(audit.RECORD.read_text())
    rows = record["numbers"]["table"]
    chapters = {row["chapter"] for row in rows}
    assert chapters and chapters <= set(audit.claims())
    assert set(record["config"]["threads"]) == {1, 2} and len(record["config"]["processors"]) > 1
    for row in rows:
        assert row["held"] == row["runs"] >= len(audit.PROCESSORS) + 1, row
    for chapter in chapters:
        text = (ROOT / "chapters" / f"{chapter}.ipynb").read_text()
        shown = {o for c in json.loads(text)["cells"] if c["cell_type"] == "code"
                 for o in said(c)}  # fmt: skip
        audited = {row["claim"] for row in rows if row["chapter"] == chapter}
        # A sentence may be reworded without an hour of runs; a chapter may not be written anew.
        assert len(shown & audited) >= 0.9 * len(shown), f"make audit NAME={chapter}"


def said(cell):
    """The sentences of the verdicts that a cell shows, but for exercises and the last one."""
    for output in cell["outputs"]:
        text = "".join(output.get("data", {}).get("text/plain", []))
        if text.startswith("✓ ") and "claim(" in "".join(cell["source"]):
            yield text[2:].rsplit("  [bears on", 1)[0]


REPORT = '<testsuites><testsuite name="pytest">{}</testsuite></testsuites>'
PASSED, FAILED = "<testcase/>", "<testcase><failure/></testcase>"
SKIPPED = '<testcase><skipped message="needs a CUDA device"/></testcase>'


@pytest.mark.parametrize(("unit", "cells", "pages", "fine", "said"), [
    (PASSED + SKIPPED, 2 * PASSED, PASSED, True,
     "1 unit tests, 2 of 2 cells, 1 page tests passed; 1 skipped (1 × needs a CUDA device)"),
    (PASSED, PASSED, PASSED, False, "1 cells were not run"),
    (PASSED, PASSED + SKIPPED, PASSED, False, "1 cells were not run"),
    (PASSED + FAILED, 2 * PASSED, PASSED, False, "1 unit tests failed"),
    (PASSED, 2 * PASSED, None, False, "no page tests ran"),
])  # fmt: skip
def test_the_last_line_counts_what_ran(unit, cells, pages, fine, said, tmp_path):
    for part, cases in zip(tally.PARTS, (unit, cells, pages), strict=True):
        if cases is not None:
            (tmp_path / f"{part}.xml").write_text(REPORT.format(cases))
    line, held = tally.count(tmp_path, 2)
    assert held == fine and said in line and "\n" not in line


def test_all_seeds_shift_together(monkeypatch):
    plain = runtime.generator(1003).initial_seed()
    monkeypatch.setenv("COLLAGE_SEED_SHIFT", "1000")
    assert runtime.generator(3).initial_seed() == plain
    assert runtime.generator(-3).initial_seed() == 997
    for bad in ("ten", "1.5", ""):
        monkeypatch.setenv("COLLAGE_SEED_SHIFT", bad)
        with pytest.raises(ValueError, match="COLLAGE_SEED_SHIFT"):
            runtime.generator(3)


def test_threads_can_be_overridden(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("COLLAGE_THREADS", "2")
    assert runtime.threads(1) == 2
    for bad in ("0", "two", "-1"):
        monkeypatch.setenv("COLLAGE_THREADS", bad)
        with pytest.raises(ValueError, match="COLLAGE_THREADS"):
            runtime.threads(1)
    monkeypatch.delenv("COLLAGE_THREADS")
    assert runtime.threads(before) == before
