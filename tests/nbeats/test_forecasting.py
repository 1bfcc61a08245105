"""Measures, windows and classical methods: published scores, closed forms, bad input."""

import os

import pytest
import torch

from collage import data, nbeats

NEEDED = pytest.mark.skipif("COLLAGE_DATA" not in os.environ,
                            reason="the competitions' files are not in $COLLAGE_DATA")  # fmt: skip


def panel(name, frequency):
    found = data.load(name)[frequency]
    named = {k: torch.as_tensor(v).double() for k, v in found.items() if k in ("naive2", "theta")}
    series = nbeats.split(found["train"], found["offsets"])
    return series, torch.as_tensor(found["test"]).double(), int(found["frequency"]), named


@NEEDED
@pytest.mark.parametrize(("frequency", "published", "theta"), [
    ("Yearly", 17.880, 16.870), ("Quarterly", 9.951, 8.956), ("Monthly", 16.891, 13.928),
    ("Other", 6.302, 4.410)])  # fmt: skip
def test_m3(frequency, published, theta):
    """Naive2 and Theta as they were submitted; M3 has y + f in the denominator."""
    series, y, m, named = panel("m3", frequency)
    assert round(nbeats.smape(y, named["naive2"]).item(), 3) == published
    assert round(nbeats.smape(y, named["theta"], signed=True).item(), 3) == theta
    if m == 1:
        assert torch.allclose(nbeats.naive2(series, y.shape[1], m), named["naive2"])


@NEEDED
@pytest.mark.parametrize(("frequency", "period", "smape", "mase"),
                         [("Weekly", 1, 9.161, 2.777), ("Hourly", 24, 18.383, 2.395)])  # fmt: skip
def test_m4(frequency, period, smape, mase):
    """Our Naive2 is M4's, series by series, and has its published scores."""
    series, y, _, named = panel("m4", frequency)
    ours = nbeats.naive2(series, y.shape[1], period)
    assert torch.allclose(ours, named["naive2"], rtol=1e-6)
    found = nbeats.smape(y, ours), nbeats.mase(y, ours, series, period)
    assert [round(v.item(), 3) for v in found] == [smape, mase]
    assert nbeats.owa(*found, *found) == 1


@NEEDED
@pytest.mark.parametrize(("frequency", "published"),
                         [("Yearly", 23.61), ("Quarterly", 16.46), ("Monthly", 22.56)])  # fmt: skip
def test_tourism(frequency, published):
    series, y, m, _ = panel("tourism", frequency)
    found = nbeats.seasonal_naive(series, y.shape[1], m)
    assert round(nbeats.mape(y, found).item(), 2) == published


def test_windows_against_slices():
    """Every window is what slicing the padded series gives; draws stay inside."""
    g = torch.Generator().manual_seed(0)
    series = [torch.randn(n, generator=g) for n in (2, 9, 30)]
    windows = nbeats.Windows(series, 5, 3)
    for i, one in enumerate(series):
        for cut in range(1, len(one) + 1):
            x, seen, y, known = windows.at(torch.tensor(i), torch.tensor(cut))
            real = one[max(0, cut - 5) : cut]
            assert torch.equal(x[5 - len(real) :], real) and seen.sum() == len(real)
            after = one[cut : cut + 3]
            assert torch.equal(y[: len(after)], after) and known.sum() == len(after)
            assert not x[: 5 - len(real)].any() and not y[len(after) :].any()
    uniform = torch.rand(20_000, 2, generator=g, dtype=torch.float64)
    which, cut = windows.draw(uniform, recent=4)
    count = torch.bincount(which, minlength=3).double()
    assert ((count - 20_000 / 3).square() / (20_000 / 3)).sum() < 15  # chi-square, 2 degrees
    for i, n in enumerate((2, 9, 30)):
        assert set(cut[which == i].tolist()) == set(range(max(1, n - 4), n))
    assert torch.equal(windows.last()[0][2], series[2][-5:])


def test_naive2_by_hand():
    """A season that multiplies a level is found and put back; a plain series is not touched."""
    season = torch.tensor([1.2, 0.9, 1.1, 0.8]).double()
    x = 10 * season.repeat(8)
    wanted = 10 * torch.tensor([1.2, 0.9, 1.1, 0.8, 1.2]).double()
    assert torch.allclose(nbeats.naive2([x], 5, 4)[0], wanted)
    assert torch.allclose(nbeats.seasonal_naive([x], 5, 4)[0], wanted)
    short = x[:9]  # fewer than three seasons
    assert torch.equal(nbeats.naive2([short], 3, 4)[0], short[-1].expand(3))


