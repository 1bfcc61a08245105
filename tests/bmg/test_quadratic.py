"""The noisy valley: steps in a loop, noise that can be met again, short sight."""

import math

import pytest
import torch

from collage.bmg import meta_gradient
from collage.bmg.quadratic import NoisyQuadratic


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_a_valley_in_numbers():
    """Steps in a loop; the noise of a step is the same for whoever asks, and has its spread."""
    valley = NoisyQuadratic([1.0, 0.25], sigma=[0.5, 0.1], alpha=0.2, seed=4)
    x, w = normal(3, 2), normal(3, seed=1)
    noise = valley.noise(x, 7)
    after = valley.update(x, w, 7)
    for s in range(3):
        for i, h in enumerate((1.0, 0.25)):
            by_hand = x[s, i] - w[s].exp() * (h * x[s, i] + noise[s, i])
            assert after[s, i] == pytest.approx(by_hand.item(), rel=1e-12)
    assert torch.allclose(valley.ground_truth_step(x, 7), x - 0.2 * valley.slope(x, 7))
    assert torch.equal(noise, valley.noise(x, 7)) and not torch.equal(noise, valley.noise(x, 8))
    draws = valley.noise(torch.zeros(20_000, 2, dtype=torch.float64), 3)
    assert torch.allclose(draws.std(0), torch.tensor([0.5, 0.1]).double(), rtol=0.03)
    assert torch.allclose(valley.objective(x), (x[:, 0] ** 2 + 0.25 * x[:, 1] ** 2) / 2)


def test_short_sight_shrinks_the_rate_and_the_bootstrap_does_not():
    """From the same low rate in a noisy valley: the far-sighted bootstrap ends with a larger one."""
    valley = NoisyQuadratic([1.0, 0.01], sigma=[1.0, 0.01])
    rates = {}
    for name, L in (("MG", None), ("BMG", 20)):
        x = torch.tensor([[0.0, 30.0]]).repeat(32, 1)
        w = torch.full((32,), 0.05).log().requires_grad_()
        updates = 1 if L is None else L  # of a meta-step
        adam = torch.optim.Adam([w], 0.01 * updates)
        for k in range(0, 400, updates):
            meta = meta_gradient(valley.update, x, w, 1, L, first=k, objective=valley.objective,
                                 ground_truth_step=valley.ground_truth_step)  # fmt: skip
            w.grad, x = meta.gradient, meta.onward
            adam.step()
        rates[name] = w.exp().mean().item()
    assert rates["BMG"] > 1.3 * rates["MG"]


def test_bad_input():
    for bad in (1.0, [1.0, 0.0], [-1.0], "steep"):
        with pytest.raises(ValueError, match="h: got"):
            NoisyQuadratic(bad)
    with pytest.raises(ValueError, match="alpha: got"):
        NoisyQuadratic([1.0], alpha=0)
    for bad in (math.nan, -1.0):
        with pytest.raises(ValueError, match="sigma: got"):
            NoisyQuadratic([1.0], sigma=bad)
