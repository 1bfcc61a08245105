"""Records: every one carries its whole provenance, numbers as numbers, and nothing that JSON cannot say."""

import ast
import doctest
import functools
import importlib
import itertools
import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import benchmarks.contests
from benchmarks import timing
from benchmarks.contests import contests, summary
from benchmarks.timing import quotient
from collage.page.claims import claims, unfair
from collage.page.records import Measured, as_markdown, beside, lookup, measured, shown, texts
from experiments import program
from tools import bench
from tools.peers import peer

ROOT = Path(__file__).parent.parent
RECORDS = sorted((ROOT / "results").rglob("*.json"))
KEYS = {"command": str, "config": dict, "seeds": list, "commit": str, "date": str, "device": str,
        "driver": str, "torch": str, "cuda": str, "dtype": str, "tf32": bool, "repeats": int,
        "peers": dict, "note": str, "numbers": dict, "threads": int, "python": str}  # fmt: skip


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_record(path):
    record = json.loads(path.read_text())
    for key, kind in KEYS.items():
        assert isinstance(record.get(key), kind), f"{path}: {key} is missing or not {kind}"
    assert re.fullmatch(r"[0-9a-f]{40}", record["commit"]), "run it from a clean commit"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])
    assert record["seeds"] and record["config"] and record["note"]
    assert record["cuda"] == "none" or record["device"].startswith("CPU") or record["driver"]
    table = record["numbers"]["table"]
    assert "formats" in record["numbers"] or path.stem == "audit"
    assert table and all(set(row) == set(table[0]) for row in table)
    assert not re.search(r"/(home|root|work|tmp)/", path.read_text()), "a machine path"

    def numbers(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            return [n for v in value for n in numbers(v)]
        return [value] if isinstance(value, float) else []

    assert all(math.isfinite(n) for n in numbers(record["numbers"]))


# What a measurement looks like where it has become text: "1,234 ± 5", "99.9 %", "x 4.1", "0.12 / 0.13",
# "0 of 2,000", "1 (100), 7 (81)", "94.0 ± 0.5 (0.01)".
NUMBER = r"-?\d[\d,]*(\.\d+)?(e[+-]\d+)?"
PRINTED = re.compile(rf"(x )?{NUMBER}( ?%)?|.*\d ± \d.*|{NUMBER} (/|of) {NUMBER}|"
                     rf"{NUMBER}( \({NUMBER}\))?(, {NUMBER}( \({NUMBER}\))?)+")  # fmt: skip
TEXTS = {"colour agrees", "predictions", "series"}  # a setting, a digit for each picture, a name


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_cells_are_numbers(path):
    """A cell of a table that was measured is a number or a measurement, never their text."""
    numbers = json.loads(path.read_text())["numbers"]
    tables = [t for t in numbers.values() if isinstance(t, list) and t and isinstance(t[0], dict)]
    for table in tables:
        for name, cell in ((name, cell) for row in table for name, cell in row.items()):
            if isinstance(cell, str) and name not in TEXTS:
                assert not PRINTED.fullmatch(cell), f"{name}: {cell!r} is a number made a string"
    for row in numbers["table"]:
        for name, cell in row.items():
            if isinstance(cell, dict):
                assert ("median" in cell) != ("mean" in cell), f"{name}: {cell}"
                assert set(cell) <= {"median", "mean", "spread", "n", "format"}, f"{name}: {cell}"
                assert math.isfinite(measured(cell).value), f"{name}: {cell}"
    assert all(
        cell for row in texts(numbers["table"], numbers.get("formats")) for cell in row.values()
    )


@pytest.mark.parametrize("text", ["1,234 ± 5", "-0.5883", "99.9 %", "20%", "x 4.1", "0.12 / 0.13", "1e-07",
                                  "0 of 2,000", "1 (100), 7 (81)", "313, 290, 267", "94.0 ± 0.5 (0.01)"])  # fmt: skip
def test_what_would_be_refused(text):
    assert PRINTED.fullmatch(text)


def unsettled(numbers):
    """Why a record's choices cannot be trusted: a grid that is not there, an edge that is not named."""
    if not {"grids", "chosen", "at the edge"} <= set(numbers):
        return ["no grids, choices and edges"]
    edges = program.edges(numbers["grids"], numbers["chosen"])
    return [f"{method}: {', '.join(axes)} at the edge of what was tried, and not named"
            for method, axes in edges.items() if numbers["at the edge"].get(method) != axes]  # fmt: skip


def groundless(entry, read):
    """Why a claim does not rest on an experiment, as its `by` says; read(name) is a record."""
    if entry["by"] != "experiment":
        return []
    if not entry.get("records"):
        return ["no record named"]
    return [why for name in entry["records"] for why in
            unfair(read(name)) + unsettled(read(name)["numbers"])]  # fmt: skip


def test_what_rests_on_an_experiment_names_fair_ones():
    for name, chapter in claims().items():
        for entry in chapter["claims"]:
            assert not groundless(entry, lambda run, name=name: json.loads(
                (ROOT / "results" / name / f"{run}.json").read_text())), entry["text"]  # fmt: skip


def test_what_is_refused_as_an_experiment():
    numbers = {"table": [{"method": "ours"}], "sweeps": {"ours": 6},
               "split": {"chosen on": "1 run", "judged on": "5 others"},
               **program.swept([{"method": "ours", "K": K, "lr": lr} for K in (1, 2) for lr in (1e-3, 1e-2, 0.1)],
                               [{"method": "ours", "K": 1, "lr": 0.1}])}  # fmt: skip
    entry = {"by": "experiment", "records": ["toy"]}
    assert groundless(entry, lambda name: {"numbers": numbers}) == []
    assert groundless(entry | {"records": []}, None) == ["no record named"]
    assert groundless({"by": "experiment"}, None) == ["no record named"]
    unsaid = numbers | {"at the edge": {}}
    (why,) = groundless(entry, lambda name: {"numbers": unsaid})
    assert why == "ours: lr at the edge of what was tried, and not named"
    inside = numbers | {"chosen": {"ours": {"K": 1, "lr": 1e-2}}, "at the edge": {}}
    assert unsettled(inside) == [] and unsettled({"table": []}) == ["no grids, choices and edges"]


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_record_of_sweeps_names_what_lies_at_their_edge(path):
    numbers = json.loads(path.read_text())["numbers"]
    if "sweeps" not in numbers:
        return
    assert unsettled(numbers) == []
    runs = [{"method": run["method"], **run.get("setting", run)} for run in
            numbers.get("tuned", numbers.get("runs", ())) if "method" in run]  # fmt: skip
    for method, grid in numbers["grids"].items():  # what they say was tried is what was run
        mine = [run for run in runs if run["method"] == method]
        for axis, values in grid.items():
            assert not mine or values == sorted({run[axis] for run in mine}), (method, axis)


def test_there_is_a_record():
    assert RECORDS


PROGRAMS = sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py") if p.stem != "__init__")


@pytest.fixture
def fresh_benchmarks():
    """None of them is imported yet; afterwards those that were are there again, and no others."""

    def taken():
        return {name: sys.modules.pop(name) for name in list(sys.modules)
                if name.startswith("benchmarks.")}  # fmt: skip

    package, before = vars(importlib.import_module("benchmarks")), taken()
    attributes = dict(package)
    yield
    taken()
    sys.modules.update(before)
    package.clear()
    package.update(attributes)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_benchmark_needs_neither_peers_nor_triton(name, monkeypatch, fresh_benchmarks):
    """Its module can be imported, and says what it is, where nothing but the book is installed."""
    for module in ("triton", "evosax", "jax", "evojax", "cma", "torchopt", "darts", "sam"):
        monkeypatch.setitem(sys.modules, module, None)
    assert importlib.import_module(f"benchmarks.{name}").__doc__


def test_a_missing_peer_is_said_once(capsys, monkeypatch):
    monkeypatch.delenv("COLLAGE_PEERS", raising=False)
    assert peer("there_is_no_such_peer") is None and peer("there_is_no_such_peer") is None
    assert peer("nor_this", "a-folder") is None
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in said] == ["there_is_no_such_peer", "a-folder"]


