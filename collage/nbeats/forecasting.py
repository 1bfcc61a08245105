"""Forecasting: panels of series, windows on them, error measures, and the classical methods.

split, Windows            a panel as a list of series; all its windows in one flat buffer
smape, mape, mase, owa    the measures of the M3, M4 and Tourism competitions
smape_loss, mape_loss, mase_loss    the same for training, with a gradient that does not fade
naive, seasonal_naive, naive2    the competitions' benchmarks
theta, ets, arima         classical methods, fitted by statsmodels, chosen by AICc where there is a choice
"""

import itertools
import math
import warnings
from collections.abc import Mapping

import numpy as np
import torch

from collage.common.checks import as_tensor, check_positive, check_whole


def split(flat, offsets):
    """A panel from a flat array: series i is flat[offsets[i]:offsets[i + 1]], as float64.

    >>> [s.tolist() for s in split([1, 2, 3], [0, 1, 3])]
    [[1.0], [2.0, 3.0]]
    """
    flat, offsets = as_tensor("flat", flat).double(), as_tensor("offsets", offsets)
    return [flat[a:b] for a, b in itertools.pairwise(offsets.tolist())]


def check_panel(series, least=1):
    """A list of 1-D float tensors of finite numbers, each at least so long; else ValueError.

    Each may be whatever numpy.asarray takes; the index of a pandas Series is ignored.
    """
    if isinstance(series, torch.Tensor) and series.dim() < 2:
        raise ValueError("series: got one series, wanted a list of them")
    if series is None or isinstance(series, Mapping) or hasattr(series, "columns"):
        raise ValueError(f"series: got a {type(series).__name__}, wanted a list, such as "
                         "list(panel.values()) or [df[c] for c in df]")  # fmt: skip
    try:
        found = [as_tensor(f"series[{i}]", s) for i, s in enumerate(series)]
    except TypeError as error:
        raise ValueError(f"series: got what is no list of number sequences ({error})") from error
    if not found:
        raise ValueError("series: got none, wanted at least one")
    for i, one in enumerate(found):
        if one.dim() != 1 or len(one) < least or one.is_complex():
            raise ValueError(f"series[{i}]: got {tuple(one.shape)}, wanted (n,) with n >= {least}")
        if not bool(one.isfinite().all()):
            raise ValueError(f"series[{i}]: got NaN or inf, wanted finite numbers")
    return [s if s.is_floating_point() else s.double() for s in found]


class Windows:
    """All windows of a panel: a flat buffer on one device, from which a window is one gather.

    Around each series lie L zeros before and H after it, so that windows may reach over both ends;
    a mask says which points are real.

    series: list of (n_i,), n_i >= 2, finite; a series shorter than the horizon gives partial
    targets. lookback L, horizon H. Raises ValueError for a panel that is empty, too short, or not
    finite.

    >>> windows = Windows([torch.tensor([1.0, 2.0, 3.0])], lookback=4, horizon=2)
    >>> x, seen, y, known = windows.at(torch.tensor([0]), torch.tensor([2]))
    >>> x.tolist(), y.tolist(), known.tolist()
    ([[0.0, 0.0, 1.0, 2.0]], [[3.0, 0.0]], [[True, False]])
    """

    def __init__(self, series, lookback, horizon, device=None, dtype=torch.float32):
        series = check_panel(series, 2)
        self.lookback = check_whole("lookback", lookback)
        self.horizon = check_whole("horizon", horizon)
        device = device or series[0].device
        before, after = torch.zeros(self.lookback), torch.zeros(self.horizon)
        pieces = [p.to(device, dtype) for s in series for p in (before, s, after)]
        self.values = torch.cat(pieces)
        if not bool(self.values.isfinite().all()) or any(
                bool(s.any()) and not bool(s.to(dtype).any()) for s in series):  # fmt: skip
            raise ValueError(f"series: got numbers beyond the range of {dtype}, wanted other units")
        self.lengths = torch.tensor([len(s) for s in series], device=device)
        gaps = self.lengths + self.lookback + self.horizon
        self.starts = gaps.cumsum(0) - gaps + self.lookback  # of the series in the buffer
        self.reach = torch.arange(-self.lookback, self.horizon, device=device)

    def at(self, which, cut):
        """x (..., L), its mask, y (..., H), its mask: the windows of series `which` cut at `cut`.

        cut: 0 ... the length of the series, not checked (this is the inner loop of training).
        """
        place = cut[..., None] + self.reach
        real = (place >= 0) & (place < self.lengths[which][..., None])
        found = self.values[self.starts[which][..., None] + place]
        sizes = (self.lookback, self.horizon)
        (x, y), (seen, known) = found.split(sizes, -1), real.split(sizes, -1)
        return x, seen, y, known

    def last(self):
        """x (N, L) and its mask: the windows that end with each series' last observation."""
        return self.at(torch.arange(len(self.lengths), device=self.values.device), self.lengths)[:2]

    def draw(self, uniform, recent=None):
        """(which, cut): series uniformly, then a cut uniformly among those with a target.

        uniform (..., 2) in [0, 1); recent: only the last so many cuts of a series.
        """
        which = (uniform[..., 0] * len(self.lengths)).long()
        last = self.lengths[which] - 1
        first = torch.ones_like(last) if recent is None else (last + 1 - recent).clamp(min=1)
        return which, first + (uniform[..., 1] * (last - first + 1)).long()


