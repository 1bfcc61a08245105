"""The exercises of chapter 33, `sensory_neuron`."""

import math

import torch
from torch import Tensor

from collage import runtime
from collage.page.exercises.checker import Answer, close, exercise


@exercise("sensory_neuron-1")
def code(answer: Answer) -> str | None:
    """A function (x (B, N), keys (B, N, H), queries (M, H)) -> the code (B, M) of (1)."""
    g = runtime.generator(0)
    for N, B, H, M in ((5, 7, 8, 16), (3, 4, 2, 6)):
        x = torch.randn(B, N, generator=g)
        keys = torch.randn(B, N, H, generator=g)
        queries = torch.randn(M, H, generator=g)
        scores = torch.einsum("bnh,mh->bnm", keys, queries)
        inner = (scores.tanh() * x[..., None]).sum(1)
        result = answer(x.clone(), keys.clone(), queries.clone())
        if result is None:
            return "It returns None: return the code."
        result = torch.as_tensor(result).detach()
        if result.shape != (B, M):
            return f"The code has the shape {(B, M)} here; yours has {tuple(result.shape)}."
        if not close(result, inner.tanh(), 1e-5):
            return _wrong_code(result, x, scores, inner)
    return None


def _wrong_code(result: Tensor, x: Tensor, scores: Tensor, inner: Tensor) -> str:
    """Which part of a code of the right shape is wrong."""
    if close(result, inner, 1e-5):
        return "The sum is right. What comes after it in (1)?"
    if close(result, (scores.softmax(1) * x[..., None]).sum(1).tanh(), 1e-5):
        return "That is a softmax over the sensors. What does (1) have in its place?"
    if close(result, (scores * x[..., None]).sum(1).tanh(), 1e-5):
        return "The scores come into the sum as they are. What does (1) do with them first?"
    if close(result, (scores.tanh() * x[..., None]).mean(1).tanh(), 1e-5):
        return "That is a mean over the sensors, not their sum."
    return "The shape is right, the numbers are not. Over which index does the sum run?"


@exercise("sensory_neuron-2")
def three_copies(answer: Answer) -> str | None:
    """What a code of 0.5 becomes when each sensor is there three times."""
    if answer is None:
        return "None is no number."
    result = float(answer)
    if math.isclose(result, math.tanh(3 * math.atanh(0.5)), abs_tol=0.006):
        return None
    if math.isclose(result, 0.5, abs_tol=1e-3):
        return "You say that nothing changes. How many terms does the sum have now?"
    if math.isclose(result, math.tanh(1.5), abs_tol=0.006):
        return "What grows is the sum, and 0.5 is not the sum."
    if result >= 1:
        return f"You say {result:g}. No number of the code can be as large as 1."
    return f"You say {result:g}. By which factor does the sum grow, and what follows it?"


@exercise("sensory_neuron-3")
def silent_under_softmax(answer: Answer) -> str | None:
    """The factor by which ten silent sensors change the sum over five, all keys alike, softmax."""
    if answer is None:
        return "None is no number."
    result = float(answer)
    if math.isclose(result, 1 / 3, abs_tol=0.005):
        return None
    if math.isclose(result, 1, abs_tol=1e-3):
        return "So it would be with tanh. What do the weights of a softmax add up to?"
    if math.isclose(result, 3, abs_tol=0.02):
        return "The right number, upside down: does the sum grow or shrink?"
    if math.isclose(result, 0.5, abs_tol=1e-3):
        return "Ten silent sensors come *to* the five. How many are there in all?"
    return f"You say {result:g}. What is the weight of one sensor among five, and of one among all?"


@exercise("sensory_neuron-4")
def mean_and_deviation(answer: Answer) -> str | None:
    """A function (p, R, r) -> mean and standard deviation of a return that is R with chance p, or r."""
    for p, R, r in ((0.653, 910.0, 0.0), (0.3, 5.0, -2.0), (0.3, -2.0, 5.0), (1.0, 4.0, 7.0)):
        result = answer(p, R, r)
        if not isinstance(result, tuple | list | Tensor) or len(result) != 2:
            return f"Return two numbers, mean and deviation; you return {type(result).__name__}."
        mean, deviation = (float(value) for value in result)
        case = f"For p={p:g}, R={R:g}, r={r:g}"
        if not math.isclose(mean, p * R + (1 - p) * r, rel_tol=1e-5, abs_tol=1e-5):
            return f"{case} the mean is not {mean:.5g}. What does the other outcome add?"
        if deviation < 0:
            return f"{case} you say {deviation:.4g}. A standard deviation is never negative."
        wanted = math.sqrt(p * (1 - p)) * abs(R - r)
        if not math.isclose(deviation, wanted, rel_tol=1e-5, abs_tol=1e-4):
            if math.isclose(deviation, wanted**2, rel_tol=1e-5):
                return "That is the variance. The mean is right."
            return (f"{case} the mean is right; the deviation is not {deviation:.4g}. How far from "
                    "the mean is each outcome, and how often?")  # fmt: skip
    return None


@exercise("sensory_neuron-5")
def share_saved(answer: Answer) -> str | None:
    """A function (X, V, b) -> the share of starts, |x| < X and |v| < V, that a brake b can save."""
    for X, V, b in ((2.4, 5.0, 10.0), (2.4, 10.0, 10.0), (1.0, 20.0, 10.0), (2.0, 3.0, 4.0)):
        fast = min(V, math.sqrt(4 * b * X))
        solution = (fast - fast**3 / (12 * b * X)) / V
        result = answer(X, V, b)
        if result is None:
            return "It returns None: return the share."
        if not math.isclose(float(result), solution, rel_tol=1e-5):
            hint = "From v the cart needs v^2 / (2 b) to stop: average the share of the track that is left, and ask what becomes of speeds that need more than the whole track."
            return f"For X={X:g}, V={V:g}, b={b:g} you say {float(result):.4g}. {hint}"
    return None
