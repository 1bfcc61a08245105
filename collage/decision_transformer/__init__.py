"""Decision Transformer (Chen, Lu et al., 2021; arXiv 2106.01345): chapter 34.

model          the causal transformer over returns, states and actions
trajectories   recorded episodes, and windows of them
rollouts       models and behaviours in many environments at once
worlds         walks on graphs, a key and a door
offline        training on windows; implicit Q-learning
"""

from collage.decision_transformer.model import DecisionTransformer
from collage.decision_transformer.offline import ImplicitQ, fit
from collage.decision_transformer.rollouts import collect, rollout
from collage.decision_transformer.trajectories import Trajectories, Window, returns_to_go
from collage.decision_transformer.worlds import KeyToDoor, Walks

__all__ = [
    "DecisionTransformer",
    "ImplicitQ",
    "KeyToDoor",
    "Trajectories",
    "Walks",
    "Window",
    "collect",
    "fit",
    "returns_to_go",
    "rollout",
]
