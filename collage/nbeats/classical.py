"""Classical forecasts: the competitions' benchmarks, and what statsmodels fits.

naive, seasonal_naive, naive2    the competitions' benchmarks: a panel -> (N, H)
theta, ets, arima                one series (n,) -> (H,), chosen by AICc where there is a choice
"""

import itertools
import math
import warnings

import numpy as np
import torch

from collage.common.checks import check_whole
from collage.nbeats.panels import check_panel


def naive(series, horizon):
    """The last observation, repeated.

    >>> naive([torch.tensor([1.0, 5.0])], 3).tolist()
    [[5.0, 5.0, 5.0]]
    """
    series, horizon = check_panel(series), check_whole("horizon", horizon)
    return torch.stack([s[-1].expand(horizon) for s in series])


def seasonal_naive(series, horizon, period):
    """The last season, repeated; the naive forecast for a series shorter than a season.

    >>> seasonal_naive([torch.tensor([9.0, 1.0, 5.0])], 3, period=2).tolist()
    [[1.0, 5.0, 1.0]]
    """
    series, horizon = check_panel(series), check_whole("horizon", horizon)
    m, step = check_whole("period", period), torch.arange(horizon)
    return torch.stack([s[len(s) - m + step % m] if len(s) >= m else s[-1].expand(horizon)
                        for s in series])  # fmt: skip


