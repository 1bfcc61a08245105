"""What a GPU has to settle, in one command: python -m tools.gpu [--out DIR] [--minutes 8] [--pretend]

In order of value: the tests that are marked `cuda`; the benchmarks, each against its floor; the
experiments' presets for a GPU, as far as the time goes. Each part is a process of its own with a limit
of time, and the next one runs whatever became of it. Each writes its record when it is done, and is not
run again where that record is of this commit and this GPU; experiments go on where they were stopped.
With --pretend all of it runs in tiny sizes on a pretended GPU. It installs nothing and needs no network.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.timing import show
from experiments.program import positive, usable
from tools import provenance, tally

ROOT = Path(__file__).resolve().parent.parent
# In order of value, with the seconds that each may take.
BENCHMARKS = {"sensory_neuron": 30, "nbeats": 60, "convex_hull": 40, "pes": 40, "sam": 30,
              "ridge_rider": 40, "bmg": 40, "decision_transformer": 40}  # fmt: skip
PRESETS = {("convex_hull", "gaussian"): "gaussian_million", ("bmg", "paper"): "colours_paper",
           ("nbeats", "exact"): "tourism_yearly_gpu", ("nbeats", "tourism"): "tourism_gpu"}  # fmt: skip
TINY = {("decision_transformer", "tiny"): "tiny"}
FEW = ["tests/sam/test_capture.py", "tests/common/test_graph.py"]  # tests for the pretended GPU


class Part(NamedTuple):
    """One process: what it is called, its module and words, where its record lies, its limit."""

    name: str
    words: list[str]
    record: Path
    seconds: float


def parts(out: Path, pretend: bool) -> list[Part]:
    """What is to run, in order of value."""
    tests = ["pytest", *(FEW if pretend else ["tests", "--ignore=tests/browser"]), "-m", "cuda", "-q",
             "-p", "no:cacheprovider", f"--junitxml={out / 'tests.xml'}"]  # fmt: skip
    tiny = ["--tiny", "--rounds", "1"] if pretend else []
    made = [Part("tests", tests, out / "tests.json", 60)]
    for name, seconds in BENCHMARKS.items():
        words = ["benchmarks.gpu", name, "--out", str(out), *tiny]
        made.append(Part(f"benchmark {name}", words, out / f"{name}.json", seconds))
    for (paper, preset), name in (TINY if pretend else PRESETS).items():
        folder = out / "experiments" / paper
        words = [f"experiments.{paper}", "--preset", preset, "--out", str(folder),
                 "--runs", str(out / "runs" / paper)]  # fmt: skip
        made.append(Part(f"experiment {paper} {preset}", words, folder / f"{name}.json", 240))
    return made


def python(words: list[str], pretend: bool) -> list[str]:
    """A command line: the module, on the pretended GPU where that is wanted."""
    if not pretend:
        return [sys.executable, "-m", *words]
    if words[0] == "pytest":
        return [sys.executable, "-m", "pytest", "-p", "tests.pretend_cuda.plugin", *words[1:]]
    return [sys.executable, "-m", "tests.pretend_cuda", "-m", *words]


def machine(pretend: bool) -> tuple[str, str]:
    """(commit, device), as a record names them; what makes an older one worth keeping."""
    code = ("import json, torch; from tools import provenance; made = provenance.record({}, config={}, "
            "seeds=[], repeats=1); print(json.dumps([made['commit'], made['device']]))")  # fmt: skip
    line = [sys.executable, "-c", code]
    if pretend:
        line[2] = f"from tests.pretend_cuda import install; install(); {code}"
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    commit, device = json.loads(done.stdout.splitlines()[-1])
    return commit, device


def kept(record: Path, commit: str, device: str) -> bool:
    """Whether a part's record is there, from this device and this commit, with nothing changed since."""
    if commit.endswith("+changes"):
        return False
    try:
        made = json.loads(record.read_text())
        return (made["commit"], made["device"]) == (commit, device)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def run(words: list[str], log: Path, seconds: float) -> str:
    """ "done", or why not; what the process says goes to a file. It and its children end in time."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
    with log.open("w") as file:
        process = subprocess.Popen(words, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT,
                                   start_new_session=True)  # fmt: skip
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s"
        finally:  # also where the user stops the command
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    lines = log.read_text(errors="replace").strip().splitlines()
    last = lines[-1] if lines else "it says nothing"
    return f"failed ({status}): {last}"[:160] if status else "done"


def tested(part: Part, outcome: str, commit: str, device: str) -> str:
    """The record of the tests, from pytest's report; nothing passed is a failure."""
    report = part.record.with_suffix(".xml")
    if not report.exists():
        return outcome
    passed, failed, skipped = tally.read(report)
    report.unlink()
    if outcome == "done" and not passed:
        return "failed: no test ran"
    if outcome == "done":
        row = {"tests": "marked cuda", "passed": passed, "skipped": len(skipped)}
        made = provenance.record({"table": [row], "formats": {}}, config={"words": "-m cuda"},
                                 seeds=[0], repeats=1, note="The tests that ask for a GPU.")  # fmt: skip
        provenance.write_record(part.record, made | {"commit": commit, "device": device})
    return f"{outcome}, {passed} passed, {failed} failed, {len(skipped)} skipped"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--out", type=usable)
    parser.add_argument("--minutes", type=positive, default=8)
    parser.add_argument("--pretend", action="store_true", help="tiny sizes on a pretended GPU")
    args = parser.parse_args(argv)
    if args.pretend:
        from tests.pretend_cuda import why_not

        if reason := why_not():
            parser.error(reason)
    elif not torch.cuda.is_available():
        parser.error(
            "there is no GPU that torch can use; --pretend (PRETEND=1) tries it without one"
        )
    end = time.monotonic() + 60 * args.minutes
    home = ROOT / ("_build/gpu" if args.pretend else "results/gpu")
    out = (args.out or home).resolve()
    logs = out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    commit, device = machine(args.pretend)
    print(f"{device}, commit {commit}; records in {out}", flush=True)
    rows: list[dict[str, str]] = []
    for part in parts(out, args.pretend):
        begin = time.monotonic()
        left = min(part.seconds, end - begin)
        if kept(part.record, commit, device):
            outcome = "kept"
        elif left < 5:
            outcome = "no time was left"
        else:
            print(f"{part.name} ...", flush=True)
            outcome = run(python(part.words, args.pretend), logs / f"{part.name}.txt", left)
            if part.name == "tests":
                outcome = tested(part, outcome, commit, device)
        rows.append(
            {"part": part.name, "seconds": f"{time.monotonic() - begin:.0f}", "outcome": outcome}
        )
    for name in BENCHMARKS:
        if any(r["part"] == f"benchmark {name}" and r["outcome"] in ("done", "kept") for r in rows):
            numbers = json.loads((out / f"{name}.json").read_text())["numbers"]
            show(numbers["table"], numbers["formats"])
    print()
    show(rows)
    return int(not all(well(row) for row in rows))


def well(row: dict[str, str]) -> bool:
    """Done; an experiment may have had no time for it, or no data."""
    if row["part"].startswith("experiment"):
        return not row["outcome"].startswith("failed (1)")
    return row["outcome"].startswith(("done", "kept"))


if __name__ == "__main__":
    sys.exit(main())
