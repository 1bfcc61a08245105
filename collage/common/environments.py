"""Batched environments: many at once as one tensor, a step a pure function.

CartPole       a pole on a cart, to be balanced with a continuous force
MountainCar    a car in a valley, too weak to drive straight out
SwingUp        a pole to be swung up without leaving the track; it ends, and has an expert
Step           what an environment says
grid_move      a step on a square of cells

The first two never end by themselves.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from collage.common.checks import check_whole
from collage.common.placed import Placed


class Step(NamedTuple):
    """What an environment gives back. Nothing is reset: `state` is the final one, too."""

    state: Tensor
    reward: Tensor  # (n,)
    terminated: Tensor  # (n,) bool: the task is over
    truncated: Tensor  # (n,) bool: the time is


def endless(state: Tensor, reward: Tensor) -> Step:
    """A `Step` of an environment that never ends by itself."""
    never = torch.zeros_like(reward, dtype=torch.bool)
    return Step(state, reward, never, never)


class CartPole:
    """A pole on a cart that is pushed with a continuous force.

    a'' = (g sin a - u cos a) / (l (4/3 - m cos^2 a / M)),  x'' = u - m l a'' cos a / M,
    u = (F + m l a'^2 sin a) / M,    M the mass of cart and pole

    State (n, 4): position x (m) and velocity of the cart, angle a of the pole (rad, 0 is upright)
    and its rate, integrated by semi-implicit Euler steps of `dt` s; it starts upright, with random
    deviations of `spread`. actions (n, 1) in [-1, 1] are forces in units of `force` N.
    reward: exp(-4 (1 - cos a)) / (1 + (x / 2.4)^2), between 0 and 1. It never ends by itself.

    Source of the equations: Barto, Sutton & Anderson 1983.

    >>> env = CartPole()
    >>> step = env.step(torch.zeros(2, 4), torch.zeros(2, 1))
    >>> step.state.shape, step.reward
    (torch.Size([2, 4]), tensor([1., 1.]))
    """

    observations, actions = 5, 1
    gravity, pole, cart, length = 9.8, 0.1, 1.0, 0.5  # m/s^2, kg, kg, half a pole in m
    force, dt, spread = 10.0, 0.02, 0.2  # N, s, of the start

    def reset(self, n: int, generator: Generator) -> Tensor:
        return self.spread * torch.randn(n, 4, generator=generator, device=generator.device)

    def observe(self, state: Tensor) -> Tensor:
        """What an agent sees (n, 5): x, its velocity, cos a, sin a, the pole's rate."""
        x, v, a, w = state.unbind(1)
        return torch.stack([x, v, a.cos(), a.sin(), w], 1)

    def step(self, state: Tensor, action: Tensor) -> Step:
        """(states (n, 4), actions (n, 1)) -> `Step`."""
        x, v, a, w = state.unbind(1)
        mass, ml = self.cart + self.pole, self.pole * self.length
        sin, cos = a.sin(), a.cos()
        push = (self.force * action[:, 0].clamp(-1, 1) + ml * w * w * sin) / mass
        inertia = self.length * (4 / 3 - self.pole / mass * cos * cos)
        turn = (self.gravity * sin - push * cos) / inertia
        v = v + self.dt * (push - ml / mass * turn * cos)
        w = w + self.dt * turn
        x, a = x + self.dt * v, a + self.dt * w
        reward = torch.exp(-4 * (1 - a.cos())) / (1 + (x / 2.4) ** 2)
        return endless(torch.stack([x, v, a, w], 1), reward)


class MountainCar:
    """A car in a valley: to get out on the right it must first back up on the left.

    v <- v + 0.0015 F - 0.0025 cos 3x,  |v| <= 0.07,    x <- x + v

    State (n, 2): position x in [-1.2, 0.6] and velocity v; walls on both sides stop the car.
    actions (n, 1) in [-1, 1] are forces F. It starts at rest near the bottom, x = -0.5 +- 0.1.
    reward: the height of the road, (1 + sin 3x) / 2, between 0 and 1. It never ends by itself.

    Source of the equations: Moore 1990, in the continuous form of Gymnasium (there the reward is
    given at the goal only, and the left wall alone stops the car).

    >>> env = MountainCar()
    >>> step = env.step(torch.tensor([[0.6, 0.05]]), torch.ones(1, 1))
    >>> step.state, step.reward
    (tensor([[0.6000, 0.0000]]), tensor([0.9869]))
    """

    observations, actions = 2, 1

    def reset(self, n: int, generator: Generator) -> Tensor:
        draw = torch.rand(n, generator=generator, device=generator.device)
        return torch.stack([0.2 * draw - 0.6, torch.zeros_like(draw)], 1)

    def observe(self, state: Tensor) -> Tensor:
        """What an agent sees (n, 2): position and velocity, scaled to about one."""
        x, v = state.unbind(1)
        return torch.stack([(x + 0.5) / 0.6, v / 0.07], 1)

    def step(self, state: Tensor, action: Tensor) -> Step:
        """(states (n, 2), actions (n, 1)) -> `Step`."""
        x, v = state.unbind(1)
        v = v + 0.0015 * action[:, 0].clamp(-1, 1) - 0.0025 * torch.cos(3 * x)
        v = v.clamp(-0.07, 0.07)
        free = x + v
        x = free.clamp(-1.2, 0.6)
        v = torch.where((free <= -1.2) | (free >= 0.6), 0.0, v)
        return endless(torch.stack([x, v], 1), (1 + torch.sin(3 * x)) / 2)


def grid_move(cell: Tensor, action: Tensor, size: int) -> Tensor:
    """Where a move on a square grid leads; cells (n,) count row by row, walls hold.

    action (n,): up, down, left, right.

    >>> grid_move(torch.tensor([4, 0, 8]), torch.tensor([0, 2, 3]), 3)
    tensor([1, 0, 8])
    """
    row, column = cell // size, cell % size
    row = (row + (action == 1).long() - (action == 0).long()).clamp(0, size - 1)
    column = (column + (action == 3).long() - (action == 2).long()).clamp(0, size - 1)
    return row * size + column


class SwingUp:
    """A pole that hangs from a cart: swing it up and hold it there, without leaving the track.

    Compiled copies, to be kept in step: collage.sensory_neuron.fast.rollout, collage.sensory_neuron.fast.kernel

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
    gravity, cart, pole, length = 9.82, 0.5, 0.5, 0.6  # m/s^2, kg, kg, m
    friction, force, dt, track = 0.1, 10.0, 0.01, 2.4  # N s/m, N, s, m to each side

    def __init__(self, start: str = "simple", longest: int = 1000, hold: int = 1) -> None:
        if start not in ("simple", "hard"):
            raise ValueError(f"start: got {start!r}, wanted 'simple' or 'hard'")
        self.start = start
        self.steps, self.hold = check_whole("longest", longest), check_whole("hold", hold)
        self.longest = -(-self.steps // self.hold)  # decisions

    def reset(self, n: int, generator: Generator) -> Tensor:
        if self.start == "simple":
            draw = 0.2 * torch.randn(n, 4, generator=generator, device=generator.device)
        else:
            draw = 2 * torch.rand(n, 4, generator=generator, device=generator.device) - 1
            for column, wide in zip(draw.unbind(1), (self.track, 10, math.pi / 2, 10), strict=True):
                column *= wide
        draw[:, 2] += math.pi
        return torch.cat([draw, torch.zeros_like(draw[:, :1])], 1)

    def observe(self, state: Tensor) -> Tensor:
        """What an agent sees (n, 5): x, its velocity, cos a, sin a, the pole's rate."""
        x, v, a, w, _ = state.unbind(1)
        return torch.stack([x, v, a.cos(), a.sin(), w], 1)

    def step(self, state: Tensor, action: Tensor) -> Step:
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

    def _tick(self, state: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
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

    def savable(self, state: Tensor) -> Tensor:
        """Can the cart stop in time? (n,) bool. Braking at 10 m/s^2 from v takes v^2 / 20 metres.

        An estimate that takes cart and pole for one lump: the pole can add to the brake or take from
        it. It agrees with the fate of the `expert` for about 94 of 100 hard starts.

        >>> SwingUp().savable(torch.tensor([[0.0, 6.8, 0, 0, 0], [0.0, 7.0, 0, 0, 0]]))
        tensor([ True, False])
        """
        x, v = state[:, 0], state[:, 1]
        brake = self.force / (self.cart + self.pole)
        return v * v / (2 * brake) <= self.track - x * v.sign()

    def expert(self, state: Tensor) -> Tensor:
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
        gains = self.gains.like(a)
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
    def gains(self) -> Placed:
        """Feedback gains (4,) of the upright pole: the fixed point of the discrete Riccati equation."""
        point = torch.zeros(1, 5, dtype=torch.float64)

        def tick(state: Tensor, force: Tensor) -> Tensor:
            return self._tick(torch.cat([state, point[:, 4:]], 1), force)[0][0, :4]

        A, B = torch.autograd.functional.jacobian(tick, (point[:, :4], point[0, :1]))
        A, B = A[:, 0], B
        cost = torch.diag(torch.tensor([1.0, 0.1, 4.0, 0.1], dtype=torch.float64))
        P = cost
        for _ in range(3000):
            gain = (B.T @ P @ A) / (0.05 + B.T @ P @ B)
            P = cost + A.T @ P @ (A - B @ gain)
        return Placed(gain[0])
