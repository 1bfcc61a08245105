"""Batched environments: many at once as one tensor, a step a pure function.

CartPole       a pole on a cart, to be balanced or swung up, with a continuous force
MountainCar    a car in a valley, too weak to drive straight out
Walks          walking on a directed graph to a goal
KeyToDoor      a key that is rewarded two rooms later
SwingUp        a pole to be swung up without leaving the track; it ends, and has an expert

The first two never end by themselves. The others say at each `Step` whether they do.
"""

import functools
import math
from typing import NamedTuple

import torch

from collage.common.checks import check_whole


class CartPole:
    """A pole on a cart that is pushed with a continuous force.

    a'' = (g sin a - u cos a) / (l (4/3 - m cos^2 a / M)),  x'' = u - m l a'' cos a / M,
    u = (F + m l a'^2 sin a) / M,    M the mass of cart and pole

    State (n, 4): position x (m) and velocity of the cart, angle a of the pole (rad, 0 is upright)
    and its rate, integrated by semi-implicit Euler steps of `dt` s. actions (n, 1) in [-1, 1] are
    forces in units of `force` N. start: "up" or "down", with random deviations of `spread`.
    reward: exp(-4 (1 - cos a)) / (1 + (x / 2.4)^2), between 0 and 1. It never ends by itself.

    Raises ValueError for another start. Source of the equations: Barto, Sutton & Anderson 1983.

    >>> env = CartPole()
    >>> state, reward = env.step(torch.zeros(2, 4), torch.zeros(2, 1))
    >>> state.shape, reward
    (torch.Size([2, 4]), tensor([1., 1.]))
    """

    observations, actions = 5, 1
    gravity, pole, cart, length = 9.8, 0.1, 1.0, 0.5  # m/s^2, kg, kg, half a pole in m

    def __init__(self, start="up", spread=0.2, dt=0.02, force=10.0, dtype=torch.float32):
        if start not in ("up", "down"):
            raise ValueError(f"start: got {start!r}, wanted 'up' or 'down'")
        self.angle = math.pi if start == "down" else 0.0
        self.spread, self.dt, self.force, self.dtype = spread, dt, force, dtype

    def reset(self, n, generator):
        draw = torch.randn(n, 4, generator=generator, device=generator.device, dtype=self.dtype)
        draw *= self.spread
        draw[:, 2] += self.angle
        return draw

    def observe(self, state):
        """What an agent sees (n, 5): x, its velocity, cos a, sin a, the pole's rate."""
        x, v, a, w = state.unbind(1)
        return torch.stack([x, v, a.cos(), a.sin(), w], 1)

    def step(self, state, action):
        """(states (n, 4), actions (n, 1)) -> (states, rewards (n,))."""
        x, v, a, w = state.unbind(1)
        mass, ml = self.cart + self.pole, self.pole * self.length
        sin, cos = a.sin(), a.cos()
        push = (self.force * action[:, 0].clamp(-1, 1) + ml * w * w * sin) / mass
        turn = (self.gravity * sin - push * cos) / (
            self.length * (4 / 3 - self.pole / mass * cos * cos)
        )
        v = v + self.dt * (push - ml / mass * turn * cos)
        w = w + self.dt * turn
        x, a = x + self.dt * v, a + self.dt * w
        reward = torch.exp(-4 * (1 - a.cos())) / (1 + (x / 2.4) ** 2)
        return torch.stack([x, v, a, w], 1), reward


