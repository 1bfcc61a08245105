"""Error measures, and the same as losses. y is what came, f what was forecast: (N, H), or any shape alike.

smape, mape, mase, owa              the measures of the M3, M4 and Tourism competitions
smape_loss, mape_loss, mase_loss    the same for training, with a gradient that does not fade
"""

import torch

from collage.common.checks import as_tensor, check_positive, check_whole
from collage.nbeats.panels import check_panel


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
