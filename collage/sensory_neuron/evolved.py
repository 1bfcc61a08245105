"""Agents that were trained at length, as they lie in swing_up.npz and students.npz."""

from pathlib import Path

import torch

from collage.common import checkpoint
from collage.sensory_neuron.core import Agent

MEMBERS = {"swing_up": 1, "students": 3}


def trained(name: str = "swing_up") -> Agent:
    """Agents of 913 parameters each that do the swing-up: `experiments.sensory_neuron`.

    "swing_up" was found by evolution; the three "students" were cloned from ordinary networks, with
    three seeds. Raises ValueError for another name.

    >>> trained().weights.shape, trained("students").weights.shape
    (torch.Size([1, 913]), torch.Size([3, 913]))
    """
    if name not in MEMBERS:
        raise ValueError(f"name: got {name!r}, wanted one of {sorted(MEMBERS)}")
    agent = Agent(members=MEMBERS[name])
    arrays, _ = checkpoint.load(Path(__file__).with_name(f"{name}.npz"))
    agent.weights.data = torch.from_numpy(arrays["weights"]).view(agent.weights.shape)
    return agent
