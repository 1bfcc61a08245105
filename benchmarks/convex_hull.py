"""Hull membership against what people use today: python -m benchmarks.convex_hull [--rounds 3]

The same points, the same queries, the answers compared first; then the time for one query. Peers:
scipy's linprog (HiGHS) as pasted everywhere, scipy's nnls, column generation over scipy's HiGHS, the
same over highspy, one model a query whose basis is kept (the honest rival), and Qhull's facets where
there are few dimensions. They decide; so does ours,
and what the entry of every query into the hull costs on top is said beside it. Writes
results/convex_hull/queries_cpu.json or queries_gpu.json.
"""

import os

# One thread for everybody: said before the libraries load.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import argparse
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linprog, nnls
from scipy.spatial import ConvexHull

from benchmarks.timing import at_size, clock, one_core, peak, show
from collage import runtime
from collage.convex_hull import gaussian_inside_probability, membership, verify
from experiments.program import positive
from tools import provenance
from tools.peers import peer as found_peer

QUERIES = 500
# (d, N): how many queries linprog, nnls and column generation (both) get; Qhull gets all where it can
CELLS = {(2, 10**4): (0, 0, 0), (2, 10**5): (0, 0, 0), (3, 10**4): (0, 0, 0),
         (3, 10**5): (0, 0, 0), (4, 10**4): (0, 0, 0), (4, 10**5): (0, 0, 0),
         (10, 10**4): (8, 40, 300), (20, 10**4): (8, 40, 300),
         (10, 10**5): (3, 8, 200), (20, 10**5): (3, 8, 200)}  # fmt: skip

FORMATS = {"N": "{:,}", "inside": "{:.3f}", "exact": "{:.3f}", "x linprog": "{:.1f}", "x nnls": "{:.1f}",
           "x columns": "{:.1f}", "x highspy columns": "{:.1f}", "x Qhull": "{:.2f}", "entries cost": "x {:.1f}",
           "passes": "{:.2f} / {:.2f}", "differ": "{:,} of {:,}", "decision (s)": "{:.3f}",
           "with entries (s)": "{:.3f}", "x one CPU thread": "{:.0f}"}  # fmt: skip


def by_linprog(x, z):
    """Is there a convex combination? One linear program with N unknowns."""
    a = np.vstack([x.T, np.ones(len(x))])
    return linprog(np.zeros(len(x)), A_eq=a, b_eq=np.append(z, 1), method="highs").status == 0


def by_nnls(x, z):
    """The same by least squares; the residual is compared with a threshold."""
    return nnls(np.vstack([x.T, np.ones(len(x))]), np.append(z, 1))[1] < 1e-8


def by_columns(x, z, cuts=32):
    """Search for a separating direction on a few points; add those that it gets most wrong."""
    d = x.shape[1]
    w, rows, margin = z - x.mean(0), np.empty(0, int), np.append(np.zeros(d), -1.0)
    while True:
        price = x @ w - w @ z
        worst = np.argpartition(-price, cuts)[:cuts]
        worst = worst[price[worst] >= 0]
        if not len(worst):
            return False
        rows = np.union1d(rows, worst)
        a = np.hstack([x[rows] - z, np.ones((len(rows), 1))])
        box = [(-1, 1)] * d + [(0, None)]
        found = linprog(margin, A_ub=a, b_ub=np.zeros(len(rows)), bounds=box, method="highs")
        w = found.x[:-1]
        if found.x[-1] <= 1e-10:
            return True


def by_highspy(x, z, cuts=32):
    """The same with one model a query: rows are added to it, and each solution starts from the last."""
    highspy, d = found_peer("highspy")[0], x.shape[1]
    model, lp = highspy.Highs(), highspy.HighsLp()
    model.setOptionValue("output_flag", False)
    model.setOptionValue("threads", 1)
    model.setOptionValue("presolve", "off")
    lp.num_col_, lp.num_row_ = d + 1, 0
    lp.col_cost_ = np.append(np.zeros(d), -1.0)
    lp.col_lower_, lp.col_upper_ = (
        np.append(-np.ones(d), 0),
        np.append(np.ones(d), highspy.kHighsInf),
    )
    lp.a_matrix_.format_, lp.a_matrix_.start_ = highspy.MatrixFormat.kRowwise, np.zeros(1, int)
    model.passModel(lp)
    w, columns = z - x.mean(0), np.arange(d + 1, dtype=np.int32)
    while True:
        price = x @ w - w @ z
        worst = np.argpartition(-price, cuts)[:cuts]
        worst = worst[price[worst] >= 0]
        k = len(worst)
        if not k:
            return False
        rows = np.hstack([x[worst] - z, np.ones((k, 1))])
        model.addRows(k, np.full(k, -highspy.kHighsInf), np.zeros(k), rows.size,
                      (np.arange(k) * (d + 1)).astype(np.int32), np.tile(columns, k), rows.ravel())  # fmt: skip
        model.run()
        found = np.array(model.getSolution().col_value)
        w = found[:-1]
        if found[-1] <= 1e-10:
            return True


