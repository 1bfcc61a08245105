"""The sensory neuron as a transformer (Tang & Ha, 2021; arXiv 2109.02869): chapter 33.

neuron       the layer, agents made of it, the evolved one (swing_up.npz); a compiled loop (neuron.cpp)
cloning      DAgger: learning from a teacher
racing       the paper's agent for CarRacing
episodes     episodes, and what is done to the sensors
images       pictures in patches
strategies   CMA-ES and OpenAI-style evolution
"""

from collage.sensory_neuron.cloning import clone
from collage.sensory_neuron.episodes import Plain, Sensors, play
from collage.sensory_neuron.images import PatchNeuron, patches, positions
from collage.sensory_neuron.neuron import Agent, AttentionNeuron, Memory, fused_returns, trained
from collage.sensory_neuron.racing import RacingAgent
from collage.sensory_neuron.strategies import CMAES, OpenES, score

__all__ = [
    "CMAES",
    "Agent",
    "AttentionNeuron",
    "Memory",
    "OpenES",
    "PatchNeuron",
    "Plain",
    "RacingAgent",
    "Sensors",
    "clone",
    "fused_returns",
    "patches",
    "play",
    "positions",
    "score",
    "trained",
]
