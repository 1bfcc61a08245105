"""Every benchmark against its peers: python -m tools.bench [paper ...]

The peers' pins (benchmarks/requirements.txt) are installed into .bench, apart from the book's
environment. A peer that cannot be had is listed as not run. In the end one table says, for each piece
of work, how long the strongest peer takes, as a multiple of ours.
"""

import itertools
import json
import os
import subprocess
import sys
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


def main(wanted):
    pins = ROOT / "benchmarks" / "requirements.txt"
    stamp = PEERS / ".installed"
    if not stamp.exists() or stamp.read_text() != pins.read_text():
        names = [line for line in pins.read_text().splitlines() if line and line[0] != "#"]
        for name in names:
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade",
                       "--disable-pip-version-check", "--target", str(PEERS), name]  # fmt: skip
            if subprocess.run(install, check=False).returncode:
                print(f"not run: {name} could not be installed")
        PEERS.mkdir(exist_ok=True)
        stamp.write_text(pins.read_text())
    if not os.environ.get("COLLAGE_PEERS"):
        print(
            "not run: davda54/sam (clone it and set COLLAGE_PEERS, see benchmarks/requirements.txt)"
        )
    env = {**os.environ, "PYTHONPATH": str(PEERS)}
    papers = wanted or [p.stem for p in sorted((ROOT / "benchmarks").glob("*.py"))
                        if p.stem not in ("__init__", "timing")]  # fmt: skip
    for paper in papers:
        print(f"\n== {paper}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{paper}"], cwd=ROOT, env=env, check=True)
    print("\n== time of the strongest peer, ours being 1")
    show(list(summary(papers)))


if __name__ == "__main__":
    main(sys.argv[1:])
