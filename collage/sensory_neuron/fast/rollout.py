"""Whole episodes of `SwingUp` with the agent of 913 parameters, on a CPU, compiled by numba.

fused_returns     returns and lengths of a population
fast_tanh         a rational function of our own fit, within 5e-7 of tanh
accelerations     the cart's and the pole's
rollouts          16 episodes at a time, side by side in the lanes of the processor's vectors

A lane whose episode is over takes the next one of the queue, with the weights of its member: no lane
computes for a cart that has left the track, until the queue is empty. Every array has the lanes as
its last axis, and every inner loop runs over them, so that LLVM turns it into vector instructions.
"""

import concurrent.futures
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from collage.sensory_neuron.fast.inputs import rules, tabled

try:
    import numba
except ImportError:  # an extra; `fused_returns` says so
    numba = None  # type: ignore[assignment]

LANES, SENSORS, UNITS, CODES = 16, 5, 8, 16
# What a gate hears: the last action, 1, the reading, the units.
READING, HIDDEN, HEARD = 2, 3, 3 + UNITS
GATES = 4 * UNITS * HEARD
HEAD = GATES + CODES * UNITS
WEIGHTS = HEAD + CODES + 1
# float32 throughout: a Python number would make float64 of it.
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
TWO, THREE, FOUR, SIX = np.float32(2), np.float32(3), np.float32(4), np.float32(6)
OVER = np.array([9.99999181e-01, 1.28908447e-01, 2.91454842e-03, 1.10520098e-05], np.float32)
UNDER = np.array([4.62238820e-01, 2.36639665e-02, 2.33621527e-04, 2.34212248e-07], np.float32)
LARGEST = np.float32(8.25)  # where tanh is 1 in float32


def compiled(inline: Literal["never", "always"]) -> Callable[[Callable], Callable]:
    """As numba compiles it, kept beside the source: sums in their order, and no lock held."""
    if numba is None:
        return lambda function: function

    def loop(function: Callable) -> Callable:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "inline": inline}
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder in which anything can be kept
            return numba.njit(**options)(function)

    return loop


