"""Wolfe's method: the nearest point of a convex hull to a query, and with it every answer.

wolfe                nearest points, a batch of queries in lock-step
Corral               the vertices that a query holds, their weights and an inverse matrix
minimiser            the best affine average of a corral
blocking             how far the weights may go towards it
join, drop           what either does to the inverse: a rank-one change
exchange, settle     the one or the other for each query; carried out
Exchange             what they pass on

z lies in the hull of x_1 ... x_N, z = sum_i a_i x_i with a >= 0 and sum_i a_i = 1, exactly where
the nearest point is z itself; where it is not, the direction from it to z is the proof.
Source: arXiv 2110.09485, definition 1; Wolfe, "Finding the nearest point in a polytope",
Mathematical Programming 11, 1976.
"""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor


def wolfe(
    points: Tensor,  # (N, d), or a cloud for each query (M, N, d)
    queries: Tensor,  # (M, d)
    tol: float = 1e-9,
) -> Tensor:  # (M, d)
    """Nearest point y of the hull of p_i = x_i - z to the origin: y = 0 if z is inside.

    Move to the affine minimiser of the corral. If a weight would turn negative, go only as far as
    it allows, and drop that vertex. If none would, the vertex furthest beyond the plane through y
    joins. If none is beyond, <p_i, y> >= |y|^2 for all i, and y is nearest. All points are asked
    in every step: for many of them, use `membership` or `nearest`.

    >>> wolfe(torch.eye(2).double(), torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.5, 0.5]]).double())
    tensor([[ 0.5000,  0.5000],
            [-1.0000,  0.0000],
            [ 0.0000,  0.0000]], dtype=torch.float64)
    """
    p = (points - queries[:, None]).contiguous()
    rows, before = torch.arange(len(p), device=p.device), p.new_full(p.shape[:1], torch.inf)
    first, going = p.square().sum(2).argmin(1), torch.ones_like(rows).bool()
    corral = Corral.empty(p, room=p.shape[2] + 1)
    corral.begin(rows, first, p[rows, first])
    while True:
        a = minimiser(corral)
        step, place = blocking(corral, a)
        moved = corral.weights + step.clamp(max=1)[:, None] * (a - corral.weights)
        corral.weights = torch.where(going[:, None], moved, corral.weights)
        y, drops = corral.point, step < torch.inf
        best, far = torch.bmm(p, y[..., None])[..., 0].min(1)
        length = y.norm(dim=1)
        held = (corral.members == far[:, None]).any(1)  # by rounding: it cannot lie beyond
        beyond = (best < (1 - 1e-10) * length**2) & ~corral.on.all(1) & ~held
        # no nearer than before: rounding has won, and going on would be a cycle
        going &= drops | (length > tol) & (length < before) & beyond
        if not going.any():
            return y
        before = torch.where(drops, before, length)
        settle(corral, going, exchange(corral, drops, place, far, p[rows, far]))
        corral.renew(rows)


@dataclasses.dataclass
class Corral:
    """Up to C affinely independent vertices p_j = x_j - z for each of M queries z."""

    members: Tensor  # (M, C) which point is at a place; -1 where it is free
    weights: Tensor  # (M, C) a >= 0 of sum 1; zero where free
    vertices: Tensor  # (M, C, d) P, the rows p_j; zero where free
    inverse: Tensor  # (M, C, C) (P P' + 1 1')^-1 over the taken places; zero elsewhere

    @staticmethod
    def empty(like: Tensor, room: int) -> "Corral":
        """Room for so many vertices of a tensor like (M, ..., d)."""
        m, d = len(like), like.shape[-1]
        return Corral(torch.full((m, room), -1, device=like.device), like.new_zeros(m, room),
                      like.new_zeros(m, room, d), like.new_zeros(m, room, room))  # fmt: skip

    @property
    def on(self) -> Tensor:  # (M, C)
        """Which places are taken."""
        return self.members >= 0

    @property
    def point(self) -> Tensor:  # (M, d)
        """y = sum_j a_j p_j."""
        return torch.bmm(self.weights[:, None], self.vertices)[:, 0]

    def begin(self, k: Tensor, member: Tensor, vertex: Tensor) -> None:
        """Queries k start again from one vertex (k, d)."""
        none, zero = self.members.new_full((), -1), self.weights.new_zeros(())  # as in `free`
        self.members[k], self.weights[k], self.vertices[k], self.inverse[k] = none, zero, zero, zero
        self.members[k, 0], self.weights[k, 0], self.vertices[k, 0] = member, zero + 1, vertex
        self.inverse[k, 0, 0] = 1 / (1 + vertex.square().sum(1))

    def free(self, k: Tensor, place: Tensor) -> None:
        """Zeros for queries k where a vertex has left its place."""
        # tensors: a plain number would be sent to a GPU, and waited for, at each assignment
        none, zero = self.members.new_full((), -1), self.weights.new_zeros(())
        self.members[k, place], self.weights[k, place], self.vertices[k, place] = none, zero, zero
        self.inverse[k, place], self.inverse[k, :, place] = zero, zero

    def renew(self, k: Tensor) -> None:
        """The inverse of queries k anew, without what rounding has added up."""
        vertices, on = self.vertices[k], self.on[k]
        both = on[:, :, None] & on[:, None]
        gram = torch.where(both, vertices @ vertices.mT + 1, 0.0)
        gram.diagonal(dim1=1, dim2=2).masked_fill_(~on, 1.0)
        self.inverse[k] = torch.where(both, torch.linalg.inv_ex(gram)[0], 0.0)