def test_a_benchmark_that_fails_leaves_the_others_running(capfd, monkeypatch):
    """`make bench` goes on, keeps what was said, and ends with an error in the end."""
    monkeypatch.setattr(bench, "install", lambda pins: ["a 1.0 could not be installed (no room)"])
    monkeypatch.setattr(bench, "clone", lambda *words: [])
    asked = []

    def run(paper, env):
        asked.append(paper)
        return (1, []) if paper == "pes" else (0, [f"peer of {paper}"])

    monkeypatch.setattr(bench, "run", run)
    with pytest.raises(SystemExit, match="failed: pes"):
        bench.main(["pes", "sam"])
    said = capfd.readouterr().out
    assert asked == ["pes", "sam"]
    assert "not run: a 1.0 could not be installed (no room)" in said
    assert "not run: peer of sam" in said
    with pytest.raises(SystemExit, match="2"):
        bench.main(["sims"])
    assert "no benchmark is called sims" in capfd.readouterr().err


def test_pins_are_tried_one_by_one_when_together_they_fail(tmp_path, monkeypatch, capsys):
    tried = []

    def pip(words, **how):
        names = [w for w in words if "==" in w]
        tried.append(names)
        bad = "b==2" in names
        return subprocess.CompletedProcess(
            words, int(bad), "", "ERROR: no b for you\n" if bad else ""
        )

    monkeypatch.setattr(bench, "PEERS", tmp_path / "peers")
    monkeypatch.setattr(bench.subprocess, "run", pip)
    pins = "# why\na==1\nb==2\n"
    assert bench.install(pins) == ["b==2 could not be installed (ERROR: no b for you)"]
    assert tried == [["a==1", "b==2"], ["a==1"], ["b==2"]]
    assert bench.install("a==1\n") == [] and bench.install("a==1\n") == []
    assert tried[3:] == [["a==1"]], "what is there is not installed again"


