"""What the tests of this room share: small draws, agents, slow twins."""

import math

import torch
from torch import nn

from collage.common.environments import SwingUp
from collage.sensory_neuron import Agent


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def shaken(agent, seed=99, shake=0.5):
    """With weights large enough for differences to show."""
    with torch.no_grad():
        agent.weights.add_(shake * torch.randn(agent.weights.shape, generator=seeded(seed)))
    return agent


def large(**settings):
    """Of other sizes than the swing-up's."""
    return Agent(8, codes=32, **settings)


def hard(n, seed=1, dtype=torch.float64):
    return SwingUp("hard").reset(n, seeded(seed)).to(dtype)


def calm(n, seed=2, dtype=torch.float64):
    return SwingUp().reset(n, seeded(seed)).to(dtype)


class Twin:
    """One agent, one episode: an LSTM cell and linear layers of torch, in the order of its modules."""

    def __init__(self, flat, actions=1, codes=16):
        H, d = 8, 32
        make = nn.utils.skip_init
        self.lstm = make(nn.LSTMCell, 1 + actions, H)
        self.query, self.key = (make(nn.Linear, H, d, bias=False) for _ in "qk")
        self.head = make(nn.Linear, codes, actions)
        every = nn.ModuleList([self.lstm, self.query, self.key, self.head]).to(flat.dtype)
        assert sum(p.numel() for p in every.parameters()) == len(flat)
        nn.utils.vector_to_parameters(flat, every.parameters())
        self.Q = torch.tensor(table(codes, H), dtype=flat.dtype)
        self.state, self.action = None, flat.new_zeros(actions)

    def __call__(self, readings):
        x = readings[:, None]
        heard = torch.cat([x, self.action.expand(len(x), -1)], 1)
        self.state = self.lstm(heard, self.state)
        scores = self.query(self.Q) @ self.key(self.state[0]).T
        code = (scores.tanh() @ x)[:, 0].tanh()
        self.action = self.head(code).tanh()
        return self.action, code


def table(rows, dim):
    return [[(math.cos if j % 2 else math.sin)(i / 10000 ** (2 * (j // 2) / dim))
             for j in range(dim)] for i in range(rows)]  # fmt: skip


class Expert:
    """The controller by hand, as a policy that reads what an agent reads, in the usual order."""

    members, env = 1, SwingUp()

    def begin(self, episodes, sensors, weights=None):
        return None

    def fold(self, weights=None):
        return None

    def act(self, readings, memory, folded=None):
        r = readings if readings.dim() == 3 else readings[None]
        x, v, cos, sin, rate = r.unbind(1)
        state = torch.stack([x, v, torch.atan2(sin, cos), rate, 0 * x], -1)
        return self.env.expert(state.flatten(0, 1)).view(len(r), 1, -1), None, None
