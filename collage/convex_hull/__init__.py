"""Learning in high dimension always amounts to extrapolation (Balestriero et al., 2021; arXiv 2110.09485): chapter 39.

core          Wolfe's method
hull          membership and nearest points, for many queries at once
certificates  what proves an answer, and the check of it
frame         coordinates: columns centred and scaled, clouds whitened, and the way back
gaussian      the exact probability for Gaussian data, and Wendel's
fast/interior  most decisions in a few steps: an interior point method
fast/pool     Wolfe's method for many queries in lock-step
fast/prices   pricing: which points lie beyond a plane
fast/kernel   the same on a GPU: a Triton kernel
fast/working_set  the points that a query looks at in every step
fast/careful  one query where vertices depend on each other
"""

from collage.convex_hull.certificates import verify
from collage.convex_hull.gaussian import gaussian_inside_probability, wendel
from collage.convex_hull.hull import inside_curve, membership, nearest

__all__ = [
    "gaussian_inside_probability",
    "inside_curve",
    "membership",
    "nearest",
    "verify",
    "wendel",
]
