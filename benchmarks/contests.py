"""What a benchmark's record says about each piece of work: the strongest peer's time, ours being 1."""

import itertools
import math

from benchmarks.timing import quotient
from collage.page.records import measured, records, shown

COMPILING = "compiling (x the same)"


def value(cell):
    return measured(cell).value


def ran(cell):
    """Whether there is a number, and not a word for why there is none."""
    return not isinstance(cell, str)


def pair(cell):
    """(value, spread) of a cell, the spread 0 where none is known."""
    return measured(cell).value, measured(cell).spread or 0


def with_format(cell, template):
    """A measurement that brings its format along, into a table of several records' cells."""
    cell = cell if isinstance(cell, dict) else {"median": cell}
    return {"format": template} | cell


def grouped(table, formats, key):
    """(work, its rows) for rows that say the same under `key` (a name, or several)."""
    names = (key,) if isinstance(key, str) else key
    for cells, rows in itertools.groupby(table, lambda row: [row[name] for name in names]):
        yield ", ".join(cell if isinstance(cell, str) else f"{name} {shown(cell, formats.get(name, '{}'))}"
                        for name, cell in zip(names, cells, strict=True)), list(rows)  # fmt: skip


def peers_in_columns(table, formats, work, columns):
    """(work, {peer: time as a multiple of ours}) where each peer has a column."""
    for row in table:
        yield work(row), {peer: with_format(row[column], formats[column])
                          for column, peer in columns.items() if ran(row[column])}  # fmt: skip


def peers_in_rows(table, formats, key, program, ours):
    """The same where each program has a row; ours(row) tells which are not peers."""
    for work, rows in grouped(table, formats, key):
        yield work, {row[program]: with_format(row["time / ours"], formats["time / ours"])
                     for row in rows if not ours(row) and ran(row["time / ours"])}  # fmt: skip


def contests(paper, numbers):
    """(work, {peer: time as a multiple of ours}) of the record of a paper's benchmark."""
    table, formats = numbers["table"], numbers["formats"]
    if paper == "convex_hull":
        columns = {c: c.removeprefix("x ") for c in table[0] if c.startswith("x ")}
        return peers_in_columns(
            table, formats, lambda r: f"hull, d = {r['d']}, N = {shown(r['N'], '{:,}')}", columns
        )
    if paper == "decision_transformer":
        # Its spreads are a column; that of ours is in the ratio, too.
        unit = {(r["what"], r["threads"]): (1.0, r["spread"])
                for r in table if r["time / ours"] == 1}  # fmt: skip
        joined = [row | {"time / ours": quotient((row["time / ours"], row["spread"]),
                                                 unit[row["what"], row["threads"]])}
                  for row in table]  # fmt: skip
        return peers_in_rows(joined, formats, ("what", "threads"), "who",
                             lambda r: r["who"].startswith("collage"))  # fmt: skip
    if paper == "nbeats":
        return nbeats_contests(table, formats)
    if paper == "pes":
        return pes_contests(table, formats)
    if paper == "ridge_rider":
        return peers_in_rows(table, formats, "work", "program",
                             lambda r: r["program"].startswith("collage") or r["correct"] != "yes")  # fmt: skip
    if paper == "sam":
        return sam_contests(table, formats)
    if paper == "sensory_neuron":
        columns = {c: c.removesuffix(" / fused") for c in table[0]
                   if c.endswith("/ fused") and not c.startswith("eager")}  # fmt: skip
        return peers_in_columns(table, formats, lambda r: r["work"], columns)
    return bmg_contests(numbers)


def nbeats_contests(table, formats):
    """Ours is the faster of what it can be run as; the first row is the unit."""
    for work in [c for c in table[0] if c != "program"]:
        cells = {row["program"]: row[work] for row in table if ran(row[work])}
        best = min(
            (name for name in cells if name.startswith("ours")), key=lambda n: value(cells[n])
        )
        unit = pair(cells[best])
        yield f"training, {work}", {
            name: with_format(cell if best == "ours" else quotient(pair(cell), unit), formats[work])
            for name, cell in cells.items() if not name.startswith("ours")}  # fmt: skip


def pes_contests(table, formats):
    """End to end: compiling, which is not repeated, and the run, whose spread is known."""
    run, end = "run time (x ours, fastest)", "end to end (x ours, best)"
    for work, rows in grouped(table, formats, "runs"):
        ours = [row for row in rows if row["program"].startswith("ours")]
        our_time, our_spread = pair(min(ours, key=lambda row: value(row[end]))[run])
        found = {}
        for row in rows:
            if row in ours:
                continue
            total, (time, spread) = value(row[end]), pair(row[run])
            compiling = value(row[COMPILING]) if ran(row[COMPILING]) else 0
            part = math.hypot(spread / (time + compiling), our_spread / our_time)
            found[row["program"]] = with_format({"median": total, "spread": total * part}, "{:.2f}")
        yield f"outer steps, {work}", found


