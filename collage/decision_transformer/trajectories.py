"""Recorded trajectories as flat tensors, and windows of them gathered on the device.

Trajectories        episodes end to end; windows, the best of them, their balance
"""

from typing import TypeAlias

import torch
from numpy.typing import ArrayLike
from torch import Generator, Tensor

from collage.common.checks import as_tensor, check_finite, check_whole
from collage.decision_transformer import core
from collage.decision_transformer.core import Window, returns_to_go

Numbers: TypeAlias = Tensor | ArrayLike  # what `as_tensor` takes


class Trajectories:
    """Episodes end to end, N steps in all.

    states (N, S), rewards (N,), lengths: of the M episodes, summing to N. actions: (N, A) numbers,
    or (N,) whole ones for discrete actions. terminated (M,) bool: which episodes came to an end of
    their own, instead of being cut off; all without it. They stay on the device where they are.

    Raises ValueError for lengths below one or of another sum, other shapes, NaN or inf, actions that
    are not finite or negative where discrete.

    >>> data = Trajectories(torch.zeros(5, 2), torch.tensor([0, 1, 1, 0, 1]), torch.ones(5), [3, 2])
    >>> data.returns, data.totals
    (tensor([3., 2., 1., 2., 1.]), tensor([3., 2.]))
    >>> data.windows(torch.tensor([1, 4]), 3).mask.long()
    tensor([[1, 1, 0],
            [1, 0, 0]])
    """

    returns: Tensor  # (N,) returns-to-go
    episode: Tensor  # (N,) the number of its episode
    steps: Tensor  # (N,) time since the start of the episode
    ends: Tensor  # (N,) bool: the last step of an episode
    over: Tensor  # (N,) bool: the episode terminates with this step
    starts: Tensor  # (M,) the first step
    behind: Tensor  # (M,) the step after the last

    def __init__(
        self,
        states: Numbers,
        actions: Numbers,
        rewards: Numbers,
        lengths: Numbers,
        terminated: Numbers | None = None,
    ) -> None:
        self.states, self.actions = as_tensor("states", states), as_tensor("actions", actions)
        self.rewards, self.lengths = as_tensor("rewards", rewards), as_tensor("lengths", lengths)
        _check_steps(self.states, self.actions, self.rewards, self.lengths)
        device = self.states.device
        self.lengths = self.lengths.to(device)
        if self.actions.dim() == 1:
            self.actions = self.actions.long()
        self.behind = self.lengths.cumsum(0)
        self.starts = self.behind - self.lengths
        self.episode = torch.repeat_interleave(self.lengths)
        self.steps = torch.arange(len(self), device=device) - self.starts[self.episode]
        self.ends = self.steps == self.lengths[self.episode] - 1
        self.returns = returns_to_go(self.rewards, self.ends)
        if terminated is None:
            terminated = torch.ones_like(self.lengths, dtype=torch.bool)
        self.terminated = torch.as_tensor(terminated, device=device)
        if self.terminated.shape != self.lengths.shape or self.terminated.dtype != torch.bool:
            got = f"{self.terminated.dtype} {tuple(self.terminated.shape)}"
            raise ValueError(f"terminated: got {got}, wanted bool ({len(self.lengths)},)")
        self.over = self.ends & self.terminated[self.episode]

    def __len__(self) -> int:
        """How many steps there are, N."""
        return len(self.rewards)

    @property
    def totals(self) -> Tensor:
        """The return (M,) of each episode."""
        return self.returns[self.starts]

    def pick(self, episodes: Numbers) -> "Trajectories":
        """Some episodes, by their numbers or as a mask (M,), as `Trajectories` of their own."""
        index = torch.as_tensor(episodes, device=self.lengths.device)
        if index.dtype == torch.bool:
            if index.shape != self.lengths.shape:
                wanted = f"({len(self.lengths)},)"
                raise ValueError(f"episodes: got a mask {tuple(index.shape)}, wanted {wanted}")
            index = index.nonzero()[:, 0]
        if not index.numel():
            raise ValueError("episodes: got none, wanted at least one")
        lengths = self.lengths[index]
        offset = torch.arange(int(lengths.sum()), device=lengths.device)
        offset = offset - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        rows = torch.repeat_interleave(self.starts[index], lengths) + offset
        steps = self.states[rows], self.actions[rows], self.rewards[rows]
        return Trajectories(*steps, lengths, self.terminated[index])

    def best(self, share: float) -> "Trajectories":
        """The episodes of the highest return, as many as make up a share of the STEPS: for %BC.

        Whole episodes, as long as they stay within the share; the very best one in any case.
        """
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1:
            raise ValueError(f"share: got {share!r}, wanted one above 0, at most 1")
        order = self.totals.argsort(descending=True, stable=True)
        inside = self.lengths[order].cumsum(0) <= share * len(self)
        inside[0] = True
        return self.pick(order[inside])

    def balanced(self, bins: int = 10) -> Tensor:
        """A weight (M,) for each episode, such that all kinds of returns are drawn alike often.

        The range of returns is cut into so many bins of one width; each that is not empty gets the
        same weight in all, shared out by length.
        """
        bins, totals = check_whole("bins", bins), self.totals.double()
        low, high = totals.min(), totals.max()
        kind = ((totals - low) / (high - low).clamp(min=1e-300) * bins).long().clamp(0, bins - 1)
        steps = torch.zeros(bins, dtype=torch.float64, device=kind.device)
        steps.index_add_(0, kind, self.lengths.double())
        return self.lengths / steps[kind]

    def first(self, drawn: Tensor, weights: Tensor | None = None, whole: bool = False) -> Tensor:
        """First steps (n,) of windows: an episode in proportion to its length, a start uniformly.

        drawn (n,): numbers in [0, 1), float64; one of them does both at once. weights (M,), `checked`:
        in proportion to these instead. whole: the start is the episode's own. No host waits.
        """
        if weights is None:
            first = (drawn * len(self)).long().clamp(max=len(self) - 1)
            return self.starts[self.episode[first]] if whole else first
        edges = weights.cumsum(0)
        place = drawn * edges[-1]
        episode = torch.searchsorted(edges, place, right=True).clamp(max=len(edges) - 1)
        if whole:
            return self.starts[episode]
        share = ((place - edges[episode] + weights[episode]) / weights[episode]).clamp(0, 1)
        length = self.lengths[episode]
        return self.starts[episode] + torch.minimum((share * length).long(), length - 1)

    def checked(self, weights: Tensor) -> Tensor:
        """Weights of the M episodes in float64, where the steps are.

        Raises ValueError for other shapes, negative ones, NaN or inf, and none above zero.
        """
        weights = torch.as_tensor(weights, dtype=torch.float64, device=self.states.device)
        fine = (weights.isfinite() & (weights >= 0)).all() & (weights.sum() > 0)
        if weights.shape != self.lengths.shape or not bool(fine):  # one question to a GPU
            wanted = f"({len(self.lengths)},), none negative, not all zero"
            raise ValueError(f"weights: got {tuple(weights.shape)}, wanted {wanted}")
        return weights

    def windows(self, first: Tensor, k: int) -> Window:
        """The `Window` of k steps from each of these steps (B,) on, cut where the episode ends."""
        fields = self.returns, self.states, self.actions, self.steps, self.rewards, self.over
        return core.windows(fields, first, self.behind[self.episode[first]], k)

    def sample(self, n: int, k: int, generator: Generator, weights: Tensor | None = None) -> Window:
        """A `Window` (n, k) at random, from `first` with these weights (M,)."""
        weights = None if weights is None else self.checked(weights)
        drawn = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)
        return self.windows(self.first(drawn.to(self.states.device), weights), k)


