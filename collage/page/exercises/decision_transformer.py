"""The exercises of `decision_transformer`."""

import math

import torch

from collage import runtime
from collage.page.exercises.checker import Answer, close, exercise


@exercise("decision_transformer-1")
def padded_returns_to_go(answer: Answer) -> str | None:
    """A function (rewards, lengths) -> returns-to-go of episodes that are padded behind."""
    g = runtime.generator(0)
    rewards = torch.randn(4, 6, generator=g, dtype=torch.float64)
    lengths = torch.tensor([6, 1, 3, 5])
    solution = torch.zeros_like(rewards)
    for i, n in enumerate(lengths.tolist()):
        for t in range(n):
            solution[i, t] = rewards[i, t:n].sum()
    for fill in (0.0, 9.0):
        padded = rewards.clone()
        for i, n in enumerate(lengths.tolist()):
            padded[i, n:] = fill
        if not close(answer(padded, lengths.clone()), solution, 1e-9):
            return (
                "Wanted: the sum from each step to the end of its episode, whatever lies in the "
                "padding, and zero behind the end."
            )
    return None


@exercise("decision_transformer-2")
def earned_when_asked(answer: Answer) -> str | None:
    """A function (b, p, r) -> what is earned when asked for each return."""
    g = runtime.generator(0)
    for n, m in ((2, 3), (4, 5)):
        b = torch.randn(n, generator=g, dtype=torch.float64).softmax(0)
        p = torch.randn(n, m, generator=g, dtype=torch.float64).softmax(1)
        r = torch.randn(m, generator=g, dtype=torch.float64)
        solution = []
        for j in range(m):
            policy = b * p[:, j] / (b * p[:, j]).sum()
            solution.append((policy * (p @ r)).sum())
        if not close(torch.as_tensor(answer(b, p, r)), torch.stack(solution), 1e-9):
            return (
                "First the policy p(i | return j), by Bayes; then what those actions earn on "
                "average, over all returns that may follow."
            )
    return None


@exercise("decision_transformer-3")
def padding_mask(answer: Answer) -> str | None:
    """A function real (K,) -> the mask (3K, 3K) of causal attention with padding in front."""
    for real in ([True, True], [False, True, True], [False, False, True, True]):
        n = 3 * len(real)
        solution = torch.tensor(
            [[i == j or (j < i and real[j // 3]) for j in range(n)] for i in range(n)]
        )
        result = torch.as_tensor(answer(torch.tensor(real)))
        if (
            result.dtype != torch.bool
            or result.shape != solution.shape
            or not torch.equal(result, solution)
        ):
            return (
                "Wanted: (3K, 3K) bool. A row looks at itself, and at earlier columns that are not "
                "padding; three tokens belong to each step."
            )
    return None


@exercise("decision_transformer-4")
def growing_discount(answer: Answer) -> str | None:
    """A function c -> the discount above which the weight grows."""
    for c in (2.0, 3.0, 1.25):
        result = float(answer(c))
        if not math.isclose(result, 1 / c, rel_tol=1e-9):
            return f"For c={c:g} you say {result:.4g}. By which factor does one update multiply w?"
    return None
