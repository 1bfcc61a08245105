"""What proves where a query lies, and the check of it from scratch.

Membership    where queries lie, and why
Entries       from which prefix on they are inside, and why
verify        all of it checked again, independently
checked       points and queries, or the reason why they cannot be asked
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from collage.common.checks import as_tensor


class Entries(NamedTuple):
    """When queries enter the hull, and the proof of it: see `Membership`."""

    entry: Tensor  # (M,) long
    support: Tensor  # (M, d + 1) long
    weights: Tensor  # (M, d + 1)
    witness: Tensor  # (M, d)
    pairs: int  # how many pairs of a point and a query were priced


class Membership:
    """Where M queries stand to the hull of N points in R^d; made by `membership`.

    inside (M,) bool
    separator (M, d), margin (M,): outside, a unit vector u with
        margin = <u, z> - max_i <u, x_i> > 0 over all points; zero where inside
    entry (M,) long: the smallest n such that z lies in the hull of points[:n]; N + 1 where outside
    support (M, d + 1) long, weights (M, d + 1): inside, rows of points and convex weights with
        sum_j weights_j points[support_j] = z, all of them among the first `entry` points (unused
        places repeat a row with weight 0); outside, -1 and 0
    witness (M, d): a unit vector that leaves z out of points[: entry - 1], so that `entry` is
        the smallest; outside, the separator
    passes: how often the points were looked at, in units of N for each query

    `inside`, `separator` and `margin` are there at once. `entry`, `support`, `weights` and
    `witness` cost a few times as much again: they are found together when one is first read.
    """

    def __init__(
        self, inside: Tensor, separator: Tensor, margin: Tensor, looks: tuple[int, int],
        find: Callable[[], Entries],
    ) -> None:  # fmt: skip
        self.inside, self.separator, self.margin = inside, separator, margin
        self._looks, self._find = looks, find

    def __repr__(self) -> str:
        return f"Membership({int(self.inside.sum())} of {len(self.inside)} inside)"

    @functools.cached_property
    def _entries(self) -> Entries:
        return self._find()

    @property
    def entry(self) -> Tensor:
        return self._entries.entry

    @property
    def support(self) -> Tensor:
        return self._entries.support

    @property
    def weights(self) -> Tensor:
        return self._entries.weights

    @property
    def witness(self) -> Tensor:
        return self._entries.witness

    @property
    def passes(self) -> float:
        pairs, whole = self._looks
        return (pairs + (self._entries.pairs if "_entries" in self.__dict__ else 0)) / whole


def verify(result: Membership, points: Tensor, queries: Tensor, tol: float = 1e-9) -> None:
    """Check every certificate of a `Membership` in float64, without trusting how it was found.

    Weights are convex and give z back to tol times the size of each column; margins are positive
    over all points, entries smallest. Raises ValueError naming the first query that fails.

    >>> from collage.convex_hull import membership
    >>> x, z = torch.eye(3), torch.tensor([[0.25, 0.25, 0.5]])
    >>> result = membership(x, z)
    >>> verify(result, x, z)
    >>> verify(result, x, x[:1])
    Traceback (most recent call last):
    ...
    ValueError: query 0: its weights miss it by 0.935
    """
    points, queries, _ = checked(points, queries)
    if result.inside.shape != queries.shape[:1] or result.separator.shape != queries.shape:
        raise ValueError(f"queries: got {len(queries)}, wanted the {len(result.inside)} of result")
    n, low, high = len(points), points.amin(0), points.amax(0)
    centre = low + (high / 2 - low / 2)
    x, z = points - centre, queries - centre
    size = x.abs().amax(0) + 1e-6 * centre.abs()  # of each column
    for i in range(len(z)):
        support, weights, entry = result.support[i], result.weights[i], int(result.entry[i])
        if result.inside[i]:
            if not 1 <= entry <= n or not bool(((support >= 0) & (support < entry)).all()):
                raise ValueError(f"query {i}: its support is not among its first {entry} points")
            if bool((weights < 0).any()) or abs(float(weights.sum()) - 1) > 1e-9:
                raise ValueError(f"query {i}: its weights are not convex")
            miss = (weights @ x[support] - z[i]).abs()
            if not bool((miss <= (2 * tol + 1e-12) * size).all()):
                raise ValueError(f"query {i}: its weights miss it by {float(miss.norm()):.3g}")
        elif entry != n + 1:
            raise ValueError(f"query {i}: outside, and yet its entry is {entry}")
        w, prefix = result.witness[i], x[: entry - 1]
        if not len(prefix):
            continue
        gap = float(((z[i] - prefix) @ w).min())
        if abs(float(w.norm()) - 1) > 1e-9 or not gap > 0:
            raise ValueError(f"query {i}: its witness leaves a gap of {gap:.3g} before its entry")
        if not result.inside[i]:
            margin = float(result.margin[i])
            same = bool(torch.equal(w, result.separator[i]))
            rounding = 4e-9 * float(w.abs() @ (size + z[i].abs()))
            if not (same and margin > 0 and abs(margin - gap) <= rounding):
                raise ValueError(f"query {i}: margin {margin:.3g}, but the gap is {gap:.3g}")


def checked(points: Tensor, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both as float64; ValueError for what cannot be asked."""
    points, queries = as_tensor("points", points), as_tensor("queries", queries)
    for name, t in (("points", points), ("queries", queries)):
        if t.dim() != 2:
            raise ValueError(f"{name}: got {tuple(t.shape)}, wanted a tensor of two axes")
        if t.dtype == torch.bool or t.is_complex():
            raise ValueError(f"{name}: got {t.dtype}, wanted real numbers")
    if not points.numel():
        raise ValueError(f"points: got {tuple(points.shape)}, wanted at least one point")
    if points.shape[1] != queries.shape[1]:
        raise ValueError(f"queries: got {queries.shape[1]} coordinates, "
                         f"wanted the {points.shape[1]} of points")  # fmt: skip
    if points.device != queries.device:
        raise ValueError(f"queries: got {queries.device}, wanted {points.device}")
    points, queries = points.detach(), queries.detach()
    first = torch.zeros(points.shape[1], dtype=torch.float64, device=points.device)
    whole = points.dtype == queries.dtype == torch.int64
    if whole and queries.numel():  # large whole numbers lose their last digits in float64
        low = min(int(points.min()), int(queries.min()))
        high = max(int(points.max()), int(queries.max()))
        if max(abs(low), abs(high)) > 2**53 and high - low < 2**62:
            first, points, queries = points[0].double(), points - points[0], queries - points[0]
    points, queries = points.double(), queries.double()
    for name, t in (("points", points), ("queries", queries)):
        if t.numel() and not all(math.isfinite(end) for end in t.aminmax()):
            raise ValueError(f"{name}: got NaN or inf, wanted finite numbers")
    return points, queries, first
