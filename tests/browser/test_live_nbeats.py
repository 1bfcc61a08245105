"""Chapter 38's live figure computes what `collage` computes."""

import json

import pytest
import torch
from live import calls

from collage import data
from collage.nbeats import NBeats, seasonal_basis, trend_basis
from tools.live import LIVE, digits

pytestmark = pytest.mark.browser
DATA = json.loads((LIVE / "nbeats.json").read_text())


def near(values):
    return pytest.approx(values, rel=1e-9, abs=1e-9)


def package():
    """The package's network with the weights of the figure, in float64."""
    stacks = [tuple(stack) for stack in DATA["stacks"]]
    model = NBeats(
        DATA["lookback"],
        DATA["horizon"],
        stacks=stacks,
        layers=DATA["layers"],
        blocks=DATA["blocks"],
    )
    model.double()
    with torch.no_grad():
        model.ensemble.weights[0] = torch.tensor(DATA["weights"], dtype=torch.float64)
    return model


def windows():
    """The two series, with points of theirs moved, and random ones from 0.1 to 1,000."""
    g = torch.Generator().manual_seed(0)
    own = torch.tensor([s[:48] for s in DATA["series"].values()], dtype=torch.float64).repeat(60, 1)
    own[2:] += torch.randn(118, 48, generator=g, dtype=torch.float64) * (
        torch.rand(118, 48, generator=g) < 0.1
    )
    random = 10 ** (4 * torch.rand(100, 1, generator=g, dtype=torch.float64) - 1)
    return torch.cat(
        [own, random * (1 + 0.1 * torch.randn(100, 48, generator=g, dtype=torch.float64))]
    )


def test_forecasts_and_their_parts(window, site):
    x = windows()
    found = calls(window, site, "nbeats", f"""(m, x) => {{
      const r = m.decompose(m.network({json.dumps(DATA)}), x);
      return [r.forecast, r.parts.map((p) => [p.forecast, p.backcast])];
    }}""", x.tolist())  # fmt: skip
    model = package()
    with torch.no_grad():
        forecast, parts = model(x), model.decompose(x)
    # In float64 all of them agree to rounding; the bases of the package are float32 numbers.
    for i, (ahead, curves) in enumerate(found):
        scale = 1e-5 * max(1.0, float(x[i].abs().max()))
        assert ahead == pytest.approx(forecast[i].tolist(), rel=1e-5, abs=scale)
        for s, (forward, back) in enumerate(curves):
            assert forward == pytest.approx(parts.forecasts[s, i].tolist(), rel=1e-5, abs=scale)
            assert back == pytest.approx(parts.backcasts[s, i].tolist(), rel=1e-5, abs=scale)


def test_bases(window, site):
    for horizon in (1, 2, 7, 12):
        (found,) = calls(
            window,
            site,
            "nbeats",
            "(m, h) => [m.trendBasis(3 * h, 3 * h), m.seasonalBasis(3 * h, h)]",
            [horizon],
        )
        wanted = trend_basis(3 * horizon, 3 * horizon), seasonal_basis(3 * horizon, horizon)
        for rows, basis in zip(found, wanted, strict=True):
            assert rows == [pytest.approx(row, abs=1e-6) for row in basis.tolist()]


def test_the_series_are_the_real_ones_and_the_network_forecasts_them():
    """Better than the naive forecast, on the two years that it has not seen."""
    for name, key in (("co2", "co2_monthly"), ("sea", "elnino")):
        assert DATA["series"][name] == digits(data.series(key)[-72:])
        series = torch.tensor(DATA["series"][name], dtype=torch.float64)
        with torch.no_grad():
            forecast = package()(series[None, :48])[0]
        truth, naive = series[48:], series[47]
        assert (forecast - truth).abs().mean() < 0.6 * (naive - truth).abs().mean(), name


def test_the_parts_are_what_they_are_called():
    """Carbon dioxide rises by 1 to 2.5 ppm a year; its season swings by 5 or more and repeats."""
    with torch.no_grad():
        parts = package().decompose(torch.tensor([DATA["series"]["co2"][:48]], dtype=torch.float64))
    trend, season = parts.forecasts[:, 0]
    assert 1 < 12 / 23 * (trend[-1] - trend[0]) < 2.5 and (season.max() - season.min()) > 5
    assert (season[12:] - season[:12]).abs().mean() < 0.2 * (season.max() - season.min())


def test_what_a_lifted_last_point_does():
    """In carbon dioxide the forecast stays up by most of it, in sea temperature it comes back by half."""
    stays = {}
    for name, series in DATA["series"].items():
        x = torch.tensor([series[:48]] * 2, dtype=torch.float64)
        x[1, -1] += 2
        with torch.no_grad():
            low, high = package()(x)
        stays[name] = (high - low).mean().item() / 2
    assert stays["co2"] > 0.75 and stays["sea"] < 0.5
