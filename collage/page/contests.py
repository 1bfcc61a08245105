"""What a benchmark's record says about each piece of work: the strongest peer's time, ours being 1."""

import itertools
import math

from collage.page.records import records

COMPILING = "compiling (x the same)"


def first_number(text):
    return measured(text)[0]


def measured(text):
    """(value, spread) of "1,234 ± 5"; the spread is 0 where none is given."""
    value, _, spread = str(text).replace(",", "").partition("±")
    return float(value.split()[0]), float(spread or 0)


def quotient(a, b, scale=1):
    """a / b with its spread, for two measurements that vary independently.

    >>> quotient("3.0 ± 0.3", "1.5"), quotient("2.0 ± 0.2", "2.0 ± 0.2")
    ('2.00 ± 0.20', '1.00 ± 0.14')
    """
    (x, dx), (y, dy) = measured(a), measured(b)
    return f"{scale * x / y:.2f} ± {scale * x / y * math.hypot(dx / x, dy / y):.2f}"


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
        return [(f"training, {w}", {r["program"]: r[w] for r in table
                     if not r["program"].startswith("ours") and r[w] != "-"}) for w in works]  # fmt: skip
    if paper == "pes":
        return pes_contests(table)
    if paper == "ridge_rider":
        return peers_in_rows(table, "work", "program", "time / ours",
                             lambda r: r["program"].startswith("collage") or r["correct"] != "yes")  # fmt: skip
    if paper == "sam":
        return sam_contests(table)
    if paper == "sensory_neuron":
        columns = {c: c.removesuffix(" / fused") for c in table[0]
                   if c.endswith("/ fused") and not c.startswith("eager")}  # fmt: skip
        return peers_in_columns(table, lambda r: r["work"], columns)
    return bmg_contests(numbers)


def pes_contests(table):
    """End to end: compiling, which is not repeated, and the run, whose spread is known."""
    run, end = "run time (x ours, fastest)", "end to end (x ours, best)"
    for what, rows in grouped(table, ("runs",)):
        best = min((r for r in rows if r["program"].startswith("ours")),
                   key=lambda r: first_number(r[end]))  # fmt: skip
        own = measured(best[run])
        found = {}
        for row in rows:
            if row["program"].startswith("ours"):
                continue
            total, (ran, spread) = first_number(row[end]), measured(row[run])
            compiling = 0 if row[COMPILING] == "-" else first_number(row[COMPILING])
            off = math.hypot(spread / (ran + compiling), own[1] / own[0])
            found[row["program"]] = f"{total:.2f} ± {total * off:.2f}"
        yield f"outer steps, {what}", found


def sam_contests(table):
    """Ours is the faster of two forms."""
    timed = [row for row in table if row["x SGD"] != "-"]
    for what, rows in grouped(timed, "network"):
        mine = min((r["x SGD"] for r in rows if r["step"].startswith("ours")), key=first_number)
        yield f"step, {what}", {r["step"]: quotient(r["x SGD"], mine) for r in rows
                     if not r["step"].startswith("ours") and "SGD" not in r["step"]}  # fmt: skip


def bmg_contests(numbers):
    """Rates there, so that the peer's time is the ratio of rates the other way round."""
    for row, rates in zip(numbers["table"], numbers["rates"], strict=True):
        yield f"meta-steps, lifetimes {row['lifetimes']}", {
            "TorchOpt": row["compiled / TorchOpt"],
            "plain loop": quotient(rates["compiled (1/s)"], rates["plain loop (1/s)"])}  # fmt: skip


def summary(papers=None):
    """One row for each piece of work that a benchmark timed on a CPU, from its record.

    "peer / ours" is the time of the fastest peer as a multiple of ours, ± as the record has it.
    papers: which, or all. A work that no peer was there for says so.

    >>> sorted(next(summary(["convex_hull"])))
    ['ours', 'paper', 'peer / ours', 'strongest peer', 'work']
    """
    for name, content in records().items():
        paper, run = name.split("/")
        if not run.endswith("_cpu") or (papers is not None and paper not in papers):
            continue
        for work, peers in contests(paper, content["numbers"]):
            best = min(peers, key=lambda who: first_number(peers[who]), default=None)
            yield {"paper": paper, "work": work, "ours": "1", "peer / ours": peers.get(best, "-"),
                   "strongest peer": best or "none run"}  # fmt: skip