def by_facets(x, z):
    """All queries at once against the facets of the hull."""
    facets = ConvexHull(x).equations
    return np.concatenate([(part @ facets[:, :-1].T + facets[:, -1] <= 1e-12).all(1)
                           for part in np.array_split(z, max(1, len(z) // 500))])  # fmt: skip


def ours(x, z, rounds):
    """Seconds a query for the decision, and for decision and entries; passes; the result."""
    decide, whole, passes = [], [], 0.0
    for _ in range(rounds + 1):  # the first warms up
        begin = clock()
        result = membership(x, z)
        decide.append((clock() - begin) / len(z))
        passes = result.passes
        assert result.entry.shape == (len(z),)  # asking for it is what computes it
        whole.append((clock() - begin) / len(z))
    return np.array(decide[1:]), np.array(whole[1:]), (passes, result.passes), result


def peer(function, x, z, k, answer):
    """Seconds for each of the first k queries, and how often the answer differs."""
    times, wrong = [], 0
    for i in range(k):
        begin = clock()
        wrong += int(function(x, z[i]) != answer[i])
        times.append(clock() - begin)
    return np.array(times), wrong


PEERS = {"linprog": by_linprog, "nnls": by_nnls, "columns": by_columns,
         "highspy columns": by_highspy}  # fmt: skip


def compare(row, x, z, counts, answer, mine):
    """Fill a row in with the peers' times; how many answers were compared, and how many differ."""
    compared = wrong = 0
    work = f"a decision, d = {x.shape[1]}"
    memory = peak(lambda: membership(torch.from_numpy(x), torch.from_numpy(z)))
    row["scaling"] = [at_size(work, "points", len(x), "ours", np.median(mine), memory)]
    for (name, function), k in zip(PEERS.items(), (*counts, counts[-1]), strict=True):
        if function is by_highspy and not found_peer("highspy"):
            k = 0
        times, bad = peer(function, x, z, k, answer)
        compared, wrong = compared + k, wrong + bad
        row[f"x {name}"] = ratio(times, mine) if k else "-"
        if k:
            memory = peak(lambda function=function: function(x, z[0]))
            row["scaling"].append(at_size(work, "points", len(x), name, times.mean(), memory))
    return compared, wrong


def ratio(theirs, mine):
    """How many times as long, with the spread of our rounds and of the mean of theirs."""
    value = theirs.mean() / np.median(mine)
    low, high = np.quantile(mine, (0.16, 0.84))
    spread = np.hypot((high - low) / 2 / np.median(mine),
                      theirs.std() / np.sqrt(len(theirs)) / theirs.mean())  # fmt: skip
    cell = {"mean": float(value), "spread": float(value * spread)}
    return cell if value < 100 else cell | {"format": "{:.0f}"}


def cell(d, n, counts, rounds, rng):
    x, z = rng.standard_normal((n, d)), rng.standard_normal((QUERIES, d))
    mine, whole, passes, result = ours(torch.from_numpy(x), torch.from_numpy(z), rounds)
    answer = result.inside.numpy()
    verify(result, torch.from_numpy(x), torch.from_numpy(z[: len(z)]))
    row = {"d": d, "N": n, "inside": float(answer.mean()),
           "exact": gaussian_inside_probability(n, d)}  # fmt: skip
    compared, wrong = compare(row, x, z, counts, answer, mine)
    row["x Qhull"] = "-"
    if d <= 4:
        times = []
        for _ in range(rounds + 1):
            begin = clock()
            found = by_facets(x, z)
            times.append((clock() - begin) / len(z))
        compared, wrong = compared + len(z), wrong + int((found != answer).sum())
        row["x Qhull"] = float(np.median(times[1:]) / np.median(mine))
        work = f"a decision, d = {d}"
        memory = peak(lambda: by_facets(x, z))
        row["scaling"].append(at_size(work, "points", n, "Qhull", np.median(times[1:]), memory))
    row["entries cost"] = float(np.median(whole) / np.median(mine))
    row["passes"], row["differ"] = list(passes), [wrong, compared]
    return row, compared, wrong


def high_dimension(rounds):
    """d = 128, N = 5,000, queries near the boundary."""
    rng = np.random.default_rng(1)
    x, z = rng.standard_normal((5000, 128)), 0.2 * rng.standard_normal((100, 128))
    mine, whole, passes, result = ours(torch.from_numpy(x), torch.from_numpy(z), min(rounds, 1))
    answer, row = result.inside.numpy(), {"d": 128, "N": "5,000 (near the boundary)"}
    row |= {"inside": float(answer.mean()), "exact": "-"}
    compared, wrong = compare(row, x, z, (4, 30, 15), answer, mine)
    row |= {"x Qhull": "-", "entries cost": float(np.median(whole) / np.median(mine)),
            "passes": list(passes), "differ": [wrong, compared]}  # fmt: skip
    return row, compared, wrong


def on_gpu(rounds, few=200):
    """1e4 queries against a million points in 20 dimensions, in one call; some on the CPU as well."""
    g = runtime.generator(0, "cuda")
    x = torch.randn(10**6, 20, generator=g, device="cuda", dtype=torch.float64)
    z = torch.randn(10**4, 20, generator=g, device="cuda", dtype=torch.float64)
    decide, whole, passes, result = ours(x, z, rounds)
    verify(membership(x, z[:few]), x, z[:few])
    times, cpu = [], [t.cpu() for t in (x, z[: 4 * few])]
    for count in (few, 4 * few):  # the difference leaves out what the points cost once
        begin = clock()
        here = membership(cpu[0], cpu[1][:count]).inside
        times.append(clock() - begin)
    alone = (times[1] - times[0]) / (3 * few)
    wrong = int((here != result.inside[: 4 * few].cpu()).sum())
    share, seconds = float(result.inside.double().mean()), np.median(decide) * len(z)
    return {"d": 20, "N": 10**6, "inside": share, "exact": gaussian_inside_probability(10**6, 20),
            "decision (s)": float(seconds), "with entries (s)": float(np.median(whole) * len(z)),
            "passes": list(passes), "x one CPU thread": float(alone / np.median(decide))}, 4 * few, wrong  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    runtime.threads(1)
    one_core()
    gpu = torch.cuda.is_available()
    rng = np.random.default_rng(0)
    if gpu:
        row, compared, wrong = on_gpu(args.rounds)
        rows = [row]
    else:
        rows, compared, wrong = [], 0, 0
        for (d, n), counts in CELLS.items():
            row, k, bad = cell(d, n, counts, args.rounds, rng)
            rows, compared, wrong = [*rows, row], compared + k, wrong + bad
            print(f"d = {d}, N = {n:,}: {bad} of {k:,} answers differ", flush=True)
        row, k, bad = high_dimension(args.rounds)
        rows, compared, wrong = [*rows, row], compared + k, wrong + bad
    scaling = [part for row in rows for part in row.pop("scaling", [])]
    show(rows, FORMATS)
    if wrong:
        raise SystemExit(f"{wrong} of {compared} answers differ; no record is written")
    if args.no_record:
        return
    note = (f"Time for one query, as a multiple of ours; Gaussian points, {QUERIES:,} Gaussian "
            "queries (100 at d = 128, one fifth as long as the points), one thread. ± is the "
            "spread over our rounds and the peer's queries. A value below 1 means that the peer "
            "is faster. Passes: how often the points were looked at, for the decision / with the "
            f"entries. Answers compared: {compared:,}, of which {wrong} differ.")  # fmt: skip
    if gpu:
        note = ("10,000 Gaussian queries in one call on a GPU, wall time, the median of the rounds. The "
                "last column: ours on one CPU thread, per further query. The first 800 were answered by "
                "both, and every certificate of the first 200 was verified.")  # fmt: skip
    config = {"cells": [[20, 10**6]] if gpu else [list(c) for c in CELLS],
              "queries": 10**4 if gpu else QUERIES, "rounds": args.rounds}  # fmt: skip
    peers = {"scipy": version("scipy")}
    if not gpu and found_peer("highspy"):
        peers["highspy"] = found_peer("highspy")[1]
    made = provenance.record({"table": rows, "formats": FORMATS, "scaling": scaling, "compared": compared, "differ": wrong}, config=config,
                          seeds=[0], repeats=args.rounds, peers=peers,
                          note=note)  # fmt: skip
    place = Path(__file__).parent.parent / "results" / "convex_hull"
    provenance.write_record(place / f"queries_{'gpu' if gpu else 'cpu'}.json", made)


if __name__ == "__main__":
    main()
