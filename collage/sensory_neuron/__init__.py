"""The sensory neuron as a transformer (Tang & Ha, 2021; arXiv 2109.02869): chapter 33.

core           the paper: the layer, and agents made of it
evolved        agents trained at length: by evolution (swing_up.npz), by a teacher (students.npz)
images         pictures in patches
episodes       episodes, and what is done to the sensors
cloning        DAgger: learning from a teacher
strategies     evolution of OpenAI's kind
fast/inputs    what compiled rollouts take
fast/rollout   whole episodes of the swing-up in one loop on a CPU, compiled by numba
fast/kernel    the same on a GPU, in one Triton kernel
fast/graphed   the same on a GPU, as a CUDA graph
"""

from collage.sensory_neuron.cloning import clone
from collage.sensory_neuron.core import Agent, AttentionNeuron
from collage.sensory_neuron.episodes import Plain, Sensors, play
from collage.sensory_neuron.evolved import trained
from collage.sensory_neuron.images import PatchNeuron

__all__ = [
    "Agent",
    "AttentionNeuron",
    "PatchNeuron",
    "Plain",
    "Sensors",
    "clone",
    "play",
    "trained",
]
