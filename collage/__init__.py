"""Performance-critical pieces of the ML Collage book: a room for each paper, `common` for what two share.

sensory_neuron         33  The sensory neuron as a transformer
decision_transformer   34  Decision Transformer
pes                    35  Persistent evolution strategies
sam                    36  Sharpness-aware minimisation
bmg                    37  Bootstrapped meta-learning
nbeats                 38  N-BEATS
convex_hull            39  Learning in high dimension always amounts to extrapolation
ridge_rider            40  Ridge Rider

Importing `collage` loads nothing: a room is loaded when it is first asked for, as in
``from collage.sam import SAM`` or ``collage.sam.SAM``.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"
__all__ = [
    "bmg",
    "convex_hull",
    "decision_transformer",
    "nbeats",
    "pes",
    "ridge_rider",
    "sam",
    "sensory_neuron",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"collage.{name}")
    raise AttributeError(f"module 'collage' has no attribute {name!r}")