def minimiser(corral: Corral) -> Tensor:  # (M, C)
    """argmin { |a' P|^2 : sum_j a_j = 1 }: (P P' + 1 1') a is the same for all places."""
    a = corral.inverse.sum(2)
    return a / a.sum(1, keepdim=True)


def blocking(corral: Corral, a: Tensor) -> tuple[Tensor, Tensor]:
    """Step (M,) to the first weight that vanishes on the way to a, and its place; inf if none."""
    ratio = corral.weights / (corral.weights - a).clamp(min=1e-300)
    ratio = torch.where(corral.on & (a <= 1e-14), ratio, torch.inf)
    step, place = ratio.min(1)
    return step, place


def join(corral: Corral, place: Tensor, vertex: Tensor) -> tuple[Tensor, Tensor]:
    """A vertex p joins at a free place: the inverse becomes inverse + s u u'.

    [G g; g' c]^-1 by blocks, with G = P P' + 1 1', g = P p + 1, c = p' p + 1:
        u = (G^-1 g, -1),  s = 1 / (c - g' G^-1 g)
    """
    g = torch.bmm(corral.vertices, vertex[..., None])[..., 0] + corral.on
    u = torch.bmm(corral.inverse, g[..., None])[..., 0]
    s = 1 / ((vertex * vertex).sum(1) + 1 - (g * u).sum(1))
    return u.scatter_(1, place[:, None], -1.0), s


def drop(corral: Corral, place: Tensor) -> tuple[Tensor, Tensor]:
    """The vertex at a place leaves: the same backwards, from that row of the inverse."""
    row = place[:, None, None].expand(-1, 1, corral.inverse.shape[1])
    u = corral.inverse.gather(1, row)[:, 0]
    return u, -1 / u.gather(1, place[:, None])[:, 0]


class Exchange(NamedTuple):
    """For each query: the vertex at a place leaves, or another one takes the place."""

    drops: Tensor  # (M,) bool
    place: Tensor  # (M,)
    member: Tensor  # (M,) the one that takes it
    vertex: Tensor  # (M, d)
    u: Tensor  # (M, C)
    s: Tensor  # (M,)


def exchange(
    corral: Corral,
    drops: Tensor,  # (M,) bool
    place: Tensor,  # (M,) where it drops; it joins at a free place
    member: Tensor,  # (M,)
    vertex: Tensor,  # (M, d)
) -> Exchange:
    """`drop` for some queries, `join` for the others."""
    place = torch.where(drops, place, corral.on.byte().argmin(1))
    (u, s), (left_u, left_s) = join(corral, place, vertex), drop(corral, place)
    u, s = torch.where(drops[:, None], left_u, u), torch.where(drops, left_s, s)
    return Exchange(drops, place, member, vertex, u, s)


def settle(corral: Corral, go: Tensor, change: Exchange) -> None:
    """Carry the exchange out for the queries of the mask go (M,)."""
    drops, place, member, vertex, u, s = change
    u, s = torch.where(go[:, None], u, 0.0), torch.where(go, s, 0.0)
    corral.inverse.addcmul_(u[:, :, None], (u * s[:, None])[:, None])
    at, joins = place[:, None], (go & ~drops)[:, None]
    deep = at[..., None].expand(-1, 1, vertex.shape[1])
    member = torch.where(joins, member[:, None], corral.members.gather(1, at))
    vertex = torch.where(joins[..., None], vertex[:, None], corral.vertices.gather(1, deep))
    corral.members.scatter_(1, at, member)
    corral.vertices.scatter_(1, deep, vertex)
    leave = (go & drops).nonzero()[:, 0]
    if len(leave):
        corral.free(leave, place[leave])
