"""Coordinates in which the units of columns do not matter."""

import torch


class Frame:
    """Coordinates in which every column has its centre at zero and a range near one.

    x = (points - centre) / unit, with powers of two for units, so that nothing is rounded (one for
    all columns where they are much alike); columns that never change are left out. `outer` and
    `direction` lead back to the user's units.
    """

    def __init__(self, points):
        low, high = points.amin(0), points.amax(0)
        half = high / 2 - low / 2  # a range of its own may be too large for float64
        self.constant = half == 0
        self.columns = (~self.constant).nonzero()[:, 0]
        if not len(self.columns):  # all points are one
            self.columns = self.columns.new_zeros(1)
        self.width = points.shape[1]
        self.low, self.centre = low, (low + half)[self.columns]
        size = torch.where(half > 0, half, 1.0)[self.columns]
        self.unit = torch.ldexp(torch.ones_like(size), torch.frexp(size).exponent.clamp(min=-1000))
        if self.unit.max() <= 1024 * self.unit.min():  # alike enough: keep the user's right angles
            self.unit = self.unit.max().expand_as(self.unit)
        largest = torch.maximum(low.abs(), high.abs())[self.columns]
        self.noise = torch.finfo(points.dtype).eps * (largest / self.unit)

    def inner(self, points):
        """(M, d) -> (M, r), the columns that change."""
        x = (points[:, self.columns] - self.centre) / self.unit
        if bool((x.abs() > 1e100).any()):
            row = int((x.abs() > 1e100).any(1).nonzero()[0])
            raise ArithmeticError(f"query {row}: float64 does not hold how far away it lies, 1e100 "
                                  "times the range of a column and more")  # fmt: skip
        return x

    def apart(self, queries, tol):
        """How far queries (M, d) are from columns that never change: zero up to rounding."""
        gap = torch.where(self.constant, queries - self.low, 0.0)
        rounding = 4 * torch.finfo(gap.dtype).eps * self.low.abs() if tol else 0.0
        return torch.where(gap.abs() > rounding, gap, 0.0)

    def outer(self, u):
        """Directions (M, r) of this frame as unit vectors (M, d), and by how much lengths shrink."""
        lead = u.abs().amax(1, keepdim=True).clamp(min=1e-300)
        out = u.new_zeros(len(u), self.width)
        out[:, self.columns] = u / lead / self.unit
        largest = out.abs().amax(1, keepdim=True).clamp(min=1e-300)
        out = out / largest  # squares of it neither overflow nor vanish
        length = out.norm(dim=1, keepdim=True).clamp(min=1e-300)
        return out / length, (1 / largest / length / lead)[:, 0]

    def direction(self, cloud, w):
        """The same for directions of a cloud in this frame."""
        w = w / w.norm(dim=1, keepdim=True).clamp(min=1e-300)
        return self.outer(w @ cloud.to.T)