@pytest.mark.slow
def test_classical_methods_continue_what_they_are_for():
    line = torch.arange(1.0, 41.0).double()
    wave = 100 + 10 * torch.tensor([1.0, -1.0, 0.5, -0.5]).double().repeat(10)
    ahead = torch.arange(41.0, 47.0).double()
    assert torch.allclose(nbeats.ets(line, 6), ahead, atol=0.1)
    assert torch.allclose(nbeats.arima(line, 6), ahead, atol=0.1)
    for method in (nbeats.theta, nbeats.ets, nbeats.arima):
        assert torch.allclose(method(wave, 8, 4), wave[:8], atol=1.0), method
    slope = nbeats.theta(line, 6).diff().mean()  # Theta takes half the slope
    assert 0.4 < slope < 0.6


def test_bad_input():
    y = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"forecast: got \(2, 2\)"):
        nbeats.smape(y, y[:, :2])
    with pytest.raises(ValueError, match="NaN or inf"):
        nbeats.mape(y, y / 0)
    with pytest.raises(ValueError, match="6 zeros"):
        nbeats.mape(y * 0, y)
    assert nbeats.smape(y * 0, y * 0) == 0
    with pytest.raises(ValueError, match=r"series\[1\]: constant"):
        nbeats.mase(y, y, [torch.arange(5.0), torch.ones(5)])
    with pytest.raises(ValueError, match=r"series\[0\]"):
        nbeats.mase(y, y, [torch.ones(2), torch.ones(9)], 4)
    for bad in ([], [torch.ones(0)], [torch.tensor([1.0, torch.nan])], torch.ones(4)):
        with pytest.raises(ValueError, match="series"):
            nbeats.naive(bad, 2)
    with pytest.raises(ValueError, match="horizon"):
        nbeats.naive([torch.ones(4)], 0)
    with pytest.raises(ValueError, match="series"):
        nbeats.Windows([torch.ones(1)], 4, 2)


def test_classical_methods_on_series_without_anything_to_fit():
    flat, wave = torch.full((20,), 3.0), torch.tensor([2.0, 1.0] * 8)
    for method in (nbeats.theta, nbeats.ets, nbeats.arima):
        assert torch.allclose(method(flat, 3), torch.full((3,), 3.0), atol=1e-3)
        assert method(flat.double().requires_grad_(), 2).dtype == torch.float64
        for bad in ({"horizon": 0}, {"horizon": -1}, {"horizon": 2.5}, {"horizon": 2, "period": 0}):
            with pytest.raises(ValueError, match=r"horizon|period"):
                method(flat, **bad)
    assert torch.allclose(nbeats.theta(wave, 4, 2), torch.tensor([2.0, 1.0, 2.0, 1.0]))


def test_nothing_under_a_mask_matters_to_a_loss():
    nan = torch.nan
    y, f = torch.tensor([[nan, 4.0]]), torch.tensor([[1.0, 2.0]])
    known = torch.tensor([[False, True]])
    assert nbeats.mape_loss(f, y, known).item() == 0.25
    assert abs(nbeats.smape_loss(f, y, known).item() - 200 * 2 / 6 / 2) < 1e-4
    x, seen = torch.tensor([[nan, 1.0, 3.0, 2.0, 5.0]]), torch.tensor([[0, 1, 1, 1, 1]])
    y = torch.tensor([[4.0, 4.0]])
    assert nbeats.mase_loss(f, y, x, seen=seen).item() == 1.25
    with pytest.raises(ValueError, match="NaN"):
        nbeats.mape_loss(f, torch.tensor([[nan, 4.0]]))
    for period in (-1, 0, 1.5):
        with pytest.raises(ValueError, match="period"):
            nbeats.mase_loss(f, y, x[:, 1:], period)
    for wrong in ((x[0, 1:], None), (x[:, 1:], seen), (x[:, 1:].expand(3, 4), None)):
        with pytest.raises(ValueError, match="x, seen"):
            nbeats.mase_loss(f, y, wrong[0], seen=wrong[1])


def test_panels_of_another_kind_are_refused():
    for bad in (None, {"a": torch.ones(3)}, torch.ones(()), ["text"], [torch.ones(3) * 1j]):
        with pytest.raises(ValueError, match="series"):
            nbeats.naive(bad, 2)
    with pytest.raises(ValueError, match="naive2"):
        nbeats.owa(1.0, 1.0, 0.0, 1.0)