def test_the_benchmarks_have_one_table():
    """Every record of a benchmark says how long the strongest peer takes, ours being 1."""
    papers = sorted({p.parent.name for p in (ROOT / "results").glob("*/*_cpu.json")})
    found = list(summary(papers))
    assert {row["paper"] for row in found} == set(papers)
    for row in found:
        assert measured(row["peer / ours"]).value > 0 and row["strongest peer"], row
        assert not row["strongest peer"].startswith(("ours", "collage")), row


def test_a_compiled_form_of_ours_is_ours():
    """Peers are measured against the faster of our forms; the spread of both counts."""
    cell = {"ours": 1.0, "ours, compiled": {"median": 0.5, "spread": 0.0}, "JAX": 0.6}
    table = [{"program": name, "E = 1": c} for name, c in cell.items()]
    ((work, peers),) = contests("nbeats", {"table": table, "formats": {"E = 1": "{:.2f}"}})
    assert work == "training, E = 1" and list(peers) == ["JAX"]
    assert measured(peers["JAX"]).value == pytest.approx(1.2)


@pytest.mark.slow
def test_ours_stand_beside_the_papers_numbers():
    """Each finds its one row in a record; a look-up that fits several rows, or none, is an error."""
    rows = list(beside())
    assert len(rows) > 12 and all(all(str(v).strip() for v in row.values()) for row in rows)
    for where in ({"series": "average"}, {"series": "Lunar"}):
        with pytest.raises(ValueError, match="wanted one"):
            lookup("nbeats", "small_m3", "ensemble", where)


def test_ratios_carry_their_spread():
    assert doctest.testmod(timing) == (0, 2)
    assert measured({"mean": 1234, "spread": 5}) == (1234, 5) and measured(0.7) == (0.7, None)
    ratio = quotient((30, 3), (10, 1))
    assert shown(ratio, "{:.2f}") == f"3.00 ± {3 * 0.02**0.5:.2f}"
    rows = (("ours, loop", Measured(5.0, 0.0), "-", 1.0), ("ours, compiled", Measured(1.0, 0.0), 8, 1.8),
            ("peer", Measured(3.0, 1.0), 7, 2.0))  # fmt: skip
    table = [{"runs": 1, "program": name, "run time (x ours, fastest)": timing.median(*run, 3),
              "compiling (x the same)": compiling, "end to end (x ours, best)": end}
             for name, run, compiling, end in rows]  # fmt: skip
    ((work, peers),) = contests("pes", {"table": table, "formats": {}})
    assert work == "outer steps, runs 1"
    assert {peer: shown(cell) for peer, cell in peers.items()} == {"peer": "2.00 ± 0.20"}


