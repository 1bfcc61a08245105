"""Batched environments: many at once as one tensor, a step a pure function.

CartPole    a pole on a cart, to be balanced or swung up, with a continuous force
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
    reward: (1 + cos a) / 2 times exp(-(x / 2.4)^2), between 0 and 1. It never ends by itself.

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
        reward = (1 + a.cos()) / 2 * torch.exp(-((x / 2.4) ** 2))
        return torch.stack([x, v, a, w], 1), reward
