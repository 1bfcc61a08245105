"""A grid world whose rewards change sign: many lifetimes at once, as one tensor.

TwoColours     fetch the good colour; which one that is flips every so many steps
ExactColours   the same with all arrangements at once: tables of chances, policies without sampling
"""

import functools

import torch

from collage.common.checks import check_discount, check_whole
from collage.common.environments import grid_move


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
        return self.sights(state.device)[self.number(state[:, 1:])]

    def number(self, cells):
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


class ExactColours:
    """All arrangements of `TwoColours` as tables: what a policy earns, and its exact gradient.

    V = (1 - gamma P)^-1 r,   d = (1 - gamma) (1 - gamma P')^-1 rho,   J = d . r

    for the policy pi(a|s) = softmax(theta(s, .)), theta (S, N, 4): P the chances (N, N) under pi, r its
    mean reward, rho all arrangements alike, d how often one is met with the discount gamma, J the mean
    reward (per step). folded: arrangements that a turn or a mirror image makes equal share a row, which
    leaves 66 of 504 on a 3 x 3 grid; a policy that treats them alike loses nothing by it.

    Raises ValueError for a size below 2, or a discount that is not below 1.

    >>> exact = ExactColours(3)
    >>> len(exact.start), [round(v, 4) for v in exact.reward(torch.zeros(1, 66, 4), 1).tolist()]
    (66, [-0.0348])
    """

    def __init__(self, size=3, discount=0.9, folded=True):
        env = TwoColours(size)
        count, self.discount = env.size**2, check_discount(discount)
        cells = torch.cartesian_prod(*3 * [torch.arange(count)])
        apart = (cells[:, 0] != cells[:, 1]) & (cells[:, 0] != cells[:, 2]) & (
            cells[:, 1] != cells[:, 2])  # fmt: skip
        cells = cells[apart]
        self.row = row = self._rows(cells, env, folded)  # for each number of an arrangement
        kept = row[env.number(cells)]
        N = int(kept.max()) + 1
        first = torch.zeros(N, dtype=torch.long).scatter_reduce(
            0, kept, torch.arange(len(cells)), "amin", include_self=False)  # fmt: skip
        self.cells = cells[first]
        self.start = torch.bincount(kept).double() / len(cells)
        state = torch.cat([torch.zeros(N, 1, dtype=torch.long), self.cells], 1)
        self.chances, self.fetched = torch.zeros(4, N, N, dtype=torch.float64), torch.zeros(
            4, N, dtype=torch.float64)  # fmt: skip
        free = count - 2
        for a in range(4):
            for draw in range(free):
                after, reward = env.go(state, torch.full((N,), a), torch.full((N,), draw))
                to = row[env.number(after[:, 1:])]
                self.chances[a].index_put_((torch.arange(N), to),
                                           torch.tensor(1 / free, dtype=torch.float64), accumulate=True)  # fmt: skip
            self.fetched[a] = torch.where(reward == -0.04, 0.0, reward.double())

    @staticmethod
    def _rows(cells, env, folded):
        """Which row an arrangement has, by its number; -1 for those that do not exist."""
        size, alike = env.size, [cells]
        if folded:
            r, c = cells // size, cells % size
            for _ in range(3):
                r, c = c, size - 1 - r  # a quarter turn
                alike.append(r * size + c)
            alike += [(t // size) * size + size - 1 - t % size for t in alike]
        number = torch.stack([env.number(t) for t in alike]).amin(0)
        row = torch.full((env.size**6,), -1)
        row[env.number(cells)] = number.unique(return_inverse=True)[1]
        return row

    def policy(self, theta, sign):
        """(pi (S, N, 4), r (S, N, 4), d (S, N), V (S, N)); sign (S,): 1 where blue is good, -1 red."""
        pi = theta.softmax(-1)
        sign = torch.as_tensor(sign).to(theta).reshape(-1, 1, 1)
        fetched = self.fetched.T.to(theta)
        r = torch.where(fetched == 0, -0.04, sign * fetched)
        moves = torch.einsum("sna,anm->snm", pi, self.chances.to(theta))
        eye = torch.eye(len(self.start), dtype=theta.dtype, device=theta.device)
        V = torch.linalg.solve(eye - self.discount * moves, (pi * r).sum(-1))
        start = (1 - self.discount) * self.start.to(theta).expand(len(theta), -1)
        d = torch.linalg.solve(eye - self.discount * moves.transpose(1, 2), start)
        return pi, r, d, V

    def reward(self, theta, sign):
        """J (S,)."""
        pi, r, d, _ = self.policy(theta, sign)
        return (d * (pi * r).sum(-1)).sum(-1)

    def slopes(self, theta, sign):
        """J (S,), its gradient, and that of the mean entropy sum_s d(s) H(s) with d held, like theta.

        dJ / d theta(s, a) = d(s) pi(a|s) (Q(s, a) - V(s)),   Q = r + gamma P_a V
        """
        pi, r, d, V = self.policy(theta, sign)
        ahead = torch.einsum("anm,sm->sna", self.chances.to(theta), V)
        better = r + self.discount * ahead - V[..., None]
        log = theta.log_softmax(-1)
        entropy = -(pi * log).sum(-1, keepdim=True)
        J = (d * (pi * r).sum(-1)).sum(-1)
        return J, d[..., None] * pi * better, -d[..., None] * pi * (log + entropy)
