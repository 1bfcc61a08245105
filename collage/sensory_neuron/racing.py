"""The paper's agent for CarRacing."""

import torch
from torch import nn

from collage.sensory_neuron.images import PatchNeuron


class RacingAgent(nn.Module):
    """The paper's driver for CarRacing: a `PatchNeuron` of 1,024 rows, and a glance at ten of them.

    The code is taken for an image of 32 x 32 pixels and mixed with the last one, alpha of it old. Its
    pixels vote for each other, the ten with most votes tell an LSTM where they are, and that steers.
    7,212 parameters.

    Source: arXiv 2109.02869, section 4.3; the driver is that of Tang, Nguyen & Ha 2020
    (arXiv 2003.08165).

    >>> sum(p.numel() for p in RacingAgent().parameters())
    7212
    """

    side, best, units = 32, 10, 16

    def __init__(self):
        super().__init__()
        self.eye = PatchNeuron(patch=6, frames=4, actions=3, codes=self.side**2)
        self.asks, self.answers = nn.Linear(16, 4), nn.Linear(16, 4)
        self.lstm, self.head = nn.LSTMCell(2 * self.best, self.units), nn.Linear(self.units, 3)
        self.mix = nn.Sequential(
            nn.Linear(self.units + 3, 16), nn.Tanh(), nn.Linear(16, 1), nn.Sigmoid()
        )

    def begin(self, episodes):
        """Memory: hidden and cell (B, 16), the last action (B, 3), the last code (B, 1024, 16)."""
        zero = self.head.weight.new_zeros
        return (zero(episodes, self.units), zero(episodes, self.units), zero(episodes, 3),
                zero(episodes, self.side**2, 16))  # fmt: skip

    def forward(self, seen, memory):
        """Patches (B, P, 4, 36) -> actions (B, 3) in [-1, 1] and the new memory."""
        hidden, cell, action, last = memory
        alpha = self.mix(torch.cat([hidden, action], 1))[..., None]
        code = (1 - alpha) * self.eye(seen, action) + alpha * last
        votes = (self.asks(code) @ self.answers(code).mT).softmax(2).sum(1)
        top = votes.topk(self.best, 1).indices
        where = torch.stack([top // self.side, top % self.side], 2).to(code) / self.side
        hidden, cell = self.lstm(where.flatten(1), (hidden, cell))
        action = self.head(hidden).tanh()
        return action, (hidden, cell, action, code)
