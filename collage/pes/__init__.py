"""Persistent evolution strategies (Vicol et al., 2021; arXiv 2112.13835): chapter 35.

core          the paper: PES and its relatives as functions of one unroll; the variance of PES
estimators    the same as objects, and several of them in one batch
batch         particles of several estimators, unrolled together
exact         truncated backpropagation and RTRL
problems      inner problems: toy, influence balancing, schedule, learned optimiser, control
inputs        checks of what comes in; a step that fails is undone
fast/outer    a whole outer step as one program
"""

from collage.pes.core import variance
from collage.pes.estimators import PES, FullES, NoiseReuseES, PESAnalytic, TruncatedES, together
from collage.pes.fast.outer import OuterLoop

__all__ = [
    "PES",
    "FullES",
    "NoiseReuseES",
    "OuterLoop",
    "PESAnalytic",
    "TruncatedES",
    "together",
    "variance",
]