def sam_contests(table, formats):
    """Ours is the faster of two forms."""
    timed = [row for row in table if ran(row["x SGD"])]
    for network, rows in grouped(timed, formats, "network"):
        ours = min((r["x SGD"] for r in rows if r["step"].startswith("ours")), key=value)
        yield f"step, {network}", {
            row["step"]: with_format(quotient(pair(row["x SGD"]), pair(ours)), "{:.2f}")
            for row in rows if not row["step"].startswith("ours") and "SGD" not in row["step"]}  # fmt: skip


def bmg_contests(numbers):
    """Rates there, so that the peer's time is the ratio of rates the other way round; ours is the faster form."""
    for rates in numbers["rates"]:
        found = {name.removesuffix(" (1/s)"): pair(cell) for name, cell in rates.items()
                 if name.endswith("(1/s)") and ran(cell)}  # fmt: skip
        ours = max(found[name] for name in ("compiled", "tensors") if name in found)
        yield f"meta-steps, lifetimes {rates['lifetimes']}", {
            peer: with_format(quotient(ours, found[peer]), "{:.2f}")
            for peer in ("JAX", "TorchOpt", "plain loop") if peer in found}  # fmt: skip


OURS = ("ours", "collage", "fused", "eager", "compiled", "tensors", "meta_gradient")


def growth(papers=None):
    """(paper, work, name of the size, {"ours" or the strongest peer: [(size, seconds, MB or None), ...]}).

    From the `scaling` of the CPU records, where a work has at least two sizes. Ours is at each size the
    fastest form of ours; the peer is the one that is fastest at the largest size, at all its sizes. Who
    gives wrong answers is no peer.
    """
    for name, content in records().items():
        paper, run = name.split("/")
        if not run.endswith("_cpu") or (papers is not None and paper not in papers):
            continue
        wrong = {
            row["program"] for row in content["numbers"]["table"] if row.get("correct") == "no"
        }
        for (work, size), rows in by_work(content["numbers"].get("scaling", [])):
            ours, peers = {}, {}
            for row in rows:
                if row["program"] in wrong:
                    continue
                n, who, spent = row["at"], row["program"], (row["seconds"], row.get("MB"))
                if who.split(",")[0] in OURS:
                    ours[n] = min(spent, ours.get(n, (math.inf, None)), key=lambda pair: pair[0])
                else:
                    peers.setdefault(who, {})[n] = spent
            largest = max(ours)
            rivals = {who: times for who, times in peers.items() if largest in times}
            if len(ours) < 2 or not rivals:
                continue
            best = min(rivals, key=lambda who: rivals[who][largest][0])
            lines = {name: [(n, *times[n]) for n in sorted(times)]
                     for name, times in (("ours", ours), (best, rivals[best]))}  # fmt: skip
            yield paper, work, size, lines


def by_work(scaling):
    """((work, name of the size), its rows), in the order of the first of each."""
    groups = {}
    for row in scaling:
        groups.setdefault((row["work"], row["size"]), []).append(row)
    return groups.items()


def slope(points):
    """How time grows with size: the exponent between the smallest and the largest.

    points: (size, seconds, ...).

    >>> slope([(1, 2.0), (10, 6.3), (100, 20.0)])
    0.5
    """
    (n, t, *_), *_, (m, u, *_) = points
    return round(math.log(u / t) / math.log(m / n), 2)


def summary(papers=None):
    """One row for each piece of work that a benchmark timed on a CPU, from its record.

    "peer / ours" is the time of the fastest peer as a multiple of ours, with its spread as the record
    has it. papers: which, or all. A work that no peer was there for says so.

    >>> sorted(next(summary(["convex_hull"])))
    ['ours', 'paper', 'peer / ours', 'strongest peer', 'work']
    """
    for name, content in records().items():
        paper, run = name.split("/")
        if not run.endswith("_cpu") or (papers is not None and paper not in papers):
            continue
        for work, peers in contests(paper, content["numbers"]):
            best = min(peers, key=lambda peer: value(peers[peer]), default=None)
            yield {"paper": paper, "work": work, "ours": 1, "peer / ours": peers.get(best, "-"),
                   "strongest peer": best or "none run"}  # fmt: skip