def test_a_work_without_a_peer_says_so():
    """Where no peer was installed, a benchmark writes a word in its place."""
    table = [{"lifetimes": 1, "TorchOpt (1/s)": "not run", "tensors / TorchOpt": "not run"}]
    rates = {"lifetimes": 1, "JAX (1/s)": "not run", "tensors (1/s)": timing.median(10.0, 1.0, 3),
             "plain loop (1/s)": timing.median(5.0, 1.0, 3)}  # fmt: skip
    ((_, peers),) = contests("bmg", {"table": table, "formats": {}, "rates": [rates]})
    assert {peer: shown(cell) for peer, cell in peers.items()} == {"plain loop": "2.00 ± 0.45"}
    rates["compiled (1/s)"] = timing.median(20.0, 2.0, 3)  # the faster form of ours counts
    ((_, peers),) = contests("bmg", {"table": table, "formats": {}, "rates": [rates]})
    assert {peer: shown(cell) for peer, cell in peers.items()} == {"plain loop": "4.00 ± 0.89"}


def test_growth_is_ours_and_the_strongest_at_the_largest_size(monkeypatch):
    at = functools.partial(timing.at_size, "a step", "members")
    rows = [at(1, "ours", 1.0), at(1, "ours, compiled", 0.5), at(1, "early", 0.1), at(1, "late", 3.0),
            at(8, "ours", 2.0, 30.0), at(8, "ours, compiled", 4.0), at(8, "early", 9.0), at(8, "late", 3.0),
            timing.at_size("once", "points", 5, "ours", 1.0)]  # fmt: skip
    rows += [at(1, "hasty", 0.01), at(8, "hasty", 0.01)]
    table = [{"program": "late", "correct": "yes"}, {"program": "hasty", "correct": "no"}]
    found = {"sam/steps_cpu": {"numbers": {"scaling": rows, "table": table}},
             "sam/steps_gpu": {"numbers": {}}, "bmg/steps_cpu": {"numbers": {"table": []}}}  # fmt: skip
    monkeypatch.setattr(benchmarks.contests, "records", lambda: found)
    ((paper, work, size, lines),) = benchmarks.contests.growth()
    assert (paper, work, size) == ("sam", "a step", "members")
    assert lines == {"ours": [(1, 0.5, None), (8, 2.0, 30.0)],
                     "late": [(1, 3.0, None), (8, 3.0, None)]}  # fmt: skip
    assert benchmarks.contests.slope(lines["ours"]) == 0.67
    assert benchmarks.contests.slope(lines["late"]) == 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_peak_memory_counts_whoever_allocates():
    """What a call holds at most at one time, torch's and numpy's alike; what it freed before counts again."""

    def three(make):
        for _ in range(3):  # one after the other
            make(8_000_000)  # 64 MB

    for make in (np.ones, lambda n: torch.ones(n, dtype=torch.double)):
        both = [make(8_000_000), make(8_000_000)]
        del both
        for _ in range(2):
            assert 60 <= timing.peak(lambda make=make: three(make)) <= 70
    assert timing.peak(lambda: None) < 2


def test_a_cell_becomes_text_in_one_way():
    with pytest.raises(ValueError, match="wanted a number or a measurement"):
        measured("1.5 ± 0.1")
    rows = [{"work": "a step", "ratio": timing.median(2.0, 0.25, 9), "passes": [0.5, 1]}]
    formats = {"ratio": "{:.1f}", "passes": "{:.2f} / {:.2f}"}
    assert texts(rows, formats) == [
        {"work": "a step", "ratio": "2.0 ± 0.2", "passes": "0.50 / 1.00"}
    ]
    content = {"note": "Note.", "command": "python", "device": "CPU", "date": "2026-01-01", "torch": "2",
               "seeds": [0], "commit": "c" * 40, "peers": {},
               "numbers": {"table": rows, "formats": formats}}  # fmt: skip
    assert as_markdown(content).split("\n\n")[1] == (
        "| work | ratio | passes |\n|---|---|---|\n| a step | 2.0\u00a0±\u00a00.2 | 0.50 / 1.00 |")  # fmt: skip


def cell(paper, name, column, **where):
    """Mean and standard error of the one cell of a record's table."""
    table = json.loads((ROOT / "results" / paper / f"{name}.json").read_text())["numbers"]["table"]
    (row,) = (row for row in table if all(row[k] == v for k, v in where.items()))
    return row[column]["mean"], row[column]["spread"]


def clearly_above(more, less):
    return more[0] - less[0] > 3 * math.hypot(more[1], less[1])


