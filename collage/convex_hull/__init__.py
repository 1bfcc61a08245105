"""Learning in high dimension always amounts to extrapolation (Balestriero et al., 2021; arXiv 2110.09485): chapter 39.

hull          membership and nearest points, with certificates
frame         columns centred and scaled, and the way back
gaussian      the exact probability for Gaussian data, and Wendel's
fast/pool     Wolfe's method for many queries in lock-step
fast/prices   pricing: which points lie beyond a plane (a Triton kernel on a GPU)
"""

from collage.convex_hull.fast.pool import Pool
from collage.convex_hull.fast.prices import BLOCK
from collage.convex_hull.gaussian import gaussian_inside_probability, wendel
from collage.convex_hull.hull import inside_curve, membership, nearest, verify

__all__ = [
    "BLOCK",
    "Pool",
    "gaussian_inside_probability",
    "inside_curve",
    "membership",
    "nearest",
    "verify",
    "wendel",
]
