"""The exercises of `bmg`."""

import math

import torch

from collage import runtime
from collage.page.exercises.checker import Answer, close, exercise


@exercise("bmg-1")
def bootstrap(answer: Answer) -> str | None:
    """A function (update, ground_truth_step, x, L, first) -> target of (4), where life goes on."""
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)
    for L, first in ((1, 2), (2, 0), (5, 3)):
        log: list[tuple[str, int]] = []

        def update(x: torch.Tensor, k: int, log: list = log) -> torch.Tensor:
            log.append(("update", k))
            return 0.9 * x + 0.1 * k

        def ground_truth_step(x: torch.Tensor, k: int, log: list = log) -> torch.Tensor:
            log.append(("ground_truth_step", k))
            return x - 0.3 * x**3 + 0.01 * k

        states = answer(update, ground_truth_step, x, L, first)
        calls, onward = list(log), x
        for k in range(first, first + L - 1):
            onward = update(onward, k)
        last = first + L - 1
        target = ground_truth_step(onward, last)
        expected = [("update", k) for k in range(first, last)] + [("ground_truth_step", last)]
        if calls != expected:
            return f"For L={L}, first={first} you call {calls}; wanted {expected}."
        if not isinstance(states, tuple) or len(states) != 2:
            return "Wanted: two states, the target and the one from which life goes on."
        if not close(states[0], target, 1e-12):
            return f"For L={L} the target is another one: L - 1 updates, then one real step."
        if not close(states[1], onward, 1e-12):
            return f"For L={L} life goes on from the state before the real step."
    return None


@exercise("bmg-2")
def best_rate(answer: Answer) -> str | None:
    """A function (h, sigma, x), all (d,) -> the learning rate that is best for one noisy step."""
    g = runtime.generator(0)
    for d in (1, 2, 5):
        h, sigma, x = (torch.rand(d, generator=g, dtype=torch.float64) + 0.1 for _ in range(3))
        solution = (h**2 * x**2).sum() / (h**3 * x**2 + h * sigma**2).sum()
        rate = float(answer(h, sigma, x))
        if not math.isclose(rate, solution, rel_tol=1e-6):
            return (
                f"For d={d} you say {rate:.4g}. After one step E f is a parabola in the rate: "
                "where is its lowest point?"
            )
    return None


@exercise("bmg-3")
def kl_gradient(answer: Answer) -> str | None:
    """A function (target (S, A), logits (S, A)) -> the gradient of KL(target || student) in logits."""
    g = runtime.generator(0)
    for S, A in ((4, 3), (1, 6)):
        target, logits = (2 * torch.randn(S, A, generator=g, dtype=torch.float64) for _ in range(2))
        solution = logits.softmax(-1) - target.softmax(-1)
        if not close(answer(target, logits), solution, 1e-9):
            return "Wanted: (S, A). Only the student's log-softmax depends on its logits."
    return None


@exercise("bmg-4")
def work_of_a_step(answer: Answer) -> str | None:
    """A function (K, L) -> rollouts made, updates kept, updates that the gradient goes through."""
    for K, L in ((1, 1), (1, 7), (7, 9)):
        counts = tuple(int(v) for v in answer(K, L))
        if counts != (K + L, K + L - 1, K):
            return (
                f"For K={K}, L={L} you say {counts}. Each update has a rollout, the real step too."
            )
    return None
