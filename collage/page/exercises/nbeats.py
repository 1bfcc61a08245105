"""The exercises of chapter 38, `nbeats`."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from collage import runtime
from collage.page.exercises.checker import Answer, close, exercise

NOTHING = "Your function returns nothing."
UNCALLED = "Hand over the function itself, not what it returns."


@exercise("nbeats-1")
def number_of_weights(answer: Answer) -> str | None:
    """A function (L, H, a, b) -> the number of weights of the interpretable network."""
    if not callable(answer):
        return UNCALLED

    def count(L: int, H: int, widths: tuple[int, int], biases: int = 1, season: int = 4) -> int:
        waves = (H + 1) // 2
        return sum(L * w + 3 * w * w + 4 * w * biases + (w + biases) * out
                   for w, out in zip(widths, (6, season * waves), strict=True))  # fmt: skip

    for L, H, a, b in ((12, 6, 256, 2048), (39, 13, 16, 64), (5, 1, 3, 2)):
        result = answer(L, H, a, b)
        if result is None:
            return NOTHING
        result, wanted = float(result), count(L, H, (a, b))
        if result != wanted:
            said = f"For L={L}, H={H}, a={a}, b={b} you say {result:,.0f}."
            if result == count(L, H, (a, b), biases=0):
                return f"{said} That is without biases."
            if result == count(L, H, (b, a)):
                return f"{said} Which of the two widths is whose?"
            if H % 2 and result == count(L, H - 1, (a, b)) + 2 * (b + 1):
                return f"{said} How many waves are there where H is odd?"
            if result == count(L, H, (a, b), season=2):
                return f"{said} One of the season's two answers is missing."
            if result == 3 * wanted:
                return f"{said} The three blocks of a stack are one network."
            return f"{said} How many layers has a stack, and how many coefficients leave the last?"
    return None


Block = Callable[[Tensor], tuple[Tensor, Tensor]]


def _stacked(
    x: Tensor, seen: Tensor, blocks: list[Block], turn: bool = True, often: bool = True
) -> Tensor:
    """Doubly residual stacking with a mask, and two ways to get it wrong."""
    mask = seen.flip(-1) if turn else seen
    rest, total = (x.flip(-1) if turn else x) * mask, x[:, -1:]
    for block in blocks:
        back, ahead = block(rest)
        rest, total = (rest - back) * (mask if often else 1), total + ahead
    return total


@exercise("nbeats-2")
def masked_stacking(answer: Answer) -> str | None:
    """A function (x, seen, blocks) -> the forecast of doubly residual stacking with a mask."""
    if not callable(answer):
        return UNCALLED
    g = runtime.generator(0)
    x = 5 + torch.randn(4, 6, generator=g, dtype=torch.float64)
    matrices = torch.randn(3, 6, 6 + 2, generator=g, dtype=torch.float64) / 3

    def block_of(m: Tensor) -> Block:
        def block(rest: Tensor) -> tuple[Tensor, Tensor]:
            both = (rest + 1) @ m.to(rest)
            return both[:, :6], both[:, 6:]

        return block

    blocks = [block_of(m) for m in matrices]
    seen = torch.ones(4, 6, dtype=torch.float64)
    for hidden in (0, 3):
        seen[1, :hidden] = 0
        shown = torch.where(seen > 0, x, 1e3)  # what lies under the mask must not matter
        result = answer(shown.clone(), seen.clone(), blocks)
        if result is None:
            return NOTHING
        result = torch.as_tensor(result, dtype=torch.float64)
        total = _stacked(shown, seen, blocks)
        if result.shape != total.shape:
            return (f"Four windows and a horizon of two: the forecast has the shape (4, 2), "
                    f"yours {tuple(result.shape)}.")  # fmt: skip
        if close(result, total, 1e-3):
            continue
        if close(result, _stacked(shown, seen, blocks, turn=False), 1e-3):
            return "Your blocks see the oldest point first."
        if close(result, _stacked(shown, seen, blocks, often=False), 1e-3):
            return "After the first block something stands where the mask is zero."
        off = total - result
        if close(off, off[:, :1].expand_as(off), 1e-3):
            return "Both steps of each forecast are off by the same amount: at what level do you start?"
        if hidden:
            return (
                "Right without a mask; the window whose first three points are masked goes wrong."
            )
        return "Wrong already where every point is seen: compare your lines with (1)."
    return None


@exercise("nbeats-3")
def complete_waves(answer: Answer) -> str | None:
    """A function (points, H) -> waves, with the fastest one where H is even, without zeros."""
    if not callable(answer):
        return UNCALLED
    for points, H in ((8, 8), (20, 6), (9, 5), (4, 2)):
        k, j = torch.arange((H + 1) // 2).double(), torch.arange(points).double()
        angle = 2 * math.pi * torch.outer(k, j) / H
        last = [(-1.0) ** j[None]] if H % 2 == 0 else []
        result = answer(points, H)
        if result is None:
            return NOTHING
        rows = torch.as_tensor(result, dtype=torch.float64)
        where = f"For {points} points and H={H}"
        if rows.shape != (H, points):
            zero = rows.dim() == 2 and bool((rows.abs().amax(-1) < 1e-5).any())
            return (f"{where} you return the shape {tuple(rows.shape)}, wanted ({H}, {points})."
                    f"{' One of your rows is zero.' if zero else ''}")  # fmt: skip
        if not close(rows, torch.cat([angle.cos(), angle[1:].sin(), *last]), 1e-4):
            wrong = (rows - torch.cat([angle.cos(), angle[1:].sin(), *last])).abs().amax(-1) > 1e-4
            return f"{where} the shape is right; row {int(wrong.nonzero()[0])} (from 0) is not."
    return None


@exercise("nbeats-4")
def error_of_the_mean(answer: Answer) -> str | None:
    """A function (one, two, N) -> the squared error of the mean of N members."""
    if not callable(answer):
        return UNCALLED
    for one, two, n in ((4.0, 3.0, 1), (4.0, 3.0, 2), (4.0, 3.0, 8), (1.5, 1.0, 5)):
        result = answer(one, two, n)
        if result is None:
            return NOTHING
        result = float(result)
        if not math.isclose(result, 2 * two - one + 2 * (one - two) / n, rel_tol=1e-5):
            said = f"For one={one:g}, two={two:g}, N={n} you say {result:.4g}."
            if n < 3:
                return f"{said} It must be {'one' if n == 1 else 'two'} itself."
            if math.isclose(result, one / n, rel_tol=1e-5):
                return f"{said} That would be so if the members' errors had nothing in common."
            return f"{said} Which part of the error is divided by N?"
    return None
