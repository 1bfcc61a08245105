"""Bootstrapped meta-learning (Flennerhag et al., 2021; arXiv 2109.04504): chapter 37.

core         the paper: meta-gradients and bootstraps of any update rule
colours      meta-steps of a noisy valley and of two colours; as CUDA graphs
actors       the learners of two colours: sampled actor-critics (actors.cpp on a CPU), exact tables
gridworlds   the world of two colours that exchange their roles
waves        few-shot sine waves
"""

from collage.bmg.actors import ColourLearner, ExactLearner, bonus, start_meta
from collage.bmg.colours import (
    MetaLoop,
    NoisyQuadratic,
    colour_step,
    match,
    match_tables,
    objective,
)
from collage.bmg.core import (
    bootstrap_target,
    coefficient_gradient,
    detached,
    meta_gradient,
    meta_step,
    policy_kl,
    squared_distance,
    unroll,
)
from collage.bmg.gridworlds import ExactColours, TwoColours
from collage.bmg.waves import Adapter, sinusoids

__all__ = [
    "Adapter",
    "ColourLearner",
    "ExactColours",
    "ExactLearner",
    "MetaLoop",
    "NoisyQuadratic",
    "TwoColours",
    "bonus",
    "bootstrap_target",
    "coefficient_gradient",
    "colour_step",
    "detached",
    "match",
    "match_tables",
    "meta_gradient",
    "meta_step",
    "objective",
    "policy_kl",
    "sinusoids",
    "squared_distance",
    "start_meta",
    "unroll",
]
