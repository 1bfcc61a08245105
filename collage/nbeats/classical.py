"""Classical forecasts.

naive                the last season, repeated: of a panel -> (N, H)
theta, ets, arima    of one series (n,) -> (H,), fitted by statsmodels
significant_season   whether a series has a season, as M4 decided it
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from collage.common.checks import check_whole
from collage.nbeats.panels import check_panel


def naive(series: Sequence[ArrayLike], horizon: int, period: int = 1) -> Tensor:
    """The last season, repeated; the last observation for period 1, or a series without a season.

    >>> naive([torch.tensor([9.0, 1.0, 5.0])], 3).tolist()
    [[5.0, 5.0, 5.0]]
    >>> naive([torch.tensor([9.0, 1.0, 5.0])], 3, period=2).tolist()
    [[1.0, 5.0, 1.0]]
    """
    panel, horizon = check_panel(series), check_whole("horizon", horizon)
    step = torch.arange(horizon) % check_whole("period", period)
    seasons = [s[-period:] if len(s) >= period else s[-1:].expand(period) for s in panel]
    return torch.stack([season[step] for season in seasons])


def significant_season(x: Tensor, period: int) -> bool:
    """Whether |r_m| > 1.645 sqrt((1 + 2 sum_{i<m} r_i^2) / n), r the autocorrelations of x (n,).

    False for fewer than three seasons, and a series without variance. Source: M4's Naive2.

    >>> significant_season(torch.tensor([2.0, 1.0] * 8), 2)
    True
    """
    n, centred = len(x), x - x.mean()
    variance = centred.square().sum()
    if period == 1 or n < 3 * period or variance <= 0:
        return False
    lags = range(1, period + 1)
    r = torch.stack([(centred[k:] * centred[:-k]).sum() for k in lags]) / variance
    return bool(r[-1].abs() > 1.645 * ((1 + 2 * r[:-1].square().sum()) / n).sqrt())


def theta(x: ArrayLike, horizon: int, period: int = 1) -> Tensor:
    """The Theta method (Assimakopoulos & Nikolopoulos 2000), the winner of M3.

    Half the slope of the linear trend added to simple exponential smoothing, on the seasonally
    adjusted series. A series that repeats itself exactly goes on doing so. Source of this form:
    Hyndman & Billah 2003. Raises ValueError for fewer than four observations, NaN or inf.
    """
    from statsmodels.tsa.forecasting.theta import ThetaModel

    known, horizon, m = _check_series(x, horizon, period, 4)
    m = m if len(known) >= 2 * m else 1
    if bool((known[m:] - known[:-m]).abs().max() <= 1e-9 * (known.max() - known.min())):
        return _like(x, lambda: naive([known], horizon, m)[0])  # nothing to fit
    positive = m > 1 and bool((known > 0).all())  # its season multiplies: no offset is taken away
    y, units = _standard(known, centre=not positive)
    method = "multiplicative" if positive else "additive"
    model = ThetaModel(y, period=m, deseasonalize=m > 1, method=method)
    return _like(x, lambda: units(model.fit().forecast(horizon)))


def ets(x: ArrayLike, horizon: int, period: int = 1) -> Tensor:
    """Exponential smoothing: trend (none, additive, damped) and season chosen by AICc.

    Additive errors; the season none, additive or (for positive series) multiplicative. Raises
    ValueError for fewer than five observations, NaN or inf.
    """
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    known, horizon, m = _check_series(x, horizon, period, 5)
    seasons: list[str | None] = [None]
    if m > 1 and len(known) >= 2 * m + 2:
        seasons += ["add", "mul"] if bool((known > 0).all()) else ["add"]
    trends = (None, False), ("add", False), ("add", True)

    def fit(season: str | None, trend: str | None, damped: bool) -> tuple[Any, Units]:
        y, units = _standard(known, centre=season != "mul")
        lag = m if season else None
        model = ETSModel(y, trend=trend, damped_trend=damped, seasonal=season, seasonal_periods=lag)
        return model.fit(disp=False), units

    forms = ((season, *trend) for season, trend in itertools.product(seasons, trends))
    return _like(x, lambda: _best(fit, forms, horizon))


def arima(x: ArrayLike, horizon: int, period: int = 1, most: int = 2) -> Tensor:
    """ARIMA(p, d, q) with p, q <= most chosen by AICc; d by the least variance of the differences.

    For a significant season (see `significant_season`) the series is differenced at lag m too, with
    a seasonal moving-average term: (p, d, q)(0, 1, 1)_m. Raises ValueError for fewer than eight
    observations, NaN or inf.
    """
    from statsmodels.tsa.arima.model import ARIMA

    known, horizon, m = _check_series(x, horizon, period, 8)
    most = check_whole("most", most, 0)
    standard, units = _standard(known)
    # Without the last digits, which units change, and which the search for a best fit would amplify.
    y = torch.from_numpy(np.round(standard, 8))
    seasonal = significant_season(y, m)
    base = y[m:] - y[:-m] if seasonal else y
    spread = [base.diff(n=d).std().item() for d in range(3)]
    d = spread.index(min(spread))
    season = (0, 1, 1, m) if seasonal else (0, 0, 0, 0)
    trend = "n" if d or seasonal else "c"

    def fit(p: int, q: int) -> tuple[Any, Units]:
        return ARIMA(y.numpy(), order=(p, d, q), seasonal_order=season, trend=trend).fit(), units

    return _like(x, lambda: _best(fit, itertools.product(range(most + 1), repeat=2), horizon))


Units = Callable[[np.ndarray], np.ndarray]


def _standard(known: Tensor, centre: bool = True) -> tuple[np.ndarray, Units]:
    """A series with deviation 1 (and mean 0), and the way back: units change no forecast."""
    half = (known.max() / 2 - known.min() / 2).item() or 1.0  # squares of it may not overflow
    mean = half * (known / half).mean().item()
    scale = half * ((known - mean) / half).std(correction=0).item() or 1.0
    offset = mean if centre else 0.0
    return ((known - offset) / scale).numpy(), lambda y: offset + scale * np.asarray(y)


def _best(
    fit: Callable[..., tuple[Any, Units]], forms: Iterable[tuple], horizon: int
) -> np.ndarray:
    """The forecast of the form with the least AICc, among those that can be fitted."""
    best, units = None, None
    for form in forms:
        try:
            fitted, back = fit(*form)
        # Too short for this form, or a singular matrix (LinAlgError is a ValueError).
        except (ValueError, ArithmeticError):
            continue
        if best is None or not math.isfinite(best.aicc) or fitted.aicc < best.aicc:
            best, units = fitted, back
    if best is None or units is None:
        raise ValueError("x: got a series on which no form could be fitted")
    return units(best.forecast(horizon))


def _check_series(x: ArrayLike, horizon: int, period: int, least: int) -> tuple[Tensor, int, int]:
    """One series as float64 on the CPU, for statsmodels, and the whole numbers."""
    known = check_panel([x], least)[0].detach().double().cpu()
    return known, check_whole("horizon", horizon), check_whole("period", period)


def _one_thread() -> AbstractContextManager:
    """The BLAS below statsmodels on one thread, which its matrices of two or three rows fill."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # comes with scikit-learn
        return nullcontext()
    return threadpool_limits(1, user_api="blas")


def _like(x: ArrayLike, forecast: Callable[[], ArrayLike]) -> Tensor:
    """A forecast, made without warnings and on one thread, in the dtype and on the device of x."""
    with warnings.catch_warnings(), _one_thread():
        warnings.simplefilter("ignore")
        ahead = np.asarray(forecast())
    x = torch.as_tensor(x)
    return torch.tensor(ahead, dtype=x.dtype if x.is_floating_point() else None, device=x.device)
