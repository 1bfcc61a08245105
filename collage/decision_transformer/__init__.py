"""Decision Transformer (Chen, Lu et al., 2021; arXiv 2106.01345).

model          the model
trajectories   recorded episodes, windows, rollouts
offline        training, implicit Q-learning
"""

from collage.decision_transformer.model import DecisionTransformer
from collage.decision_transformer.offline import ImplicitQ, fit
from collage.decision_transformer.trajectories import (
    Trajectories,
    Window,
    collect,
    returns_to_go,
    rollout,
)

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
