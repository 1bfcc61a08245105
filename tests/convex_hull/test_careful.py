"""Least squares for one query finds what `core.wolfe` finds, and more than it can."""

import torch

from collage.convex_hull import core
from collage.convex_hull.fast.careful import careful
from tests.convex_hull.clouds import normal, pixels


def test_nearest_point_and_its_weights():
    for seed in range(8):
        x, z = normal(60, 4, seed=seed), 1.5 * normal(1, 4, seed=50 + seed)
        p = x - z
        inside, taken, weights, y = careful(p, torch.ones(60).double(), 1e-9, 1 - 1e-9, 5)
        assert torch.allclose(y, core.wolfe(x, z)[0], atol=1e-7)
        assert inside == bool(y.norm() < 1e-9) and len(taken) <= 5
        assert (weights > 0).all() and torch.allclose(weights @ p[taken], y, atol=1e-9)


def test_points_that_depend_on_each_other():
    x = pixels(80, 3, 0)  # whole numbers: many on one plane
    for z in (x[:10] + x[10:20]) / 2:
        inside, taken, weights, _ = careful(x - z, torch.ones(80).double(), 1e-9, 0.1, 4)
        assert inside and len(taken) <= 4
        assert torch.allclose(weights @ x[taken], z, atol=1e-9)
