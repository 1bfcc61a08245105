"""N-BEATS: forecasts peeled off a series, block by block (Oreshkin et al., 2020; arXiv 1905.10437).

A block looks at a window and returns two curves: a backcast, its share of the window, and a
forecast, how that share goes on. The backcast is subtracted from the window, the next block looks
at the rest, and all forecasts are added up. Members (E) are the leading axis: networks that share
nothing but their size are computed at once, each layer of all of them by one product.

trend_basis, seasonal_basis     the curves of interpretable blocks
Basis, make_basis               of trend, seasonal and generic blocks
Member, Networks                what E networks are besides their weights
shapes, unpack, blocks_of       a row of weights as layers, and as blocks
newest_first                    windows as the blocks see them
block, stack_blocks             one block; doubly residual stacking
naive_error, error_weights      the three losses as one
loss, median                    what members are trained on; what the ensemble forecasts
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from collage.common.checks import as_tensor

# Of each loss a, b, c and s in `error_weights`.
LOSSES = {"smape": (1, 1, 0, 200), "mape": (1, 0, 0, 1), "mase": (0, 0, 1, 1)}
# For each stack the shapes of its weights and biases in turn, as they lie in a row of weights.
Shapes = list[list[tuple[int, int]]]


def trend_basis(points: int, length: int, degree: int = 2) -> Tensor:
    """Powers of time (degree + 1, points): T_ij = (j / length)^i for j = 0 ... points - 1.

    Source: arXiv 1905.10437, section 3.3.

    >>> trend_basis(6, 6).sum(1)
    tensor([6.0000, 2.5000, 1.5278])
    """
    t = torch.arange(points) / length
    return torch.stack([t**i for i in range(degree + 1)])


def seasonal_basis(points: int, horizon: int) -> Tensor:
    """Waves (2 ceil(H / 2), points): cos, then sin of 2 pi k j / H for k = 0 ... ceil(H / 2) - 1.

    Counted in horizons H on the backcast, too. The sine of k = 0 is a row of zeros.
    Source: arXiv 1905.10437, section 3.3.

    >>> basis = seasonal_basis(8, 8).double()
    >>> (basis @ basis.T).diagonal().round().tolist()
    [8.0, 4.0, 4.0, 4.0, 0.0, 4.0, 4.0, 4.0]
    """
    k, j = torch.arange((horizon + 1) // 2).double(), torch.arange(points).double()
    # Whole turns are taken off first: exact zeros stay zeros, far from the origin too.
    angle = 2 * math.pi * (torch.outer(k, j) % horizon) / horizon
    return torch.cat([angle.cos(), angle.sin()]).float()


class Basis(NamedTuple):
    """The curves that a block combines: backcast = theta^b V^b, forecast = theta^f V^f."""

    forecast: Tensor  # V^f (C_f, H)
    backcast: Tensor  # V^b (C_b, L), or (E, C_b, L) where it depends on the member's lookback


def make_basis(name: str, lookbacks: Sequence[int], horizon: int) -> Basis:
    """Trend, seasonality or generic, for windows as long as the longest lookback.

    Generic coefficients are the values of backcast and forecast themselves.
    """
    length = max(lookbacks)
    if name == "trend":  # runs over each member's own lookback; the waves are the same for all
        backcast = torch.stack([trend_basis(length, own) for own in lookbacks])
        return Basis(trend_basis(horizon, horizon), backcast)
    if name == "seasonality":
        return Basis(seasonal_basis(horizon, horizon), seasonal_basis(length, horizon))
    return Basis(torch.eye(horizon), torch.eye(length))


class Member(NamedTuple):
    """A member of an ensemble. Its first weights and its windows follow from these three alone."""

    lookback: int  # points of the window it sees
    loss: str = "smape"
    seed: int = 0


class Networks(NamedTuple):
    """E networks of one shape, all but their weights."""

    members: list[Member]
    horizon: int  # H
    stacks: list[tuple[str, int]]  # basis and width of each
    blocks: int  # of each stack, with the same weights
    shapes: Shapes  # of the weights
    bases: list[Basis]  # of the stacks
    inside: Tensor  # (E, 1, L): 1 where a point is within a member's lookback, newest first
    losses: Tensor  # (E, 4, 1, 1): rows of LOSSES

    def each(self, change: Callable[[Tensor], Tensor]) -> "Networks":
        """The same with every tensor changed."""
        bases = [
            basis._replace(forecast=change(basis.forecast), backcast=change(basis.backcast))
            for basis in self.bases
        ]
        return self._replace(bases=bases, inside=change(self.inside), losses=change(self.losses))

    def some(self, part: slice) -> "Networks":
        """Some of the members: of each tensor that has them for its first of three axes or more."""
        return self.each(lambda t: t[part] if t.dim() > 2 else t)


def shapes(stacks: Iterable[tuple[str, int]], layers: int, lookback: int, horizon: int) -> Shapes:
    """The `Shapes` of stacks (basis, width).

    >>> shapes([("trend", 8)], 1, lookback=4, horizon=2)
    [[(4, 8), (1, 8), (8, 6), (1, 6)]]
    """
    waves = (horizon + 1) // 2
    coefficients = {"trend": 3 + 3, "seasonality": 4 * waves, "generic": horizon + lookback}
    each = []
    for name, width in stacks:
        sizes = itertools.pairwise([lookback, *[width] * layers, coefficients[name]])
        each.append([shape for i, o in sizes for shape in ((i, o), (1, o))])
    return each


def unpack(weights: Tensor, shapes: Shapes) -> list[list[Tensor]]:
    """Weights (E, P) as views: for each stack [(E, in, out), (E, 1, out), ...]."""
    pieces = iter(weights.split([i * o for stack in shapes for i, o in stack], 1))
    return [[next(pieces).view(-1, i, o) for i, o in stack] for stack in shapes]


def newest_first(
    x: Tensor,  # (B, L) or (E, B, L)
    seen: Tensor,  # the same: which points are real
    inside: Tensor,  # (E, 1, L)
) -> tuple[Tensor, Tensor, Tensor]:
    """Windows and masks (E, B, L) with the newest point first, and that point, the level (E, B, 1)."""
    x, mask = x.to(inside.dtype).flip(-1), seen.flip(-1) * inside
    return x * mask, mask, x[..., :1].expand(len(inside), -1, -1)


def block(x: Tensor, layers: list[Tensor], basis: Basis) -> tuple[Tensor, Tensor]:
    """Backcast (E, B, L) and forecast (E, B, H) of one block on windows x (E, B, L).

    h_1 = ReLU(x W_1 + b_1) ... h_4 = ReLU(h_3 W_4 + b_4),  [theta^f, theta^b] = h_4 W_5 + b_5,
    backcast = theta^b V^b,  forecast = theta^f V^f.

    Source: arXiv 1905.10437, section 3.1.
    """
    h, (*hidden, (weight, bias)) = x, list(zip(layers[::2], layers[1::2], strict=True))
    for w, b in hidden:
        h = torch.baddbmm(b, h, w).relu_()
    theta, n = torch.baddbmm(bias, h, weight), len(basis.forecast)
    return theta[..., n:] @ basis.backcast, theta[..., :n] @ basis.forecast


def stack_blocks(
    x: Tensor,  # (E, B, L), newest point first, zero where it is masked
    mask: Tensor,  # (E, B, L)
    level: Tensor,  # (E, B, 1): where the forecast starts
    blocks: Iterable[tuple[list[Tensor], Basis]],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Doubly residual stacking: the forecast (E, B, H), and each block's backcast and forecast.

    x_{k+1} = x_k - backcast_k,  y = level + sum_k forecast_k

    Source: arXiv 1905.10437, section 3.2; the level as in the authors' code.
    """
    forecast, backcasts, forecasts = level, [], []
    for layers, basis in blocks:
        backcast, ahead = block(x, layers, basis)
        backcast = backcast * mask  # padding stays zero
        x = x - backcast
        forecast = forecast + ahead
        backcasts.append(backcast)
        forecasts.append(ahead)
    return forecast, backcasts, forecasts


