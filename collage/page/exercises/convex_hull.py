"""The exercises of `convex_hull`."""

import math

import torch

from collage import runtime
from collage.page.exercises.checker import Answer, close, exercise


@exercise("convex_hull-1")
def mean_vertices(answer: Answer) -> str | None:
    """A function (p, n) -> the mean number of vertices of the hull of n + 1 points."""
    for p, n in ((0.25, 99), (0.9, 1000), (0.0, 4)):
        if not math.isclose(float(answer(p, n)), (n + 1) * (1 - p), rel_tol=1e-9):
            return (
                f"For p={p:g}, n={n} you say {float(answer(p, n)):.4g}. How many points are there?"
            )
    return None


@exercise("convex_hull-2")
def points_by_covering(answer: Answer) -> str | None:
    """A function (p, d) -> the number of points that the covering argument demands."""
    for p, d in ((0.5, 4), (0.1, 10), (1.0, 1)):
        if not math.isclose(float(answer(p, d)), p * 2**d, rel_tol=1e-9):
            return (f"For p={p:g}, d={d} you say {float(answer(p, d)):.4g}. Which share of the "
                    "unit ball does one covering ball fill?")  # fmt: skip
    return None


def _planar(seed: int, n: int = 30) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points (n, 3), a query and a direction."""
    g = runtime.generator(seed)
    draw = torch.randn(n + 2, 3, generator=g, dtype=torch.float64)
    return draw[:n], draw[n], draw[n + 1]


@exercise("convex_hull-3")
def shadow_distance(answer: Answer) -> str | None:
    """A function (x, z, u) -> the distance by which the shadow of z clears that of x."""
    for seed in range(4):
        x, z, u = _planar(seed)
        z, u = (3 * z, 5 * z) if seed % 2 else (z, 7 * u)
        margin = (u @ z - (x @ u).max()) / u.norm()
        if not close(answer(x.clone(), z.clone(), u.clone()), margin, 1e-9):
            short = "of whatever length: does yours depend on it?"
            return f"For a direction of length {float(u.norm()):.3g}, {short}"
    return None


@exercise("convex_hull-4")
def nearest_on_segment(answer: Answer) -> str | None:
    """A function (x, z, y) -> the point nearest to z between y and the best vertex."""
    for seed in range(6):
        x, z, _ = _planar(seed)
        z = 4 * z if seed % 2 else 0.2 * z
        y = x[seed] if seed < 4 else x[:10].mean(0)
        s = x[(x @ (z - y)).argmax()]
        t = ((z - y) @ (s - y) / (s - y).square().sum().clamp(min=1e-30)).clamp(0, 1)
        if not close(answer(x.clone(), z.clone(), y.clone()), y + t * (s - y), 1e-9):
            return "Minimise |y + t (s - y) - z| over t, and keep t between 0 and 1."
    return None