class MountainCar:
    """A car in a valley: to get out on the right it must first back up on the left.

    v <- v + 0.0015 F - 0.0025 cos 3x,  |v| <= 0.07,    x <- x + v

    State (n, 2): position x in [-1.2, 0.6] and velocity v; walls on both sides stop the car.
    actions (n, 1) in [-1, 1] are forces F. It starts at rest near the bottom, x = -0.5 +- 0.1.
    reward: the height of the road, (1 + sin 3x) / 2, between 0 and 1. It never ends by itself.

    Source of the equations: Moore 1990, in the continuous form of Gymnasium (there the reward is
    given at the goal only, and the left wall alone stops the car).

    >>> env = MountainCar()
    >>> state, reward = env.step(torch.tensor([[0.6, 0.05]]), torch.ones(1, 1))
    >>> state, reward
    (tensor([[0.6000, 0.0000]]), tensor([0.9869]))
    """

    observations, actions = 2, 1

    def __init__(self, dtype=torch.float32):
        self.dtype = dtype

    def reset(self, n, generator):
        draw = torch.rand(n, generator=generator, device=generator.device, dtype=self.dtype)
        return torch.stack([0.2 * draw - 0.6, torch.zeros_like(draw)], 1)

    def observe(self, state):
        """What an agent sees (n, 2): position and velocity, scaled to about one."""
        x, v = state.unbind(1)
        return torch.stack([(x + 0.5) / 0.6, v / 0.07], 1)

    def step(self, state, action):
        """(states (n, 2), actions (n, 1)) -> (states, rewards (n,))."""
        x, v = state.unbind(1)
        v = v + 0.0015 * action[:, 0].clamp(-1, 1) - 0.0025 * torch.cos(3 * x)
        v = v.clamp(-0.07, 0.07)
        free = x + v
        x = free.clamp(-1.2, 0.6)
        v = torch.where((free <= -1.2) | (free >= 0.6), 0.0, v)
        return torch.stack([x, v], 1), (1 + torch.sin(3 * x)) / 2


class Step(NamedTuple):
    """What an environment that ends gives back. Nothing is reset: `state` is the final one, too."""

    state: torch.Tensor
    reward: torch.Tensor  # (n,)
    terminated: torch.Tensor  # (n,) bool: the task is over
    truncated: torch.Tensor  # (n,) bool: the time is


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

    def __init__(self, edges, goal, longest=10, penalty=10.0):
        edges = torch.as_tensor(edges)
        if edges.dim() != 2 or len(edges) != edges.shape[1] or len(edges) < 2:
            raise ValueError(f"edges: got {tuple(edges.shape)}, wanted a square (V, V), V >= 2")
        if not bool(((edges == 0) | (edges == 1)).all()) or not bool(edges.any(1).all()):
            raise ValueError("edges: got other numbers than 0 and 1, or a node without a way out")
        if isinstance(goal, bool) or not isinstance(goal, int) or not 0 <= goal < len(edges):
            raise ValueError(f"goal: got {goal!r}, wanted a node below {len(edges)}")
        self.edges, self.goal = edges.bool(), goal
        self.longest, self.penalty = check_whole("longest", longest), float(penalty)
        self.observations = self.actions = len(edges)
        self.discrete = True

    @classmethod
    def random(cls, nodes, chance, generator, farthest=None, **settings):
        """A graph with each edge at a `chance`, drawn again until all reach node 0, the goal.

        farthest: the largest distance must be this one. Raises ValueError where 1,000 draws do not
        give such a graph.
        """
        for _ in range(1000):
            edges = torch.rand(nodes, nodes, generator=generator, device=generator.device) < chance
            edges = edges.fill_diagonal_(False).long()
            if not bool(edges.any(1).all()):
                continue
            env = cls(edges, 0, **settings)
            far = int(env.distances().max())
            if far <= (nodes if farthest is None else farthest) and farthest in (None, far):
                return env
        raise ValueError(f"chance: got {chance}, wanted one at which graphs of {nodes} nodes lead to "
                         f"the goal from everywhere (farthest {farthest})")  # fmt: skip

    def distances(self):
        """Steps to the goal from each node (V,), breadth first; more than V where none lead there."""
        far = 2 * len(self.edges)
        found = torch.full((len(self.edges),), far, device=self.edges.device)
        found[self.goal] = 0
        for _ in range(len(self.edges)):
            nearest = torch.where(self.edges, found, far).min(1).values
            found = torch.minimum(found, nearest + 1)
        return found

    def _edges(self, device):
        """The edges where the walkers are; they move once."""
        if self.edges.device != device:
            self.edges = self.edges.to(device)
        return self.edges

    def reset(self, n, generator):
        """n walkers (n, 2) anywhere but at the goal."""
        node = torch.randint(self.observations - 1, (n,), generator=generator,
                             device=generator.device)  # fmt: skip
        return self.at(node + (node >= self.goal).long())

    def at(self, nodes):
        """Walkers (n, 2) at the given nodes (n,), about to start."""
        return torch.stack([nodes, torch.zeros_like(nodes)], 1)

    def observe(self, state):
        """The node, one-hot (n, V)."""
        return torch.nn.functional.one_hot(state[:, 0], self.observations).float()

    def wander(self, state, generator):
        """An edge chosen at random: actions (n,)."""
        return torch.multinomial(
            self._edges(state.device)[state[:, 0]].float(), 1, generator=generator
        )[:, 0]

    def step(self, state, action):
        """(states (n, 2), nodes to go to (n,)) -> `Step`."""
        node, time = state.unbind(1)
        node = torch.where(self._edges(node.device)[node, action], action, node)
        there, late = node == self.goal, time + 1 >= self.longest
        reward = -1.0 - self.penalty * (late & ~there)
        return Step(torch.stack([node, time + 1], 1), reward, there, late & ~there)


