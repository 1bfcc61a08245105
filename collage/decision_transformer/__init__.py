"""Decision Transformer (Chen, Lu et al., 2021; arXiv 2106.01345): chapter 34.

core              the paper: tokens, the causal transformer, its loss, returns-to-go
fast/transformer  no work on tokens that nobody reads, dropout from fewer random numbers
model             the transformer as a module
training          what training asks of a model, and the training
trajectories      recorded episodes
rollouts          models and behaviours in many environments at once
implicit_q        a value method to compare with: implicit Q-learning
worlds            walks on graphs, a key that pays later
"""

from collage.decision_transformer.core import Window, returns_to_go
from collage.decision_transformer.implicit_q import ImplicitQ
from collage.decision_transformer.model import DecisionTransformer
from collage.decision_transformer.rollouts import collect, rollout
from collage.decision_transformer.training import fit
from collage.decision_transformer.trajectories import Trajectories

__all__ = [
    "DecisionTransformer",
    "ImplicitQ",
    "Trajectories",
    "Window",
    "collect",
    "fit",
    "returns_to_go",
    "rollout",
]
