"""How sure is each claim? Every chapter with other seeds and as other processors.

    make audit [NAME=bmg] [SHIFTS=10]

Runs chapters with all their seeds shifted by 1000, 2000, ..., and unshifted on one thread and on two, and
as each kind of processor that this one can pretend to be; goes on after a claim that fails. For each
claim it counts how often it held, and its margin: the mean distance of what was measured from its
threshold, in units of that distance's spread over the seeds (of logarithms where both are positive and that is
the larger; the least over the comparisons of a claim). The same seeds on another processor are nearly the
same run, so they count among the runs and not in the spread. A run that was made is kept under runs/audit until
the chapter or the package changes, so that an audit can be stopped and goes on. Writes results/audit.json.
"""

import argparse
import ast
import concurrent.futures
import hashlib
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from collage import runtime
from collage.common import checkpoint
from collage.page import claims
from experiments.program import positive
from tools import provenance

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "runs" / "audit"
RECORD = ROOT / "results" / "audit.json"
STEP = 1000  # what one shift adds to each seed

# What makes this processor behave as an older one: torch's own kernels, its BLAS and its convolutions.
PROCESSORS = {
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2",
             "OPENBLAS_CORETYPE": "Haswell"},
    "default": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE",
                "ONEDNN_MAX_CPU_ISA": "SSE41", "OPENBLAS_CORETYPE": "Nehalem"},
}  # fmt: skip


def processors():
    """Those of PROCESSORS that this machine can be, its own kind first."""
    own = torch.backends.cpu.get_cpu_capability().lower()
    names = list(PROCESSORS)
    return names[names.index(own) :] if own in names else [own]


def runs(shifts):
    """(processor, threads, shift) of every run of a chapter."""
    kinds = processors()
    shifted = [(kinds[0], 1, STEP * k) for k in range(1, shifts + 1)]
    return [(kinds[0], 1, 0), (kinds[0], 2, 0), *((kind, 1, 0) for kind in kinds[1:]), *shifted]


def digest(path):
    """What a run depends on in a file: of a notebook its code, of a module all but its docstrings."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\0".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    elif path.suffix == ".py":
        tree = ast.parse(text)
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            first = body[0] if isinstance(body, list) and body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                first.value.value = ""
        text = ast.dump(tree)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def current(run):
    """Whether nothing that a kept run has used has changed since."""
    return all((ROOT / name).exists() and digest(ROOT / name) == wanted
               for name, wanted in run["files"].items())  # fmt: skip


def execute(chapter, processor, threads, shift):
    """One run in a process of its own, or what is kept of it."""
    kept = KEPT / chapter / f"{processor}-{threads}-{shift}.json"
    if kept.exists() and current(run := json.loads(kept.read_text())):
        return run
    env = {**os.environ, **PROCESSORS.get(processor, {}), "OMP_NUM_THREADS": str(threads),
           "COLLAGE_THREADS": str(threads), "COLLAGE_SEED_SHIFT": str(shift),
           "OMP_WAIT_POLICY": "PASSIVE"}  # runs side by side do not spin on each other's cores  # fmt: skip
    path = ROOT / "chapters" / f"{chapter}.ipynb"
    before = digest(path)
    words = [sys.executable, "-m", "tools.margins", str(path), str(kept)]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{chapter}: the run ended with {done.stderr[-800:]}")
    run = json.loads(kept.read_text())
    run["files"] = {name: digest(ROOT / name) for name in run["files"]}
    run["files"][str(path.relative_to(ROOT))] = before
    checkpoint.write(kept, json.dumps(run))
    return run


def margin(slacks):
    """The mean over the spread of a comparison's slacks, linear or logarithmic: the larger.

    None where it has no spread: what is exact has no margin.

    >>> margin([[2.0, None], [4.0, None]])
    2.12
    """
    found = []
    for values in zip(*slacks):
        if None in values or len(values) < 2:
            continue
        spread = statistics.stdev(values)
        if spread <= 1e-9 * max(map(abs, values)):
            return None
        found.append(statistics.mean(values) / spread)
    return round(max(found), 2) if found else None


def judge(chapter, found, shifts):
    """A row for each claim of a chapter, from all its `runs(shifts)`; one that broke off held no more."""
    own = processors()[0], 1
    fresh = [run[:2] == own for run in runs(shifts)]  # other seeds, and nothing else
    sentences = list(dict.fromkeys(text for run in found for text in run["claims"]))
    rows = []
    for text in sentences:
        said = [run["claims"].get(text, {"held": False, "slack": {}}) for run in found]
        seeds = list(itertools.compress(said, fresh))
        places = sorted({p for s in seeds for p in s["slack"]})
        margins = [margin([s["slack"][p] for s in seeds if p in s["slack"]]) for p in places]
        margins = [m for m in margins if m is not None]
        settles = next((s["settles"] for s in said if s.get("settles")), None)
        rows.append({"chapter": chapter, "claim": text, "settles": settles, "runs": len(said),
                     "seeds": len(seeds), "held": sum(s["held"] for s in said),
                     "margin": min(margins) if margins else None})  # fmt: skip
    return rows


def keep(chapter, rows):
    """Put a chapter's rows into the record, in the place of those that it had."""
    before = json.loads(RECORD.read_text()) if RECORD.exists() else {"numbers": {"table": []}}
    table = [r for r in before["numbers"]["table"] if r["chapter"] != chapter] + rows
    seeds = [STEP * k for k in range(max(row.get("seeds", 1) for row in table))]
    order = list(claims())
    table.sort(key=lambda row: order.index(row["chapter"]))
    config = {"step": STEP, "processors": processors(), "threads": [1, 2]}
    note = ("How often each claim held, over shifted seeds and over processors and threads, and its "
            "margin: mean distance from the threshold over its spread over the seeds (null: exact).")  # fmt: skip
    record = provenance.record({"table": table}, config=config, seeds=seeds,
                            repeats=max(row["runs"] for row in table), note=note, gpu=False)  # fmt: skip
    provenance.write_record(RECORD, record)


