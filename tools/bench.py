"""Every benchmark against its peers: python -m tools.bench [paper ...]

The peers' pins (benchmarks/requirements.txt) are installed into .bench, apart from the book's
environment. In the end one table says, for each piece of work, how long the strongest peer takes, as a
multiple of ours; peers that could not be had are listed below it as not run, with the reason.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.timing import show

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".bench"


def first_number(text):
    return float(str(text).split()[0].replace(",", ""))


def grouped(table, key):
    """(what, its rows) for rows that say the same under `key` (a name, or several)."""
    names = (key,) if isinstance(key, str) else key
    for what, rows in itertools.groupby(table, lambda row: tuple(row[n] for n in names)):
        yield ", ".join(str(w) if isinstance(w, str) else f"{n} {w}"
                        for n, w in zip(names, what, strict=True)), list(rows)  # fmt: skip


def peers_in_columns(table, work, columns):
    """(work, {peer: time as a multiple of ours}) where each peer has a column."""
    for row in table:
        yield (
            work(row),
            {peer: row[column] for column, peer in columns.items() if row[column] != "-"},
        )


def peers_in_rows(table, key, who, ratio, ours, spread=None):
    """The same where each program has a row; ours(name) tells which are not peers."""
    for what, rows in grouped(table, key):
        yield what, {row[who]: f"{row[ratio]}" + (f" ± {row[spread]}" if spread else "")
                     for row in rows if not ours(row) and row[ratio] != "-"}  # fmt: skip


def contests(paper, numbers):
    """(work, {peer: time as a multiple of ours}) of the record of a paper's benchmark."""
    table = numbers["table"]
    if paper == "convex_hull":
        columns = {c: c.removeprefix("x ") for c in table[0] if c.startswith("x ")}
        return peers_in_columns(table, lambda r: f"hull, d = {r['d']}, N = {r['N']}", columns)
    if paper == "decision_transformer":
        return peers_in_rows(table, ("what", "threads"), "who", "time / ours",
                             lambda r: r["who"].startswith("collage"), "spread")  # fmt: skip
    if paper == "nbeats":
        works = [c for c in table[0] if c != "program"]
        return [(w, {r["program"]: r[w] for r in table
                     if not r["program"].startswith("ours") and r[w] != "-"}) for w in works]  # fmt: skip
    if paper == "pes":
        return peers_in_rows(table, ("runs",), "program", "end to end (x ours, best)",
                             lambda r: r["program"].startswith("ours"))  # fmt: skip
    if paper == "ridge_rider":
        return peers_in_rows(table, "work", "program", "time / ours",
                             lambda r: r["program"].startswith("collage") or r["correct"] != "yes")  # fmt: skip
    if paper == "sam":
        return sam_contests(table)
    if paper == "sensory_neuron":
        columns = {c: c.removesuffix(" / fused") for c in table[0]
                   if c.endswith("/ fused") and not c.startswith("eager")}  # fmt: skip
        return peers_in_columns(table, lambda r: r["work"], columns)
    return bmg_contests(table)


def sam_contests(table):
    """Ours is the faster of two forms."""
    timed = [row for row in table if row["x SGD"] != "-"]
    for what, rows in grouped(timed, "network"):
        mine = min(first_number(r["x SGD"]) for r in rows if r["step"].startswith("ours"))
        yield what, {r["step"]: f"{first_number(r['x SGD']) / mine:.2f}" for r in rows
                     if not r["step"].startswith("ours") and "SGD" not in r["step"]}  # fmt: skip


def bmg_contests(table):
    """Rates there, so that the peer's time is the ratio of rates the other way round."""
    for row in table:
        mine = first_number(row["compiled / TorchOpt"])
        plain = first_number(row["plain loop / TorchOpt"])
        yield f"meta-steps, lifetimes {row['lifetimes']}", {
            "TorchOpt": row["compiled / TorchOpt"], "plain loop": f"{mine / plain:.2f}"}  # fmt: skip


