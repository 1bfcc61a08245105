"""Error measures of the M3, M4 and Tourism competitions, of forecasts f for what came, y.

smape, mape, mase    y and f of one shape, such as (N, H); a number in float64
"""

from collections.abc import Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from collage.common.checks import as_tensor, check_whole
from collage.nbeats.panels import check_panel


def smape(y: ArrayLike, f: ArrayLike, signed: bool = False) -> Tensor:
    """Symmetric mean absolute percentage error, in %:  mean 200 |y - f| / (|y| + |f|).

    Points where both are zero count as zero. signed: y + f in the denominator, as M3 had it, which
    differs where a forecast is negative. Raises ValueError for other shapes, NaN or inf.

    >>> print(f"{smape([4.0, 4.0], torch.tensor([2.0, 8.0])).item():.4f}")
    66.6667
    """
    y, f = _check_pair(y, f)
    size = y + f if signed else y.abs() + f.abs()
    return torch.where(size != 0, 200 * (y - f).abs() / size.where(size != 0, 1), 0).mean()


def mape(y: ArrayLike, f: ArrayLike) -> Tensor:
    """Mean absolute percentage error, in %:  mean 100 |y - f| / |y|.

    Raises ValueError where a target is zero, for other shapes, NaN or inf.

    >>> mape([4.0, 4.0], torch.tensor([2.0, 8.0])).item()
    75.0
    """
    y, f = _check_pair(y, f)
    if bool((y == 0).any()):
        raise ValueError(f"target: got {int((y == 0).sum())} zeros, for which MAPE is undefined")
    return (100 * (y - f).abs() / y.abs()).mean()


def mase(y: ArrayLike, f: ArrayLike, series: Sequence[ArrayLike], period: int = 1) -> Tensor:
    """Mean absolute scaled error: mean |y - f| over the mean |x_t - x_{t-m}| of its own history.

    y, f (N, H); series: the N histories; period: m. Raises ValueError where a history is no longer
    than m, or constant at lag m. Source: Hyndman & Koehler 2006.

    >>> mase([[4.0, 4.0]], torch.tensor([[2.0, 8.0]]), [torch.tensor([1.0, 3.0, 2.0, 5.0])]).item()
    1.5
    """
    y, f = _check_pair(y, f)
    m = check_whole("period", period)
    series = check_panel(series, m + 1)
    if y.dim() != 2 or len(series) != len(y):
        raise ValueError(f"series: got {len(series)}, wanted one for each row of {tuple(y.shape)}")
    scale = torch.stack([(s[m:] - s[:-m]).abs().mean() for s in series]).to(y)
    if bool((scale == 0).any()):
        i = int((scale == 0).nonzero()[0])
        raise ValueError(f"series[{i}]: constant at lag {m}, so that its MASE is undefined")
    return ((y - f).abs().mean(1) / scale).mean()


def _check_pair(y: ArrayLike, f: ArrayLike) -> tuple[Tensor, Tensor]:
    target, forecast = as_tensor("target", y), as_tensor("forecast", f)
    shape, dtypes = target.shape, (target.dtype, forecast.dtype)
    if any(dtype.is_complex for dtype in dtypes):
        raise ValueError(f"target, forecast: got {dtypes}, wanted real numbers")
    if shape != forecast.shape or not target.numel():
        raise ValueError(
            f"forecast: got {tuple(forecast.shape)}, wanted {tuple(shape)} as the target"
        )
    if not bool(target.isfinite().all() and forecast.isfinite().all()):
        raise ValueError("target, forecast: got NaN or inf, wanted finite numbers")
    return target.double(), forecast.to(
        target.device
    ).double()  # a measure is a number to report: never in float16
