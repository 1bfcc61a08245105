"""The agent that evolution found, as it lies in swing_up.npz."""

from pathlib import Path

import torch

from collage.common import checkpoint
from collage.sensory_neuron.core import Agent


def trained() -> Agent:
    """The agent of 913 parameters that evolution found for the swing-up: `experiments.sensory_neuron`.

    >>> trained().weights.shape
    torch.Size([1, 913])
    """
    agent, (arrays, _) = Agent(), checkpoint.load(Path(__file__).with_name("swing_up.npz"))
    agent.weights.data = torch.from_numpy(arrays["weights"])[None]
    return agent
