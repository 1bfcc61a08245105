"""Wolfe's method for many queries in lock-step, each at its own pace, with a price list.

Pool     queries against a cloud: `run` answers them all
State    where each query is

The best vertex is looked for in a small working set; all points are asked only when the working
set has nothing to say (column generation). What a step does is in `core`.
"""

import dataclasses

import torch
from torch import Tensor

from collage.convex_hull.core import Corral, blocking, exchange, minimiser, settle
from collage.convex_hull.fast.careful import TINY, careful
from collage.convex_hull.fast.prices import Prices, Question
from collage.convex_hull.fast.working_set import WorkingSet, take

RUN, OUT, IN, STUCK, DONE = range(5)
ROUNDS = 5000  # a query that has been served so often will never end
SPARE = 43  # places in the working set beside the corral
FIRST = 64  # a first segment no longer than that is the working set to begin with
FRESH = 24  # exchanges after which the inverse is computed anew
PATIENCE = 4  # serve when so few run: one of four


@dataclasses.dataclass
class State(Corral):
    """One row a query; the members of the corral are places of the working set."""

    row: Tensor  # (m,) its number in the pool
    status: Tensor  # (m,) RUN; or it waits: OUT, IN (of what it knows), STUCK; or DONE
    z: Tensor  # (m, r)
    y: Tensor  # (m, r) the point of the corral's hull nearest to z, seen from z
    again: Tensor  # (m,) bool: the inverse has just been computed anew for want of progress
    age: Tensor  # (m,) exchanges since the inverse was computed anew
    spent: Tensor  # (m,) steps since it was last served
    rounds: Tensor  # (m,) how often it was served
    gap: Tensor  # (m,) the margin of y over all points asked so far
    stage: Tensor  # (m,) which of the stages it is at
    limit: Tensor  # (m,) points of a lower index count: the stage's, or fewer
    fresh: Tensor  # (m,) the first segment of the prices that y was not tried on
    low: Tensor  # (m,) the largest prefix known to leave z out
    high: Tensor  # (m,) a prefix known to hold it


