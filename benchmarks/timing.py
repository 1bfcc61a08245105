"""Timing in alternation: every candidate runs once in each round, medians and spread are kept."""

import time

import numpy as np
import torch


def clock():
    """Seconds: CPU time of this process, or wall time once the GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def alternate(candidates, rounds=40, inner=10, warmup=5, clock=clock):
    """{name: function} -> {name: (median, spread)} seconds a call; spread is half the 16-84 range."""
    times = {name: [] for name in candidates}
    for i in range(rounds + warmup):
        for name, function in candidates.items():
            begin = clock()
            for _ in range(inner):
                function()
            if i >= warmup:
                times[name].append((clock() - begin) / inner)
    return {name: (float(np.median(t)), float(np.diff(np.quantile(t, (0.16, 0.84)))[0] / 2))
            for name, t in times.items()}  # fmt: skip


def show(rows):
    """Print a list of dicts as one aligned table."""
    heads = list(rows[0])
    cells = [heads, *[[str(row[h]) for h in heads] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    for row in cells:
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)))
