"""Bootstrapped meta-learning (Flennerhag et al., 2021; arXiv 2109.04504): chapter 37.

core          the paper: meta-gradients and bootstraps of any update rule
fast/colours  meta-steps of the sampled learner in one backward pass; as CUDA graphs
fast/compiled a meta-step from two compiled programs, on a CPU
gridworlds    the world of two colours that exchange their roles
actors        the learners of two colours: sampled actor-critics, exact tables
waves         few-shot sine waves
"""

from collage.bmg.core import bootstrap_target, meta_gradient, policy_kl, squared_distance, unroll
from collage.bmg.fast.colours import colour_step

__all__ = [
    "bootstrap_target",
    "colour_step",
    "meta_gradient",
    "policy_kl",
    "squared_distance",
    "unroll",
]