def grid_move(cell, action, size):
    """Where a move on a square grid leads; cells (n,) count row by row, walls hold.

    action (n,): up, down, left, right.

    >>> grid_move(torch.tensor([4, 0, 8]), torch.tensor([0, 2, 3]), 3)
    tensor([1, 0, 8])
    """
    row, column = cell // size, cell % size
    row = (row + (action == 1).long() - (action == 0).long()).clamp(0, size - 1)
    column = (column + (action == 3).long() - (action == 2).long()).clamp(0, size - 1)
    return row * size + column


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

    def __init__(self, size=4, stay=8):
        self.size, self.stay = check_whole("size", size, 2), check_whole("stay", stay)
        self.longest, self.observations = 3 * self.stay, 3 + 2 * self.size + 3

    def reset(self, n, generator):
        """n states; nobody starts on the key or enters the last room on the door."""
        cells = self.size**2
        draw = torch.randint(cells, (3, n), generator=generator, device=generator.device)
        away = torch.randint(1, cells, (2, n), generator=generator, device=generator.device)
        zero = torch.zeros_like(draw[0])
        start, second, third = draw
        key, door = (start + away[0]) % cells, (third + away[1]) % cells
        return torch.stack([zero, start, zero, key, door, second, third], 1)

    def observe(self, state):
        """(n, 6 + 2 size): room, row and column one-hot, an object in sight?, the way to it."""
        time, cell, taken, key, door, _, _ = state.unbind(1)
        room = (time // self.stay).clamp(max=2)
        hot = torch.nn.functional.one_hot
        sight = ((room == 0) & (taken == 0)) | (room == 2)
        thing = torch.where(room == 0, key, door)
        way = torch.stack([thing // self.size - cell // self.size,
                           thing % self.size - cell % self.size], 1)  # fmt: skip
        return torch.cat([hot(room, 3), hot(cell // self.size, self.size),
                          hot(cell % self.size, self.size), sight[:, None],
                          way / self.size * sight[:, None]], 1).float()  # fmt: skip

    def wander(self, state, generator):
        """A direction chosen at random: actions (n,)."""
        return torch.randint(4, (len(state),), generator=generator, device=state.device)

    def step(self, state, action):
        """(states (n, 7), directions (n,)) -> `Step`."""
        time, cell, taken, key, door, second, third = state.unbind(1)
        room = time // self.stay
        cell = self.moved(cell, action)
        taken = taken | ((room == 0) & (cell == key)).long()
        there = (room == 2) & (cell == door)
        time = time + 1
        # Through the wall at the end of a stay, except for those who are done.
        cell = torch.where(time == self.stay, second, cell)
        cell = torch.where(time == 2 * self.stay, third, cell)
        after = torch.stack([time, cell, taken, key, door, second, third], 1)
        return Step(after, (there & (taken == 1)).float(), there, (time >= self.longest) & ~there)

    def moved(self, cell, action):
        """Where a move leads: cells (n,) and directions (n,) -> cells (n,)."""
        return grid_move(cell, action, self.size)

    def chances(self):
        """Chance (size^2, size^2, stay + 1) to come from one cell to another in so many random moves."""
        cells = torch.arange(self.size**2)
        moves = torch.stack([self.moved(cells, torch.full_like(cells, a)) for a in range(4)])
        there = torch.eye(len(cells), dtype=torch.float64)
        found = [there]
        for _ in range(self.stay):
            found.append(torch.where(there > 0, 1.0, found[-1][moves].mean(0)))
        return torch.stack(found, 2)

    def odds(self, state):
        """The exact chance (n,) that random moves win from here, knowing only what an agent knows.

        Where the door stands is known in the last room only; the first room counts with its average.
        """
        time, cell, taken, key, door, _, _ = (column.cpu() for column in state.unbind(1))
        chances, cells = self.chances(), self.size**2
        last = chances[:, :, -1]
        door_later = (last.sum() - cells) / (cells * (cells - 1))  # never on the door at first
        room, left = time // self.stay, self.stay - time % self.stay
        taking = torch.where(room == 0, chances[cell, key, left], 0.0)
        has = torch.where(taken == 1, 1.0, taking)
        now = chances[cell, door, left.clamp(max=self.stay)]
        return torch.where(room < 2, has * door_later, taken * now * (room == 2)).to(state.device)


class SwingUp:
    """A pole that hangs from a cart: swing it up and hold it there, without leaving the track.

    x'' = (-2 m l a'^2 sin a + 3 m g sin a cos a + 4 F - 4 b x') / (4 M - 3 m cos^2 a)
    a'' = (-3 m l a'^2 sin a cos a + 6 M g sin a + 6 (F - b x') cos a) / (4 l M - 3 m l cos^2 a)

    F = 10 action (N), M the mass of cart and pole (kg), explicit Euler steps of 0.01 s. State (n, 5):
    x (m), its velocity, angle a of the pole (rad, 0 is upright), its rate, time steps so far.
    Reward (cos a + 1) / 2 * cos(pi x / 4.8) at the new state, summed over the `hold` steps for which
    an action (n, 1) in [-1, 1] is kept. It terminates for |x| > 2.4 and is truncated after `longest`
    steps of 0.01 s. start: "simple", hanging within 0.2, or "hard", anything up to 10 m/s and rad/s.

    Raises ValueError for another start. Source: the task of Gal, McAllister & Rasmussen 2016 in the
    harder form of Ha 2017, as Tang & Ha 2021 use it (arXiv 2109.02869).

    >>> env = SwingUp()
    >>> step = env.step(torch.zeros(1, 5), torch.zeros(1, 1))
    >>> step.reward, step.state
    (tensor([1.]), tensor([[0., 0., 0., 0., 1.]]))
    """

    observations, actions, discrete = 5, 1, False
    gravity, cart, pole, length, friction, force, dt, track = (
        9.82,
        0.5,
        0.5,
        0.6,
        0.1,
        10.0,
        0.01,
        2.4,
    )

    def __init__(self, start="simple", longest=1000, hold=1, dtype=torch.float32):
        if start not in ("simple", "hard"):
            raise ValueError(f"start: got {start!r}, wanted 'simple' or 'hard'")
        self.start, self.dtype = start, dtype
        self.steps, self.hold = check_whole("longest", longest), check_whole("hold", hold)
        self.longest = -(-self.steps // self.hold)  # decisions

    def reset(self, n, generator):
        if self.start == "simple":
            draw = 0.2 * torch.randn(
                n, 4, generator=generator, device=generator.device, dtype=self.dtype
            )
        else:
            draw = torch.rand(n, 4, generator=generator, device=generator.device, dtype=self.dtype)
            draw = 2 * draw - 1
            for column, wide in zip(draw.unbind(1), (self.track, 10, math.pi / 2, 10), strict=True):
                column *= wide
        draw[:, 2] += math.pi
        return torch.cat([draw, torch.zeros_like(draw[:, :1])], 1)

    def observe(self, state):
        """What an agent sees (n, 5): x, its velocity, cos a, sin a, the pole's rate."""
        x, v, a, w, _ = state.unbind(1)
        return torch.stack([x, v, a.cos(), a.sin(), w], 1)

    def step(self, state, action):
        """(states (n, 5), actions (n, 1)) -> `Step`."""
        force = self.force * action[:, 0].clamp(-1, 1)
        total = torch.zeros_like(force)
        for _ in range(self.hold):
            going = (state[:, 0].abs() <= self.track) & (state[:, 4] < self.steps)
            after, reward = self._tick(state, force)
            state = torch.where(going[:, None], after, state)
            total = total + reward * going
        out = state[:, 0].abs() > self.track
        return Step(state, total, out, (state[:, 4] >= self.steps) & ~out)

    def _tick(self, state, force):
        x, v, a, w, time = state.unbind(1)
        g, m, l, b = self.gravity, self.pole, self.length, self.friction
        mass, sin, cos = self.cart + self.pole, a.sin(), a.cos()
        below = 4 * mass - 3 * m * cos * cos
        spin, push = m * l * w * w * sin, force - b * v
        dv = (-2 * spin + 3 * m * g * sin * cos + 4 * push) / below
        dw = (-3 * spin * cos + 6 * mass * g * sin + 6 * push * cos) / (l * below)
        x, v, a, w = x + self.dt * v, v + self.dt * dv, a + self.dt * w, w + self.dt * dw
        reward = (a.cos() + 1) / 2 * torch.cos(math.pi * x / (2 * self.track))
        return torch.stack([x, v, a, w, time + 1], 1), reward

    def savable(self, state):
        """Can the cart stop in time? (n,) bool. Braking at 10 m/s^2 from v takes v^2 / 20 metres.

        An estimate that takes cart and pole for one lump: the pole can add to the brake or take from
        it. It agrees with the fate of the `expert` for about 94 of 100 hard starts.

        >>> SwingUp().savable(torch.tensor([[0.0, 6.8, 0, 0, 0], [0.0, 7.0, 0, 0, 0]]))
        tensor([ True, False])
        """
        x, v = state[:, 0], state[:, 1]
        brake = self.force / (self.cart + self.pole)
        return v * v / (2 * brake) <= self.track - x * v.sign()

    def expert(self, state):
        """Actions (n, 1) of a controller by hand: pump energy, catch, and stay off the walls.

        The wanted acceleration of the cart is turned into a force by inverting x''. Away from the top
        it pumps the pole's energy E towards that of standing upright; near the top it is a linear
        regulator whose gains solve the Riccati equation; a brake guards the walls. The constants of the
        pump and the brake were found by a random search.
        """
        x, v, a, w, _ = state.unbind(1)
        a = torch.remainder(a + math.pi, 2 * math.pi) - math.pi
        g, m, l, b = self.gravity, self.pole, self.length, self.friction
        sin, cos = a.sin(), a.cos()
        # A rod of length l that turns about its end: E = 0 when it stands.
        energy = l * l * w * w / 6 + g * l / 2 * (cos - 1)
        pump = (-3.4 * energy * w * cos - 0.18 * x - 5.5 * v).clamp(-13.7, 13.7)
        gains = self.gains.to(a)
        catch = -(gains[0] * x + gains[1] * v + gains[2] * a + gains[3] * w)
        near = (a.abs() < 0.72) & (w.abs() < 4.2)
        # 'catch' is a force already; 'pump' is an acceleration.
        below = 4 * (self.cart + m) - 3 * m * cos * cos
        spin = m * l * w * w * sin
        pumped = (below * pump + 2 * spin - 3 * m * g * sin * cos + 4 * b * v) / 4
        force = torch.where(near, catch, pumped)
        room = self.track - x * v.sign()
        brake = v * v > 1.4 * room
        force = torch.where(brake, -self.force * v.sign(), force)
        return (force / self.force).clamp(-1, 1)[:, None]

    @functools.cached_property
    def gains(self):
        """Feedback gains (4,) of the upright pole: the fixed point of the discrete Riccati equation."""
        point = torch.zeros(1, 5, dtype=torch.float64)

        def tick(state, force):
            return self._tick(torch.cat([state, point[:, 4:]], 1), force)[0][0, :4]

        A, B = torch.autograd.functional.jacobian(tick, (point[:, :4], point[0, :1]))
        A, B = A[:, 0], B
        cost = torch.diag(torch.tensor([1.0, 0.1, 4.0, 0.1], dtype=torch.float64))
        P = cost
        for _ in range(3000):
            gain = (B.T @ P @ A) / (0.05 + B.T @ P @ B)
            P = cost + A.T @ P @ (A - B @ gain)
        return gain[0]
