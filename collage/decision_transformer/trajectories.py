"""Recorded trajectories as flat tensors, and windows of them gathered on the device.

returns_to_go       what is still to come of each episode, step by step
Window              a batch of pieces of trajectories
Trajectories        episodes end to end; windows, the best of them, their balance
"""

from typing import NamedTuple

import torch

from collage.common.checks import as_tensor, check_finite, check_real, check_whole


def returns_to_go(rewards, ends):
    """R_t = r_t + r_{t+1} + ... to the end of the episode, without discount.

    rewards (N,): of episodes end to end; ends (N,) bool: true at the last step of each. What follows
    the last end counts as an episode, too. Summed in float64, returned in the dtype of the rewards.

    Raises ValueError for other shapes, NaN or inf. Source: arXiv 2106.01345, section 3.

    >>> returns_to_go(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([False, True, False, True]))
    tensor([3., 2., 7., 4.])
    """
    rewards, ends = as_tensor("rewards", rewards), as_tensor("ends", ends)
    if rewards.dim() != 1 or ends.shape != rewards.shape or ends.dtype != torch.bool:
        raise ValueError(f"ends: got {ends.dtype} {tuple(ends.shape)} for rewards "
                         f"{tuple(rewards.shape)}, wanted two (N,), ends bool")  # fmt: skip
    check_finite("rewards", rewards)
    if rewards.is_floating_point():
        check_real("rewards", rewards.dtype)
    if not len(rewards):
        return rewards.clone()
    r, place = rewards.double(), torch.arange(len(rewards), device=rewards.device)
    # For each step the index of the last step of its episode.
    last = torch.where(ends, place, len(r) - 1).flip(0).cummin(0).values.flip(0)
    reach, longest = 1, int((last - place).max()) + 1
    while reach < longest:  # r_t sums `reach` steps, of its own episode alone
        further = torch.where(place[:-reach] + reach <= last[:-reach], r[reach:], 0.0)
        r = torch.cat([r[:-reach] + further, r[-reach:]])
        reach *= 2
    return r.to(rewards.dtype)


class Window(NamedTuple):
    """Pieces of K steps: (B, K), or (E, B, K) for E models with batches of their own.

    What lies behind the end of an episode is zero, and false in the mask. A causal model need not be
    told: nothing that counts comes later.
    """

    returns: torch.Tensor  # (B, K) returns-to-go, in the environment's unit
    states: torch.Tensor  # (B, K, S)
    actions: torch.Tensor  # (B, K) whole numbers, or (B, K, A)
    steps: torch.Tensor  # (B, K) time since the start of the episode
    rewards: torch.Tensor  # (B, K)
    over: torch.Tensor  # (B, K) bool: the episode terminates with this step
    mask: torch.Tensor  # (B, K) bool


