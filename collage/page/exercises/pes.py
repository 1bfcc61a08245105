"""The exercises of `pes`."""

import math

import torch

from collage import runtime
from collage.page.exercises.checker import Answer, close, exercise


@exercise("pes-1")
def equal_variance(answer: Answer) -> str | None:
    """A function (P, W) -> the inner product of slopes at which PES and full ES vary alike."""
    for p, w in ((1, 2), (8, 5), (100, 20)):
        threshold = float(answer(p, w))
        if not math.isclose(threshold, p / (2 * (p + 1)), rel_tol=1e-9):
            return (f"For P={p}, W={w} you say {threshold:.4g}. Which q_vw are not zero, and what is "
                    "the length of the sum of the slopes?")  # fmt: skip
    return None


@exercise("pes-2")
def gradient_across_a_reset(answer: Answer) -> str | None:
    """A function (xi, eps, before, after, sigma) -> (gradient, new xi) across a reset."""
    g = runtime.generator(0)
    for m, p, sigma in ((5, 3, 0.5), (2, 1, 2.0)):
        xi, eps = torch.randn(2, m, p, generator=g, dtype=torch.float64)
        before, after = torch.randn(2, 2, m, generator=g, dtype=torch.float64)
        gradient, new = answer(xi.clone(), eps.clone(), before.clone(), after.clone(), sigma)
        if not close(new, eps):
            return "After the reset only the noise of this unroll has acted."
        total = (before[0] - before[1]) @ (xi + eps) + (after[0] - after[1]) @ eps
        if not close(gradient, total / (2 * m * sigma**2), 1e-9):
            return ("Losses before the end belong to xi + eps, losses after it to eps alone; divide "
                    "by the number of particles.")  # fmt: skip
    return None


@exercise("pes-3")
def truncated_descent(answer: Answer) -> str | None:
    """A function (start, eta, n) -> where truncated gradient descent has run to."""
    for theta, eta, n in ((0.5, 1e-4, 1000), (-1.0, 0.01, 50), (0.2, 0.1, 0)):
        end = (theta + 1 / 6) * (1 + 6 * eta) ** n - 1 / 6
        value = float(answer(theta, eta, n))
        if not math.isclose(value, end, rel_tol=1e-6, abs_tol=1e-9):
            return (f"For start={theta:g}, eta={eta:g}, n={n} you say {value:.4g}. The truncated "
                    "gradient is (y - 1) times one, and y = -6 theta.")  # fmt: skip
    return None


@exercise("pes-4")
def telescoping_losses(answer: Answer) -> str | None:
    """A function (first, ends) -> losses (W, N) that add up to the final loss less the first."""
    g = runtime.generator(0)
    for w, n in ((1, 4), (6, 3)):
        draw = torch.randn(w + 1, n, generator=g, dtype=torch.float64)
        shares = answer(draw[0].clone(), draw[1:].clone())
        if not close(shares, draw[1:] - draw[:-1], 1e-9):
            return "What has this unroll added to the loss that stood at its beginning?"
    return None
