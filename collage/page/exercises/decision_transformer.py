"""The exercises of `decision_transformer`."""

import math

import torch

from collage import runtime
from collage.page.exercises.checker import Answer, close, exercise


@exercise("decision_transformer-1")
def decision_transformer_1(answer: Answer) -> str | None:
    """A function (rewards, lengths) -> returns-to-go of episodes that are padded behind."""
    g = runtime.generator(0)
    rewards = torch.randn(4, 6, generator=g, dtype=torch.float64)
    lengths = torch.tensor([6, 1, 3, 5])
    wanted = torch.zeros_like(rewards)
    for i, n in enumerate(lengths.tolist()):
        for t in range(n):
            wanted[i, t] = rewards[i, t:n].sum()
    for fill in (0.0, 9.0):
        padded = rewards.clone()
        for i, n in enumerate(lengths.tolist()):
            padded[i, n:] = fill
        if not close(answer(padded, lengths.clone()), wanted, 1e-9):
            return (
                "Wanted: the sum from each step to the end of its episode, whatever lies in the "
                "padding, and zero behind the end."
            )
    return None


@exercise("decision_transformer-2")
def decision_transformer_2(answer: Answer) -> str | None:
    """A function (b, p, r) -> what is earned when asked for each return."""
    g = runtime.generator(0)
    for n, m in ((2, 3), (4, 5)):
        b = torch.randn(n, generator=g, dtype=torch.float64).softmax(0)
        p = torch.randn(n, m, generator=g, dtype=torch.float64).softmax(1)
        r = torch.randn(m, generator=g, dtype=torch.float64)
        wanted = []
        for j in range(m):
            policy = b * p[:, j] / (b * p[:, j]).sum()
            wanted.append((policy * (p @ r)).sum())
        if not close(torch.as_tensor(answer(b, p, r)), torch.stack(wanted), 1e-9):
            return (
                "First the policy p(i | return j), by Bayes; then what those actions earn on "
                "average, over all returns that may follow."
            )
    return None


@exercise("decision_transformer-3")
def decision_transformer_3(answer: Answer) -> str | None:
    """A function real (K,) -> the mask (3K, 3K) of causal attention with padding in front."""
    for real in ([True, True], [False, True, True], [False, False, True, True]):
        n = 3 * len(real)
        wanted = torch.tensor(
            [[i == j or (j < i and real[j // 3]) for j in range(n)] for i in range(n)]
        )
        found = torch.as_tensor(answer(torch.tensor(real)))
        if (
            found.dtype != torch.bool
            or found.shape != wanted.shape
            or not torch.equal(found, wanted)
        ):
            return (
                "Wanted: (3K, 3K) bool. A row looks at itself, and at earlier columns that are not "
                "padding; three tokens belong to each step."
            )
    return None


@exercise("decision_transformer-4")
def decision_transformer_4(answer: Answer) -> str | None:
    """A function c -> the discount above which the weight grows."""
    for c in (2.0, 3.0, 1.25):
        found = float(answer(c))
        if not math.isclose(found, 1 / c, rel_tol=1e-9):
            return f"For c={c:g} you say {found:.4g}. By which factor does one update multiply w?"
    return None
