"""The exercises of `bmg`."""

import math

import torch

from collage import runtime
from collage.page.exercises.checker import close, exercise


@exercise("bmg-1")
def _(answer):
    """A function (update, plain, x, L, first) -> the target of (4), and where life goes on."""
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)
    for L, first in ((1, 2), (2, 0), (5, 3)):
        seen = []

        def update(x, k, seen=seen):
            seen.append(("update", k))
            return 0.9 * x + 0.1 * k

        def plain(x, k, seen=seen):
            seen.append(("plain", k))
            return x - 0.3 * x**3 + 0.01 * k

        found = answer(update, plain, x, L, first)
        calls, onward = list(seen), x
        for k in range(first, first + L - 1):
            onward = update(onward, k)
        target = plain(onward, first + L - 1)
        wanted = [("update", k) for k in range(first, first + L - 1)] + [("plain", first + L - 1)]
        if calls != wanted:
            return f"For L={L}, first={first} you call {calls}; wanted {wanted}."
        if not isinstance(found, tuple) or len(found) != 2:
            return "Wanted: two states, the target and the one from which life goes on."
        if not close(found[0], target, 1e-12):
            return f"For L={L} the target is another one: L - 1 updates, then one plain step."
        if not close(found[1], onward, 1e-12):
            return f"For L={L} life goes on from the state before the plain step."
    return None


@exercise("bmg-2")
def _(answer):
    """A function (h, sigma, x), all (d,) -> the learning rate that is best for one noisy step."""
    g = runtime.generator(0)
    for d in (1, 2, 5):
        h, sigma, x = (torch.rand(d, generator=g, dtype=torch.float64) + 0.1 for _ in range(3))
        wanted = (h**2 * x**2).sum() / (h**3 * x**2 + h * sigma**2).sum()
        found = float(answer(h, sigma, x))
        if not math.isclose(found, wanted, rel_tol=1e-6):
            return (
                f"For d={d} you say {found:.4g}. After one step E f is a parabola in the rate: "
                "where is its lowest point?"
            )
    return None


@exercise("bmg-3")
def _(answer):
    """A function (target (S, A), logits (S, A)) -> the gradient of KL(target || student) in logits."""
    g = runtime.generator(0)
    for S, A in ((4, 3), (1, 6)):
        target, logits = (2 * torch.randn(S, A, generator=g, dtype=torch.float64) for _ in range(2))
        wanted = logits.softmax(-1) - target.softmax(-1)
        if not close(answer(target, logits), wanted, 1e-9):
            return "Wanted: (S, A). Only the student's log-softmax depends on its logits."
    return None


@exercise("bmg-4")
def _(answer):
    """A function (K, L) -> rollouts made, updates kept, updates that the gradient goes through."""
    for K, L in ((1, 1), (1, 7), (7, 9)):
        found = tuple(int(v) for v in answer(K, L))
        if found != (K + L, K + L - 1, K):
            return (
                f"For K={K}, L={L} you say {found}. Each update has a rollout, the plain step too."
            )
    return None
