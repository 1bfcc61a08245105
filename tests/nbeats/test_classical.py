"""Classical forecasts: published scores, series they are made for, series without anything to fit."""

import pytest
import torch

from collage.nbeats.classical import arima, ets, naive, significant_season, theta
from collage.nbeats.measures import mape, mase, smape
from tests.nbeats.examples import NEEDS_DATA, competition


def naive2(x, horizon, period):
    """M4's benchmark: the naive forecast of the seasonally adjusted series, seasons put back."""
    from statsmodels.tsa.seasonal import seasonal_decompose

    index = torch.ones_like(x)
    if significant_season(x, period) and bool((x > 0).all()):
        season = seasonal_decompose(x.numpy(), "multiplicative", period=period).seasonal
        index = torch.from_numpy(season.copy())
    step = len(x) - period + torch.arange(horizon) % period
    return x[-1] / index[-1] * index[step]


@NEEDS_DATA
@pytest.mark.parametrize(("frequency", "period", "smape_naive2", "mase_naive2"),
                         [("Weekly", 1, 9.161, 2.777), ("Hourly", 24, 18.383, 2.395)])  # fmt: skip
def test_m4(frequency, period, smape_naive2, mase_naive2):
    """Naive2 by our test of a season is M4's, series by series, and has its published scores."""
    m4 = competition("m4", frequency)
    ours = torch.stack([naive2(s, m4.test.shape[1], period) for s in m4.train])
    assert torch.allclose(ours, m4.naive2, rtol=1e-6)
    scores = smape(m4.test, ours), mase(m4.test, ours, m4.train, period)
    assert [round(v.item(), 3) for v in scores] == [smape_naive2, mase_naive2]


@NEEDS_DATA
@pytest.mark.parametrize(("frequency", "published"),
                         [("Yearly", 23.61), ("Quarterly", 16.46), ("Monthly", 22.56)])  # fmt: skip
def test_tourism(frequency, published):
    tourism = competition("tourism", frequency)
    seasonal = naive(tourism.train, tourism.test.shape[1], tourism.period)
    assert round(mape(tourism.test, seasonal).item(), 2) == published


def test_a_season_by_hand():
    x = 10 * torch.tensor([1.2, 0.9, 1.1, 0.8]).double().repeat(8)
    after = 10 * torch.tensor([1.2, 0.9, 1.1, 0.8, 1.2]).double()
    assert torch.equal(naive([x], 5, 4)[0], after)
    assert torch.equal(naive([x[:3]], 5, 4)[0], x[2].expand(5))  # shorter than a season
    assert significant_season(x, 4)
    assert not significant_season(x[:9], 4)  # fewer than three seasons
    assert not significant_season(torch.ones(20), 4) and not significant_season(x, 1)


@pytest.mark.slow
def test_they_continue_what_they_are_for():
    line = torch.arange(1.0, 41.0).double()
    wave = 100 + 10 * torch.tensor([1.0, -1.0, 0.5, -0.5]).double().repeat(10)
    ahead = torch.arange(41.0, 47.0).double()
    assert torch.allclose(ets(line, 6), ahead, atol=0.1)
    assert torch.allclose(arima(line, 6), ahead, atol=0.1)
    for method in (theta, ets, arima):
        assert torch.allclose(method(wave, 8, 4), wave[:8], atol=1.0), method
    slope = theta(line, 6).diff().mean()  # Theta takes half the slope
    assert 0.4 < slope < 0.6


def test_series_without_anything_to_fit():
    flat, wave = torch.full((20,), 3.0), torch.tensor([2.0, 1.0] * 8)
    for method in (theta, ets, arima):
        assert torch.allclose(method(flat, 3), torch.full((3,), 3.0), atol=1e-3)
        assert method(flat.double().requires_grad_(), 2).dtype == torch.float64
        for bad in ({"horizon": 0}, {"horizon": -1}, {"horizon": 2.5}, {"horizon": 2, "period": 0}):
            with pytest.raises(ValueError, match=r"horizon|period"):
                method(flat, **bad)
        with pytest.raises(ValueError, match="n >="):
            method(flat[:3], 2)
    assert torch.allclose(theta(wave, 4, 2), torch.tensor([2.0, 1.0, 2.0, 1.0]))
    with pytest.raises(ValueError, match="horizon"):
        naive([flat], 0)
    with pytest.raises(ValueError, match="most"):
        arima(flat, 2, most=-1)
