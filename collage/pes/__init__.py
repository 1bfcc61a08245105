"""Persistent evolution strategies (Vicol et al., 2021; arXiv 2112.13835): chapter 35.

estimators    PES itself, and several estimators in one batch
siblings      truncated and full ES, reused noise, PES+Analytic
closed_form   the variance of PES where losses are linear
exact         truncated backpropagation, RTRL; what an unroll must return
problems      inner problems
fast/outer    a whole outer step as one program
"""

from collage.pes.closed_form import variance
from collage.pes.estimators import PES, together
from collage.pes.exact import RTRL, TruncatedBackprop
from collage.pes.fast.outer import OuterLoop, toy_steps
from collage.pes.problems import Control, Influence, LearnedOptimiser, Schedule, Toy
from collage.pes.siblings import FullES, NoiseReuseES, PESAnalytic, TruncatedES

__all__ = [
    "PES",
    "RTRL",
    "Control",
    "FullES",
    "Influence",
    "LearnedOptimiser",
    "NoiseReuseES",
    "OuterLoop",
    "PESAnalytic",
    "Schedule",
    "Toy",
    "TruncatedBackprop",
    "TruncatedES",
    "together",
    "toy_steps",
    "variance",
]
