"""The exercises of chapter 39, `convex_hull`."""

import math

import torch

from collage import runtime
from collage.page.exercises.checker import Answer, close, exercise


def _case(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points (30, 3), a query near or far, and a point of the hull."""
    g = runtime.generator(seed)
    draw = torch.randn(31, 3, generator=g, dtype=torch.float64)
    x, z = draw[:30], (4 if seed % 2 else 0.2) * draw[30]
    return x, z, x[seed] if seed < 4 else x[:10].mean(0)


@exercise("convex_hull-1")
def nearest_on_segment(answer: Answer) -> str | None:
    """A function (x, z, y) -> the point nearest to z between y and the best vertex."""
    for seed in range(6):
        x, z, y = _case(seed)
        s = x[(x @ (z - y)).argmax()]
        free = (z - y) @ (s - y) / (s - y).square().sum().clamp(min=1e-30)
        wanted = y + free.clamp(0, 1) * (s - y)
        result = answer(x.clone(), z.clone(), y.clone())
        if result is None:
            return "It returns nothing; return the new point."
        result = torch.as_tensor(result).detach()
        if result.shape != y.shape:
            return f"Return one point, of shape {tuple(y.shape)}; yours has {tuple(result.shape)}."
        if close(result, wanted, 1e-5):
            continue
        if close(result, y + free * (s - y), 1e-5):
            return "Your step leaves the segment: past its end there may be no hull."
        if (result - z).norm() > (y - z).norm() + 1e-9:
            return "Your step ends further from z than it began. Towards which point do you go?"
        return "The right direction leads to one point s; how far to go depends on z, y and s."
    return None


@exercise("convex_hull-2")
def all_between(answer: Answer) -> str | None:
    """A function (N, M) -> P(M new numbers all lie between N others)."""
    for n, m in ((2, 1), (10, 1), (5, 3), (1000, 1000)):
        result = float(answer(n, m))
        if not math.isclose(result, n * (n - 1) / ((n + m) * (n + m - 1)), rel_tol=1e-5):
            if m > 1 and math.isclose(result, ((n - 1) / (n + 1)) ** m, rel_tol=1e-5):
                return "That treats the new numbers as if each met data of its own."
            return f"For N={n}, M={m} you say {result:.4g}. Which two numbers decide?"
    return None


@exercise("convex_hull-3")
def points_by_covering(answer: Answer) -> str | None:
    """A function (p, d, s) -> the points that the covering demands for queries of radius s."""
    for p, d, s in ((0.5, 4, 1.0), (0.1, 10, 0.8), (1.0, 3, 0.5), (0.3, 20, 0.25)):
        result, wanted = float(answer(p, d, s)), 2 * p * (2 * s) ** d
        if math.isclose(result, wanted, rel_tol=1e-5):
            continue
        said = f"For p={p:g}, d={d}, s={s:g} you say {result:.4g}. "
        if math.isclose(result, wanted / 2, rel_tol=1e-5):
            return said + "A factor of two is missing: not all training points lie at radius one."
        if math.isclose(result, 2 * p * 2**d, rel_tol=1e-5):
            return said + "That is right for s = 1. The new point's ball is smaller."
        return said + "Which share of the small ball can one covering ball fill?"
    return None


@exercise("convex_hull-4")
def three_changes(answer: Answer) -> str | None:
    """Three of +1, 0, -1: what happens to the number of digits inside."""
    if not isinstance(answer, list | tuple | torch.Tensor) or len(answer) != 3:
        return "Give three numbers, for (a), (b) and (c), each of them +1, 0 or -1."
    for name, given, wanted in zip("abc", answer, (0, 0, -1), strict=True):
        if float(given) not in (-1, 0, 1):
            return f"({name}) should be +1, 0 or -1; you say {given}."
        if float(given) != wanted:
            return (
                f"({name}) is not so. Make that change in the cell, run it and compare the counts."
            )
    return None
