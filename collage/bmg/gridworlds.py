"""A grid world whose rewards change sign: many walkers at once, as one tensor.

TwoColours     fetch the good colour; which one that is flips every so many steps
ExactColours   the same with all arrangements at once: tables of chances, policies without sampling
Tables         what a step is, looked up instead of computed
"""

import functools
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from collage.common.checks import check_whole
from collage.common.environments import grid_move
from collage.common.placed import Placed

STEP_COST = -0.04  # what a step earns that fetches nothing


def rewards_of(fetched: Tensor) -> Tensor:
    """1 for what is good, -1 for what is bad, STEP_COST for nothing (0)."""
    return torch.where(fetched == 0, STEP_COST, fetched)


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

    def __init__(self, size: int = 5, period: int = 100_000, see: str = "places") -> None:
        if see not in ("places", "ways"):
            raise ValueError(f"see: got {see!r}, wanted 'places' or 'ways'")
        self.size, self.period = check_whole("size", size, 2), check_whole("period", period)
        self.see = see
        self.observations = 6 * self.size if see == "places" else 4 * (2 * self.size - 1)
        self._tables: dict[torch.device, Tables] = {}

    def reset(self, n: int, generator: Generator) -> Tensor:
        """n states at time 0, the three cells drawn without repetition."""
        draw = torch.rand(n, self.size**2, generator=generator, device=generator.device)
        cells = draw.argsort(1)[:, :3]
        return torch.cat([torch.zeros_like(cells[:, :1]), cells], 1)

    def sign(self, time: Tensor) -> Tensor:
        """1 at times when blue is good, -1 when red is."""
        return 1 - 2 * (time // self.period % 2)

    def observe(self, state: Tensor) -> Tensor:
        """What an agent sees (n, observations); six ones for "places", four for "ways"."""
        return sights(self.size, self.see, state.device)[self.number(state[:, 1:])]

    def number(self, cells: Tensor) -> Tensor:
        """Which of the size^6 arrangements of three cells (n, 3) this is."""
        count = self.size**2
        return (cells[:, 0] * count + cells[:, 1]) * count + cells[:, 2]

    def step(self, state: Tensor, action: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """(states (n, 4), directions (n,)) -> (states, rewards (n,))."""
        time = state[:, 0]
        state, fetched = self.go(state, action, self.draws(time.shape, generator))
        return state, rewards_of(self.sign(time) * fetched)

    def draws(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """The numbers that decide where things appear again, one for each step of each walker."""
        free = self.size**2 - 2
        return torch.randint(free, shape, generator=generator, device=generator.device)

    def go(self, state: Tensor, action: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        """States after a step and what was fetched (n,): 1 blue, -1 red, 0 nothing.

        The draw (n,) picks among the cells that neither the agent nor the other object holds.
        """
        time, cell, things = state[:, 0], state[:, 1], state[:, 2:]
        cell = grid_move(cell, action, self.size)[:, None]
        on = things == cell
        other = torch.where(on[:, :1], things[:, 1:], things[:, :1])
        low, high = torch.minimum(cell, other), torch.maximum(cell, other)
        fresh = draw[:, None] + (draw[:, None] >= low)
        fresh = fresh + (fresh >= high)
        after = torch.cat([time[:, None] + 1, cell, torch.where(on, fresh, things)], 1)
        return after, on[:, 0].long() - on[:, 1].long()

    def tables(self, device: torch.device) -> "Tables":
        """All that a rollout looks up on a device: 9 MB for 5 x 5 cells, 120 MB for 7 x 7.

        Kept as long as the environment, so that a CUDA graph may read them whatever the caches drop.
        """
        if device not in self._tables:
            seen = sights(self.size, self.see, device)
            self._tables[device] = Tables(seen, *moves(self.size, device))
        return self._tables[device]


class Tables(NamedTuple):
    """A = size^6 arrangements of three cells by their numbers; size^2 - 2 draws."""

    sights: Tensor  # (A, observations): what is seen
    cells: Tensor  # (A, 3)
    fetched: Tensor  # (4 A,), by action * A + arrangement: as `TwoColours.go` gives it
    after: Tensor  # (draws * 4 A,), by (draw * 4 + action) * A + arrangement: the next arrangement


def arrangements(size: int, device: torch.device | None = None) -> Tensor:
    """The cells (size^6, 3) of agent, blue and red, with those that share a cell."""
    return torch.cartesian_prod(*3 * [torch.arange(size**2, device=device)])


@functools.lru_cache(maxsize=4)
def sights(size: int, see: str, device: torch.device) -> Tensor:
    """What is seen in every arrangement (A, observations)."""
    hot, cells = torch.nn.functional.one_hot, arrangements(size, device)
    rows, columns = cells // size, cells % size
    if see == "places":
        return torch.cat([hot(rows, size).flatten(1), hot(columns, size).flatten(1)], 1).float()
    wide, middle = 2 * size - 1, size - 1
    ways = [hot(t[:, 1:] - t[:, :1] + middle, wide).flatten(1) for t in (rows, columns)]
    return torch.cat(ways, 1).float()


@functools.lru_cache(maxsize=4)
def moves(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Cells, fetched and after of `Tables`."""
    env, cells = TwoColours(size), arrangements(size, device)
    state = torch.nn.functional.pad(cells, (1, 0))
    after, fetched = [], []
    for draw in range(size**2 - 2):
        for action in range(4):
            end, thing = env.go(state, *(torch.full_like(state[:, 0], v) for v in (action, draw)))
            after.append(env.number(end[:, 1:]).int())
            fetched.append(thing)
    return cells, torch.cat(fetched[:4]), torch.cat(after)


class ExactColours:
    """All arrangements of `TwoColours` as tables: what a policy earns, and its exact gradient.

    V = (1 - gamma P)^-1 r,   d = (1 - gamma) (1 - gamma P')^-1 rho,   J = d . r

    for the policy pi(a|s) = softmax(theta(s, .)), theta (S, N, 4): P the chances (N, N) under pi, r its
    mean reward, rho all arrangements alike, d how often one is met with the discount gamma, J the mean
    reward (per step). folded: arrangements that a turn or a mirror image makes equal share a row, which
    leaves 66 of 504 on a 3 x 3 grid; a policy that treats them alike loses nothing by it.

    Raises ValueError for a size below 2.

    >>> exact = ExactColours(3)
    >>> len(exact.start), [round(v, 4) for v in exact.reward(torch.zeros(1, 66, 4), 1).tolist()]
    (66, [-0.0348])
    """

    discount = 0.9  # gamma

    def __init__(self, size: int = 3, folded: bool = True) -> None:
        env = TwoColours(size)
        cells = arrangements(env.size)
        agent, blue, red = cells.unbind(1)
        cells = cells[(agent != blue) & (agent != red) & (blue != red)]
        self.row = self._rows(cells, env, folded)  # (size^6,): for each number of an arrangement
        rows = self.row[env.number(cells)]
        N = int(rows.max()) + 1
        first = torch.zeros(N, dtype=torch.long)
        first.scatter_reduce_(0, rows, torch.arange(len(cells)), "amin", include_self=False)
        self.cells = cells[first]  # (N, 3): an arrangement of each row
        self.start = torch.bincount(rows).double() / len(cells)  # (N,): rho
        self.chances = torch.zeros(4, N, N, dtype=torch.float64)  # P of each action
        self.fetched = torch.zeros(4, N, dtype=torch.float64)  # 1 blue, -1 red, 0 nothing
        state = torch.nn.functional.pad(self.cells, (1, 0))
        free = env.size**2 - 2
        share = torch.tensor(1 / free, dtype=torch.float64)
        for action in range(4):
            for draw in range(free):
                after, fetched = env.go(state, torch.full((N,), action), torch.full((N,), draw))
                place = torch.arange(N), self.row[env.number(after[:, 1:])]
                self.chances[action].index_put_(place, share, accumulate=True)
            self.fetched[action] = fetched.double()
        self._start, self._chances = Placed(self.start), Placed(self.chances)
        self._fetched = Placed(self.fetched)

    @staticmethod
    def _rows(cells: Tensor, env: TwoColours, folded: bool) -> Tensor:
        """Which row an arrangement has, by its number; -1 for those that do not exist."""
        size, alike = env.size, [cells]
        if folded:
            r, c = cells // size, cells % size
            for _ in range(3):
                r, c = c, size - 1 - r  # a quarter turn
                alike.append(r * size + c)
            alike += [(t // size) * size + size - 1 - t % size for t in alike]  # mirrored
        number = torch.stack([env.number(t) for t in alike]).amin(0)
        row = torch.full((env.size**6,), -1)
        row[env.number(cells)] = number.unique(return_inverse=True)[1]
        return row

    def policy(
        self,
        theta: Tensor,  # (S, N, 4)
        sign: Tensor | int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(pi (S, N, 4), r (S, N, 4), d (S, N), V (S, N)); sign (S,): 1 where blue is good, -1 red."""
        pi = theta.softmax(-1)
        sign = torch.as_tensor(sign).to(theta).reshape(-1, 1, 1)
        r = rewards_of(sign * self._fetched.like(theta).T)
        moves = torch.einsum("sna,anm->snm", pi, self._chances.like(theta))
        eye = torch.eye(len(self.start), dtype=theta.dtype, device=theta.device)
        V = torch.linalg.solve(eye - self.discount * moves, (pi * r).sum(-1))
        start = (1 - self.discount) * self._start.like(theta).expand(len(theta), -1)
        d = torch.linalg.solve(eye - self.discount * moves.transpose(1, 2), start)
        return pi, r, d, V

    def reward(self, theta: Tensor, sign: Tensor | int) -> Tensor:
        """J (S,)."""
        pi, r, d, _ = self.policy(theta, sign)
        return (d * (pi * r).sum(-1)).sum(-1)

    def slopes(self, theta: Tensor, sign: Tensor | int) -> tuple[Tensor, Tensor, Tensor]:
        """J (S,), its gradient, and that of the mean entropy sum_s d(s) H(s) with d held, like theta.

        dJ / d theta(s, a) = d(s) pi(a|s) (Q(s, a) - V(s)),   Q = r + gamma P_a V
        """
        pi, r, d, V = self.policy(theta, sign)
        ahead = torch.einsum("anm,sm->sna", self._chances.like(theta), V)
        advantage = r + self.discount * ahead - V[..., None]
        log = theta.log_softmax(-1)
        entropy = -(pi * log).sum(-1, keepdim=True)
        J = (d * (pi * r).sum(-1)).sum(-1)
        return J, d[..., None] * pi * advantage, -d[..., None] * pi * (log + entropy)