def seasonal_indices(x, period):
    """Multiplicative seasonal indices (n,) of a series in float64, or ones where it has no significant season.

    M4's rule: at least three seasons, and |r_m| > 1.645 sqrt((1 + 2 sum_{i<m} r_i^2) / n) for the
    autocorrelations r. Then classical decomposition: ratios to the centred moving average, averaged
    for each place in the season, with mean one.
    """
    n, m, x = len(x), period, x.double()
    if m == 1 or n < 3 * m:
        return torch.ones_like(x)
    centred = x - x.mean()
    total = centred.square().sum()
    if total <= 0 or bool((x <= 0).any()):  # no season; or none that multiplies
        return torch.ones_like(x)
    r = torch.stack([(centred[k:] * centred[:-k]).sum() for k in range(1, m + 1)]) / total
    if r[-1].abs() <= 1.645 * ((1 + 2 * r[:-1].square().sum()) / n).sqrt():
        return torch.ones_like(x)
    weight = torch.full((m + 1 - m % 2,), 1 / m, dtype=x.dtype, device=x.device)
    if m % 2 == 0:
        weight[0] = weight[-1] = 0.5 / m
    half = len(weight) // 2
    trend = torch.nn.functional.conv1d(x[None, None], weight[None, None])[0, 0]
    ratio = torch.full_like(x, torch.nan)
    ratio[half : n - half] = x[half : n - half] / trend
    padded = torch.nn.functional.pad(ratio, (0, -n % m), value=torch.nan)
    figure = padded.view(-1, m).nanmean(0)
    return (figure / figure.mean()).repeat(-(-n // m))[:n]


def naive2(series, horizon, period):
    """M4's benchmark: the naive forecast of the seasonally adjusted series, seasons put back.

    >>> naive2([torch.tensor([2.0, 1.0] * 8)], 2, period=2)
    tensor([[2., 1.]])
    """
    series, horizon = check_panel(series), check_whole("horizon", horizon)
    m, found, step = check_whole("period", period), [], torch.arange(horizon)
    for x in series:
        index = seasonal_indices(x, m)
        ahead = index[len(x) - m + step % m] if len(x) >= m else index[-1].expand(horizon)
        found.append((x[-1] / index[-1] * ahead).to(x.dtype))
    return torch.stack(found)


def _classic(x, horizon, period, least):
    """One series as float64 on the CPU, for statsmodels, and the whole numbers, checked."""
    x = check_panel([x], least)[0].detach().double().cpu()
    return x, check_whole("horizon", horizon), check_whole("period", period)


def theta(x, horizon, period=1):
    """The Theta method (Assimakopoulos & Nikolopoulos 2000), the winner of M3.

    Half the slope of the linear trend added to simple exponential smoothing, on the seasonally
    adjusted series. A series that repeats itself exactly goes on doing so. Source of this form:
    Hyndman & Billah 2003. Raises ValueError for fewer than four observations, NaN or inf.
    """
    from statsmodels.tsa.forecasting.theta import ThetaModel

    known, horizon, m = _classic(x, horizon, period, 4)
    m = m if len(known) >= 2 * m else 1
    if bool((known[m:] - known[:-m]).abs().max() <= 1e-9 * (known.max() - known.min())):
        return _fitted(lambda: seasonal_naive([known], horizon, m)[0], x)  # nothing to fit
    positive = m > 1 and bool((known > 0).all())  # its season multiplies: no offset is taken away
    y, units = _standard(known, centre=not positive)
    method = "multiplicative" if positive else "additive"
    model = ThetaModel(y, period=m, deseasonalize=m > 1, method=method)
    return _fitted(lambda: units(model.fit().forecast(horizon)), x)


def ets(x, horizon, period=1):
    """Exponential smoothing: trend (none, additive, damped) and season chosen by AICc.

    Additive errors; the season none, additive or (for positive series) multiplicative. Raises
    ValueError for fewer than five observations, NaN or inf.
    """
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    known, horizon, m = _classic(x, horizon, period, 5)
    seasons = [None]
    if m > 1 and len(known) >= 2 * m + 2:
        seasons += ["add", "mul"] if bool((known > 0).all()) else ["add"]
    trends = (None, False), ("add", False), ("add", True)

    def fits():
        for season, (trend, damped) in itertools.product(seasons, trends):
            y, units = _standard(known, centre=season != "mul")
            how = {"trend": trend, "damped_trend": damped, "seasonal": season,
                   "seasonal_periods": m if season else None}  # fmt: skip
            yield lambda y=y, units=units, how=how: (ETSModel(y, **how).fit(disp=False), units)

    return _fitted(lambda: _best(fits(), horizon), x)


def arima(x, horizon, period=1, most=2):
    """ARIMA(p, d, q) with p, q <= most chosen by AICc; d by the least variance of the differences.

    For a significant season (see `seasonal_indices`) the series is differenced at lag m too, with
    a seasonal moving-average term: (p, d, q)(0, 1, 1)_m. Raises ValueError for fewer than eight
    observations, NaN or inf.
    """
    from statsmodels.tsa.arima.model import ARIMA

    known, horizon, m = _classic(x, horizon, period, 8)
    most = check_whole("most", most, 0)
    y, units = _standard(known)
    # Without the last digits, which units change, and which the search for a best fit would amplify.
    y = torch.from_numpy(np.round(y, 8))
    seasonal = bool((seasonal_indices(y - y.min() + 1, m) != 1).any())
    base = y[m:] - y[:-m] if seasonal else y
    spread = [base.diff(n=d).std().item() for d in range(3)]
    d = spread.index(min(spread))
    extra = {"seasonal_order": (0, 1, 1, m)} if seasonal else {}

    def fits():
        for p, q in itertools.product(range(most + 1), repeat=2):
            trend = "n" if d or seasonal else "c"
            model = ARIMA(y.numpy(), order=(p, d, q), trend=trend, **extra)
            yield lambda model=model: (model.fit(), units)

    return _fitted(lambda: _best(fits(), horizon), x)


def _standard(known, centre=True):
    """A series with deviation 1 (and mean 0), and the way back: units change no forecast."""
    half = (known.max() / 2 - known.min() / 2).item() or 1.0  # squares of it may not overflow
    mean = half * (known / half).mean()
    scale = half * ((known - mean) / half).std(correction=0).item() or 1.0
    mean = mean.item() if centre else 0.0
    return ((known - mean) / scale).numpy(), lambda y: mean + scale * np.asarray(y)


def _best(fits, horizon):
    """The forecast of the fit with the least AICc, among those that succeed."""
    best = back = None
    for fit in fits:
        try:
            found, units = fit()
        except (
            ValueError,
            ArithmeticError,
        ):  # too short for this form; LinAlgError is a ValueError
            continue
        if best is None or not math.isfinite(best.aicc) or found.aicc < best.aicc:
            best, back = found, units
    if best is None:
        raise ValueError("x: got a series on which no form could be fitted")
    return back(best.forecast(horizon))


def _fitted(forecast, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = np.asarray(forecast())
    x = torch.as_tensor(x)
    return torch.tensor(found, dtype=x.dtype if x.is_floating_point() else None, device=x.device)