def fused_returns(
    weights: Tensor,  # (E, 913)
    starts: Tensor,  # (B, 4) or (B, 5), as `SwingUp` makes them
    steps: int = 1000,
) -> tuple[Tensor, Tensor]:
    """Returns and lengths (E, B) in `SwingUp` of `Agent()`s with these weights.

    The same as `play` to rounding, in one loop that never leaves the processor's caches. Each of
    torch's threads takes its share of the episodes, which do not depend on their number. Starts are at
    time 0 and on the track. The first call compiles (about five seconds, kept for later).

    Raises ValueError for other weights or starts; RuntimeError where numba is not installed.

    >>> fused_returns(torch.zeros(2, 913), torch.zeros(1, 4), steps=10)
    (tensor([[10.],
            [10.]]), tensor([[10],
            [10]]))
    """
    if numba is None:
        raise RuntimeError("fused_returns: numba is not installed; pip install 'ml-collage[fast]'")
    rows, begin, steps = tabled(weights.cpu(), starts.cpu(), steps)
    E, B, table = len(rows), len(begin), rows.numpy()
    first, member = begin.repeat(E, 1).numpy(), np.repeat(np.arange(E), B)
    returns, lengths = np.zeros(E * B, np.float32), np.zeros(E * B, np.int32)

    def share(part: slice) -> None:
        rollouts(table, first[part], member[part], steps, rules(), returns[part], lengths[part])

    threads = min(torch.get_num_threads(), -(-E * B // LANES))
    ends = [i * E * B // threads for i in range(threads + 1)]
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(share, map(slice, ends[:-1], ends[1:])))
    shape, device = (E, B), starts.device
    return (torch.from_numpy(returns).view(shape).to(device),
            torch.from_numpy(lengths).view(shape).long().to(device))  # fmt: skip


@compiled(inline="always")
def fast_tanh(x):  # type: ignore[no-untyped-def]
    """tanh of float32, as x n(x^2) / d(x^2).

    >>> round(float(fast_tanh(np.float32(0.5))), 6)
    0.462117
    """
    x = x if x < LARGEST else LARGEST
    x = x if x > -LARGEST else -LARGEST
    u = x * x
    over = OVER[0] + u * (OVER[1] + u * (OVER[2] + u * OVER[3]))
    under = ONE + u * (UNDER[0] + u * (UNDER[1] + u * (UNDER[2] + u * UNDER[3])))
    return x * over / under


@compiled(inline="always")
def accelerations(v, rate, sin, cos, force, motion):  # type: ignore[no-untyped-def]
    """x'' and a'' of the cart and its pole, the equations of `SwingUp`; motion: its last `rules`.

    Of numbers or arrays of any kind.
    """
    friction, ml, l, M4, m3, mg3, Mg6 = motion
    below = M4 - m3 * cos * cos
    spin, push = ml * rate * rate * sin, force - friction * v
    dv = (-TWO * spin + mg3 * sin * cos + FOUR * push) / below
    dr = (-THREE * spin * cos + Mg6 * sin + SIX * push * cos) / (l * below)
    return dv, dr


@compiled(inline="always")
def sums(weights, heard, first, lane):  # type: ignore[no-untyped-def]
    """weights (K, L) times what five sensors hear (5, K, L): each weight is read once."""
    a = b = c = d = e = ZERO
    for k in range(first, HEARD):
        weight = weights[k - first, lane]
        a += weight * heard[0, k, lane]
        b += weight * heard[1, k, lane]
        c += weight * heard[2, k, lane]
        d += weight * heard[3, k, lane]
        e += weight * heard[4, k, lane]
    return a, b, c, d, e


@compiled(inline="always")
def think(gates, queries, head, heard, cell, fresh, gate, code, action):  # type: ignore[no-untyped-def]
    """One step of the agents: `core.act`."""
    for j in range(UNITS):  # one unit of all sensors at a time; every gate hears the old ones
        for q in range(4):
            for l in range(LANES):
                gate[q, 0, l], gate[q, 1, l], gate[q, 2, l], gate[q, 3, l], gate[q, 4, l] = sums(
                    gates[q, j], heard, 0, l
                )
        for i in range(SENSORS):
            for l in range(LANES):
                # A gate that opens and closes: its weights come halved.
                enter = HALF + HALF * fast_tanh(gate[0, i, l])
                keep = HALF + HALF * fast_tanh(gate[1, i, l])
                out = HALF + HALF * fast_tanh(gate[2, i, l])
                cell[i, j, l] = keep * cell[i, j, l] + enter * fast_tanh(gate[3, i, l])
                fresh[i, j, l] = out * fast_tanh(cell[i, j, l])
    for i in range(SENSORS):
        for j in range(UNITS):
            for l in range(LANES):
                heard[i, HIDDEN + j, l] = fresh[i, j, l]
    for m in range(CODES):
        for l in range(LANES):
            a, b, c, d, e = sums(queries[m], heard, HIDDEN, l)
            total = fast_tanh(a) * heard[0, READING, l]
            total += fast_tanh(b) * heard[1, READING, l]
            total += fast_tanh(c) * heard[2, READING, l]
            total += fast_tanh(d) * heard[3, READING, l]
            total += fast_tanh(e) * heard[4, READING, l]
            code[m, l] = fast_tanh(total)
    for l in range(LANES):
        total = head[CODES, l]
        for m in range(CODES):
            total += head[m, l] * code[m, l]
        action[l] = fast_tanh(total)


@compiled(inline="always")
def advance(state, sin, cos, action, total, rules):  # type: ignore[no-untyped-def]
    """One step of the carts, explicit Euler: positions move with the old velocities."""
    _, wave, force, dt = rules[:4]
    for l in range(LANES):
        x, v, a, rate = state[0, l], state[1, l], state[2, l], state[3, l]
        dv, dr = accelerations(v, rate, sin[l], cos[l], force * action[l], rules[4:])
        state[0, l], state[1, l] = x + dt * v, v + dt * dv
        state[2, l], state[3, l] = a + dt * rate, rate + dt * dr
    for l in range(LANES):
        sin[l], cos[l] = math.sin(state[2, l]), math.cos(state[2, l])
        total[l] += HALF * (cos[l] + ONE) * math.cos(wave * state[0, l])


@compiled(inline="never")
def rollouts(table, starts, member, steps, rules, returns, lengths):  # type: ignore[no-untyped-def]
    """table (E, W), starts (n, 4), member (n,) -> returns, lengths (n,), which it writes."""
    weights = np.zeros((WEIGHTS, LANES), np.float32)
    gates = weights[:GATES].reshape(4, UNITS, HEARD, LANES)
    queries, head = weights[GATES:HEAD].reshape(CODES, UNITS, LANES), weights[HEAD:]
    heard = np.zeros((SENSORS, HEARD, LANES), np.float32)
    cell = np.zeros((SENSORS, UNITS, LANES), np.float32)
    fresh = np.zeros((SENSORS, UNITS, LANES), np.float32)
    gate, code = np.zeros((4, SENSORS, LANES), np.float32), np.zeros((CODES, LANES), np.float32)
    state = np.zeros((4, LANES), np.float32)  # x, v, angle, rate
    sin, cos = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    action, total = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    episode, age = np.full(LANES, -1), np.zeros(LANES, np.int64)
    taken = busy = 0
    while True:
        for l in range(LANES):
            if episode[l] >= 0:
                if age[l] < steps and abs(state[0, l]) <= rules[0]:
                    continue
                returns[episode[l]], lengths[episode[l]] = total[l], age[l]
                episode[l] = -1
                busy -= 1
                for k in range(4):
                    state[k, l] = ZERO
            if taken < len(member):
                for k in range(WEIGHTS):
                    weights[k, l] = table[member[taken], k]
                for k in range(4):
                    state[k, l] = starts[taken, k]
                for i in range(SENSORS):
                    for k in range(HEARD):
                        heard[i, k, l] = ZERO
                    for j in range(UNITS):
                        cell[i, j, l] = ZERO
                sin[l], cos[l] = math.sin(state[2, l]), math.cos(state[2, l])
                action[l], total[l], age[l], episode[l] = ZERO, ZERO, 0, taken
                taken += 1
                busy += 1
        if busy == 0:
            return
        for l in range(LANES):
            for i in range(SENSORS):
                heard[i, 0, l], heard[i, 1, l] = action[l], ONE
            heard[0, READING, l], heard[1, READING, l] = state[0, l], state[1, l]
            heard[2, READING, l], heard[3, READING, l] = cos[l], sin[l]
            heard[4, READING, l] = state[3, l]
            age[l] += 1
        think(gates, queries, head, heard, cell, fresh, gate, code, action)
        advance(state, sin, cos, action, total, rules)
