"""The paper's network and losses, each beside a slow twin in the paper's words."""

import math

import pytest
import torch
import torch.nn.functional as F

from collage.nbeats import Ensemble, Member, NBeats, core, median, seasonal_basis, trend_basis
from tests.nbeats.examples import GENERIC, MEMBERS, SMALL, alone, small


@pytest.mark.parametrize("H", [1, 6, 8, 13, 48])
def test_bases(H):
    waves = seasonal_basis(H, H).double()
    n = (H + 1) // 2
    assert waves.shape == (2 * n, H) and not waves[n].any()
    gram = waves @ waves.T
    expected = torch.tensor([H, *[H / 2] * (n - 1), 0, *[H / 2] * (n - 1)]).double().diag()
    assert (gram - expected).abs().max() < 1e-5
    nyquist = torch.cos(math.pi * torch.arange(H)).double()
    assert H % 2 or (waves @ nyquist).abs().max() < 1e-5
    assert trend_basis(9, 6).double().diff(n=3).abs().max() < 1e-6
    # On the backcast waves count in horizons, powers in lookbacks.
    assert torch.equal(seasonal_basis(3 * H, H)[:, H : 2 * H], seasonal_basis(H, H))


def trend(theta, points):
    """Powers of time on a curve's own length, as sums over time steps."""
    t = torch.arange(points).double() / points
    return sum(coefficient * t**i for i, coefficient in enumerate(theta))


def season(theta, points, H):
    """Waves that are counted in horizons."""
    cosines, sines = theta.chunk(2)
    turns = 2 * math.pi * torch.arange(points).double() / H
    waves = [a * (k * turns).cos() + b * (k * turns).sin()
             for k, (a, b) in enumerate(zip(cosines, sines, strict=True))]  # fmt: skip
    return sum(waves)


def slow_forecast(model, window, seen):
    """One window through blocks and layers, one after the other."""
    networks, L, H = model.ensemble.networks, len(window), model.ensemble.horizon
    rest, seen = window.flip(0) * seen.flip(0), seen.flip(0)
    total = window[-1].repeat(H)
    for (name, _), tensors in zip(networks.stacks, model.ensemble.tensors(), strict=True):
        for _ in range(networks.blocks):
            h = rest
            for w, b in zip(tensors[:-2:2], tensors[1:-2:2], strict=True):
                h = F.relu(F.linear(h, w[0].T, b[0, 0]))
            theta = F.linear(h, tensors[-2][0].T, tensors[-1][0, 0])
            if name == "generic":
                ahead, back = theta[:H], theta[H:]
            elif name == "trend":
                ahead, back = trend(theta[:3], H), trend(theta[3:], L)
            else:
                of_forecast, of_backcast = theta.chunk(2)
                ahead, back = season(of_forecast, H, H), season(of_backcast, L, H)
            rest, total = (rest - back) * seen, total + ahead
    return total