def blocks_of(networks: Networks, weights: Tensor) -> list[tuple[list[Tensor], Basis]]:
    """The layers and the basis of each block, in order."""
    stacks = zip(unpack(weights, networks.shapes), networks.bases, strict=True)
    return [stack for stack in stacks for _ in range(networks.blocks)]


def naive_error(x: Tensor, seen: Tensor, period: int = 1) -> Tensor:
    """mean |x_t - x_{t-m}| of windows (..., L) -> (..., 1), over pairs of points that are both real.

    >>> naive_error(torch.tensor([1.0, 3.0, 2.0, 5.0]), torch.ones(4))
    tensor([2.])
    """
    if period >= x.shape[-1]:
        return torch.zeros_like(x[..., :1])
    pairs = seen[..., period:] * seen[..., :-period]
    gaps = (x[..., period:] - x[..., :-period]).abs() * pairs
    return gaps.sum(-1, keepdim=True) / pairs.sum(-1, keepdim=True).clamp(min=1)


def error_weights(
    losses: Tensor,  # (E, 4, 1, 1): rows of LOSSES
    y: Tensor,  # (E, B, H), the target
    f: Tensor,  # (E, B, H), the forecast
    known: Tensor,  # (E, B, H): which targets are real
    naive: Tensor | float = 0.0,  # (E, B, 1), from `naive_error`
) -> Tensor:
    """Each member's w (E, B, H) in its loss, mean w |y - f|; constants, in the loss's gradient too.

    w = s / (a |y| + b |f| + c naive):  1 / |y| for MAPE,  200 / (|y| + |f|) for sMAPE,
    1 / mean |x_t - x_{t-m}| for MASE.  Zero where the target is unknown or the denominator zero.
    """
    a, b, c, s = losses.unbind(1)
    below = a * y.abs() + b * f.abs() + c * naive
    return (s / below).where((below > 0) & known, 0)


def loss(
    networks: Networks,
    weights: Tensor,  # (E, P)
    x: Tensor,  # (E, B, L)
    seen: Tensor,
    y: Tensor,  # (E, B, H)
    known: Tensor,
    period: int = 1,
) -> Tensor:
    """Each member's own loss (E,) on windows and targets of its own, with their masks.

    `fast.gradient` has the same with its gradient written out.
    """
    f, *_ = stack_blocks(*newest_first(x, seen, networks.inside), blocks_of(networks, weights))
    naive = naive_error(x, seen * networks.inside.flip(-1), period)
    w = error_weights(networks.losses, y, f.detach(), known, naive)
    return (w * (y - f).abs()).mean((1, 2))


def median(forecasts: Tensor, dim: int = 0) -> Tensor:
    """The median over members; for an even number the mean of the two in the middle.

    (`torch.median` takes the lower of the two.) Raises ValueError for none, or NaN.

    >>> median(torch.tensor([1.0, 2.0, 4.0, 9.0]))
    tensor(3.)
    """
    forecasts = as_tensor("forecasts", forecasts)
    if not forecasts.numel() or bool(forecasts.isnan().any()):
        shape = tuple(forecasts.shape)
        raise ValueError(f"forecasts: got {shape} with NaN or empty, wanted numbers")
    ordered, n = forecasts.sort(dim)[0], forecasts.shape[dim]
    low, high = ordered.select(dim, (n - 1) // 2), ordered.select(dim, n // 2)
    return (low + high) / 2
