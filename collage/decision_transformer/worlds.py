"""Worlds in which a return must be asked for.

Walks        random walks on a graph, towards a node
KeyToDoor    a key that pays later
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from collage.common.checks import check_whole
from collage.common.environments import Step, grid_move


class Walks:
    """Walking on a directed graph to a goal: each step costs one, not arriving costs more.

    edges (V, V): 1 where a step leads from row to column. Actions (n,) name the next node; one that
    no edge leads to leaves the walker where it is. State (n, 2), whole numbers: node and time. The
    walk terminates at `goal`, and is truncated after `longest` steps, then at a further `penalty`.

    Raises ValueError for edges that are not a square of 0 and 1, a node without a way out, or a goal
    outside. Source of the example: arXiv 2106.01345, section 3.

    >>> env = Walks(torch.tensor([[0, 1, 0], [1, 0, 1], [1, 0, 0]]), goal=2)
    >>> env.distances()
    tensor([2, 1, 0])
    >>> env.step(torch.tensor([[1, 0], [0, 9]]), torch.tensor([2, 2]))[1:]
    (tensor([ -1., -11.]), tensor([ True, False]), tensor([False,  True]))
    """

    penalty = 10.0  # for not arriving
    discrete = True

    def __init__(self, edges: Tensor, goal: int, longest: int = 10) -> None:
        edges = torch.as_tensor(edges)
        if edges.dim() != 2 or len(edges) != edges.shape[1] or len(edges) < 2:
            raise ValueError(f"edges: got {tuple(edges.shape)}, wanted a square (V, V), V >= 2")
        if not bool(((edges == 0) | (edges == 1)).all()) or not bool(edges.any(1).all()):
            raise ValueError("edges: got other numbers than 0 and 1, or a node without a way out")
        if isinstance(goal, bool) or not isinstance(goal, int) or not 0 <= goal < len(edges):
            raise ValueError(f"goal: got {goal!r}, wanted a node below {len(edges)}")
        self.edges, self.goal = edges.bool(), goal
        self.longest = check_whole("longest", longest)
        self.observations = self.actions = len(edges)

    @classmethod
    def random(
        cls, nodes: int, chance: float, generator: Generator, farthest: int | None = None
    ) -> "Walks":
        """A graph with each edge at a `chance`, drawn again until all reach node 0, the goal.

        farthest: the largest distance must be this one. Raises ValueError where 1,000 draws do not
        give such a graph.
        """
        for _ in range(1000):
            edges = torch.rand(nodes, nodes, generator=generator, device=generator.device) < chance
            edges = edges.fill_diagonal_(False).long()
            if not bool(edges.any(1).all()):
                continue
            env = cls(edges, 0)
            far = int(env.distances().max())
            if far <= (nodes if farthest is None else farthest) and farthest in (None, far):
                return env
        wanted = f"one at which graphs of {nodes} nodes lead to the goal from everywhere"
        raise ValueError(f"chance: got {chance}, wanted {wanted} (farthest {farthest})")

    def distances(self) -> Tensor:
        """Steps to the goal from each node (V,), breadth first; more than V where none lead there."""
        far = 2 * len(self.edges)
        steps = torch.full((len(self.edges),), far, device=self.edges.device)
        steps[self.goal] = 0
        for _ in range(len(self.edges)):
            nearest = torch.where(self.edges, steps, far).min(1).values
            steps = torch.minimum(steps, nearest + 1)
        return steps

    def _edges(self, device: torch.device) -> Tensor:
        """The edges where the walkers are; they move once."""
        if self.edges.device != device:
            self.edges = self.edges.to(device)
        return self.edges

    def reset(self, n: int, generator: Generator) -> Tensor:
        """n walkers (n, 2) anywhere but at the goal."""
        others = self.observations - 1
        node = torch.randint(others, (n,), generator=generator, device=generator.device)
        return self.at(node + (node >= self.goal).long())

    def at(self, nodes: Tensor) -> Tensor:
        """Walkers (n, 2) at the given nodes (n,), about to start."""
        return torch.stack([nodes, torch.zeros_like(nodes)], 1)

    def observe(self, state: Tensor) -> Tensor:
        """The node, one-hot (n, V)."""
        return F.one_hot(state[:, 0], self.observations).float()

    def wander(self, state: Tensor, generator: Generator) -> Tensor:
        """An edge chosen at random: actions (n,)."""
        ways = self._edges(state.device)[state[:, 0]].float()
        return torch.multinomial(ways, 1, generator=generator)[:, 0]

    def step(self, state: Tensor, action: Tensor) -> Step:
        """(states (n, 2), nodes to go to (n,)) -> `Step`."""
        node, time = state.unbind(1)
        node = torch.where(self._edges(node.device)[node, action], action, node)
        there, late = node == self.goal, time + 1 >= self.longest
        reward = -1.0 - self.penalty * (late & ~there)
        return Step(torch.stack([node, time + 1], 1), reward, there, late & ~there)


class KeyToDoor:
    """Take a key in the first room, wait in the second, find the door in the third.

    Each room has `size` x `size` cells and is left after `stay` steps, wherever one stands; one
    enters the next at a random cell. Actions (n,): up, down, left, right; walls hold. Reaching the
    door terminates the episode, with reward 1 if the key was taken and 0 if not; no other step is
    rewarded. Truncated after 3 `stay` steps. That the key was taken cannot be seen later on.

    State (n, 7), whole numbers: time, cell, key taken, cells of key and door, and the cells where
    rooms two and three are entered. Source of the task: Mesnard et al. 2020 (arXiv 2011.09464), in a
    small version of our own.

    >>> env = KeyToDoor()
    >>> state = torch.tensor([[23, 4, 1, 7, 5, 0, 0], [3, 6, 0, 7, 5, 0, 0]])
    >>> step = env.step(state, torch.tensor([3, 3]))
    >>> step.reward, step.state[:, :3]
    (tensor([1., 0.]), tensor([[24,  5,  1],
            [ 4,  7,  1]]))
    """

    actions, discrete = 4, True

    def __init__(self, size: int = 4, stay: int = 8) -> None:
        self.size, self.stay = check_whole("size", size, 2), check_whole("stay", stay)
        self.longest, self.observations = 3 * self.stay, 3 + 2 * self.size + 3

    def reset(self, n: int, generator: Generator) -> Tensor:
        """n states; nobody starts on the key or enters the last room on the door."""
        cells = self.size**2
        draw = torch.randint(cells, (3, n), generator=generator, device=generator.device)
        away = torch.randint(1, cells, (2, n), generator=generator, device=generator.device)
        zero = torch.zeros_like(draw[0])
        start, second, third = draw
        key, door = (start + away[0]) % cells, (third + away[1]) % cells
        return torch.stack([zero, start, zero, key, door, second, third], 1)

    def observe(self, state: Tensor) -> Tensor:
        """(n, 6 + 2 size): room, row and column one-hot, an object in sight?, the way to it."""
        time, cell, taken, key, door, _, _ = state.unbind(1)
        room = (time // self.stay).clamp(max=2)
        row, column = cell // self.size, cell % self.size
        in_sight = (((room == 0) & (taken == 0)) | (room == 2))[:, None]
        target = torch.where(room == 0, key, door)
        way = torch.stack([target // self.size - row, target % self.size - column], 1)
        place = F.one_hot(room, 3), F.one_hot(row, self.size), F.one_hot(column, self.size)
        return torch.cat([*place, in_sight, way / self.size * in_sight], 1).float()

    def wander(self, state: Tensor, generator: Generator) -> Tensor:
        """A direction chosen at random: actions (n,)."""
        return torch.randint(4, (len(state),), generator=generator, device=state.device)

    def step(self, state: Tensor, action: Tensor) -> Step:
        """(states (n, 7), directions (n,)) -> `Step`."""
        time, cell, taken, key, door, second, third = state.unbind(1)
        room = time // self.stay
        cell = grid_move(cell, action, self.size)
        taken = taken | ((room == 0) & (cell == key)).long()
        there = (room == 2) & (cell == door)
        time = time + 1
        # Through the wall at the end of a stay, except for those who are done.
        cell = torch.where(time == self.stay, second, cell)
        cell = torch.where(time == 2 * self.stay, third, cell)
        after = torch.stack([time, cell, taken, key, door, second, third], 1)
        return Step(after, (there & (taken == 1)).float(), there, (time >= self.longest) & ~there)

    def _chances(self) -> Tensor:
        """Chance (size^2, size^2, stay + 1) to come from one cell to another in so many random moves."""
        cells = torch.arange(self.size**2)
        actions = torch.arange(4)[:, None].expand(4, len(cells))
        moves = grid_move(cells, actions, self.size)
        there = torch.eye(len(cells), dtype=torch.float64)
        after = [there]
        for _ in range(self.stay):
            after.append(torch.where(there > 0, 1.0, after[-1][moves].mean(0)))
        return torch.stack(after, 2)

    def odds(self, state: Tensor) -> Tensor:
        """The exact chance (n,) that random moves win from here, knowing only what an agent knows.

        Where the door stands is known in the last room only; the first room counts with its average.
        """
        time, cell, taken, key, door, _, _ = (column.cpu() for column in state.unbind(1))
        chances, cells = self._chances(), self.size**2
        last = chances[:, :, -1]
        door_later = (last.sum() - cells) / (cells * (cells - 1))  # never on the door at first
        room, left = time // self.stay, self.stay - time % self.stay
        taking = torch.where(room == 0, chances[cell, key, left], 0.0)
        has = torch.where(taken == 1, 1.0, taking)
        now = chances[cell, door, left.clamp(max=self.stay)]
        return torch.where(room < 2, has * door_later, taken * now * (room == 2)).to(state.device)
