"""The exercises of chapter 40, `ridge_rider`."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import hessian

from collage import runtime
from collage.page.exercises.checker import Answer, close, exercise, number


def _quartic(seed: int) -> Callable[[Tensor], Tensor]:
    """A polynomial of six variables whose rides turn sharply; its origin is a saddle."""
    g = runtime.generator(seed)
    B = torch.randn(6, 6, generator=g)

    def loss(t: Tensor) -> Tensor:
        A = (B + B.T).to(t)
        return t @ A @ t / 4 + (t**4).sum() / 4

    return loss


def _careful(
    loss: Callable[[Tensor], Tensor],
    e: Tensor,
    alpha: float,
    *,
    least: float = 0.9,
    restore: bool = False,
    signed: bool = True,
) -> tuple[Tensor, int]:
    """Where a ride from the origin ends that halves the step where it turns too far."""
    theta, step, moves = torch.zeros_like(e), alpha, 0
    for _ in range(200):
        new = theta + step * e
        values, E = torch.linalg.eigh(hessian(loss)(new))
        shares = E.T @ e
        j = int(shares.abs().argmax())
        if shares[j].abs() < least:
            step = step / 2
            continue
        step = alpha if restore else step
        theta, e, moves = new, E[:, j] * (shares[j].sign() if signed else 1), moves + 1
        if values[j] >= 0:
            break
    return theta, moves


@exercise("ridge_rider-1")
def careful_ride(answer: Answer) -> str | None:
    """A function (loss, theta, e, alpha) -> (last point, moves): a ride that halves its step."""
    for seed, ridge in ((2, 0), (0, 0), (1, 0), (4, 1)):
        loss, zero = _quartic(seed), torch.zeros(6, dtype=torch.float64)
        e = torch.linalg.eigh(hessian(loss)(zero))[1][:, ridge]
        for way in (e, -e):
            result = answer(loss, zero.clone(), way.clone(), 0.3)
            if not isinstance(result, tuple | list) or len(result) != 2:
                kind = type(result).__name__
                return (
                    f"Return two things, the last point and the number of moves; you return {kind}."
                )
            point = torch.as_tensor(result[0], dtype=torch.float64).detach()
            if point.shape != zero.shape:
                return f"theta has the shape (6,), and so has the last point; yours has {tuple(point.shape)}."
            theta, moves = _careful(loss, way, 0.3)
            if close(point, theta, 1e-4):
                if not close(number(result[1]), moves, 0):
                    return (f"The last point is right, the number of moves is not: {moves} here, you say "
                            f"{result[1]}. Does a step that is taken back count?")  # fmt: skip
                continue
            if close(point, _careful(loss, way, 0.3, signed=False)[0], 1e-4):
                return "Your rider turns round on its way: which sign has the new direction?"
            if close(point, _careful(loss, way, 0.3, least=0.0)[0], 1e-4):
                return "Your rider takes every step, also those with an overlap below 0.9."
            if close(point, _careful(loss, way, 0.3, restore=True)[0], 1e-4):
                return "Your step grows again after a good move; it should stay halved."
            return ("Your ride ends somewhere else. Where does it stand after a step that turns too far, "
                    "and at which of its points does it stop?")  # fmt: skip
    return None


@exercise("ridge_rider-2")
def wide_enough(answer: Answer) -> str | None:
    """The standard deviation of starts at which half of the descents reach a deep minimum."""
    spread = number(answer)
    if spread is None:
        return "A number is wanted, the standard deviation of the starts."
    if not 0.75 <= spread <= 1.6:
        side = "fewer" if spread < 0.75 else "more"
        return f"With a spread of {spread:g} clearly {side} than half end in a deep minimum."
    return None


@exercise("ridge_rider-3")
def lowest_eigenvalue(answer: Answer) -> str | None:
    """A function (n, r) -> the lowest eigenvalue of a lever game of n equal levers."""
    for n, r in ((2, 1.0), (7, 1.0), (5, 3.0)):
        result = number(answer(n, r))
        if result is None:
            return "Return one number for each n and r."
        if not math.isclose(result, -r / n**2, rel_tol=1e-5):
            said = f"For n={n}, r={r:g} you say {result:.4g}. "
            if math.isclose(result, r / n**2, rel_tol=1e-5):
                return said + "That is the largest one; the most negative is wanted."
            if math.isclose(result, -r / n, rel_tol=1e-5):
                return said + "What is c for n levers that pay r?"
            return said + "What are p and c here, and what are the eigenvalues of diag(p) - p p'?"
    return None


@exercise("ridge_rider-4")
def lone_lever_at_less(answer: Answer) -> str | None:
    """(with itself, with strangers): what ridge 1 earns where the lone lever pays 0.4."""
    try:
        own, cross = (float(part) for part in answer)
    except (TypeError, ValueError):
        return "Two numbers are wanted: (with itself, with strangers)."
    if close(own, 0.4, 0.03):
        return "So it would be if ridge 1 led to the lone lever. Run it: which levers do the agents pull?"
    if close(own, 0.6, 0.03):
        return "That is what it earns where the lone lever pays 0.6."
    if not close(own, 0.8, 0.03):
        return f"With itself it does not earn {own:g}. Run it."
    if not close(cross, 0.4, 0.06):
        return f"0.8 with itself is right; with strangers it is not {cross:g}. How often do two agents meet?"
    return None


@exercise("ridge_rider-5")
def eigenvalues_at_zero(answer: Answer) -> str | None:
    """A function (K, D, h) -> (negative eigenvalues, distinct ones) of the network of zeros."""
    for K, D, h in ((10, 64, 16), (3, 20, 5), (10, 4, 2), (2, 7, 3)):
        distinct = min(K - 1, D)
        result = answer(K, D, h)
        if not isinstance(result, tuple | list | Tensor) or len(result) != 2:
            return "Return two numbers, all negative eigenvalues and the distinct ones."
        every, apart = (number(n) for n in result)
        said = f"For K={K}, D={D}, h={h} you say ({every:g}, {apart:g}). " \
            if every is not None and apart is not None else "Two whole numbers are wanted. "  # fmt: skip
        if apart != distinct:
            return (
                said
                + "How many are distinct? Think of the rank of C, and of what its rows add up to."
            )
        if every != h * distinct:
            return said + "The distinct ones are right. How often does each of them occur?"
    return None
