"""The exercises of chapter 37, `bmg`."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from collage import runtime
from collage.page.exercises.checker import Answer, close, exercise

NOTHING = "Your function returns nothing."


def _life(h: Tensor, x: Tensor, w: Tensor, L: int, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """x^(1), x^(L) and the target, in a valley without noise."""
    near = onward = x - w.exp() * h * x
    for _ in range(L - 1):
        onward = onward - w.exp() * h * onward
    return near, onward, onward - alpha * h * onward


def _slipped(h: Tensor, x: Tensor, w: Tensor, L: int, alpha: float) -> dict[str, Tensor]:
    """Gradients that a plausible mistake gives, by the sentence that says which one it is."""
    near, onward, target = _life(h, x, w, L, alpha)
    move = -w.exp() * h * x
    turned = w.clone().requires_grad_()
    student, _, moving = _life(h, x, turned, L, alpha)
    through = torch.autograd.grad((student - moving).square().sum() / 2, turned)[0]
    one_more = onward - w.exp() * h * onward
    return {
        "something of the target is differentiated; it is a constant.": through,
        "the sign is the other way round.": ((target - near) * move).sum(),
        "the target's last step has the learned rate; it should have alpha.": (
            (near - one_more) * move
        ).sum(),
        "the target has no step on f itself.": ((near - onward) * move).sum(),
        "the target takes one update too many before its real step.": (
            (near - one_more + alpha * h * one_more) * move
        ).sum(),
        "mu is half the squared distance.": 2 * ((near - target) * move).sum(),
        "w is the logarithm of the rate: d x / d w has the rate in it.": (
            (near - target) * -h * x
        ).sum(),
    }


@exercise("bmg-1")
def step_by_hand(answer: Answer) -> str | None:
    """A function (h, x, w, L, alpha) -> d mu / d w for K = 1 without autograd, and x^(L)."""
    g = runtime.generator(0)
    for d, L in ((2, 5), (3, 1), (1, 2)):
        h, x = torch.rand(d, generator=g).double() + 0.1, torch.randn(d, generator=g).double()
        w, alpha = torch.tensor(-0.7).double(), 0.2
        near, onward, target = _life(h, x, w, L, alpha)
        wanted = ((near - target) * -w.exp() * h * x).sum()
        result = answer(h, x.clone(), w, L, alpha)
        if not isinstance(result, tuple | list) or len(result) != 2:
            return (
                "Return two things, the gradient and the state from which life goes on; "
                f"you return {type(result).__name__}."
            )
        slope, state = (torch.as_tensor(t).detach().double() for t in result)
        if slope.numel() != 1:
            return f"w is one number, so its gradient is one, too; yours has {slope.numel()}."
        if state.shape != x.shape:
            return f"The state is of shape {tuple(x.shape)}; yours of {tuple(state.shape)}."
        if not close(slope.reshape(()), wanted, 1e-5):
            for hint, slip in _slipped(h, x, w, L, alpha).items():
                if not close(slip, wanted, 1e-5) and close(slope.reshape(()), slip, 1e-5):
                    return f"With L = {L}: {hint}"
            return f"With L = {L} and {d} coordinates the gradient is wrong."
        if not close(state, onward, 1e-5):
            if close(state, target, 1e-5):
                return "The gradient is right; but life does not go on from the target."
            if close(state, near, 1e-5):
                return "The gradient is right; but from there L - 1 updates would be wasted."
            return f"The gradient is right; with L = {L} life goes on from another state."
    return None


@exercise("bmg-2")
def best_rate(answer: Answer) -> str | None:
    """A function (h, sigma, x), all (d,) -> the learning rate that is best for one noisy step."""
    g = runtime.generator(0)
    for d in (1, 2, 5):
        h, sigma, x = (torch.rand(d, generator=g, dtype=torch.float64) + 0.1 for _ in range(3))
        top, curved = (h**2 * x**2).sum(), (h**3 * x**2).sum()
        result = answer(h, sigma, x)
        if result is None:
            return NOTHING
        result = torch.as_tensor(result)
        if result.numel() != 1:
            return f"Wanted: one rate; you return a shape of {tuple(result.shape)}."
        rate = float(result)
        if not math.isclose(rate, top / (curved + (h * sigma**2).sum()), rel_tol=1e-5):
            if math.isclose(rate, top / curved, rel_tol=1e-5):
                return "That is the best rate without noise."
            if math.isclose(rate, top / (curved + (h * sigma).sum()), rel_tol=1e-5):
                return "The noise enters by its variance."
            if math.isclose(rate, top / (curved + (sigma**2).sum()), rel_tol=1e-5):
                return "Noise in a steep direction costs more than noise in a flat one."
            return f"For d = {d} you say {rate:.4g}, where E f is not at its lowest."
    return None


@exercise("bmg-3")
def kl_gradient(answer: Answer) -> str | None:
    """A function (target (S, A), logits (S, A)) -> the gradient of the summed KL in the logits."""
    g = runtime.generator(0)
    for S, A in ((4, 3), (3, 6)):
        target, logits = (2 * torch.randn(S, A, generator=g, dtype=torch.float64) for _ in range(2))
        p, q = target.softmax(-1), logits.softmax(-1)
        result = answer(target, logits)
        if result is None:
            return NOTHING
        result = torch.as_tensor(result)
        if result.shape != logits.shape:
            return (
                f"Wanted: the shape of the logits, {(S, A)}; you return {tuple(result.shape)}: "
                "one number for each state and action."
            )
        if not close(result, q - p, 1e-5):
            if close(result, (q - p) / S, 1e-5):
                return "That is the gradient of the mean over the states; the sum is asked for."
            if close(result, p - q, 1e-5):
                return "The sign is wrong: a step against the gradient should make KL smaller."
            gap = logits.log_softmax(-1) - target.log_softmax(-1)
            if close(result, q * (gap - (q * gap).sum(-1, keepdim=True)), 1e-5):
                return "That is the gradient of KL(student || target); the target comes first."
            if close(result, -p / q, 1e-5) or close(result, -p, 1e-5):
                return "Each logit moves the chances of all actions of its state, not of one."
            return "The shape is right, the values are not."
    return None


@exercise("bmg-4")
def work_of_a_step(answer: Answer) -> str | None:
    """A function (K, L) -> updates made, updates kept, updates that the gradient goes through."""
    names = "made", "kept", "that the gradient goes through"
    for K, L in ((1, 1), (1, 7), (7, 9)):
        counts = answer(K, L)
        if isinstance(counts, Tensor):
            counts = counts.tolist()
        if not isinstance(counts, Sequence) or len(counts) != 3:
            return f"Return three numbers; you return {type(counts).__name__}."
        for got, wanted, name in zip(counts, (K + L, K + L - 1, K), names, strict=True):
            if float(got) != int(float(got)):
                return f"Updates come whole; for K = {K}, L = {L} you say {float(got):g}."
            if float(got) != wanted:
                return f"For K = {K}, L = {L}: the number of updates {name} is not {float(got):g}."
    return None


@exercise("bmg-5")
def without_truth(answer: Answer) -> str | None:
    """How much higher the bonus, begun high, ends when the target has no step on the real reward."""
    if answer is None or callable(answer):
        return "Wanted: a number, where one bonus ends minus where the other does."
    result = torch.as_tensor(answer, dtype=torch.float64)
    if result.numel() != 1:
        return f"Wanted: one number; you give a shape of {tuple(result.shape)}."
    value = float(result)
    if not abs(value - 0.18) < 0.05:
        if abs(value + 0.18) < 0.05:
            return "The size is right. Which of the two ends higher?"
        if abs(value - 0.46) < 0.04 or abs(value - 0.28) < 0.04:
            return "That is where one of the two ends. Wanted: how far apart the two end."
        return "Compare the mean bonus of the last phase, begun high, in both runs."
    return None
