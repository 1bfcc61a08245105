"""A grid world whose rewards change sign: many lifetimes at once, as one tensor.

TwoColours    fetch the good colour; which one that is flips every so many steps
"""

import functools

import torch

from collage.environments import grid_move
from collage.evolution import check_whole


class TwoColours:
    """Two objects on a small grid: stepping on the good one earns 1, on the other -1, any other step -0.04.

    What was stepped on appears again in a random free cell. After each `period` steps the colours
    exchange their roles, without a sign; it goes on for ever. Actions (n,): up, down, left, right; walls
    hold. State (n, 4), whole numbers: time, and the cells of the agent, the blue and the red object,
    three different ones at any time. Blue is good first. see: "places", rows and columns of the three,
    one-hot (6 size); or "ways", the way to both objects, one-hot (4 (2 size - 1)): a network that sees
    ways learns in far fewer steps.

    Raises ValueError for a grid below 2 x 2, a period below 1, another `see`. Source of the task:
    arXiv 2109.04504; its details after Luketina et al. 2022 (arXiv 2209.06159).

    >>> env = TwoColours(period=10)
    >>> state = torch.tensor([[3, 0, 1, 24], [12, 0, 1, 24]])
    >>> state, reward = env.step(state, torch.tensor([3, 3]), torch.Generator().manual_seed(0))
    >>> reward, state[:, 1]
    (tensor([ 1., -1.]), tensor([1, 1]))
    """

    actions, discrete = 4, True

    def __init__(self, size=5, period=100_000, see="places"):
        if see not in ("places", "ways"):
            raise ValueError(f"see: got {see!r}, wanted 'places' or 'ways'")
        self.size, self.period, self.see = (
            check_whole("size", size, 2),
            check_whole("period", period),
            see,
        )
        self.observations = 6 * self.size if see == "places" else 4 * (2 * self.size - 1)

    def reset(self, n, generator):
        """n states at time 0, the three cells drawn without repetition."""
        draw = torch.rand(n, self.size**2, generator=generator, device=generator.device)
        cells = draw.argsort(1)[:, :3]
        return torch.cat([torch.zeros_like(cells[:, :1]), cells], 1)

    def good(self, state):
        """Which object is the good one (n,): 0 blue, 1 red."""
        return state[:, 0] // self.period % 2

    def observe(self, state):
        """What an agent sees (n, observations); six ones for "places", four for "ways"."""
        return self.sights(state.device)[self._number(state[:, 1:])]

    def _number(self, cells):
        """Which of the size^6 arrangements of three cells this is."""
        count = self.size**2
        return (cells[:, 0] * count + cells[:, 1]) * count + cells[:, 2]

    @functools.lru_cache(maxsize=4)  # noqa: B019 (environments are few, and live as long as a run)
    def sights(self, device):
        """What is seen in every arrangement: one look-up instead of a dozen small operations."""
        hot, size, count = torch.nn.functional.one_hot, self.size, self.size**2
        cells = torch.cartesian_prod(*3 * [torch.arange(count, device=device)])
        rows, columns = cells // size, cells % size
        if self.see == "places":
            return torch.cat([hot(rows, size).flatten(1), hot(columns, size).flatten(1)], 1).float()
        wide, middle = 2 * size - 1, size - 1
        ways = [hot(t[:, 1:] - t[:, :1] + middle, wide).flatten(1) for t in (rows, columns)]
        return torch.cat(ways, 1).float()

    def step(self, state, action, generator):
        """(states (n, 4), directions (n,)) -> (states, rewards (n,))."""
        return self.go(state, action, self.draws(state, generator))

    def draws(self, state, generator, steps=()):
        """The numbers (*steps, n) that decide where things appear again."""
        shape = (*steps, len(state))
        return torch.randint(self.size**2 - 2, shape, generator=generator, device=state.device)

    def go(self, state, action, draw):
        """As `step`, with what it would draw (n,)."""
        time, cell, things = state[:, 0], state[:, 1], state[:, 2:]
        cell = grid_move(cell, action, self.size)[:, None]
        on = things == cell
        # The good one is worth 1, the other -1, and nothing -0.04.
        worth = 1 - 2 * (self.good(state)[:, None] ^ self._which(state.device))
        reward = torch.where(on.any(1), (on * worth).sum(1), -0.04)
        # The draw picks among the cells that neither the agent nor the other object holds.
        other = torch.where(on[:, :1], things[:, 1:], things[:, :1])
        low, high = torch.minimum(cell, other), torch.maximum(cell, other)
        fresh = draw[:, None] + (draw[:, None] >= low)
        fresh = fresh + (fresh >= high)
        return torch.cat([time[:, None] + 1, cell, torch.where(on, fresh, things)], 1), reward

    def tables(self, device):
        """All that is looked up on a device; whoever records a CUDA graph of steps has to keep it."""
        return self.sights(device), self._which(device)

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def _which(self, device):
        return torch.arange(2, device=device)
