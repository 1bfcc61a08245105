"""Coordinates and the way back."""

import torch

from collage.convex_hull.frame import Cloud, Frame
from tests.convex_hull.clouds import normal


def test_directions_come_back_as_separators_in_the_users_units():
    x = normal(200, 4) * torch.tensor([1e-6, 1.0, 1e4, 0.0]).double() + 3
    frame = Frame(x)
    inner = frame.inner(x)
    assert inner.shape == (200, 3) and inner.abs().max() <= 1
    u = torch.nn.functional.normalize(normal(5, 3, seed=1), dim=1)
    outer, shrink = frame.outer(u)
    assert torch.allclose(outer.norm(dim=1), torch.ones(5).double())
    inside, outside = inner @ u.T * shrink, x @ outer.T
    assert torch.allclose(inside - inside[0], outside - outside[0], rtol=1e-6, atol=1e-12)


def test_a_cloud_is_white_on_the_subspace_of_its_points():
    x = normal(500, 3) @ normal(3, 8, seed=1) + 2
    cloud = Cloud(x)
    assert cloud.rank == 3
    assert torch.allclose(cloud.x.T @ cloud.x / 500, torch.eye(3).double(), atol=1e-9)
    z, beside, flat = cloud.place(torch.cat([x[:5], x[:5] + normal(5, 8, seed=2)]))
    assert flat.tolist() == [True] * 5 + [False] * 5
    assert torch.allclose(z[:5], cloud.x[:5]) and (beside[5:].norm(dim=1) > 0.1).all()