def summary(papers):
    """Rows of the last table, from the records."""
    for paper in papers:
        for path in sorted((ROOT / "results" / paper).glob("*_cpu.json")):
            for work, peers in contests(paper, json.loads(path.read_text())["numbers"]):
                if not peers:
                    yield {"paper": paper, "work": work, "ours": "1", "peer / ours": "-",
                           "strongest peer": "none run"}  # fmt: skip
                    continue
                best = min(peers, key=lambda name: first_number(peers[name]))
                yield {"paper": paper, "work": work, "ours": "1", "peer / ours": peers[best],
                       "strongest peer": best}  # fmt: skip


def install(pins):
    """Bring the pinned peers into .bench, if they are not there; a reason for each that fails."""
    stamp = PEERS / ".installed"
    if stamp.exists() and stamp.read_text() == pins:
        return []
    names = [line for line in pins.splitlines() if line and line[0] != "#"]
    print(f"installing {len(names)} pins of benchmarks/requirements.txt into .bench", flush=True)

    def pip(*wanted):
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade",
                 "--disable-pip-version-check", "--target", str(PEERS), *wanted]  # fmt: skip
        return subprocess.run(words, capture_output=True, text=True, check=False)

    failed = []
    if pip(*names).returncode:  # one of them at least: the others shall not suffer for it
        for name in names:
            if (tried := pip(name)).returncode:
                reason = (tried.stderr.strip().splitlines() or ["pip says nothing"])[-1]
                failed.append(f"{name} could not be installed ({reason})")
    PEERS.mkdir(exist_ok=True)
    if not failed:
        stamp.write_text(pins)
    return failed


def clone(folder, url, commit):
    """Bring a peer that is on no package index, unless COLLAGE_PEERS says where it lies."""
    if "COLLAGE_PEERS" in os.environ or (PEERS / folder / ".git").exists():
        return []
    words = ["git", "clone", "--quiet", url, str(PEERS / folder)]
    asked = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        subprocess.run(words, env=asked, capture_output=True, text=True, check=True, timeout=120)
        subprocess.run(
            ["git", "-C", str(PEERS / folder), "checkout", "--quiet", commit], check=True
        )
    except (OSError, subprocess.SubprocessError):
        shutil.rmtree(PEERS / folder, ignore_errors=True)
        return [f"{url} could not be cloned (see benchmarks/requirements.txt)"]
    return []


def run(paper, env):
    """Run one benchmark, show what it prints; its exit status, and what it says it did not run."""
    words = [sys.executable, "-u", "-m", f"benchmarks.{paper}"]
    left = []
    with subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith("not run: "):
                left.append(line.removeprefix("not run: ").strip())
    return process.returncode, left


def main(wanted):
    names = [p.stem for p in sorted((ROOT / "benchmarks").glob("*.py"))
             if p.stem not in ("__init__", "timing")]  # fmt: skip
    if unknown := set(wanted) - set(names):
        sys.exit(
            f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(names)}"
        )
    papers = wanted or names
    left = install((ROOT / "benchmarks" / "requirements.txt").read_text())
    left += clone("davda54-sam", "https://github.com/davda54/sam", "3c3afdb")
    env = {"COLLAGE_PEERS": str(PEERS), **os.environ, "PYTHONPATH": str(PEERS)}
    broken = []
    for paper in papers:
        print(f"\n== {paper}", flush=True)
        begin = time.monotonic()
        status, said = run(paper, env)
        left += said
        broken += [paper] if status else []
        print(f"{paper}: {time.monotonic() - begin:.0f} s", flush=True)
    print("\n== time of the strongest peer, ours being 1")
    show(list(summary([p for p in papers if p not in broken])))
    for line in dict.fromkeys(left):
        print(f"not run: {line}")
    if broken:
        sys.exit(f"failed: {', '.join(broken)}")


if __name__ == "__main__":
    main(sys.argv[1:])