@pytest.mark.parametrize(("L", "H"), [(12, 6), (26, 13), (8, 8)])
@pytest.mark.parametrize("shape", [SMALL, GENERIC, {**SMALL, "blocks": 1}])
def test_the_network_is_a_loop_over_blocks(L, H, shape):
    model = NBeats(L, H, **shape).double()
    g = torch.Generator().manual_seed(1)
    x = 10 + torch.randn(5, L, generator=g, dtype=torch.float64)
    mask = torch.arange(L) >= torch.tensor([0, 0, 1, L // 2, L - 1])[:, None]
    slow = torch.stack([slow_forecast(model, *pair) for pair in zip(x, mask, strict=True)])
    assert (model(x, mask) - slow).abs().max() < 1e-5  # float32 bases


@pytest.mark.parametrize("shape", [SMALL, GENERIC])
def test_padding_changes_nothing(shape):
    """A member in a longer window, or with more zeros before a short series, says the same."""
    e = small(torch.float64, **shape)
    x = 3 + torch.randn(6, 20, generator=torch.Generator().manual_seed(3)).double()
    for i, m in enumerate(MEMBERS):
        own = alone(e, i, **shape)(x[:, -m.lookback :])
        assert (own - e(x)[i]).abs().max() < 1e-12
    mask = (torch.arange(20) >= 14).expand_as(x)
    for hidden in (1e6, torch.nan):
        assert torch.equal(e(torch.where(mask, x, hidden), mask), e(x, mask))


def test_the_last_backcast_has_no_gradient():
    e = Ensemble([Member(8)], 4, "generic", stacks=[("generic", 8)] * 2, layers=1)
    e(torch.ones(3, 8)).sum().backward()
    last = core.unpack(e.weights.grad, e.networks.shapes)[-1][-2][0]
    assert last[:, :4].any() and not last[:, 4:].any()


def slow_weights(loss, y, f, x, seen, m):
    """The weights of one window's errors, by Python's own numbers."""
    if loss == "mase":
        n = len(x)
        gaps = [abs(x[t] - x[t - m]) for t in range(m, n) if seen[t] and seen[t - m]]
        below = [sum(gaps) / len(gaps) if gaps else 0] * len(y)
    else:
        below = [abs(a) + abs(b) * (loss == "smape") for a, b in zip(y, f, strict=True)]
    size = 200 if loss == "smape" else 1
    return [size / v if v > 0 else 0 for v in below]


def test_losses_are_the_papers():
    """Each member's loss, with masks; its gradient takes the weights for constants."""
    e = small(torch.float64)
    g = torch.Generator().manual_seed(4)
    x = (5 + torch.randn(4, 6, 20, generator=g)).double()
    y = (5 + torch.randn(4, 6, 4, generator=g)).double()
    y[:, 0, 0] = 0
    seen = (torch.arange(20) >= torch.tensor([0, 3, 18, 0, 0, 10])[:, None]).expand(4, 6, 20)
    known = (torch.arange(4) < torch.tensor([4, 4, 2, 1, 3, 4])[:, None]).expand(4, 6, 4)
    x = x * seen
    losses, f = core.loss(e.networks, e.weights, x, seen, y, known, 4), e(x, seen)
    weights = [[slow_weights(m.loss, *(t[i, j].tolist() for t in (y, f, x, seen)), 4)
                for j in range(6)] for i, m in enumerate(MEMBERS)]  # fmt: skip
    plain = (torch.tensor(weights).double() * known * (y - f).abs()).mean((1, 2))
    assert torch.allclose(losses, plain, rtol=1e-6)
    slopes = [torch.autograd.grad(t.sum(), e.weights)[0] for t in (losses, plain)]
    assert torch.allclose(*slopes, rtol=1e-5, atol=1e-5)


def test_loss_values_by_hand():
    y, f = torch.tensor([[[4.0, 4.0]]]), torch.tensor([[[2.0, 8.0]]])
    naive = core.naive_error(torch.tensor([[[1.0, 3.0, 2.0, 5.0]]]), torch.ones(1, 1, 4))
    for loss, value in (("smape", 66.6667), ("mape", 0.75), ("mase", 1.5)):
        row = torch.tensor([core.LOSSES[loss]]).float()[..., None, None]
        w = core.error_weights(row, y, f, y > 0, naive)
        assert abs((w * (y - f).abs()).mean() - value) < 1e-4
        assert not core.error_weights(row, 0 * y, 0 * f, y > 0, 0 * naive).any()
        assert not core.error_weights(row, y, f, y < 0, naive).any()


def test_the_median_is_the_middle():
    x = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0))
    for count in (1, 2, 5, 6):
        middle = x[:count].quantile(0.5, 0, interpolation="midpoint")
        assert torch.allclose(median(x[:count]), middle)
    with pytest.raises(ValueError, match="forecasts"):
        median(torch.tensor([1.0, torch.nan]))
