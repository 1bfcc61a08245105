"""Is a point in the convex hull of many? Exactly, with a proof, for many points at once.

membership     inside or outside, with certificates; the prefix that lets it in
inside_curve   share of queries inside the hull of the first n points
nearest        nearest point of the hull, and the distance
Nearest        what it returns
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from collage import runtime
from collage.common.checks import as_tensor
from collage.convex_hull.certificates import Entries, Membership, checked
from collage.convex_hull.fast.interior import Quick, quick
from collage.convex_hull.fast.pool import Pool
from collage.convex_hull.fast.prices import Prices, fourfold
from collage.convex_hull.frame import Cloud, Frame

STAGES = 64  # sizes that `inside_curve` goes through one by one; with more, it asks for entries


def membership(
    points: Tensor,  # (N, d)
    queries: Tensor,  # (M, d)
    tol: float = 1e-9,
) -> Membership:
    """Which queries lie in the convex hull of the points.

    z inside  <=>  z = sum_i a_i x_i with a >= 0, sum_i a_i = 1
    z outside <=>  <u, z> > max_i <u, x_i> for some u

    Real tensors on one device, taken to float64. Exactly one of the two holds, and the answer
    comes with the a or the u that proves it: see `Membership`. What lies outside by less than tol,
    in units of the spread of the data, counts as inside; each column has its own spread, so that
    units and offsets change no answer.

    Raises ValueError for other shapes, no points, complex or boolean numbers, NaN or inf, and
    ArithmeticError where float64 does not decide.
    Source: arXiv 2110.09485, definition 1; method: column generation, by Mehrotra's interior point
    method (1992), and Wolfe's (1976) for what that leaves open.

    >>> square = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    >>> result = membership(square, torch.tensor([[0.5, 0.5], [3.0, 1.0], [1.0, 2.0]]))
    >>> result.inside.tolist(), result.entry.tolist()
    ([True, False, True], [3, 5, 4])
    >>> result.margin.tolist(), result.separator[1].abs().tolist()
    ([0.0, 1.0, 0.0], [1.0, 0.0])
    """
    points, queries, _ = checked(points, queries)
    return _decide(_pose(points, queries, tol), tol)


def _decide(posed: "Posed", tol: float) -> Membership:
    """Inside or outside, and what proves that a query is outside."""
    frame, cloud, flat = posed.frame, posed.cloud, posed.flat
    # Those that are not flat lie beside the affine subspace of the points, or a constant column.
    beside = posed.rest.norm(dim=1)
    separator, shrink = frame.outer(posed.rest / beside.clamp(min=1e-300)[:, None])
    margin = (beside - cloud.thick) * shrink
    far, column = posed.apart.abs().max(1)
    alone = torch.nn.functional.one_hot(column, frame.width) * posed.apart.sign()
    separator = torch.where((far > 0)[:, None], alone, separator).masked_fill(flat[:, None], 0)
    margin = torch.where(far > 0, far, margin).masked_fill(flat, 0)
    inside, pairs = flat.clone(), 0
    for k, found in _decisions(cloud, posed.z, flat, tol):
        pairs, out = pairs + found.pairs, found.entry > cloud.n
        inside[k] = ~out
        separator[k[out]], shrink = frame.direction(cloud, -found.y[out])
        margin[k[out]] = found.gap[out] * shrink
    find = functools.partial(_entries, posed, inside, separator, tol)
    return Membership(inside, separator, margin, (pairs, max(1, cloud.n * len(inside))), find)


def _entries(posed: "Posed", inside: Tensor, separator: Tensor, tol: float) -> Entries:
    """The entries of the queries that are inside; of the others, what stands for them."""
    cloud, (m, d) = posed.cloud, separator.shape
    entry = torch.full((m,), cloud.n + 1, device=inside.device)
    support = torch.full((m, d + 1), -1, device=inside.device)
    weights, witness, pairs = separator.new_zeros(m, d + 1), separator.clone(), 0
    if not cloud.rank:  # all points are one
        entry[inside], support[inside], weights[inside, 0] = 1, 0, 1.0
    for k, pool in _pools(cloud, posed.z, inside, fourfold(cloud.n), descend=True, tol=tol):
        pairs += pool.pairs
        entry[k], witness[k] = pool.entry, posed.frame.direction(cloud, -pool.y)[0]
        support[k] = pool.support.amax(1, keepdim=True)
        support[k, : pool.c] = torch.where(pool.support < 0, support[k, :1], pool.support)
        weights[k, : pool.c] = pool.weights
    return Entries(entry, support, weights, witness, pairs)


def inside_curve(
    points: Tensor,  # (N, d)
    queries: Tensor,  # (M, d)
    sizes: Sequence[int] | Tensor,
    tol: float = 1e-9,
) -> Tensor:  # (len(sizes),) float64
    """Share of the queries in the hull of points[:n], for each n of sizes.

    Goes up through the sizes, and keeps what it knows of a query from each to the next. Raises
    as `membership` does, and ValueError for sizes below 0 or above N.

    >>> inside_curve(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [2.0]]), [1, 2, 3])
    tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """
    points, queries, _ = checked(points, queries)
    wanted = as_tensor("sizes", sizes).to(points.device)
    if wanted.numel() and not (int(wanted.min()) >= 0 and int(wanted.max()) <= len(points)):
        raise ValueError(f"sizes: got {wanted.tolist()}, wanted numbers from 0 to {len(points)}")
    stages = [n for n in wanted.unique().tolist() if 0 < n < len(points)]
    posed = _pose(points, queries, tol)
    result = _decide(posed, tol)
    if len(stages) > STAGES:
        entry = result.entry
    else:
        entry = torch.where(result.inside, len(points), len(points) + 1)
        for k, pool in _pools(posed.cloud, posed.z, result.inside, stages, tol=tol):
            entry[k] = pool.entry.clamp(max=len(points))
        if not posed.cloud.rank:  # all points are one
            entry[result.inside] = 1
    return (entry[None] <= wanted[:, None]).double().mean(1)


class Nearest(NamedTuple):
    """What `nearest` finds, in float64."""

    distance: Tensor  # (M,)
    point: Tensor  # (M, d)


def nearest(
    points: Tensor,  # (N, d)
    queries: Tensor,  # (M, d)
    tol: float = 1e-9,
) -> Nearest:
    """The nearest point of the hull to each query, and its distance; z itself and 0 inside.

    y = argmin { |y - z| : y = sum_i a_i x_i, a >= 0, sum_i a_i = 1 }

    Distances are in the units of the points, right to about 1e-7 of the size of the data.
    Raises as `membership` does, and ArithmeticError for a query that is outside by less than that.

    >>> triangle = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    >>> distance, point = nearest(triangle, torch.tensor([[2.0, 2.0]]))
    >>> distance, point.round(decimals=9)
    (tensor([1.4142], dtype=torch.float64), tensor([[1., 1.]], dtype=torch.float64))
    """
    points, queries, first = checked(points, queries)
    _check_tol(tol)
    frame = Frame(points)
    centre = torch.where(frame.constant, frame.low, 0.0)
    centre[frame.columns] = frame.centre
    unit = frame.unit.max()  # one for all: distances are the user's
    noise = torch.finfo(points.dtype).eps * (points.abs().amax(0) / unit)
    cloud = Cloud((points - centre) / unit, tol, whiten=False, noise=noise)
    z, rest, flat = cloud.place((queries - centre) / unit)
    moved, every = torch.zeros_like(z), torch.ones_like(flat)
    for k, pool in _pools(cloud, z, every, [cloud.n], tol=tol, slack=1 - tol, unit=False):
        moved[k] = torch.where((pool.entry > cloud.n)[:, None], pool.y, 0.0)
    step = moved * cloud.scale @ cloud.axes.T - torch.where(flat[:, None], 0.0, rest)
    distance = step.norm(dim=1)
    near = (distance < 1e-6 * cloud.size).nonzero()[:, 0]  # inside, or lost beside wider columns?
    if len(near):
        check = membership(points, queries[near], tol)
        lost = near[~check.inside & (distance[near] * unit < (1 - 1e-6) * check.margin)]
        if len(lost):
            raise ArithmeticError(f"query {int(lost[0])}: float64 does not hold how near it is; "
                                  "columns of more alike units would help")  # fmt: skip
        step[near[check.inside]] = 0.0
    point = torch.where(frame.constant, frame.low, queries + step * unit)
    still = (step == 0).all(1)
    point[still] = queries[still]
    return Nearest(step.norm(dim=1) * unit, point + first)


class Posed(NamedTuple):
    """A question of membership in the coordinates of its points."""

    frame: Frame
    cloud: Cloud
    z: Tensor  # (M, r) the queries
    rest: Tensor  # (M, r') what is left of them beside the points' affine subspace
    apart: Tensor  # (M, d) how far they are from columns that never change
    flat: Tensor  # (M,) bool: neither matters


def _pose(points: Tensor, queries: Tensor, tol: float) -> Posed:
    _check_tol(tol)
    frame = Frame(points)
    cloud = Cloud(frame.inner(points), tol, noise=frame.noise)
    z, rest, flat = cloud.place(frame.inner(queries))
    apart = frame.apart(queries, tol)
    return Posed(frame, cloud, z, rest, apart, flat & (apart.abs().amax(1) == 0))


def _check_tol(tol: float) -> None:
    if not 0 <= tol < 1:
        raise ValueError(f"tol: got {tol}, wanted a number from 0 to 1")


def _decisions(
    cloud: Cloud, z: Tensor, asked: Tensor, tol: float
) -> Iterator[tuple[Tensor, Quick | Pool]]:
    """Inside or outside for the queries of a mask: most by `quick`, what it leaves open by a pool."""
    if not cloud.rank or not bool(asked.any()):
        return
    prices, left = Prices(cloud, [cloud.n]), asked.clone()
    # `quick` waits for the host in every step: whether that pays on a GPU has not been measured.
    worth = not cloud.x.is_cuda
    for k in asked.nonzero()[:, 0].split(_chunk(cloud)) if worth else ():
        with runtime.one_thread():
            found = quick(prices, z[k], tol)
        left[k[found.sure]] = False
        yield k[found.sure], found
    yield from _pools(cloud, z, left, [cloud.n], tol=tol, prices=prices)


def _pools(
    cloud: Cloud, z: Tensor, asked: Tensor, stages: list[int], *, descend: bool = False,
    tol: float, slack: float = 0.1, unit: bool = True, prices: Prices | None = None,
) -> Iterator[tuple[Tensor, Pool]]:  # fmt: skip
    """Answers for the queries of a mask, as many at once as is good: their numbers, and the pool.

    Raises ArithmeticError, no guess, where float64 is not enough.
    """
    rows = asked.nonzero()[:, 0]
    if not len(rows) or not stages or not cloud.rank:
        return
    prices = prices or Prices(cloud, [cloud.n] if stages == [cloud.n] else fourfold(cloud.n, 1024))
    for k in rows.split(_chunk(cloud)):
        pool = Pool(prices, z[k], stages, descend=descend, tol=tol, slack=slack, unit=unit)
        with runtime.one_thread():
            pool.run()
        if not bool(pool.fine.all()):
            query = int(k[~pool.fine][0])
            raise ArithmeticError(f"query {query}: float64 does not decide where it lies")
        yield k, pool


def _chunk(cloud: Cloud) -> int:
    """Queries at once: enough to share the work, few enough for the memory.

    Raises ValueError where a GPU has no room for one.
    """
    wider = 16 if cloud.x.is_cuda else 1  # a GPU has more of both
    pairs, numbers = 2**28 * wider, 2**26 * wider  # of prices, and of inverse matrices
    wanted = max(64, min(4096 * wider, pairs // cloud.n, numbers // (cloud.rank + 1) ** 2))
    if not cloud.x.is_cuda:
        return wanted
    # The largest price of 16 points, in float32 and four times over; inverse matrices, as often.
    each = cloud.n + 32 * (cloud.rank + 1) ** 2
    room = runtime.free_memory(cloud.x.device)
    if room < each:
        raise ValueError(
            f"points: got {cloud.n:,}, which need {each:,} bytes a query beside themselves, wanted "
            f"fewer: {room:,} are free on the GPU"
        )
    return min(wanted, room // each)
