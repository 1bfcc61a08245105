"""The exercises of `nbeats`."""

import math

import torch

from collage import runtime
from collage.page.exercises.checker import Answer, close, exercise


@exercise("nbeats-1")
def number_of_weights(answer: Answer) -> str | None:
    """A function (L, H, a, b) -> the number of weights of the interpretable network."""
    for L, H, a, b in ((12, 6, 256, 2048), (5, 1, 3, 2), (39, 13, 16, 64)):
        solution = sum(L * w + 3 * w * w + 4 * w + (w + 1) * out
                     for w, out in ((a, 6), (b, 4 * ((H + 1) // 2))))  # fmt: skip
        result = answer(L, H, a, b)
        if float(result) != solution:
            return (f"For L={L}, H={H}, a={a}, b={b} you say {result}. Five layers a stack, each with "
                    "a bias; how many coefficients come out of the last?")  # fmt: skip
    return None


@exercise("nbeats-2")
def masked_stacking(answer: Answer) -> str | None:
    """A function (x, seen, blocks) -> the forecast of doubly residual stacking with a mask."""
    g = runtime.generator(0)
    x = 5 + torch.randn(4, 6, generator=g, dtype=torch.float64)
    seen = torch.ones(4, 6, dtype=torch.float64)
    matrices = torch.randn(3, 6, 6 + 2, generator=g, dtype=torch.float64) / 3
    for hidden in (0, 3):
        seen[1, :hidden] = 0
        shown = torch.where(seen > 0, x, 1e3)  # what lies under the mask must not matter
        rest, total = (x * seen).flip(-1), x[:, -1:]
        for m in matrices:
            output = (rest + 1) @ m
            rest, total = (rest - output[:, :6]) * seen.flip(-1), total + output[:, 6:]
        blocks = [lambda r, m=m: (((r + 1) @ m)[:, :6], ((r + 1) @ m)[:, 6:]) for m in matrices]
        if not close(answer(shown.clone(), seen.clone(), blocks), total, 1e-9):
            return ("Turn the window round, mask it after every subtraction, and start the forecast "
                    "from the last observation.")  # fmt: skip
    return None


@exercise("nbeats-3")
def complete_waves(answer: Answer) -> str | None:
    """A function (points, H) -> waves, with the fastest one where H is even, without zeros."""
    for points, H in ((8, 8), (20, 6), (9, 5), (4, 2)):
        k, j = torch.arange((H + 1) // 2).double(), torch.arange(points).double()
        angle = 2 * math.pi * torch.outer(k, j) / H
        last = [(-1.0) ** j[None]] if H % 2 == 0 else []
        if not close(answer(points, H), torch.cat([angle.cos(), angle[1:].sin(), *last]), 1e-9):
            return f"For {points} points and H={H} other rows were wanted: H of them, in float64."
    return None


@exercise("nbeats-4")
def error_of_the_mean(answer: Answer) -> str | None:
    """A function (one, two, n) -> the squared error of the mean of n members."""
    for one, two, n in ((4.0, 3.0, 1), (4.0, 3.0, 2), (4.0, 3.0, 8), (1.5, 1.0, 5)):
        result = float(answer(one, two, n))
        if not math.isclose(result, 2 * two - one + 2 * (one - two) / n, rel_tol=1e-9):
            return (f"For one={one:g}, two={two:g}, n={n} you say {result:.4g}. Which part of the "
                    "error is divided by n?")  # fmt: skip
    return None
