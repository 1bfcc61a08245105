"""Is a point in the convex hull of many? Exactly, with a proof, for many points at once.

After Balestriero, Pesenti and LeCun, "Learning in High Dimension Always Amounts to Extrapolation"
(arXiv 2110.09485): a point is interpolated where it lies in the hull, boundary included.

membership                     inside or outside, with certificates; the prefix that lets it in
verify                         the certificates checked again, independently
inside_curve                   share of queries inside the hull of the first n points
nearest                        nearest point of the hull, and the distance
"""

import functools
import math
from typing import NamedTuple

import torch

from collage.common.checks import as_tensor
from collage.convex_hull.fast.pool import Pool
from collage.convex_hull.fast.prices import Cloud
from collage.convex_hull.frame import Frame


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

    def __init__(self, frame, cloud, z, flat, inside, separator, margin, pairs, tol):
        self.inside, self.separator, self.margin = inside, separator, margin
        self._frame, self._cloud, self._z, self._flat = frame, cloud, z, flat
        self._pairs, self._tol = pairs, tol

    def __repr__(self):
        return f"Membership({int(self.inside.sum())} of {len(self.inside)} inside)"

    @functools.cached_property
    def _entries(self):
        cloud, (m, d) = self._cloud, self.separator.shape
        entry = torch.full((m,), cloud.n + 1, device=self.inside.device)
        support = torch.full((m, d + 1), -1, device=entry.device)
        weights, witness = self.separator.new_zeros(m, d + 1), self.separator.clone()
        place = torch.cumsum(self._flat, 0) - 1  # the row of a query in z
        for k in self.inside.nonzero()[:, 0].split(_chunk(cloud)):
            if not cloud.rank:
                entry[k], support[k], weights[k, 0] = 1, 0, 1.0
            elif len(k):
                pool = _decided(Pool(cloud, self._z[place[k]], entries=True, tol=self._tol), k)
                self._pairs += pool.pairs
                entry[k], witness[k] = pool.entry, self._frame.direction(cloud, -pool.y)[0]
                support[k] = pool.support.amax(1, keepdim=True)
                support[k, : pool.c] = torch.where(pool.support < 0, support[k, :1], pool.support)
                weights[k, : pool.c] = pool.weights
        return entry, support, weights, witness

    entry = property(lambda self: self._entries[0])
    support = property(lambda self: self._entries[1])
    weights = property(lambda self: self._entries[2])
    witness = property(lambda self: self._entries[3])
    passes = property(lambda self: self._pairs / max(1, self._cloud.n * len(self.inside)))


def membership(points, queries, tol=1e-9):
    """Which queries lie in the convex hull of the points.

    z inside  <=>  z = sum_i a_i x_i with a >= 0, sum_i a_i = 1
    z outside <=>  <u, z> > max_i <u, x_i> for some u

    points (N, d), queries (M, d): real tensors on one device, taken to float64. Exactly one of
    the two holds, and the answer comes with the a or the u that proves it: see `Membership`.
    What lies outside by less than tol, in units of the spread of the data, counts as inside; each
    column has its own spread, so that units and offsets change no answer.

    Raises ValueError for other shapes, no points, complex or boolean numbers, NaN or inf, and
    ArithmeticError where float64 does not decide.
    Source: arXiv 2110.09485, definition 1; method: Wolfe 1976, with column generation.

    >>> square = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    >>> result = membership(square, torch.tensor([[0.5, 0.5], [3.0, 1.0], [1.0, 2.0]]))
    >>> result.inside.tolist(), result.entry.tolist()
    ([True, False, True], [3, 5, 4])
    >>> result.margin.tolist(), result.separator[1].abs().tolist()
    ([0.0, 1.0, 0.0], [1.0, 0.0])
    """
    points, queries, _ = _checked(points, queries)
    if not 0 <= tol < 1:
        raise ValueError(f"tol: got {tol}, wanted a number from 0 to 1")
    frame = Frame(points)
    cloud = Cloud(frame.inner(points), tol, noise=frame.noise)
    z, rest, flat = cloud.place(frame.inner(queries))
    apart = frame.apart(queries, tol)  # how far beside a column that never changes
    flat &= apart.abs().amax(1) == 0
    inside, z, pairs = flat.clone(), z[flat], 0
    # The others lie beside the affine subspace of the points.
    beside = rest.norm(dim=1)
    separator, shrink = frame.outer(rest / beside.clamp(min=1e-300)[:, None])
    margin = (beside - cloud.thick) * shrink
    far, column = apart.abs().max(1)
    alone = torch.nn.functional.one_hot(column, apart.shape[1]) * apart.sign()
    separator = torch.where((far > 0)[:, None], alone, separator).masked_fill(flat[:, None], 0)
    margin = torch.where(far > 0, far, margin).masked_fill(flat, 0)
    for k, part in zip(flat.nonzero()[:, 0].split(_chunk(cloud)), z.split(_chunk(cloud))):
        if cloud.rank and len(k):
            pool = _decided(Pool(cloud, part, entries=False, tol=tol), k)
            pairs, out = pairs + pool.pairs, pool.entry > cloud.n
            inside[k] = ~out
            separator[k[out]], shrink = frame.direction(cloud, -pool.y[out])
            margin[k[out]] = pool.gap[out] * shrink
    return Membership(frame, cloud, z, flat, inside, separator, margin, pairs, tol)


