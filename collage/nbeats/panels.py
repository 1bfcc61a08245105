"""Panels of series, and windows on them.

check_panel    a panel as a list of series
Windows        all its windows in one flat buffer
"""

from collections.abc import Mapping, Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from collage.common.checks import as_tensor, check_whole


def check_panel(series: Sequence[ArrayLike], least: int = 1) -> list[Tensor]:
    """A list of 1-D float tensors of finite numbers, each at least so long; else ValueError.

    Each may be whatever numpy.asarray takes; the index of a pandas Series is ignored.
    """
    if isinstance(series, Tensor) and series.dim() < 2:
        raise ValueError("series: got one series, wanted a list of them")
    if series is None or isinstance(series, Mapping) or hasattr(series, "columns"):
        raise ValueError(
            f"series: got a {type(series).__name__}, wanted a list, such as list(panel.values()) "
            "or [df[c] for c in df]"
        )
    try:
        panel = [as_tensor(f"series[{i}]", s) for i, s in enumerate(series)]
    except TypeError as error:
        raise ValueError(f"series: got what is no list of number sequences ({error})") from error
    if not panel:
        raise ValueError("series: got none, wanted at least one")
    for i, s in enumerate(panel):
        if s.dim() != 1 or len(s) < least or s.is_complex():
            raise ValueError(f"series[{i}]: got {tuple(s.shape)}, wanted (n,) with n >= {least}")
        if not bool(s.isfinite().all()):
            raise ValueError(f"series[{i}]: got NaN or inf, wanted finite numbers")
    return [s if s.is_floating_point() else s.double() for s in panel]


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

    def __init__(
        self,
        series: Sequence[ArrayLike],
        lookback: int,
        horizon: int,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        panel = check_panel(series, 2)
        self.lookback = check_whole("lookback", lookback)
        self.horizon = check_whole("horizon", horizon)
        here = panel[0].device  # joined where they are, then sent as one
        device = device or here
        before, after = (torch.zeros(n, device=here) for n in (self.lookback, self.horizon))
        values = torch.cat([p.to(here, dtype) for s in panel for p in (before, s, after)])
        self.values = values.to(device)
        vanished = torch.stack([s.any() & ~s.to(dtype).any() for s in panel]).any()
        if bool(vanished) or not bool(self.values.isfinite().all()):
            raise ValueError(f"series: got numbers beyond the range of {dtype}, wanted other units")
        self.lengths = torch.tensor([len(s) for s in panel], device=device)
        sizes = self.lengths + self.lookback + self.horizon
        self.starts = sizes.cumsum(0) - sizes + self.lookback  # of the series in the buffer
        self.reach = torch.arange(-self.lookback, self.horizon, device=device)

    def at(self, which: Tensor, cut: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (..., L), its mask, y (..., H), its mask: the windows of series `which` cut at `cut`.

        cut: 0 ... the length of the series, not checked (this is the inner loop of training).
        """
        place = cut[..., None] + self.reach
        real = (place >= 0) & (place < self.lengths[which][..., None])
        values = self.values[self.starts[which][..., None] + place]
        sizes = (self.lookback, self.horizon)
        (x, y), (seen, known) = values.split(sizes, -1), real.split(sizes, -1)
        return x, seen, y, known

    def last(self) -> tuple[Tensor, Tensor]:
        """x (N, L) and its mask: the windows that end with each series' last observation."""
        return self.at(torch.arange(len(self.lengths), device=self.values.device), self.lengths)[:2]

    def draw(self, uniform: Tensor, recent: int | None = None) -> tuple[Tensor, Tensor]:
        """(which, cut): series uniformly, then a cut uniformly among those with a target.

        uniform (..., 2) in [0, 1); recent: only the last so many cuts of a series.
        """
        which = (uniform[..., 0] * len(self.lengths)).long()
        last = self.lengths[which] - 1
        first = torch.ones_like(last) if recent is None else (last + 1 - recent).clamp(min=1)
        return which, first + (uniform[..., 1] * (last - first + 1)).long()
