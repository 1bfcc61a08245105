"""The exercises of chapter 35, `pes`."""

import math

import torch
from torch import Tensor

from collage import runtime
from collage.page.exercises.checker import Answer, close, exercise, number


def _tensor(value: Answer) -> Tensor | None:
    """A number, a list or a tensor as a tensor, None for anything else."""
    try:
        return torch.as_tensor(value, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError):
        return None


@exercise("pes-1")
def gradient_across_a_reset(answer: Answer) -> str | None:
    """A function (xi, eps, before, after, sigma) -> (gradient, new xi) across a reset."""
    g = runtime.generator(0)
    for m, p, sigma in ((5, 3, 0.5), (2, 1, 2.0)):
        xi, eps = torch.randn(2, m, p, generator=g, dtype=torch.float64)
        before, after = torch.randn(2, 2, m, generator=g, dtype=torch.float64)
        result = answer(xi.clone(), eps.clone(), before.clone(), after.clone(), sigma)
        if not isinstance(result, tuple | list) or len(result) != 2:
            return f"Return two tensors, the gradient and the new xi; you return {type(result).__name__}."
        gradient, new = (_tensor(part) for part in result)
        if gradient is None or gradient.shape != (p,):
            return f"With {m} pairs and {p} parameters the gradient should have the shape ({p},)."
        if new is None or new.shape != xi.shape:
            return f"The new xi should have the shape of xi, ({m}, {p})."
        if not close(new, eps, 1e-5):
            return (
                "The gradient aside, the new xi is wrong: what has the new inner run felt so far?"
            )
        old_part, new_part = before[0] - before[1], after[0] - after[1]
        total = old_part @ (xi + eps) + new_part @ eps
        unit = 2 * m * sigma**2
        if not close(gradient * unit, total, 1e-4):
            if close(gradient * unit / 2, total, 1e-4):
                return "The gradient is twice too large: how many particles are there?"
            if close(gradient * unit, (old_part + new_part) @ (xi + eps), 1e-4):
                return "The losses after the end have not felt the old noise."
            return "The new xi is right, the gradient is not. Which noise has each loss felt?"
    return None


@exercise("pes-2")
def equal_variance(answer: Answer) -> str | None:
    """A function (P, W) -> the inner product of slopes at which PES and full ES vary alike."""
    for p, w in ((1, 2), (8, 5), (100, 20)):
        threshold = number(answer(p, w))
        if threshold is None:
            return f"For P={p}, W={w} a number is wanted."
        if not math.isclose(threshold, p / (2 * (p + 1)), rel_tol=1e-5):
            return (f"For P={p}, W={w} you say {threshold:.4g}. What is the squared length of the sum of "
                    "the slopes, and what does the sum over u in (8) come to?")  # fmt: skip
    return None


@exercise("pes-3")
def truncated_descent(answer: Answer) -> str | None:
    """A function (start, eta, n) -> where truncated gradient descent has run to."""
    for theta, eta, n in ((0.5, 1e-4, 1000), (-1.0, 0.01, 50), (0.2, 0.1, 0)):
        end = (theta + 1 / 6) * (1 + 6 * eta) ** n - 1 / 6
        value = number(answer(theta, eta, n))
        if value is None:
            return f"For start={theta:g}, eta={eta:g}, n={n} a number is wanted."
        if not math.isclose(value, end, rel_tol=1e-3, abs_tol=1e-5):
            return (f"For start={theta:g}, eta={eta:g}, n={n} you say {value:.4g}. What is the derivative of "
                    "the loss with respect to y, which part of it does truncation see, and where is that "
                    "part zero?")  # fmt: skip
    return None


@exercise("pes-4")
def memory_needed(answer: Answer) -> str | None:
    """The smallest share of the noise to keep for influence balancing to turn the right way."""
    keep = number(answer)
    if keep is None or not 0 <= keep <= 1:
        return "A number between 0 and 1 is wanted."
    if keep > 0.993:
        return f"With {keep:g} the run goes down, but less would do."
    if keep < 0.9865:
        return f"With {keep:g} the run goes up: what is 30 steps old has faded too much."
    return None
