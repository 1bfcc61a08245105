"""Whole episodes of `SwingUp` with the agent of 913 parameters in one Triton kernel, on a GPU.

kernel_returns    returns and lengths of a population

A program is one warp and plays four episodes of one member, from their first step to their last: a
lane holds in registers what one of eight sensors (three are idle) of one episode remembers. The
weights, too many for registers, are read anew in each step; all lanes read the same one.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from collage.sensory_neuron.fast.inputs import rules, tabled

UNITS, CODES, SENSORS = tl.constexpr(8), tl.constexpr(16), tl.constexpr(8)
# Where things lie in a row of `tabled`: what a gate's unit hears, the queries, the head; its length.
HEARD, QUERIES = tl.constexpr(11), tl.constexpr(4 * 8 * 11)
HEAD, WEIGHTS = tl.constexpr(4 * 8 * 11 + 16 * 8), tl.constexpr(4 * 8 * 11 + 16 * 8 + 17)
FORM = {"EPISODES": 4, "num_warps": 1, "num_stages": 1}  # 4 episodes x 8 sensors: a warp


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    return 1 - 2 / (1 + tl.exp(2 * x))


@triton.jit
def _column(first, one, again, ROWS: tl.constexpr, STEP: tl.constexpr, EPISODES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Weights (ROWS,), for each lane."""
    place = (tl.arange(0, ROWS) * STEP).to(tl.int64) * one + again
    return tl.load(first + tl.broadcast_to(place[:, None, None], (ROWS, EPISODES, SENSORS)))


@triton.jit
def _heard(  # type: ignore[no-untyped-def]
    first, one, again, hidden,
    ROWS: tl.constexpr, STEP: tl.constexpr, EPISODES: tl.constexpr,
):  # fmt: skip
    """Weights (ROWS, UNITS) times what the units remember."""
    place = tl.arange(0, ROWS)[:, None] * STEP + tl.arange(0, UNITS)[None]
    place = (place.to(tl.int64) * one + again)[:, :, None, None]
    weights = tl.load(first + tl.broadcast_to(place, (ROWS, UNITS, EPISODES, SENSORS)))
    return tl.sum(weights * hidden[None], 1)


@triton.jit
def _gate(own, q: tl.constexpr, one, again, reading, action, hidden, EPISODES: tl.constexpr):  # type: ignore[no-untyped-def]
    own += q * UNITS * HEARD
    z = _column(own, one, again, UNITS, HEARD, EPISODES) * action[None, :, None]
    z += _column(own + 1, one, again, UNITS, HEARD, EPISODES)
    z += _column(own + 2, one, again, UNITS, HEARD, EPISODES) * reading[None]
    return _tanh(z + _heard(own + 3, one, again, hidden, UNITS, HEARD, EPISODES))


# Numbers that differ from call to call are not specialised, or each kind would be compiled anew.
@triton.jit(do_not_specialize=["groups", "B", "steps", "one"])
def _swing_up(  # type: ignore[no-untyped-def]
    table, starts, returns, lengths, groups, B, steps, one,
    track, wave, force, dt, friction, ml, l, M4, m3, mg3, Mg6, EPISODES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)  # places are counted in 64 bits
    member, first = program // groups, (program % groups) * EPISODES
    own, episode = table + member * WEIGHTS, first + tl.arange(0, EPISODES)
    here, at = episode < B, episode * 4
    x, v = tl.load(starts + at, here, 0.0), tl.load(starts + (at + 1), here, 0.0)
    angle, rate = tl.load(starts + (at + 2), here, 0.0), tl.load(starts + (at + 3), here, 0.0)
    cos, sin, total, action = tl.cos(angle), tl.sin(angle), x * 0, x * 0
    hidden = tl.zeros((UNITS, EPISODES, SENSORS), tl.float32)
    cell, sensor = hidden, tl.arange(0, SENSORS)[None, :]
    going, age, t = here, here.to(tl.int32) * 0, steps * 0
    while (t < steps) & (tl.sum(going.to(tl.int32)) > 0):
        # `one` is 1 and this is 0, which the compiler does not know: it would read all weights before
        # the loop and spill them, and lay them out over the lanes, side by side as they are.
        again = t * (one - 1)
        reading = tl.where(sensor == 0, x[:, None], 0.0)
        reading = tl.where(sensor == 1, v[:, None], reading)
        reading = tl.where(sensor == 2, cos[:, None], reading)
        reading = tl.where(sensor == 3, sin[:, None], reading)
        reading = tl.where(sensor == 4, rate[:, None], reading)
        # Gates that open and close: their weights come halved.
        keep = 0.5 + 0.5 * _gate(own, 1, one, again, reading, action, hidden, EPISODES)
        cell = keep * cell
        enter = 0.5 + 0.5 * _gate(own, 0, one, again, reading, action, hidden, EPISODES)
        cell += enter * _gate(own, 3, one, again, reading, action, hidden, EPISODES)
        out = 0.5 + 0.5 * _gate(own, 2, one, again, reading, action, hidden, EPISODES)
        hidden = out * _tanh(cell)
        scores = _tanh(_heard(own + QUERIES, one, again, hidden, CODES, UNITS, EPISODES))
        code = _tanh(tl.sum(scores * reading[None], 2))  # over the sensors: (CODES, EPISODES)
        place = tl.arange(0, CODES).to(tl.int64) * one + again
        head = tl.load(own + HEAD + tl.broadcast_to(place[:, None], (CODES, EPISODES)))
        action = _tanh(tl.sum(head * code, 0) + tl.load(own + HEAD + CODES + again))
        below = M4 - m3 * cos * cos
        spin, push = ml * rate * rate * sin, force * action - friction * v
        dv = (-2 * spin + mg3 * sin * cos + 4 * push) / below
        dr = (-3 * spin * cos + Mg6 * sin + 6 * push * cos) / (l * below)
        x, v, angle, rate = x + dt * v, v + dt * dv, angle + dt * rate, rate + dt * dr
        cos, sin = tl.cos(angle), tl.sin(angle)
        total += tl.where(going, 0.5 * (cos + 1) * tl.cos(wave * x), 0.0)
        age += going.to(tl.int32)
        going = going & (tl.abs(x) <= track)
        t += 1
    at = member * B + episode
    tl.store(returns + at, total, here)
    tl.store(lengths + at, age, here)


def kernel_returns(
    weights: Tensor,  # (E, 913)
    starts: Tensor,  # (B, 4) or (B, 5), as `SwingUp` makes them
    steps: int = 1000,
) -> tuple[Tensor, Tensor]:
    """Returns and lengths (E, B) in `SwingUp` of `Agent()`s with these weights: one launch.

    The same as `play` to rounding, for weights and starts on a GPU. Starts are at time 0 and on the
    track.

    Raises ValueError for other weights or starts.
    """
    table, begin, steps = tabled(weights, starts, steps)
    E, B = len(table), len(begin)
    groups = triton.cdiv(B, FORM["EPISODES"])
    grid = (E * groups,)
    kind: dict[str, Any] = {"device": table.device}
    returns, lengths = torch.empty(E, B, **kind), torch.empty(E, B, dtype=torch.int32, **kind)
    numbers = [float(number) for number in rules()]
    with torch.cuda.device_of(table):  # a kernel goes to the current device
        _swing_up[grid](table, begin, returns, lengths, groups, B, steps, 1, *numbers, **FORM)
    return returns, lengths.long()