# Error measures. y is what came, f what was forecast: (N, H), or any shape alike.


def _pair(y, f):
    y, f = as_tensor("target", y), as_tensor("forecast", f)
    if y.is_complex() or f.is_complex():
        raise ValueError(f"target, forecast: got {y.dtype}, {f.dtype}, wanted real numbers")
    if y.shape != f.shape or not y.numel():
        raise ValueError(f"forecast: got {tuple(f.shape)}, wanted {tuple(y.shape)} as the target")
    if not bool(y.isfinite().all() and f.isfinite().all()):
        raise ValueError("target, forecast: got NaN or inf, wanted finite numbers")
    return y.double(), f.to(y.device).double()  # a measure is a number to report: never in float16


def smape(y, f, signed=False):
    """Symmetric mean absolute percentage error, in %:  mean 200 |y - f| / (|y| + |f|).

    Points where both are zero count as zero. signed: y + f in the denominator, as M3 had it, which
    differs where a forecast is negative. Raises ValueError for other shapes, NaN or inf.

    >>> print(f"{smape([4.0, 4.0], torch.tensor([2.0, 8.0])).item():.4f}")
    66.6667
    """
    y, f = _pair(y, f)
    size = y + f if signed else y.abs() + f.abs()
    return torch.where(size != 0, 200 * (y - f).abs() / size.where(size != 0, 1), 0).mean()


def mape(y, f):
    """Mean absolute percentage error, in %:  mean 100 |y - f| / |y|.

    Raises ValueError where a target is zero, for other shapes, NaN or inf.

    >>> mape([4.0, 4.0], torch.tensor([2.0, 8.0])).item()
    75.0
    """
    y, f = _pair(y, f)
    if bool((y == 0).any()):
        raise ValueError(f"target: got {int((y == 0).sum())} zeros, for which MAPE is undefined")
    return (100 * (y - f).abs() / y.abs()).mean()


def mase(y, f, series, period=1):
    """Mean absolute scaled error: mean |y - f| over the mean |x_t - x_{t-m}| of its own history.

    y, f (N, H); series: the N histories; period: m. Raises ValueError where a history is no longer
    than m, or constant at lag m. Source: Hyndman & Koehler 2006.

    >>> mase([[4.0, 4.0]], torch.tensor([[2.0, 8.0]]), [torch.tensor([1.0, 3.0, 2.0, 5.0])]).item()
    1.5
    """
    y, f = _pair(y, f)
    m = check_whole("period", period)
    series = check_panel(series, m + 1)
    if y.dim() != 2 or len(series) != len(y):
        raise ValueError(f"series: got {len(series)}, wanted one for each row of {tuple(y.shape)}")
    scale = torch.stack([(s[m:] - s[:-m]).abs().mean() for s in series]).to(y)
    if bool((scale == 0).any()):
        at = int((scale == 0).nonzero()[0])
        raise ValueError(f"series[{at}]: constant at lag {m}, so that its MASE is undefined")
    return ((y - f).abs().mean(1) / scale).mean()


def owa(smape, mase, smape_naive2, mase_naive2):
    """M4's overall weighted average: the mean of both measures, each relative to Naive2's.

    Ratios of averages, not averages of ratios.

    >>> owa(9.0, 2.0, 12.0, 2.5)
    0.775
    """
    for name, value in (("smape_naive2", smape_naive2), ("mase_naive2", mase_naive2)):
        check_positive(name, value)
    return (smape / smape_naive2 + mase / mase_naive2) / 2


# Losses for training, as one reads them in the N-BEATS paper.


