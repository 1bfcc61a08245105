"""OpenAI's evolution strategy: a loop, torch's Adam, and that it climbs; what all of them share is
in `tests/test_cma.py`."""

import torch

from collage.sensory_neuron.strategies import OpenES, centred_ranks


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def opened(d=5, population=12, seed=0, sigma=0.1, **options):
    return OpenES(torch.full((d,), 0.3).double(), sigma, population, seeded(seed), **options)


def rosenbrock(x):
    return -(100 * (x[:, 1:] - x[:, :-1].square()).square() + (1 - x[:, :-1]).square()).sum(1)


def test_the_gradient_by_a_loop():
    """One tell: pairs, centred ranks with ties shared, the mean moved by Adam's first step."""
    search = opened(4, 10, lr=0.05)
    asked, before = search.ask(), search.mean
    assert torch.allclose(asked[:5] + asked[5:], 2 * before.expand(5, -1), atol=1e-14)
    assert 0.03 < (asked - before).std() < 0.3
    fitness = (10 * rosenbrock(asked)).round() / 10
    fitness[3] = fitness[7]
    ranks = [(sum(bool(f > o) for o in fitness) + sum(bool(f >= o) for o in fitness) - 1) / 2 / 9 - 0.5
             for f in fitness]  # fmt: skip
    expected = torch.zeros(4).double()
    for j in range(5):
        expected += (asked[j] - before) * (ranks[j] - ranks[j + 5]) / (2 * 5 * 0.1**2)
    search.tell(fitness)
    # The moments are those of the loss, whose slope is the other way.
    assert torch.allclose(-search.first / 0.1, expected, rtol=0, atol=1e-5)  # float32 ranks
    assert torch.allclose(search.second / 0.001, expected.square(), rtol=1e-5)
    assert torch.allclose(search.mean - before, 0.05 * expected.sign(), rtol=0, atol=1e-6)


def test_it_moves_as_torch_adam_does():
    """Twenty tells against torch.optim.Adam on the same gradients."""
    search = opened(lr=0.02)
    theta = search.mean.clone().requires_grad_()
    adam = torch.optim.Adam([theta], 0.02)
    for _ in range(20):
        first = search.first
        search.tell(rosenbrock(search.ask()))
        theta.grad = (search.first - 0.9 * first) / 0.1
        adam.step()
        assert torch.allclose(search.mean, theta, rtol=0, atol=1e-10)


def test_it_climbs():
    search = opened(population=32, lr=0.05)
    first = (search.mean - 1).norm()
    for _ in range(80):
        search.tell(-(search.ask() - 1).square().sum(1))
    assert (search.mean - 1).norm() < 0.1 * first


def test_centred_ranks():
    losses = torch.randn(11, generator=seeded()).double()
    assert torch.allclose(centred_ranks(losses), centred_ranks(losses.exp()))
    assert torch.allclose(centred_ranks(losses).sort()[0], torch.linspace(-0.5, 0.5, 11).double())
    assert centred_ranks(torch.tensor([5.0, 1.0, 5.0])).tolist() == [0.25, -0.5, 0.25]