class Pool:
    """Queries z (m, r) against the points of `prices`; `run` answers them all.

    Goes up through the stages, rising numbers of points, until the first so many hold z. With one
    stage it decides. descend=True then finds the smallest n such that z lies
    in the hull of the first n points: it leaves out the last point of the certificate until that
    cannot be done. slack: stop at y where <p_j, y> >= slack |y|^2 for all vertices p_j; any
    positive value proves that z is outside, one near 1 makes y the nearest point. unit=True scales
    each p_j = x_j - z to length one, which changes no answer and keeps near and far points
    comparable.

    Results: entry (m,), the stage or the smallest n, N + 1 where outside; y (m, r), the last
    direction that left z out; gap (m,), the margin of that; support, weights (m, r + 1); pairs,
    how many pairs of a point and a query were priced; fine (m,), False where float64 was not
    enough to finish.
    """

    def __init__(
        self, prices: Prices, z: Tensor, stages: list[int], *, descend: bool = False,
        tol: float = 1e-9, slack: float = 0.1, unit: bool = True,
    ) -> None:  # fmt: skip
        m, r = z.shape
        c, preload = r + 1, stages[0] <= FIRST
        k = c + max(SPARE, r, stages[0] if preload else 0)
        self.prices, self.tol, self.slack, self.unit = prices, tol, slack, unit
        self.descend, self.c, self.pairs, self.alive = descend, c, 0, m
        self.stages = torch.tensor(stages, device=z.device)

        def whole(*shape: int, fill: int = 0) -> Tensor:
            return torch.full(shape, fill, device=z.device)

        self.entry = whole(m, fill=prices.n + 1)
        self.y, self.gap = -z, z.new_zeros(m)
        self.support, self.weights = whole(m, c, fill=-1), z.new_zeros(m, c)
        self.fine = whole(m, fill=1).bool()
        b = min(c, 16)  # room in the corral: it grows with what is needed
        self.q = State(
            members=whole(m, b, fill=-1), weights=z.new_zeros(m, b), vertices=z.new_zeros(m, b, r),
            inverse=z.new_zeros(m, b, b), row=torch.arange(m, device=z.device),
            status=whole(m, fill=OUT), z=z, y=-z, again=whole(m).bool(), age=whole(m),
            spent=whole(m), rounds=whole(m), gap=z.new_zeros(m), stage=whole(m),
            limit=whole(m, fill=stages[0]), fresh=whole(m), low=whole(m),
            high=whole(m, fill=prices.n + 1),
        )  # fmt: skip
        self.work = WorkingSet.empty(z, k, unit)
        if preload:
            places = torch.arange(stages[0], device=z.device).expand(m, -1)
            self.work.put(self.q.row, places, places, prices.x, z, self.q.limit)
            self._start(self.q.row)

    def run(self) -> "Pool":
        """Step until most of the queries wait, serve those, and so on."""
        while self.alive:
            self._step()
            if int((self.q.status == RUN).sum()) * PATIENCE <= self.alive:
                self._serve()
        return self

    def _step(self) -> None:
        """One step of Wolfe's method for each running query: a vertex leaves, or the best joins."""
        self._grow()
        q, work = self.q, self.work
        run = q.status == RUN
        a = minimiser(q)
        step, place = blocking(q, a)
        drops = step < torch.inf
        moved = q.weights + step.clamp(max=1)[:, None] * (a - q.weights)
        q.weights = torch.where(run[:, None], moved, q.weights)
        q.y = torch.where(run[:, None], q.point, q.y)
        best, j = work.best(q.y)
        distance = _distance(q, work.scale)
        inside = distance <= TINY
        ends = ~drops & (inside | (best >= self.slack * (q.y * q.y).sum(1)))
        vertex = work.near.gather(1, j[:, None, None].expand(-1, 1, q.z.shape[1]))[:, 0]
        change = exchange(q, drops, place, j, vertex)
        # the best vertex is in the corral already, or has no room: the inverse has drifted, and if
        # a new one does not help, rounding has won
        held = (
            (q.members == j[:, None]).any(1) | q.on.all(1) | ~((change.s > 0) & (change.s < 1e14))
        )
        held &= ~(drops | ends)
        q.spent += 1
        tired = q.spent > 50 + 10 * self.c
        stuck = torch.where(distance <= self.tol, IN, STUCK)
        status = torch.where((held & q.again) | tired, stuck, RUN)
        status = torch.where(ends, torch.where(inside, IN, OUT), status)
        q.status = torch.where(run, status, q.status)
        go = run & ~(ends | held | tired)
        settle(q, go, change)
        q.age += go
        q.again = held
        old = ((held & run) | (q.age >= FRESH)).nonzero()[:, 0]
        if len(old):
            q.renew(old)
            q.age[old] = 0

    def _grow(self) -> None:
        """Make room for another vertex where a corral is full."""
        q, width = self.q, self.q.members.shape[1]
        if width < self.c and bool(q.on.all(1).any()):
            extra = min(self.c, 2 * width) - width
            pad = torch.nn.functional.pad
            q.members = pad(q.members, (0, extra), value=-1)
            q.weights, q.vertices = pad(q.weights, (0, extra)), pad(q.vertices, (0, 0, 0, extra))
            q.inverse = pad(q.inverse, (0, extra, 0, extra))

    def _serve(self) -> None:
        """Answer, or send on, the queries that wait."""
        q = self.q
        self._refine((q.status == STUCK).nonzero()[:, 0])
        for i in (q.status == STUCK).nonzero()[:, 0].tolist():
            self._alone(i)
        waiting = (q.status != RUN) & (q.status != DONE)
        q.spent.masked_fill_(waiting, 0)
        q.rounds += waiting
        failed = (q.status == STUCK) | (waiting & (q.rounds > ROUNDS))
        self.fine[q.row[failed]] = False
        q.status.masked_fill_(failed, DONE)
        self._inside((q.status == IN).nonzero()[:, 0])
        waiting = (q.status == OUT).nonzero()[:, 0]
        while len(waiting):
            waiting = self._outside(waiting)
        left = (q.status != DONE).nonzero()[:, 0]
        self.alive = len(left)
        if 3 * self.alive <= 2 * len(q.row):
            self.q, self.work = take(q, left), take(self.work, left)

    def _refine(self, k: Tensor) -> None:
        """Weights of stuck queries again, by iterative refinement: are they inside after all?"""
        if not len(k):
            return
        q = take(self.q, k)
        for _ in range(3):
            g = torch.bmm(q.vertices, q.point[..., None])[..., 0]
            mean = g.sum(1, keepdim=True) / q.on.sum(1, keepdim=True)
            g = torch.where(q.on, g - mean, 0.0)
            a = q.weights - torch.bmm(q.inverse, g[..., None])[..., 0]
            q.weights = a / a.sum(1, keepdim=True)
        q.y = q.point
        good = (_distance(q, self.work.scale[k]) <= TINY) & (~q.on | (q.weights > 0)).all(1)
        self.q.weights[k[good]], self.q.status[k[good]] = q.weights[good], IN

    def _inside(self, k: Tensor) -> None:
        """The corral holds these queries: keep it, and that is all; or try without its last point."""
        if not len(k):
            return
        q = take(self.q, k)
        # weights polished once: the residual falls to rounding
        y = q.point
        a = q.weights - torch.bmm(q.inverse, torch.bmm(q.vertices, y[..., None]))[..., 0]
        better = torch.bmm(a[:, None], q.vertices)[:, 0].norm(dim=1) < y.norm(dim=1)
        a = torch.where((better & (a >= 0).all(1))[:, None], a, q.weights)
        seat, room = q.members.clamp(min=0), q.members.shape[1]
        ids = torch.where(q.on, self.work.index[k].gather(1, seat), -1)
        weights = torch.where(q.on, a * self.work.scale[k].gather(1, seat), 0.0)
        last, place = ids.max(1)
        self.entry[q.row] = last + 1 if self.descend else q.limit
        self.support[q.row], self.weights[q.row] = -1, 0.0
        self.support[q.row, :room] = ids
        self.weights[q.row, :room] = weights / weights.sum(1, keepdim=True)
        ready = last <= q.low if self.descend else torch.ones_like(last).bool()
        self.q.status[k[ready]] = DONE
        self._without(k[~ready], last[~ready], place[~ready])

    def _without(self, k: Tensor, last: Tensor, place: Tensor) -> None:
        """Go on without the last point of the corral, and without all that come after it."""
        if not len(k):
            return
        q, work = self.q, self.work
        q.high[k], q.limit[k], q.fresh[k] = last + 1, last, 0
        counts = (work.index[k] >= 0) & (work.index[k] < last[:, None])
        work.barred[k] = torch.where(counts, 0.0, torch.inf).to(work.barred)
        column = q.inverse[k, place]
        share = column / column.gather(1, place[:, None])
        q.inverse[k] -= column[:, :, None] * share[:, None]
        q.free(k, place)
        total = q.weights[k].sum(1)
        q.weights[k] /= total.clamp(min=1e-300)[:, None]
        q.status[k], q.again[k] = RUN, False
        self._start(k[~(total > 1e-9)])

    def _outside(self, k: Tensor) -> Tensor:
        """The working set leaves these queries out: ask all points. Returns who goes up."""
        q, radius = self.q, self.prices.cloud.radius
        for tier in (0, 1):
            asked = self._question(k)
            top = (q.z[k] * asked.w).sum(1)  # how far the query lies in the direction
            found = self.prices.points_beyond(asked, tier)
            ids, gap = found.ids, top - found.top
            self.pairs += found.pairs
            # those of the working set have had their say: ask for others beyond them
            again = self.work.holds(k, ids).nonzero()[:, 0]
            if len(again):
                rest = Question(*(t[again] for t in asked))
                higher = top[again] if self.unit else rest.height + 1e-12 * radius
                second = self.prices.points_beyond(rest._replace(height=higher), tier)
                ids[again], gap[again] = second.ids, top[again] - second.top
                self.pairs += second.pairs
                if not self.unit:
                    ids[self.work.holds(k, ids)] = -1
            before = torch.inf if tier == 0 else q.gap[k]
            before = torch.where(q.fresh[k] > 0, q.gap[k], before)
            q.gap[k] = torch.minimum(before, gap)
            clear = (ids < 0).all(1)
            self._add(k[~clear], ids[~clear])
            k = k[clear]
            if found.whole or not len(k):
                break
        return self._left_out(k)

    def _question(self, k: Tensor) -> Question:
        """Which points lie on the far side of the plane through y?"""
        q = take(self.q, k)
        length = q.y.norm(dim=1)
        w = -q.y / length.clamp(min=1e-300)[:, None]
        height = (w * q.z).sum(1)
        own = torch.bmm(q.vertices, w[..., None])[..., 0]
        own = own / self.work.scale[k].gather(1, q.members.clamp(min=0))
        known = torch.where(q.on, own, -torch.inf).amax(1) + height
        if self.unit:  # points closer to the plane than the tolerance belong to the problem
            plane = height - self.tol
        else:
            plane = height - self.slack * length
            plane = torch.where(q.on.any(1), plane, -2 * self.prices.cloud.radius)  # any will do
        return Question(w, plane, torch.minimum(known, height), q.fresh, q.limit)

    def _left_out(self, k: Tensor) -> Tensor:
        """All points that count leave these queries out. Returns who goes up to more points."""
        if not len(k):
            return k
        q = take(self.q, k)
        # outside by less than the tolerance counts as inside
        close = (_distance(q, self.work.scale[k]) <= self.tol) & q.on.any(1)
        if close.any():
            self._inside(k[close])
            k, q = k[~close], take(q, (~close).nonzero()[:, 0])
        self.y[q.row], self.gap[q.row], self.q.low[k] = q.y, q.gap, q.limit
        ends = (q.high <= self.prices.n) | (q.limit >= self.stages[-1])
        self.q.status[k[ends]] = DONE
        up, stage = k[~ends], q.stage[~ends] + 1
        self.q.stage[up], self.q.limit[up] = stage, self.stages[stage]
        self.q.fresh[up] = self.prices.segment(q.limit[~ends])
        return up

    def _add(self, k: Tensor, ids: Tensor) -> None:
        """Take points into the working set, and go on."""
        if not len(k):
            return
        q, members = self.q, self.q.members[k]
        self.work.add(k, ids, q.y[k], members, self.prices.x, q.z[k], q.limit[k])
        q.fresh[k], q.status[k], q.again[k] = 0, RUN, False
        self._start(k[(members < 0).all(1)])

    def _start(self, k: Tensor) -> None:
        """Begin with the one vertex furthest towards the hull; with none, the query is outside."""
        if not len(k):
            return
        q, work = self.q, self.work
        best, j = take(work, k).best(q.y[k])
        some = best < torch.inf
        q.begin(k, torch.where(some, j, -1), torch.where(some[:, None], work.near[k, j], 0.0))
        q.status[k] = torch.where(some, RUN, OUT)

    def _alone(self, i: int) -> None:
        """One query, by `careful`; still stuck where that does not help."""
        q, work = self.q, self.work
        places = (work.barred[i] == 0).nonzero()[:, 0]
        found = careful(work.near[i, places], work.scale[i, places], self.tol, self.slack, self.c)
        if found is None:
            return
        inside, taken, weights, y = found
        n, members = len(taken), places[taken]
        while q.members.shape[1] < n:
            q.members[i] = 0  # full
            self._grow()
        q.status[i], q.y[i] = IN if inside else OUT, y
        q.members[i], q.weights[i], q.vertices[i] = -1, 0.0, 0.0
        q.members[i, :n], q.weights[i, :n] = members, weights
        q.vertices[i, :n] = work.near[i, members]
        q.renew(torch.tensor([i], device=members.device))


def _distance(q: State, scale: Tensor) -> Tensor:  # (m,)
    """|y| in units of the mean distance of the corral's vertices, whose 1 / |x - z| is in scale."""
    mean = (q.weights * scale.gather(1, q.members.clamp(min=0))).sum(1)
    return q.y.norm(dim=1) / mean
