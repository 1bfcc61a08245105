"""Most decisions in a few steps: an interior point method over the points that matter.

quick     those queries that it settles; for those outside, what proves it
Quick     what it returns
Search    where each query is
"""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from collage.convex_hull.fast.careful import TINY
from collage.convex_hull.fast.prices import PICKS, Prices, Question
from collage.convex_hull.fast.working_set import take

WIDTH = 4  # points that a working set begins with, for each dimension
LEAST = 8  # and at the least
AXES = 16  # up to so many dimensions, the extreme points of each axis join them
NEARBY = 2**10  # only the longest points are looked through for them: so many for each dimension,
LONGEST = 2**14  # and no more than these
STRIDES = 16  # the longest are dealt into so many strides; of those at one place, one is taken
NEW = 4  # points that may join in one step, if there are fewer dimensions
STEPS = 40  # a query that is open after so many is left to `Pool`
SHORT = 0.98  # of the way to where a weight or a slack would vanish
CLEAR = 1e3  # tolerances by which a query must be outside; nearer ones are left to `Pool`
ENTRIES = 2**21  # of all working sets at once, about


class Quick(NamedTuple):
    """Answers for some of the queries, as `Pool` gives them.

    While they are looked for, sure is a mask (m,), and the others have a place for every query.
    """

    sure: Tensor  # (k,) their numbers
    entry: Tensor  # (k,) N where inside, N + 1 where outside
    y: Tensor  # (k, r) outside, a unit vector that points from the query to the hull
    gap: Tensor  # (k,) outside, its margin
    pairs: int  # how many pairs of a point and a query were priced


@dataclasses.dataclass
class Search:
    """One row a query z that is still open."""

    row: Tensor  # (m,) its number
    z: Tensor  # (m, r)
    near: Tensor  # (m, k, r + 1) P, the working set: rows (p_j, -1), p_j = x_j - z
    ray: Tensor  # (m, r + 1) (c, 0), the way that z goes
    weights: Tensor  # (m, k) a > 0
    reach: Tensor  # (m,) lambda, how far z gets
    plane: Tensor  # (m, r + 1) v = (w, t)
    slack: Tensor  # (m, k) s = -P v = t - <w, p_j> > 0