def test_two_colours_without_chance_with_every_method_tuned():
    """In the same 24 lives: bootstrap above meta-gradients without outer bonus, below those with one."""
    tested = json.loads((ROOT / "results/bmg/exact.json").read_text())["numbers"]["tested"]
    lives = {run["method"]: run["lifetimes"] for run in tested}
    order = "fixed bonus", "MG, K = 1, outer bonus", "BMG, K = 1", "MG"
    for more, less in itertools.pairwise(order):
        gains = [a - b for a, b in zip(lives[more], lives[less], strict=True)]
        assert len(gains) == 24
        error = statistics.stdev(gains) / 24**0.5
        assert statistics.mean(gains) > 3 * error, f"{more}, {less}"


def test_chapter_37_draws_what_is_recorded():
    """Its two figures of records have their numbers typed in, so that Colab can draw them, too."""
    cells = json.loads((ROOT / "chapters/bmg.ipynb").read_text())["cells"]
    typed = {}
    for part in cells:
        if part["id"] in ("bmg-memory", "bmg-scale"):
            for node in ast.parse("".join(part["source"])).body:
                name = ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else ""
                if name in ("MEMORY", "RECORDED"):
                    typed[name] = ast.literal_eval(node.value)
    numbers = json.loads((ROOT / "results/bmg/steps_cpu.json").read_text())["numbers"]["horizon"]
    ahead = {"MG": "K", "BMG": "L"}
    assert typed["MEMORY"] == {name: {row[at]: round(row["peak memory (MB)"], 1) for row in numbers
                                      if row["method"] == name} for name, at in ahead.items()}  # fmt: skip
    for name, rows in typed["RECORDED"].items():
        column = "error after 10" if "waves" in name else "reward"
        for method, (mean, error) in rows.items():
            found = cell("bmg", name, column, method=method)
            assert (round(found[0], 3), round(found[1], 3)) == (mean, error), method


def test_chapter_37_draws_the_recorded_exploration():
    """The course of the learned rate and what is earned; the bootstrap with context beats every fixed rate."""
    cells = json.loads((ROOT / "chapters/bmg.ipynb").read_text())["cells"]
    (part,) = [c for c in cells if c["id"] == "bmg-epsilon"]
    typed = {ast.unparse(node.targets[0]): ast.literal_eval(node.value)
             for node in ast.parse("".join(part["source"])).body[:2]}  # fmt: skip
    tested = json.loads((ROOT / "results/bmg/epsilon.json").read_text())["numbers"]["tested"]
    courses = {run["method"]: [round(v, 2) for v in run["eps"]] for run in tested}
    assert typed["COURSE"] == {name: courses[name] for name in ("BMG", "BMG, no context")}
    found = {
        run["method"]: cell("bmg", "epsilon", "reward", method=run["method"]) for run in tested
    }
    assert typed["EARNED"] == {m: (round(a, 3), round(b, 3)) for m, (a, b, *_) in found.items()}
    assert clearly_above(found["BMG"], found["fixed epsilon"])
    assert clearly_above(found["fixed epsilon"], found["BMG, no context"])
    assert courses["BMG"][1] > 5 * courses["BMG"][-1]


def test_few_points_in_equal_steps_and_in_equal_time():
    names = "MAML, K = 1", "Reptile, 6 steps", "BMG, K = 1, L = 5"
    maml, reptile, boot = (cell("bmg", "waves", "error after 10", method=m) for m in names)
    assert clearly_above(reptile, boot) and maml[0] > boot[0]
    maml, reptile, boot = (cell("bmg", "waves_time", "error after 10", method=m) for m in names)
    assert not clearly_above(maml, boot) and maml[0] < boot[0] < reptile[0]
    for name in ("waves", "waves_time"):  # the best rates lie inside their grids
        tuned = json.loads((ROOT / "results" / "bmg" / f"{name}.json").read_text())["numbers"]
        for axis in ("lr", "inner"):
            tried = sorted({run["setting"][axis] for run in tuned["tuned"]})
            assert all(run["setting"][axis] in tried[1:-1] for run in tuned["tested"])


def test_on_the_digits_the_variance_of_pes_is_not_smaller():
    for where, times in (("start", 1.2), ("good", 3)):
        ratio, error = cell("pes", "variance_digits", "PES over full ES", θ=where)
        assert ratio - 3 * error > times - 0.01
