"""Batched environments: many at once as one tensor, a step a pure function.

CartPole       a pole on a cart, to be balanced or swung up, with a continuous force
MountainCar    a car in a valley, too weak to drive straight out
"""

import math

import torch


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
        return self.spread * draw + torch.tensor([0, 0, self.angle, 0], dtype=draw.dtype).to(
            draw.device
        )

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