def arguments(argv):
    parser = argparse.ArgumentParser(
        prog="make audit", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--name", default="", help="one chapter; all without")
    parser.add_argument("--shifts", default="10", help="how many other sets of seeds")
    parser.add_argument("--jobs", type=positive, default=max(1, (os.cpu_count() or 2)))
    found = parser.parse_args(argv)
    if found.name and found.name not in claims():
        parser.exit(2, f"audit: NAME: got {found.name!r}, wanted one of {', '.join(claims())}\n")
    if not found.shifts.isascii() or not found.shifts.isdigit() or int(found.shifts) < 1:
        parser.exit(2, f"audit: SHIFTS: got {found.shifts!r}, wanted a positive whole number\n")
    try:
        if runtime.seed_shift():
            parser.exit(2, "audit: COLLAGE_SEED_SHIFT is set; the audit shifts the seeds itself\n")
    except ValueError as error:
        parser.exit(2, f"audit: {error}\n")
    found.shifts = int(found.shifts)
    return found


def main(argv=None):
    """Returns 1 where a claim did not hold in every run."""
    asked = arguments(argv)
    chapters = [asked.name] if asked.name else list(claims())
    failed = 0
    print(f"as {', '.join(processors())}, on 1 and 2 threads, and {asked.shifts} shifts of the seeds "
          f"on {platform.machine()}", flush=True)  # fmt: skip
    with concurrent.futures.ThreadPoolExecutor(asked.jobs) as pool:
        jobs = {chapter: [pool.submit(execute, chapter, *run) for run in runs(asked.shifts)]
                for chapter in chapters}  # fmt: skip
        for chapter in chapters:
            found = [job.result() for job in jobs[chapter]]
            rows = judge(chapter, found, asked.shifts)
            keep(chapter, rows)
            failed += show(chapter, rows, found)
    return int(failed > 0)


def show(chapter, rows, found):
    """Print a chapter's rows; returns how many claims did not hold everywhere."""
    middle = statistics.median(run["seconds"] for run in found)
    print(f"\n{chapter}: {len(found)} runs, {middle:.0f} s each in the middle")
    for error in sorted({run["error"] for run in found if run["error"]}):
        print(f"  broke off: {error}")
    for row in rows:
        sure = "exact" if row["margin"] is None else f"{row['margin']:.1f} spreads"
        mark = "✓" if row["held"] == row["runs"] else "✗"
        print(f"  {mark} {row['held']:2} of {row['runs']}  {sure:>14}  {row['claim']}", flush=True)
    return sum(row["held"] < row["runs"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
