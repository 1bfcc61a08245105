"""Coordinates in which neither units nor flat directions matter.

Frame    columns centred and scaled, and the way back
Cloud    points in whitened coordinates on the affine subspace that they span
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Frame:
    """Coordinates in which every column has its centre at zero and a range near one.

    x = (points - centre) / unit, with powers of two for units, so that nothing is rounded (one for
    all columns where they are much alike); columns that never change are left out. `outer` and
    `direction` lead back to the user's units.
    """

    def __init__(self, points: Tensor) -> None:
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

    def inner(self, points: Tensor) -> Tensor:
        """(M, d) -> (M, r), the columns that change."""
        x = points[:, self.columns]  # a copy: what is large is not made twice
        x = x.sub_(self.centre).div_(self.unit)
        if x.numel() and float(max(x.amax(), -x.amin())) > 1e100:
            row = int((x.abs() > 1e100).any(1).nonzero()[0])
            raise ArithmeticError(f"query {row}: float64 does not hold how far away it lies, 1e100 "
                                  "times the range of a column and more")  # fmt: skip
        return x

    def apart(self, queries: Tensor, tol: float) -> Tensor:
        """How far queries (M, d) are from columns that never change: zero up to rounding."""
        gap = torch.where(self.constant, queries - self.low, 0.0)
        rounding = 4 * torch.finfo(gap.dtype).eps * self.low.abs() if tol else 0.0
        return torch.where(gap.abs() > rounding, gap, 0.0)

    def outer(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Directions (M, r) of this frame as unit vectors (M, d), and by how much lengths shrink."""
        lead = u.abs().amax(1, keepdim=True).clamp(min=1e-300)
        out = u.new_zeros(len(u), self.width)
        out[:, self.columns] = u / lead / self.unit
        largest = out.abs().amax(1, keepdim=True).clamp(min=1e-300)
        out = out / largest  # squares of it neither overflow nor vanish
        length = out.norm(dim=1, keepdim=True).clamp(min=1e-300)
        return out / length, (1 / largest / length / lead)[:, 0]

    def direction(self, cloud: "Cloud", w: Tensor) -> tuple[Tensor, Tensor]:
        """The same for directions of a cloud in this frame."""
        w = w / w.norm(dim=1, keepdim=True).clamp(min=1e-300)
        return self.outer(w @ cloud.to.T)


class Place(NamedTuple):
    """Where queries lie to the affine subspace of a cloud."""

    coordinates: Tensor  # (M, r)
    beside: Tensor  # (M, d) what is left of them at a right angle to it
    flat: Tensor  # (M,) bool: that is no more than the tolerance or rounding


class Cloud:
    """Points (N, d) in coordinates x (N, r) of unit covariance on the affine subspace they span.

    whiten=False keeps distances, up to one factor. noise (d,): how far rounding may have moved
    each coordinate; a direction in which the points spread no further than that, or than tol of
    their size, counts as flat.
    """

    def __init__(
        self, points: Tensor, tol: float = 1e-9, whiten: bool = True, noise: Tensor | None = None
    ) -> None:
        self.n, d = points.shape
        self.mean = points.mean(0)
        x = points - self.mean
        value, axes = torch.linalg.eigh(x.T @ x / self.n)
        sd = value.clamp(min=0).sqrt()
        if sd[0] < 1e-6 * sd[-1]:  # squares hide thin directions: ask the points themselves
            _, sd, axes = torch.linalg.svd(torch.linalg.qr(x, mode="r")[1], full_matrices=False)
            sd, axes = sd.flip(0) / math.sqrt(self.n), axes.T.flip(1)
        self.size = torch.maximum(x.amax(), -x.amin())
        self.eps = torch.finfo(points.dtype).eps
        self.noise = self.eps * points.abs().amax(0) if noise is None else noise
        self.floor = tol * self.size  # thinner than this is flat
        # points reach some standard deviations far
        keep = sd > self.floor / 8 + axes.abs().T @ self.noise
        self.axes, sd = axes[:, keep], sd[keep]
        self.rank = len(sd)
        self.scale = sd if whiten else sd.new_ones(()) * (sd.max() if self.rank else 1.0)
        self.to = self.axes / self.scale
        self.x = x @ self.to
        self.thick = x.new_zeros(())
        if self.rank < d:
            self.thick = (x - x @ self.axes @ self.axes.T).norm(dim=1).max()
        self.norms = self.x.norm(dim=1)
        self.radius = self.norms.max()

    def place(self, queries: Tensor) -> Place:
        """Where queries (M, d) lie."""
        z = queries - self.mean
        if self.rank == z.shape[1]:
            return Place(z @ self.to, torch.zeros_like(z), torch.ones_like(z[:, 0]).bool())
        rest = z - z @ self.axes @ self.axes.T
        rest = rest - rest @ self.axes @ self.axes.T  # what is short has lost its right angle
        length = rest.norm(dim=1)
        away = rest.abs() / length.clamp(min=1e-300)[:, None]
        rounding = 8 * (away @ self.noise) + 16 * self.eps * z.norm(dim=1)
        flat = length <= torch.maximum(self.floor + rounding, 1.01 * self.thick)
        return Place(z @ self.to, rest, flat)
