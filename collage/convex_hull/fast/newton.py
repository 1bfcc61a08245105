"""Most decisions in a few steps: Newton's method on a smooth function that is bounded only inside.

quick     those queries that it settles, with what proves it
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

SPARE = 40  # places in the working set beside the extreme points, at the least
STEPS = 5  # of Newton's method before points are asked for again
ROUNDS = 12  # how often points are asked for; a query that is open then is left to others
CAUTION = 0.1  # of the gradient's length, added to the Hessian
LENGTHS = (1.0, 0.5, 0.25, 0.0625, 3.0)  # of the step, tried along its direction
CLEAR = 1e3  # tolerances by which a query must be outside; nearer ones are left to others


class Quick(NamedTuple):
    """Answers for some of the queries, as `Pool` gives them."""

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
    w: Tensor  # (m, r) the direction
    near: Tensor  # (m, k, r) the working set: p = x - z
    price: Tensor  # (m, k) <w, p>; -inf where a place is free
    waits: Tensor  # (m,) bool: w leaves its working set behind; do all points agree?


def quick(prices: Prices, z: Tensor, tol: float) -> Quick:
    """Inside or outside, for queries z (m, r) that lie clearly on one side.

    F(w) = log sum_j exp <w, p_j>,  p_j = x_j - z

    falls for ever where the points do not enclose z, and w, once <w, p_j> < 0 for all of them, is
    the proof. Where they do, F has a minimum. The Newton step s to it tells weights before it is
    reached: with a_j ~ exp <w, p_j>, y = sum_j a_j p_j and H = sum_j a_j p_j p_j' - y y' = F'',
    b_j = a_j (1 + <s, p_j - y>) sum to one and sum_j b_j p_j = y + H s = 0. No b_j < 0: z is inside.
    The sum runs over a working set: points extreme along each axis, and those found beyond w.
    """
    x, n, m = prices.x, prices.n, len(z)
    none = torch.zeros(m, dtype=torch.bool, device=z.device)
    found = Quick(none, torch.full((m,), n, device=z.device), -z, z.new_zeros(m), 0)
    extreme = torch.cat([x.argmax(0), x.argmin(0)])
    near = torch.cat([x[extreme] - z[:, None], z.new_zeros(m, max(SPARE, z.shape[1]), z.shape[1])], 1)  # fmt: skip
    price = torch.bmm(near, z[..., None])[..., 0]
    price[:, len(extreme) :] = -torch.inf
    # for Gaussian points w = z would be the minimum
    q, pairs = Search(torch.arange(m, device=z.device), z, z, near, price, ~none), 0
    for _ in range(ROUNDS):
        if bool(q.waits.any()):
            left, priced = _ask(prices, q, found, tol)
            q, pairs = take(q, left), pairs + priced
        for _ in range(STEPS):
            if int((~q.waits).sum()) * 2 <= len(q.row):
                break
            inside = _step(q)
            found.sure[q.row[inside]] = True
            q = take(q, (~inside).nonzero()[:, 0])
        if not len(q.row):
            break
    sure = found.sure.nonzero()[:, 0]
    return Quick(sure, found.entry[sure], found.y[sure], found.gap[sure], pairs)


def _ask(prices: Prices, q: Search, found: Quick, tol: float) -> tuple[Tensor, int]:
    """Which points lie beyond w, for queries that wait? Returns which go on, and the pairs priced."""
    k = q.waits.nonzero()[:, 0]
    z, length = q.z[k], q.w[k].norm(dim=1).clamp(min=1e-300)
    w = q.w[k] / length[:, None]
    height = (w * z).sum(1)
    zero = torch.zeros_like(k)
    known = torch.minimum(height, height + q.price[k].amax(1) / length)
    asked, pairs = Question(w, height - tol, known, zero, zero + prices.n), 0
    ids, top = torch.full((len(k), PICKS), -1, device=k.device), known.clone()
    left = torch.arange(len(k), device=k.device)
    for tier in (0, 1):
        beyond = prices.points_beyond(Question(*(t[left] for t in asked)), tier)
        ids[left], top[left] = beyond.ids, torch.maximum(top[left], beyond.top)
        pairs += beyond.pairs
        left = left[(beyond.ids < 0).all(1)]
        if beyond.whole or not len(left):
            break
    none, gap = (ids < 0).all(1), height - top
    out = none & (gap > CLEAR * max(tol, TINY) * (prices.cloud.radius + z.norm(dim=1)))
    rows = q.row[k[out]]
    found.sure[rows], found.entry[rows] = True, prices.n + 1
    found.y[rows], found.gap[rows] = -w[out], gap[out]
    _add(q, k[~none], ids[~none], prices.x)
    goes_on = torch.ones_like(q.waits)
    goes_on[k[none]] = False
    return goes_on.nonzero()[:, 0], pairs


def _add(q: Search, k: Tensor, ids: Tensor, x: Tensor) -> None:
    """Points x[ids] in place of those that lie deepest in the hull, for the queries k."""
    if not len(k):
        return
    ids = ids.sort(1, descending=True)[0][:, : int((ids >= 0).sum(1).max())]
    places = q.price[k].topk(ids.shape[1], 1, largest=False)[1]
    i, j = (ids >= 0).nonzero(as_tuple=True)
    rows, at = k[i], places[i, j]
    p = x.index_select(0, ids[i, j]) - q.z[rows]
    q.near[rows, at], q.price[rows, at] = p, (p * q.w[rows]).sum(1)
    q.waits[k] = False


def _step(q: Search) -> Tensor:  # (m,) bool
    """A Newton step for each query that does not wait; returns which are inside."""
    a = q.price.softmax(1)
    y = torch.bmm(a[:, None], q.near)[:, 0]
    hessian = torch.bmm((q.near * a[..., None]).mT, q.near) - y[..., None] * y[:, None]
    careful = hessian.clone()
    careful.diagonal(dim1=1, dim2=2).add_(CAUTION * y.norm(dim=1, keepdim=True))
    root, failed = torch.linalg.cholesky_ex(careful)
    s = -torch.cholesky_solve(y[..., None], root)[..., 0]
    good = (failed == 0) & s.isfinite().all(1)
    s = torch.where(good[:, None], s, -y)
    change = torch.bmm(q.near, s[..., None])[..., 0]
    b = 1 + change - (y * s).sum(1, keepdim=True)
    k = (good & (torch.where(a > 0, b, 1.0) >= 0).all(1)).nonzero()[:, 0]
    inside = torch.zeros_like(good)
    inside[k] = _enclosed(q.near[k], a[k], hessian[k])
    lengths = s.new_tensor(LENGTHS)
    there = q.price + lengths[:, None, None] * change
    t = torch.where(q.waits, 0.0, lengths[torch.logsumexp(there, 2).argmin(0)])[:, None]
    q.w, q.price = q.w + t * s, q.price + t * change
    q.waits = q.waits | (q.price.amax(1) < 0)
    return inside


def _enclosed(p: Tensor, a: Tensor, hessian: Tensor) -> Tensor:  # (k,) bool
    """Whether a Newton step from weights a (k, j) leads to weights that put zero in the hull of p."""
    mean = hessian.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    hessian.diagonal(dim1=1, dim2=2).add_(1e-13 * mean + 1e-300)
    root, failed = torch.linalg.cholesky_ex(hessian)
    b, y = a, torch.bmm(a[:, None], p)[:, 0]
    for _ in range(3):  # the second and third take away what rounding has left
        change = torch.bmm(p, torch.cholesky_solve(y[..., None], root))[..., 0]
        b = b - a * (change - (a * change).sum(1, keepdim=True))
        y = torch.bmm(b[:, None], p)[:, 0]
    distance = y.norm(dim=1) / (b * p.norm(dim=2)).sum(1)
    return (failed == 0) & (b >= 0).all(1) & (distance <= TINY)
