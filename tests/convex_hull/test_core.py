"""Wolfe's method: each step against a plain formula, its answers against the fast ones."""

import pytest
import torch

from collage.convex_hull import core, membership, nearest, wendel
from tests.convex_hull.clouds import CLOUDS, normal, pixels


def corral_of(vertices, sizes):
    """Corrals (M, C) of the first so many of vertices (M, C, d)."""
    m, c, _ = vertices.shape
    corral = core.Corral.empty(vertices, c)
    on = torch.arange(c) < torch.tensor(sizes)[:, None]
    corral.members[on] = torch.arange(c).expand(m, c)[on]
    corral.vertices[on] = vertices[on]
    corral.weights[on] = (1 / on.sum(1, keepdim=True)).double().expand(m, c)[on]
    corral.renew(torch.arange(m))
    return corral


def test_minimiser_is_orthogonal_to_its_corral():
    corral = corral_of(normal(30, 6, 8), [1 + i % 6 for i in range(30)])
    a = core.minimiser(corral)
    assert torch.allclose(a.sum(1), torch.ones(30).double()) and (a[~corral.on] == 0).all()
    y = torch.bmm(a[:, None], corral.vertices)[:, 0]
    products = torch.bmm(corral.vertices, y[..., None])[..., 0]
    square = (y * y).sum(1, keepdim=True).expand_as(products)
    assert torch.allclose(products[corral.on], square[corral.on])


def test_join_and_drop_are_changes_of_the_inverse():
    sizes = [1 + i % 5 for i in range(30)]
    vertices = normal(30, 6, 8)
    corral = corral_of(vertices, sizes)
    drops = torch.tensor([s > 1 and i % 2 == 0 for i, s in enumerate(sizes)])
    place = torch.where(drops, torch.tensor(sizes) - 1, -1)
    vertex, member = normal(30, 8, seed=1), torch.full((30,), 77)
    go = torch.arange(30) % 3 > 0
    before = corral.inverse.clone()
    core.settle(corral, go, core.exchange(corral, drops, place, member, vertex))
    updated = corral.inverse.clone()
    corral.renew(torch.arange(30))
    assert torch.allclose(updated, corral.inverse, atol=1e-9)
    assert torch.allclose(updated[~go], before[~go])
    size = torch.tensor(sizes) + torch.where(go, torch.where(drops, -1, 1), 0)
    assert torch.equal(corral.on.sum(1), size)
    assert torch.equal((corral.members == 77).any(1), go & ~drops)


@pytest.mark.parametrize("name", ["line", "plane", "gaussian 5", "gaussian 12", "pixels",
                                  "few levels", "curve 4", "beside the plane", "two points"])  # fmt: skip
def test_the_package_gives_its_answers(name):
    x, z = CLOUDS[name]()
    x, z = x[:400], z[:60]
    y = core.wolfe(x, z)
    assert torch.equal(y.norm(dim=1) < 1e-7, membership(x, z).inside)
    assert torch.allclose(z + y, nearest(x, z).point, atol=1e-6)


def test_a_cloud_for_each_query():
    clouds, z = normal(20, 30, 3), normal(20, 3, seed=1)
    each = torch.cat([core.wolfe(x, q[None]) for x, q in zip(clouds, z, strict=True)])
    assert torch.allclose(core.wolfe(clouds, z), each, atol=1e-12)


def test_it_never_cycles():
    """Points that depend on each other, many times over: faces, edges and vertices."""
    for seed in range(5):
        x = pixels(200, 6, seed).repeat(2, 1)
        y = core.wolfe(x, x[:100] * 0.5 + x[100:200] * 0.5, tol=1e-12)
        assert y.norm(dim=1).max() < 1e-7


def test_sign_patterns_that_leave_the_origin_out_are_wendels():
    """Close to the nearest point rounding must not bring a vertex in twice."""
    signs = 1 - 2 * torch.cartesian_prod(*8 * [torch.arange(2)]).double()
    for seed in (2, 1001, 1003, 3002, 4002):
        g = torch.Generator().manual_seed(seed)
        points = torch.randn(8, 3, generator=g).double() ** (1 + 2 * (seed % 2))
        away = core.wolfe(signs[:, :, None] * points, torch.zeros(256, 3).double()).norm(dim=1)
        assert int((away > 1e-8).sum()) == 256 * wendel(8, 3)
