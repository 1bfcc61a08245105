"""Panels of series, and windows on them.

split, check_panel    a panel as a list of series
Windows               all its windows in one flat buffer
"""

import itertools
from collections.abc import Mapping

import torch

from collage.common.checks import as_tensor, check_whole


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
