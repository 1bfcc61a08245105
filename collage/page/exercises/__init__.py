"""Checkers for the exercises, a file for each chapter."""

from collage.page.exercises import (
    bmg,
    convex_hull,
    decision_transformer,
    nbeats,
    pes,
    ridge_rider,
    sam,
    sensory_neuron,
)
from collage.page.exercises.checker import CHECKERS, check

__all__ = [
    "CHECKERS",
    "bmg",
    "check",
    "convex_hull",
    "decision_transformer",
    "nbeats",
    "pes",
    "ridge_rider",
    "sam",
    "sensory_neuron",
]
