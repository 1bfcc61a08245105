"""Populations: pairs, ranks of losses, nests of states, shares of a population."""

import collections

import pytest
import torch

from collage.common import checks
from collage.common.populations import (
    Shard,
    antithetic,
    estimate,
    tree_leaves,
    tree_map,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_antithetic_is_the_loop():
    theta, noise = normal(3, 4), normal(3, 5, 4, seed=1)
    rows = [theta[r] + sign * noise[r, j] for r in range(3) for sign in (1, -1) for j in range(5)]
    assert torch.equal(antithetic(theta, noise).flatten(0, 2), torch.stack(rows))


def test_estimate_is_the_loop():
    losses, weights, sigma = normal(3, 2, 5), normal(3, 5, 4, seed=1), torch.tensor([0.1, 0.5, 2.0])
    for r in range(3):
        sum_ = sum(weights[r, j] * (losses[r, 0, j] - losses[r, 1, j]) for j in range(5))
        wanted = sum_ / (10 * sigma[r] ** 2)
        assert torch.allclose(estimate(losses, weights, sigma.double())[r], wanted, atol=1e-12)
    one = estimate(losses, weights, 0.5)
    assert torch.allclose(
        one, estimate(losses, weights, torch.full((3,), 0.5).double()), atol=1e-12
    )


def test_an_orthogonal_basis_gives_a_linear_gradient_exactly():
    """eps spanning an orthogonal basis of length sigma sqrt(P): the mean of eps eps^T is sigma^2 I."""
    p, sigma = 6, 0.3
    basis = torch.linalg.qr(normal(p, p))[0] * sigma * p**0.5
    slope = normal(p, seed=3)
    losses = (antithetic(torch.zeros(1, p).double(), basis[None]) @ slope).view(1, 2, p)
    assert torch.allclose(estimate(losses, basis[None], sigma)[0], slope, atol=1e-12)


def test_estimate_does_not_see_a_constant_an_order_or_the_signs():
    losses, weights = normal(1, 2, 8), normal(1, 8, 3, seed=1)
    g = estimate(losses, weights, 0.1)
    assert torch.allclose(estimate(losses + 1024.0, weights, 0.1), g, atol=1e-9)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(estimate(losses[..., order], weights[:, order], 0.1), g, atol=1e-12)
    assert torch.allclose(estimate(losses.flip(1), -weights, 0.1), g, atol=1e-12)


def test_nests():
    point = collections.namedtuple("point", "x y")
    state = {"a": (torch.arange(4), [torch.ones(4, 2)]), "b": point(torch.zeros(4), torch.ones(4))}
    assert len(tree_leaves(state)) == 4
    double = tree_map(torch.add, state, state)
    assert isinstance(double["b"], point) and torch.equal(
        double["a"][1][0], torch.full((4, 2), 2.0)
    )


def test_checks_say_what_came():
    for good in (2, 2.0, torch.tensor(2)):
        assert checks.check_whole("k", good) == 2
    for bad in (True, "2", None, [4], 1.5, float("inf"), float("nan"), 0, -3):
        with pytest.raises(ValueError, match="k: got"):
            checks.check_whole("k", bad)
    assert checks.check_positive("s", 0.5) == 0.5
    assert checks.check_positive("s", [1.0, 2.0]).tolist() == [1.0, 2.0]
    for bad in (True, "2", None, 0, -1.0, float("inf"), float("nan"), 1j, torch.ones(2, 2)):
        with pytest.raises(ValueError, match="s: got"):
            checks.check_positive("s", bad)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares_cover_all_pairs_once(world):
    shard, taken = Shard(False), []
    shard.world = world
    for rank in range(world):
        shard.rank = rank
        taken += range(10)[shard.slice(10)]
    assert taken == list(range(10))