def quick(prices: Prices, z: Tensor, tol: float) -> Quick:
    """Inside or outside, for queries z (m, r) that lie clearly on one side.

    How far does z + lambda c stay in the hull of a working set of points p_j = x_j - z?

        max lambda   where  sum_j a_j p_j = lambda c,  sum_j a_j = 1,  a >= 0
      = min t        where  <w, p_j> <= t for all j,  <w, c> = 1

    Both at once, by Newton steps on a_j s_j = mu with slacks s_j = t - <w, p_j>, while mu falls.
    Weights that bring lambda to zero prove that z is inside. Once <w, p_j> < 0 in all of a working
    set, all points are asked: where they agree, z is outside; those that do not replace the points
    of the smallest a_j / s_j.
    Source: Mehrotra, "On the implementation of a primal-dual interior point method", SIAM Journal
    on Optimization 2, 1992.
    """
    n, rank, row = prices.n, prices.rank, torch.arange(len(z), device=z.device)
    none, zero = torch.zeros_like(row).bool(), torch.zeros_like(z[:, 0])
    found = Quick(none, torch.full_like(row, n), -z, zero.clone(), 0)
    _, pairs = _ask(prices, found, row, z, z, zero - torch.inf, zero, tol)
    longest = prices.cloud.norms.topk(min(LONGEST, NEARBY * rank, n))[1]
    at_once = max(1, ENTRIES // (WIDTH * (rank + 1) ** 2))
    for part in (~found.sure).nonzero()[:, 0].split(at_once):
        q = _begin(prices.x, longest, z[part], part)
        for _ in range(STEPS):
            inside, good = _step(q)
            found.sure[q.row[inside]] = True
            q = take(q, (good & ~inside).nonzero()[:, 0])
            pairs += _beyond(prices, found, q, tol)
            q = take(q, (~found.sure[q.row]).nonzero()[:, 0])
            if not len(q.row):
                break
    sure = found.sure.nonzero()[:, 0]
    return Quick(sure, found.entry[sure], found.y[sure], found.gap[sure], pairs)


def _begin(x: Tensor, longest: Tensor, z: Tensor, row: Tensor) -> Search:
    """Working sets of the points that lie far out towards z (m, r), of those given.

    c is minus their mean, so that equal weights get to lambda = -1.
    """
    m, r = z.shape
    k = min(max(WIDTH * r, LEAST), len(longest))
    strides = max(1, min(STRIDES, len(longest) // (4 * k)))
    each = len(longest) // strides
    price = z.float() @ x.index_select(0, longest[: strides * each]).float().T
    price = price.view(m, strides, each)
    place = price.amax(1).topk(k, 1, sorted=False)[1]
    stride = price.gather(2, place[:, None].expand(-1, strides, -1)).argmax(1)
    ids = longest[stride * each + place]
    if r <= AXES:
        ids = torch.cat([ids, torch.cat([x.argmax(0), x.argmin(0)]).expand(m, -1)], 1)
    p = x.index_select(0, ids.flatten()).view(*ids.shape, r) - z[:, None]
    near = torch.cat([p, -torch.ones_like(p[..., :1])], 2)
    ray = torch.cat([-p.mean(1), torch.zeros_like(z[:, :1])], 1)
    plane = ray / (ray * ray).sum(1, keepdim=True).clamp(min=1e-300)
    price = torch.bmm(near, plane[..., None])[..., 0]
    plane[:, -1] = 2 * price.amax(1) - price.mean(1)
    weights = torch.full_like(price, 1 / price.shape[1])
    reach, slack = -torch.ones_like(z[:, 0]), plane[:, -1:] - price
    return Search(row, z, near, ray, weights, reach, plane, slack)


def _ask(
    prices: Prices, found: Quick, row: Tensor, z: Tensor, w: Tensor, known: Tensor, t: Tensor,
    tol: float,
) -> tuple[Tensor, int]:  # fmt: skip
    """Points p with <w, p> > max(t, 0), up to tol: ids (k, PICKS), -1 where free; the pairs priced.

    known: a price <w, p> that is known to be met. Queries for which no point comes near <w, p> = 0
    are outside: that is written into `found`, in their rows.
    """
    length = w.norm(dim=1).clamp(min=1e-300)
    w, height, zero = w / length[:, None], (w * z).sum(1) / length, torch.zeros_like(row)
    line, known = height + t.clamp(min=0) / length, torch.minimum(height, height + known / length)
    asked, pairs = Question(w, line - tol, known, zero, zero + prices.n), 0
    ids, top = zero[:, None].repeat(1, PICKS) - 1, known.clone()
    left = torch.arange(len(row), device=row.device)
    for tier in (0, 1):
        beyond = prices.points_beyond(Question(*(part[left] for part in asked)), tier)
        ids[left], top[left] = beyond.ids, torch.maximum(top[left], beyond.top)
        pairs += beyond.pairs
        left = left[(beyond.ids < 0).all(1)]
        if beyond.whole or not len(left):
            break
    gap = height - top
    out = gap > CLEAR * max(tol, TINY) * (prices.cloud.radius + z.norm(dim=1))
    out &= (ids < 0).all(1)
    found.sure[row[out]], found.entry[row[out]] = True, prices.n + 1
    found.y[row[out]], found.gap[row[out]] = -w[out], gap[out]
    return ids, pairs


def _beyond(prices: Prices, found: Quick, q: Search, tol: float) -> int:
    """Where a whole working set has <w, p> < 0, take in points that have not; the pairs priced."""
    top = q.plane[:, -1] - q.slack.amin(1)
    k = (top < 0).nonzero()[:, 0]
    if not len(k):
        return 0
    w, t = q.plane[k, :-1], q.plane[k, -1]
    ids, pairs = _ask(prices, found, q.row[k], q.z[k], w, top[k], t, tol)
    some = (ids >= 0).any(1)
    k, ids, w, t = k[some], ids[some], w[some], t[some]
    if not len(k):
        return pairs
    ids = ids.sort(1, descending=True)[0]  # those that are free last
    ids = ids[:, : min(int((ids >= 0).sum(1).max()), max(q.z.shape[1], NEW), q.near.shape[1])]
    places = (q.weights[k] / q.slack[k]).topk(ids.shape[1], 1, largest=False)[1]
    mu = (q.weights[k] * q.slack[k]).mean(1)
    i, j = (ids >= 0).nonzero(as_tuple=True)
    rows, at = k[i], places[i, j]
    p = prices.x.index_select(0, ids[i, j]) - q.z[rows]
    price = (p * w[i]).sum(1)
    furthest = t.scatter_reduce(0, i, price, "amax", include_self=False)
    higher = torch.maximum(t, 2 * furthest - t)  # t rises as far above the furthest as it lay below
    q.plane[k, -1] = higher
    q.slack[k] += (higher - t)[:, None]
    q.near[rows, at, :-1], q.slack[rows, at] = p, higher[i] - price
    q.weights[rows, at] = mu[i] / q.slack[rows, at]
    return pairs


def _step(q: Search) -> tuple[Tensor, Tensor]:
    """A step of Mehrotra's for each query: (m,) which are inside, and which can go on.

    With D = diag(a / s), Newton's equations leave  P' D P dv = c dlambda + g,  <c, dv> = 0.
    """
    a, s, p = q.weights, q.slack, q.near
    d, mu = a / s, (a * s).mean(1, keepdim=True)
    matrix = torch.bmm((p * d[..., None]).mT, p)
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    diagonal.add_(1e-13 * diagonal.mean(1, keepdim=True))  # points may depend on each other
    root, failed = torch.linalg.cholesky_ex(matrix)
    lack = q.reach[:, None] * q.ray + _lack(a, p)

    def towards(product: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Changes of a, lambda, v, s: both sums hold and, to first order, a s grows by product."""
        g = lack - _sum(product / s, p)
        u, h = torch.cholesky_solve(torch.stack([q.ray, g], 2), root).unbind(2)
        reach = -(q.ray * h).sum(1) / (q.ray * u).sum(1)
        plane = h + reach[:, None] * u
        slack = -torch.bmm(p, plane[..., None])[..., 0]
        return product / s - d * slack, reach, plane, slack

    da, _, _, ds = towards(-a * s)  # mu = 0 at once: how far that leads tells what to aim at
    there = (a + _share(a, da) * da) * (s + _share(s, ds) * ds)
    aim = mu * (there.mean(1, keepdim=True) / mu) ** 3
    da, reach, dv, ds = towards(aim - a * s - da * ds)
    step = _share(a, da, SHORT)
    arrives = q.reach + step[:, 0] * reach
    inside = torch.zeros_like(failed).bool()
    k = (arrives >= 0).nonzero()[:, 0]
    if len(k):
        stop = torch.minimum(step[k, 0], -q.reach[k] / reach[k])[:, None]
        inside[k] = _enclosed(p[k], d[k], root[k], a[k] + stop * da[k])
    q.weights, q.reach = a + step * da, arrives
    step = _share(s, ds, SHORT)
    q.plane, q.slack = q.plane + step * dv, s + step * ds
    good = (failed == 0) & q.plane.isfinite().all(1) & q.weights.isfinite().all(1)
    return inside & good, good


def _sum(a: Tensor, p: Tensor) -> Tensor:
    """sum_j a_j p_j: (m, k), (m, k, r) -> (m, r)."""
    return torch.bmm(a[:, None], p)[:, 0]


def _lack(a: Tensor, p: Tensor) -> Tensor:
    """By how much weights miss sum_j a_j (p_j, -1) = (0, -1)."""
    lack = -_sum(a, p)
    lack[:, -1] -= 1
    return lack


def _share(value: Tensor, change: Tensor, short: float = 1.0) -> Tensor:  # (m, 1)
    """How much of a change takes the first of positive values (m, k) to zero, times short; or all."""
    share = torch.where(change < 0, -value / change, torch.inf).amin(1, keepdim=True)
    return (short * share).clamp(max=1)


def _enclosed(p: Tensor, d: Tensor, root: Tensor, a: Tensor) -> Tensor:  # (k,) bool
    """Whether weights next to a put zero in the hull of the working set."""
    for _ in range(3):  # the second and third take away what rounding has left
        u = torch.cholesky_solve(_lack(a, p)[..., None], root)
        a = a + d * torch.bmm(p, u)[..., 0]
    p = p[..., :-1]
    distance = _sum(a, p).norm(dim=1) / (a * p.norm(dim=2)).sum(1)
    return (a >= 0).all(1) & (distance <= TINY)