def _check_steps(states: Tensor, actions: Tensor, rewards: Tensor, lengths: Tensor) -> None:
    got = f"{lengths.dtype} {tuple(lengths.shape)}"
    if lengths.dim() != 1 or not len(lengths) or lengths.is_floating_point():
        raise ValueError(f"lengths: got {got}, wanted whole numbers (M,), at least one")
    if bool((lengths < 1).any()):
        raise ValueError(f"lengths: got an episode of {lengths.min()} steps, wanted at least one")
    n = int(lengths.sum())
    for name, tensor, dims in (("states", states, (2,)), ("actions", actions, (1, 2)),
                               ("rewards", rewards, (1,))):  # fmt: skip
        if tensor.dim() not in dims or len(tensor) != n:
            kind = " or ".join(map(str, dims))
            wanted = f"{n} steps (the sum of the lengths) in {kind} dimensions"
            raise ValueError(f"{name}: got {tuple(tensor.shape)}, wanted {wanted}")
        check_finite(name, tensor)
    discrete, got = actions.dim() == 1, f"{actions.dtype} {tuple(actions.shape)}"
    wrong_kind = discrete == actions.is_floating_point() or actions.dtype == torch.bool
    if wrong_kind or (discrete and bool((actions < 0).any())):
        wanted = "whole numbers from 0 (N,), or floats (N, A)"
        raise ValueError(f"actions: got {got}, some perhaps negative; wanted {wanted}")
    if len(devices := {t.device for t in (states, actions, rewards)}) > 1:
        raise ValueError(f"states, actions, rewards: got them on {devices}, wanted one device")
    if not (states.is_floating_point() and rewards.is_floating_point()):
        raise ValueError(f"states, rewards: got {states.dtype}, {rewards.dtype}, wanted floats")