class Trajectories:
    """Episodes end to end, N steps in all.

    states (N, S), rewards (N,), lengths: of the E episodes, summing to N. actions: (N, A) numbers,
    or (N,) whole ones for discrete actions. terminated (E,) bool: which episodes came to an end of
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

    def __init__(self, states, actions, rewards, lengths, terminated=None):
        states, actions = as_tensor("states", states), as_tensor("actions", actions)
        rewards, lengths = as_tensor("rewards", rewards), as_tensor("lengths", lengths)
        if lengths.dim() != 1 or not len(lengths) or lengths.is_floating_point():
            raise ValueError(f"lengths: got {lengths.dtype} {tuple(lengths.shape)}, wanted whole "
                             "numbers (E,), at least one")  # fmt: skip
        if bool((lengths < 1).any()):
            raise ValueError(
                f"lengths: got an episode of {lengths.min()} steps, wanted at least one"
            )
        n = int(lengths.sum())
        for name, tensor, dims in (("states", states, (2,)), ("actions", actions, (1, 2)),
                                   ("rewards", rewards, (1,))):  # fmt: skip
            if tensor.dim() not in dims or len(tensor) != n:
                raise ValueError(f"{name}: got {tuple(tensor.shape)}, wanted {n} steps (the sum of "
                                 f"the lengths) in {' or '.join(map(str, dims))} dimensions")  # fmt: skip
            check_finite(name, tensor)
        discrete = actions.dim() == 1
        if discrete == actions.is_floating_point() or actions.dtype == torch.bool or (
                discrete and bool((actions < 0).any())):  # fmt: skip
            raise ValueError(f"actions: got {actions.dtype} {tuple(actions.shape)}, some perhaps "
                             "negative; wanted whole numbers from 0 (N,), or floats (N, A)")  # fmt: skip
        places = {t.device for t in (states, actions, rewards)}
        if len(places) > 1:
            raise ValueError(f"states, actions, rewards: got them on {places}, wanted one device")
        actions = actions.long() if discrete else actions
        if not (states.is_floating_point() and rewards.is_floating_point()):
            raise ValueError(f"states, rewards: got {states.dtype}, {rewards.dtype}, wanted floats")
        self.states, self.actions, self.rewards = states, actions, rewards
        self.lengths = lengths.to(states.device)
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.episode = torch.repeat_interleave(self.lengths)  # (N,) of each step
        self.steps = torch.arange(n, device=states.device) - self.starts[self.episode]
        self.ends = self.steps == self.lengths[self.episode] - 1
        self.returns = returns_to_go(rewards, self.ends)
        if terminated is None:
            terminated = torch.ones_like(self.lengths, dtype=torch.bool)
        self.terminated = torch.as_tensor(terminated, device=states.device)
        if self.terminated.shape != self.lengths.shape or self.terminated.dtype != torch.bool:
            raise ValueError(f"terminated: got {self.terminated.dtype} {tuple(self.terminated.shape)}, "
                             f"wanted bool ({len(lengths)},)")  # fmt: skip
        self.over = self.ends & self.terminated[self.episode]
        self.behind = self.starts + self.lengths

    def __len__(self):
        """How many steps there are, N."""
        return len(self.rewards)

    @property
    def totals(self):
        """The return (E,) of each episode."""
        return self.returns[self.starts]

    def moments(self):
        """Mean and standard deviation (S,) of the states, for `DecisionTransformer.units`.

        Summed in float64; what does not vary has the deviation 1, and so comes out as zero.
        """
        states = self.states.double()
        mean = states.mean(0)
        size = (states - mean).abs().amax(0).clamp(min=1e-300)  # its square may vanish
        spread = size * ((states - mean) / size).square().mean(0).sqrt()
        constant = (self.states == self.states[0]).all(0)
        mean = torch.where(constant, states[0], mean)
        mean, spread = mean.to(self.states.dtype), spread.to(self.states.dtype)
        return mean, spread.masked_fill(constant | (spread == 0), 1)

    def pick(self, episodes):
        """Some episodes, by number (M,) or as a mask (E,), as `Trajectories` of their own."""
        episodes = torch.as_tensor(episodes, device=self.lengths.device)
        if episodes.dtype == torch.bool:
            if episodes.shape != self.lengths.shape:
                raise ValueError(f"episodes: got a mask {tuple(episodes.shape)}, wanted "
                                 f"({len(self.lengths)},)")  # fmt: skip
            episodes = episodes.nonzero()[:, 0]
        if not episodes.numel():
            raise ValueError("episodes: got none, wanted at least one")
        lengths = self.lengths[episodes]
        offset = torch.arange(int(lengths.sum()), device=lengths.device)
        offset = offset - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        rows = torch.repeat_interleave(self.starts[episodes], lengths) + offset
        return Trajectories(self.states[rows], self.actions[rows], self.rewards[rows], lengths,
                            self.terminated[episodes])  # fmt: skip

    def best(self, share):
        """The episodes of the highest return, as many as make up a share of the STEPS: for %BC.

        Whole episodes, as long as they stay within the share; the very best one in any case.
        """
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1:
            raise ValueError(f"share: got {share!r}, wanted one above 0, at most 1")
        order = self.totals.argsort(descending=True, stable=True)
        inside = self.lengths[order].cumsum(0) <= share * len(self)
        inside[0] = True
        return self.pick(order[inside])

    def balanced(self, bins=10):
        """A weight (E,) for each episode, such that all kinds of returns are drawn alike often.

        The range of returns is cut into so many bins of one width; each that is not empty gets the
        same weight in all, shared out by length.
        """
        bins, totals = check_whole("bins", bins), self.totals.double()
        low, high = totals.min(), totals.max()
        kind = ((totals - low) / (high - low).clamp(min=1e-300) * bins).long().clamp(0, bins - 1)
        steps = torch.zeros(bins, dtype=torch.float64, device=kind.device)
        steps.index_add_(0, kind, self.lengths.double())
        return self.lengths / steps[kind]

    def draw(self, n, generator, weights=None, whole=False):
        """First steps (n,) of windows: an episode in proportion to its length, a start uniformly.

        weights (E,): in proportion to these instead. One draw of a step does both at once. whole: the
        start is the episode's own.
        """
        where = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)
        where = where.to(self.states.device)
        if weights is None:
            first = (where * len(self)).long().clamp(max=len(self) - 1)
            return self.starts[self.episode[first]] if whole else first
        weights = torch.as_tensor(weights, dtype=torch.float64, device=where.device)
        wrong = weights.shape != self.lengths.shape or not bool(weights.isfinite().all())
        if wrong or bool((weights < 0).any()) or not bool(weights.sum() > 0):
            raise ValueError(f"weights: got {tuple(weights.shape)}, wanted ({len(self.lengths)},), "
                             "none negative, not all zero")  # fmt: skip
        edges = weights.cumsum(0)
        place = where * edges[-1]
        episode = torch.searchsorted(edges, place, right=True).clamp(max=len(edges) - 1)
        if whole:
            return self.starts[episode]
        inside = ((place - edges[episode] + weights[episode]) / weights[episode]).clamp(0, 1)
        length = self.lengths[episode]
        return self.starts[episode] + torch.minimum((inside * length).long(), length - 1)

    def windows(self, first, k):
        """The `Window` of k steps from each of these steps (B,) on, cut where the episode ends."""
        along = torch.arange(k, device=first.device)
        rows = first[:, None] + along
        mask = rows < self.behind[self.episode[first], None]
        rows = torch.where(mask, rows, 0).flatten()

        def gather(tensor):
            found = tensor.index_select(0, rows).unflatten(0, mask.shape)
            return found * mask.view(*mask.shape, *[1] * (found.dim() - 2))

        return Window(gather(self.returns), gather(self.states), gather(self.actions),
                      gather(self.steps), gather(self.rewards), gather(self.over), mask)  # fmt: skip

    def sample(self, n, k, generator, weights=None, whole=False):
        """A `Window` (n, k) at random: `draw`, then `windows`."""
        return self.windows(self.draw(n, generator, weights, whole), k)

    @staticmethod
    def join(parts):
        """Several `Trajectories` as one."""
        parts = list(parts)
        fields = [torch.cat([getattr(p, name) for p in parts])
                  for name in ("states", "actions", "rewards", "lengths", "terminated")]  # fmt: skip
        return Trajectories(*fields)