def verify(result, points, queries, tol=1e-9):
    """Check every certificate of a `Membership` in float64, without trusting how it was found.

    Weights are convex and give z back to tol times the size of each column; margins are positive
    over all points, entries smallest. Raises ValueError naming the first query that fails.

    >>> x, z = torch.eye(3), torch.tensor([[0.25, 0.25, 0.5]])
    >>> result = membership(x, z)
    >>> verify(result, x, z)
    >>> verify(result, x, x[:1])
    Traceback (most recent call last):
    ...
    ValueError: query 0: its weights miss it by 0.935
    """
    points, queries, _ = _checked(points, queries)
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


def inside_curve(points, queries, sizes, tol=1e-9):
    """Share of the queries in the hull of points[:n], for each n of sizes: float64 (len(sizes),).

    One call of `membership` answers for every n. Raises ValueError for sizes below 0 or above N.

    >>> inside_curve(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [2.0]]), [1, 2, 3])
    tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """
    points = as_tensor("points", points)
    sizes = as_tensor("sizes", sizes).to(points.device)
    if sizes.numel() and not (int(sizes.min()) >= 0 and int(sizes.max()) <= len(points)):
        raise ValueError(f"sizes: got {sizes.tolist()}, wanted numbers from 0 to {len(points)}")
    entry = membership(points, queries, tol).entry
    return (entry[None] <= sizes[:, None]).double().mean(1)


class Nearest(NamedTuple):
    """distance (M,) and point (M, d), in float64."""

    distance: torch.Tensor
    point: torch.Tensor


def nearest(points, queries, tol=1e-9):
    """The nearest point of the hull to each query, and its distance; z itself and 0 inside.

    y = argmin { |y - z| : y = sum_i a_i x_i, a >= 0, sum_i a_i = 1 }

    points (N, d), queries (M, d), distances in their units, right to about 1e-7 of
    the size of the data.
    Raises as `membership` does, and ArithmeticError for a query that is outside by less than that.

    >>> found = nearest(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]]), torch.tensor([[2.0, 2.0]]))
    >>> found.distance, found.point.round(decimals=9)
    (tensor([1.4142], dtype=torch.float64), tensor([[1., 1.]], dtype=torch.float64))
    """
    points, queries, first = _checked(points, queries)
    frame = Frame(points)
    centre = torch.where(frame.constant, frame.low, 0.0)
    centre[frame.columns] = frame.centre
    unit = frame.unit.max()  # one for all: distances are the user's
    x, at = (points - centre) / unit, (queries - centre) / unit
    cloud = Cloud(
        x, tol, whiten=False, noise=torch.finfo(x.dtype).eps * (points.abs().amax(0) / unit)
    )
    z, rest, flat = cloud.place(at)
    moved = torch.zeros_like(z)
    for k in torch.arange(len(z), device=z.device).split(_chunk(cloud)):
        if cloud.rank and len(k):
            settings = {"entries": False, "tol": tol, "slack": 1 - tol, "unit": False}
            pool = _decided(Pool(cloud, z[k], **settings), k)
            moved[k] = torch.where((pool.entry > cloud.n)[:, None], pool.y, 0.0)
    step = moved * cloud.scale @ cloud.axes.T - torch.where(flat[:, None], 0.0, rest)
    distance = step.norm(dim=1)
    near = (distance < 1e-6 * cloud.size).nonzero()[:, 0]  # inside, or lost beside wider columns?
    if len(near):
        found = membership(points, queries[near], tol)
        lost = near[~found.inside & (distance[near] * unit < (1 - 1e-6) * found.margin)]
        if len(lost):
            raise ArithmeticError(f"query {int(lost[0])}: float64 does not hold how near it is; "
                                  "columns of more alike units would help")  # fmt: skip
        step[near[found.inside]] = 0.0
    point = torch.where(frame.constant, frame.low, queries + step * unit)
    point[(step == 0).all(1)] = queries[(step == 0).all(1)]
    return Nearest(step.norm(dim=1) * unit, point + first)


def _checked(points, queries):
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
        if t.numel() and not math.isfinite(float(t.abs().max())):
            raise ValueError(f"{name}: got NaN or inf, wanted finite numbers")
    return points, queries, first


def _decided(pool, k):
    """The pool after its run; an error, not a guess, where float64 is not enough."""
    if not bool(pool.run().fine.all()):
        first = int(k[~pool.fine][0])
        raise ArithmeticError(f"query {first}: float64 does not decide where it lies")
    return pool


def _chunk(cloud):
    """Queries at once: enough to share the work, few enough for the memory."""
    more = 4 if cloud.x.is_cuda else 0  # sixteen times as many on a GPU
    return max(64, min(4096 << more, (1 << 28 + more) // cloud.n,
                       (1 << 26 + more) // (cloud.rank + 1) ** 2))  # fmt: skip
