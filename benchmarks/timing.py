"""Timing in alternation: every candidate runs once in each round, medians and spread are kept."""

import ctypes
import math
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch

from collage.page.records import texts


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


def median(value, spread, n):
    """The cell of a median of n rounds, with its spread."""
    return {"median": value, "spread": spread, "n": n}


def quotient(a, b, scale=1, n=None):
    """The cell of scale * a / b, of two (median, spread) that vary independently.

    n: how many rounds both are of, where it is known.

    >>> quotient((3.0, 0.75), (1.5, 0.0)), quotient((2.0, 0.3), (2.0, 0.4), 100, 9)
    ({'median': 2.0, 'spread': 0.5}, {'median': 100.0, 'spread': 25.0, 'n': 9})
    """
    (x, dx), (y, dy) = a, b
    ratio = scale * x / y
    cell = {"median": ratio, "spread": ratio * math.hypot(dx / x, dy / y)}
    return cell if n is None else cell | {"n": n}


def one_core():
    """Keep this process, and the threads that it will start, on one core.

    A pool that wakes up its threads elsewhere, as XLA's, costs the peer that owns it up to half of its
    time on a machine with two cores. Where the system cannot do it (macOS), and with a GPU, beside
    which all threads may race, nothing happens.
    """
    if hasattr(os, "sched_setaffinity") and not torch.cuda.is_available():
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def first_call(make):
    """(what make() gives, called once; wall seconds of both): compiled anew, whatever torch has kept."""
    from torch._inductor.utils import fresh_cache

    with fresh_cache():
        begin = time.perf_counter()
        run = make()
        run()
        return run, time.perf_counter() - begin


def peak(function):
    """The most memory (MB) that a call needs beyond what the process held before it; with glibc, else None.

    Whoever asks for it: torch, numpy or a solver. A function that knows its own has it as `memory`, as
    the programs of JAX do, which keep what they free. What a first call keeps is not in it where
    function() has been called before; nor is what lies on a GPU.
    """
    if hasattr(function, "memory"):
        return round(function.memory(), 2)
    libc, threshold, trim = ctypes.CDLL(None), -3, -1
    if sys.platform != "linux" or torch.cuda.is_available() or not hasattr(libc, "mallopt"):
        return None

    def held(what):
        status = Path("/proc/self/status").read_text()
        return int(re.search(rf"{what}:\s+(\d+) kB", status)[1]) / 1024

    # What glibc keeps of freed memory would be used again unseen: blocks from 32 KiB on come from the
    # system, and go back to it. Afterwards as it is in a program that has run for a while.
    libc.mallopt(threshold, 2**15)
    libc.malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark is from now on
        before = held("VmRSS")
        function()
        return round(max(held("VmHWM") - before, 0.0), 2)
    finally:
        libc.mallopt(threshold, 2**25)
        libc.mallopt(trim, 2**26)


def at_size(work, size, n, program, seconds, memory=None):
    """A row of a record's `scaling`: the seconds and MB (see `peak`) of a program at a size, named.

    >>> at_size("a step", "members", 6, "ours", 0.5, 12.0)
    {'work': 'a step', 'size': 'members', 'at': 6, 'program': 'ours', 'seconds': 0.5, 'MB': 12.0}
    """
    found = {"work": work, "size": size, "at": n, "program": program, "seconds": float(seconds)}
    return found if memory is None else found | {"MB": memory}


def show(rows, formats=None):
    """Print rows of cells as one aligned table, as the book shows them."""
    heads = list(rows[0])
    cells = [heads, *[[row[h] for h in heads] for row in texts(rows, formats)]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    for row in cells:
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)))
