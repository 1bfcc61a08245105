"""Many networks at once, each with a radius of its own."""

import math

import pytest
import torch
import torch.nn.functional as F

from collage.common.networks import forward, mlp
from collage.sam import SAM, Ensemble


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_ensemble_equals_a_loop_over_networks(p):
    g = torch.Generator().manual_seed(0)
    rho = torch.tensor([0.0, 0.1, 0.5])
    start = [t.double() for t in mlp([6, 8, 3], 3, g)]
    x = torch.randn(5, 3, 10, 6, generator=g, dtype=torch.float64)
    y = torch.randint(3, (5, 3, 10), generator=g)
    nets = Ensemble(start, rho=rho, p=p, lr=torch.tensor([0.1, 0.2, 0.3]), weight_decay=1e-2)
    for t in range(5):

        def losses(params, t=t):
            out = forward(params, x[t]).transpose(1, 2)
            return F.cross_entropy(out, y[t], reduction="none").mean(1)

        values = nets.step(losses, scale=1 - t / 5)
        assert values.shape == (3,)
    for k in range(3):
        alone = [torch.nn.Parameter(t[k : k + 1].clone()) for t in start]
        opt = SAM(alone, "SGD", rho=rho[k].item(), p=p, lr=0.1, momentum=0.9, weight_decay=1e-2)
        for t in range(5):
            opt.param_groups[0]["lr"] = 0.1 * (k + 1) * (1 - t / 5)

            def run(t=t, k=k, alone=alone):
                loss = F.cross_entropy(forward(alone, x[t, k : k + 1])[0], y[t, k])
                loss.backward()
                return loss

            opt.step(run)
        for a, b in zip(alone, nets.params):
            torch.testing.assert_close(a[0].detach(), b[k].detach(), rtol=0, atol=1e-7)


def test_ensemble_m_sharpness_and_plain_sgd():
    x = torch.randn(8, 4, dtype=torch.float64)
    start = [torch.randn(2, 4, dtype=torch.float64)]

    def chunk(i):
        return lambda params: ((x[i] @ params[0].T) ** 2).mean(0)

    def after(rho, chunks):
        nets = Ensemble(start, rho=rho, lr=0.1, momentum=0.0)
        nets.step(chunks)
        return nets.flat

    half = [chunk(slice(0, 4)), chunk(slice(4, 8))]
    torch.testing.assert_close(after(0.0, half), after(0.0, chunk(slice(None))))
    halves = sum(after(0.3, h) for h in half) / 2
    torch.testing.assert_close(after(0.3, half), halves)
    assert (after(0.3, half) - after(0.3, chunk(slice(None)))).abs().max() > 1e-3


def test_bad_input_of_the_ensemble():
    good = [torch.ones(2, 3), torch.ones(2, 1)]
    with pytest.raises(ValueError, match="params"):
        Ensemble([torch.ones(2, 3), torch.ones(3, 1)])
    with pytest.raises(ValueError, match="rho"):
        Ensemble(good, rho=torch.ones(3))
    with pytest.raises(ValueError, match="rho"):
        Ensemble(good, rho=-1.0)
    with pytest.raises(ValueError, match="rho"):
        Ensemble(good, rho=math.nan)
    with pytest.raises(ValueError, match="p: got"):
        Ensemble(good, p=0.0)
    with pytest.raises(ValueError, match="losses"):
        Ensemble(good).step(lambda params: params[0].sum())
