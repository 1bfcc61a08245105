"""The exercises of chapter 34, `decision_transformer`."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from collage import runtime
from collage.page.exercises.checker import Answer, close, exercise


def _is_number(answer: Answer) -> bool:
    return isinstance(answer, int | float) or (isinstance(answer, Tensor) and answer.numel() == 1)


def _fields() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards, states and actions (4, 6) of four episodes, and their lengths (4,)."""
    g = runtime.generator(0)
    rewards = torch.randn(4, 6, generator=g)
    s, a = torch.randint(3, (2, 4, 6), generator=g)
    return rewards, s, a, torch.tensor([6, 1, 3, 5])


def _logits(R: Tensor, s: Tensor, a: Tensor) -> Tensor:
    """Logits (B, T, 3) as a causal model gives them: from R_t, s_t and the action before."""
    before = F.pad(a[:, :-1], (1, 0))
    kinds = torch.arange(3)
    return torch.sin(R[..., None] * (1 + kinds) + s[..., None] + 0.5 * before[..., None] * kinds)


def _mean_loss(late: bool = False, every: bool = False) -> float:
    """The loss, by hand; late: returns without the reward of now; every: as a mean of episodes."""
    rewards, s, a, lengths = _fields()
    R = torch.zeros_like(rewards)
    for i, n in enumerate(lengths.tolist()):
        for t in range(n):
            R[i, t] = rewards[i, t + late : n].sum()
    each = F.cross_entropy(_logits(R, s, a).mT, a, reduction="none")
    parts = [each[i, :n] for i, n in enumerate(lengths.tolist())]
    return float(
        torch.stack([p.mean() for p in parts]).mean() if every else torch.cat(parts).mean()
    )


@exercise("decision_transformer-1")
def padded_loss(answer: Answer) -> str | None:
    """A function (model, rewards, s, a, lengths) -> the loss of episodes that are padded behind."""
    results = []
    for fill in (0, 2):
        rewards, s, a, lengths = _fields()
        behind = torch.arange(6) >= lengths[:, None]
        rewards, s, a = (x.masked_fill(behind, fill) for x in (rewards, s, a))
        result = answer(_logits, rewards, s, a, lengths)
        if not _is_number(result):
            kind = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            return f"Return one number, the mean over all real steps; you return {kind}."
        results.append(float(result))
    first, second = results
    if not close(first, second, 1e-4):
        return "Your loss changes with what lies in the padding."
    if not close(first, _mean_loss(), 1e-4):
        if close(first, _mean_loss(late=True), 1e-4):
            return "Is this step's reward a part of the return-to-go?"
        if close(first, _mean_loss(every=True), 1e-4):
            return "Short episodes count too much: average over steps, not over episodes."
        return f"For four episodes of 6, 1, 3 and 5 steps you say {first:.4g}. Does R_t sum from t on, and does the model see it, the states and the actions?"
    return None


@exercise("decision_transformer-2")
def fair_gamble(answer: Answer) -> str | None:
    """The chance of winning above which asking for the lucky outcome does no harm."""
    if not _is_number(answer):
        return f"Wanted: one number, a probability; you give {type(answer).__name__}."
    result = float(answer)
    if math.isclose(result, 0.5, abs_tol=1e-3):
        return "At 0.5 the gamble earns nothing on average. What else could one take?"
    if not math.isclose(result, 0.6, abs_tol=1e-3):
        return f"You say {result:g}. What does the gamble earn on average, and what is sure?"
    return None


@exercise("decision_transformer-3")
def earned_when_asked(answer: Answer) -> str | None:
    """A function (b, p, r) -> what is earned when asked for each return."""
    g = runtime.generator(0)
    for n, m in ((2, 3), (4, 5)):
        b = torch.randn(n, generator=g).softmax(0)
        p = torch.randn(n, m, generator=g).softmax(1)
        r = torch.randn(m, generator=g)
        solution = []
        for j in range(m):
            policy = b * p[:, j] / (b * p[:, j]).sum()
            solution.append((policy * (p @ r)).sum())
        result = answer(b.clone(), p.clone(), r.clone())
        if result is None:
            return "Your function returns nothing. Wanted: what is earned, for each return."
        result = torch.as_tensor(result)
        if result.shape != (m,):
            return f"There are {m} returns to ask for: wanted so many numbers, got {tuple(result.shape)}."
        if not close(result, torch.stack(solution), 1e-5):
            if close(result, r, 1e-5):
                return "You earn what you ask for. Where would luck come in?"
            return "Which actions does (2) take when asked for return j, and what may follow them?"
    return None


@exercise("decision_transformer-4")
def silent_returns(answer: Answer) -> str | None:
    """How many of the kept steps at far nodes have a return above -11."""
    if not _is_number(answer):
        return f"Wanted: one number, of steps; you give {type(answer).__name__}."
    result = float(answer)
    if result != 0:
        return f"You say {result:g}. What is the return-to-go of a walk that never arrives?"
    return None