def smape_loss(f, y, known=None):
    """Mean of 200 |y - f| / (|y| + |f|), the denominator detached: a gradient that does not fade.

    f, y: forecast and target of one shape; known: which targets are real (others count as zero, in
    the mean over all). Points with a zero denominator count as zero.

    >>> f = torch.tensor([2.0, 8.0], requires_grad=True)
    >>> loss = smape_loss(f, torch.tensor([4.0, 4.0]))
    >>> [round(v, 4) for v in (loss.item(), *torch.autograd.grad(loss, f)[0].tolist())]
    [66.6667, -16.6667, 8.3333]
    """
    return _weighted(f, y, (y.abs() + f.detach().abs()) / 200, known)


def mape_loss(f, y, known=None):
    """Mean of |y - f| / |y|; zero targets count as zero. Arguments as for `smape_loss`.

    >>> mape_loss(torch.tensor([2.0, 8.0]), torch.tensor([0.0, 4.0])).item()
    0.5
    """
    return _weighted(f, y, y.abs(), known)


def mase_loss(f, y, x, period=1, known=None, seen=None):
    """Mean of |y - f| over the mean |x_t - x_{t-m}| of the window x (B, L); f, y (B, H).

    seen: which points of x are real; a pair counts where both are. Windows without a pair, or
    constant at lag m, count as zero.

    >>> x = torch.tensor([[1.0, 3.0, 2.0, 5.0]])
    >>> mase_loss(torch.tensor([[2.0, 8.0]]), torch.tensor([[4.0, 4.0]]), x).item()
    1.5
    """
    seen = torch.ones_like(x) if seen is None else seen
    if x.shape[:-1] != f.shape[:-1] or seen.shape != x.shape:
        raise ValueError(f"x, seen: got {tuple(x.shape)}, {tuple(seen.shape)}, wanted windows of "
                         f"{tuple(f.shape[:-1])} and their mask")  # fmt: skip
    x = x.masked_fill(~seen.bool(), 0)
    period = check_whole("period", period)
    return _weighted(f, y, season(x, seen, period), known)


def _weighted(f, y, below, known):
    if f.shape != y.shape or (known is not None and known.shape != y.shape):
        raise ValueError(f"forecast: got {tuple(f.shape)}, wanted {tuple(y.shape)} as the target and "
                         "its mask")  # fmt: skip
    real = torch.ones_like(y, dtype=torch.bool) if known is None else known.bool()
    if not bool((y.isfinite() | ~real).all() and f.detach().isfinite().all()):
        raise ValueError(
            "target, forecast: got NaN or inf, wanted finite numbers where they are known"
        )
    fine = (below > 0) & real
    return ((y - f).where(fine, 0).abs() * (1 / below).where(fine, 0)).mean()


def season(x, seen, period):
    """The mean |x_t - x_{t-m}| of windows (..., L) -> (..., 1), over pairs that are both real."""
    if period >= x.shape[-1]:
        return torch.zeros_like(x[..., :1])
    pairs = seen[..., period:] * seen[..., :-period]
    gaps = (x[..., period:] - x[..., :-period]).abs() * pairs
    return gaps.sum(-1, keepdim=True) / pairs.sum(-1, keepdim=True).clamp(min=1)


# The competitions' benchmarks: a panel -> (N, H).


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
    """Multiplicative seasonal indices (n,) of a series, or ones where the season is not significant.

    M4's rule: at least three seasons, and |r_m| > 1.645 sqrt((1 + 2 sum_{i<m} r_i^2) / n) for the
    autocorrelations r. Then classical decomposition: ratios to the centred moving average, averaged
    for each place in the season, with mean one.
    """
    n, m = len(x), period
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
    tensor([[2.0000, 1.0000]])
    """
    series, horizon = check_panel(series), check_whole("horizon", horizon)
    m, found, step = check_whole("period", period), [], torch.arange(horizon)
    for x in series:
        index = seasonal_indices(x, m)
        ahead = index[len(x) - m + step % m] if len(x) >= m else index[-1].expand(horizon)
        found.append(x[-1] / index[-1] * ahead)
    return torch.stack(found)


# Classical methods, one series (n,) -> (H,). statsmodels fits them.


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
            model = ETSModel(y, trend=trend, damped_trend=damped, seasonal=season,
                             seasonal_periods=m if season else None)  # fmt: skip
            yield lambda model=model, units=units: (model.fit(disp=False), units)

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
    y = torch.from_numpy(y)
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
    mean = known.mean().item() if centre else 0.0
    scale = half * ((known - known.mean()) / half).std(correction=0).item() or 1.0
    # Without the last digits, which units change, and which the search for a best fit would amplify.
    return np.round(((known - mean) / scale).numpy(), 8), lambda y: mean + scale * np.asarray(y)


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
