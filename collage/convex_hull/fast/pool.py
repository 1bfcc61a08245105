"""Points of smallest norm in many hulls at once: Wolfe's method with a price list.

The hull of N points, seen from a query z, holds the origin or has a point y nearest to it. Wolfe
(1976) keeps a corral of at most d + 1 vertices and moves from one affine minimiser to the next;
here the best vertex is looked for in a small working set, and all N points are asked only when
the working set has nothing to say (column generation). `Pool` does this for many queries in
lock-step, each at its own pace.
"""

from types import SimpleNamespace

import torch

RUN, OUT, IN, STUCK = 0, 1, 2, 3
TINY = 1e-12  # what float64 leaves of zero
ROUNDS = 5000  # a query that has been served so often will never end
SPARE = 43  # places in the working set beside the corral


class Pool:
    """Queries z (m, r) against a `prices.Cloud`; `run` answers them all.

    entries=False decides z against all N points. entries=True finds the smallest n such that z
    lies in the hull of the first n points: it goes up through the segments of the cloud, and
    where z is inside it leaves out the last point of the certificate until that cannot be done.
    slack: stop at y where <p_j, y> >= slack |y|^2 for all vertices p_j; any positive value proves
    that z is outside, one near 1 makes y the nearest point. unit=True scales each p_j = x_j - z
    to length one, which changes no answer and keeps near and far points comparable.

    Results: entry (m,), N + 1 where outside; y (m, r), the last direction that left z out (of
    the first entry - 1 points); gap (m,), the margin of that; support, weights (m, r + 1); pairs,
    how many pairs of a point and a query were priced; fine (m,), False where float64 was not
    enough to finish.
    """

    def __init__(self, cloud, z, *, entries, tol=1e-9, slack=0.1, unit=True):
        m, r = z.shape
        c, first = r + 1, cloud.ends[0]
        k = c + max(SPARE, r, first if entries else 0)
        b = min(c, 16)  # room in the corral: it grows with what is needed
        self.cloud, self.tol, self.slack, self.unit = cloud, tol, slack, unit
        self.entries, self.c, self.pairs = entries, c, 0

        def new(*shape, fill=0):
            return torch.full(shape, fill, device=z.device)

        self.entry = new(m, fill=cloud.n + 1)
        self.y, self.gap = -z, z.new_zeros(m)
        self.support, self.weights = new(m, c, fill=-1), z.new_zeros(m, c)
        self.fine = new(m, fill=True)
        # idx, pt, reach, bar: the working set (k places), its vertices, 1 / lengths, who is barred
        # corral, on, lam, pts, inv: places, which are taken, weights, vertices, inverse Gram matrix
        # limit: below which index points count; fresh: the first segment that y was not tried on
        # low: the largest prefix known to leave z out; high: a prefix known to hold it
        self.q = SimpleNamespace(
            row=torch.arange(m, device=z.device), z=z, y=-z, status=new(m, fill=OUT),
            idx=new(m, k, fill=-1), pt=z.new_zeros(m, r, k), reach=z.new_ones(m, k),
            bar=z.new_full((m, k), torch.inf), corral=new(m, b), on=new(m, b, fill=False),
            lam=z.new_zeros(m, b), pts=z.new_zeros(m, b, r), inv=z.new_zeros(m, b, b),
            again=new(m, fill=False), age=new(m), spent=new(m), rounds=new(m), gap=z.new_zeros(m),
            limit=new(m, fill=cloud.n), level=new(m), fresh=new(m), low=new(m),
            high=new(m, fill=cloud.n + 1))  # fmt: skip
        if entries:  # the first segment is small: it is the working set to begin with
            every = self.q.row
            self.q.limit[:] = first
            self.q.idx[:, :first] = torch.arange(first, device=z.device)
            self._load(every, torch.arange(first, device=z.device).expand(m, first))
            self._start(every)

    def run(self):
        """Pivot until half of the queries wait, serve those, and so on."""
        while len(self.q.row):
            self._pivot()
            if int((self.q.status != RUN).sum()) * 2 >= len(self.q.row):
                self._serve()
        return self

    def _pivot(self):
        """One step of Wolfe's method for each running query: a vertex leaves, or the best joins."""
        self._grow()
        q, r = self.q, self.q.z.shape[1]
        run = q.status == RUN
        a = q.inv.sum(2)  # the affine minimiser of the corral, up to its sum
        a = a / a.sum(1, keepdim=True)
        step, gone = torch.where(q.on & (a <= 1e-14), q.lam / (q.lam - a), torch.inf).min(1)
        drop = step < torch.inf
        move = q.lam + step.clamp(max=1)[:, None] * (a - q.lam)
        q.lam = torch.where(q.on & run[:, None], move, q.lam)
        y = torch.bmm(q.lam[:, None], q.pts)
        best, j = (torch.bmm(y, q.pt)[:, 0] + q.bar).min(1)
        y = y[:, 0]
        q.y = torch.where(run[:, None], y, q.y)
        square = (y * y).sum(1)
        near = square.sqrt() / (q.lam * q.reach.gather(1, q.corral)).sum(1)
        inside, outside = ~drop & (near <= TINY), ~drop & (best >= self.slack * square)
        # the best vertex is in the corral already, or has no room: the inverse has drifted, and if
        # a new one does not help, rounding has won
        held = ((q.corral == j[:, None]) & q.on).any(1) | q.on.all(1)
        # one rank-one change of the inverse for each
        at = torch.where(drop, gone, q.on.byte().argmin(1))[:, None]
        new = q.pt.gather(2, j[:, None, None].expand(-1, r, 1))[..., 0]
        g = torch.bmm(q.pts, new[..., None])[..., 0] + q.on
        join = torch.bmm(q.inv, g[..., None])[..., 0]
        schur = (new * new).sum(1) + 1 - (g * join).sum(1)
        held = ~(drop | inside | outside) & (held | ~(schur > 1e-14))
        q.spent += 1
        tired = q.spent > 50 + 10 * self.c
        stuck = torch.where((held & q.again) | tired, torch.where(near <= self.tol, IN, STUCK), RUN)
        q.status = torch.where(run, torch.where(inside, IN, torch.where(outside, OUT, stuck)),
                               q.status)  # fmt: skip
        go = run & ~(inside | outside | held | tired)
        join.scatter_(1, at, -1.0)
        leave = q.inv.gather(1, at[..., None].expand(-1, 1, q.inv.shape[1]))[:, 0]
        v = torch.where(go[:, None], torch.where(drop[:, None], leave, join), 0.0)
        weight = torch.where(drop, -1 / leave.gather(1, at)[:, 0], 1 / schur)
        weight = torch.where(go, weight, 0.0)
        q.inv.baddbmm_(v[..., None], (v * weight[:, None])[:, None])
        q.on.scatter_(1, at, torch.where(go[:, None], ~drop[:, None], q.on.gather(1, at)))
        q.corral.scatter_(1, at, torch.where(go[:, None], j[:, None], q.corral.gather(1, at)))
        here = at[..., None].expand(-1, 1, r)
        q.pts.scatter_(1, here, torch.where(go[:, None, None], new[:, None], q.pts.gather(1, here)))
        self._clear((go & drop).nonzero()[:, 0], gone)
        q.age += go
        old = ((held & run) | (q.age >= 24)).nonzero()[:, 0]
        if len(old):
            q.inv[old] = _inverse(q.pts[old], q.on[old])
            q.age[old] = 0
        q.again = held

    def _grow(self):
        """Make room for another vertex where a corral is full."""
        q, have = self.q, self.q.on.shape[1]
        if have < self.c and bool(q.on.all(1).any()):
            more = min(self.c, 2 * have) - have
            pad = torch.nn.functional.pad
            q.corral, q.lam = pad(q.corral, (0, more)), pad(q.lam, (0, more))
            q.on, q.pts = pad(q.on, (0, more)), pad(q.pts, (0, 0, 0, more))
            q.inv = pad(q.inv, (0, more, 0, more))

    def _clear(self, k, place):
        """Empty one place in the corral of queries k."""
        q, place = self.q, place[k]
        q.inv[k, place], q.inv[k, :, place] = 0.0, 0.0
        q.lam[k, place], q.pts[k, place], q.on[k, place] = 0.0, 0.0, False

    def _serve(self):
        """Answer, or send on, the queries that wait."""
        q = self.q
        self._refine((q.status == STUCK).nonzero()[:, 0])
        for i in (q.status == STUCK).nonzero()[:, 0].tolist():
            self._alone(i)
        waiting = q.status != RUN
        q.spent[waiting] = 0
        q.rounds += waiting
        done = (q.status == STUCK) | (q.rounds > ROUNDS)
        self.fine[q.row[done]] = False
        self._inside(((q.status == IN) & ~done).nonzero()[:, 0], done)
        waiting = ((q.status == OUT) & ~done).nonzero()[:, 0]
        while len(waiting):
            waiting = self._outside(waiting, done)
        if done.any():
            keep = (~done).nonzero()[:, 0]
            for name, t in vars(q).items():
                setattr(q, name, t.index_select(0, keep))

    def _refine(self, k):
        """Weights of stuck queries again, by iterative refinement: are they inside after all?"""
        q = self.q
        if not len(k):
            return
        a, p, on, inv = q.lam[k], q.pts[k], q.on[k], q.inv[k]
        for _ in range(3):
            g = torch.bmm(p, torch.bmm(a[:, None], p).mT)[..., 0]
            g = torch.where(on, g - g.sum(1, keepdim=True) / on.sum(1, keepdim=True), 0.0)
            a = a - torch.bmm(inv, g[..., None])[..., 0]
            a = a / a.sum(1, keepdim=True)
        near = torch.bmm(a[:, None], p)[:, 0].norm(dim=1)
        near = near / (a * q.reach[k].gather(1, q.corral[k])).sum(1)
        good = (near <= TINY) & (~on | (a > 0)).all(1)
        q.lam[k[good]], q.status[k[good]] = a[good], IN

    def _inside(self, k, done):
        """The corral holds these queries: keep it, and try without its last point."""
        q = self.q
        if not len(k):
            return
        # weights polished once: the residual falls to rounding
        a = q.lam[k]
        y = torch.bmm(a[:, None], q.pts[k])
        a = a - torch.bmm(q.inv[k], torch.bmm(q.pts[k], y.mT))[..., 0]
        better = torch.bmm(a[:, None], q.pts[k]).norm(dim=(1, 2)) < y.norm(dim=(1, 2))
        a = torch.where((better & (a >= 0).all(1))[:, None], a, q.lam[k])
        ids = torch.where(q.on[k], q.idx[k].gather(1, q.corral[k]), -1)
        weight = torch.where(q.on[k], a * q.reach[k].gather(1, q.corral[k]), 0.0)
        row, (last, place) = q.row[k], ids.max(1)
        room = ids.shape[1]
        self.entry[row], self.support[row], self.weights[row] = last + 1, -1, 0.0
        self.support[row, :room] = ids
        self.weights[row, :room] = weight / weight.sum(1, keepdim=True)
        ready = (last <= q.low[k]) if self.entries else torch.ones_like(last, dtype=torch.bool)
        done[k[ready]] = True
        k, last, place = k[~ready], last[~ready], place[~ready]
        if not len(k):
            return
        q.high[k], q.limit[k], q.fresh[k] = last + 1, last, 0
        q.bar[k] = torch.where((q.idx[k] >= 0) & (q.idx[k] < last[:, None]), 0.0, torch.inf).to(a)
        column = q.inv[k, place]
        q.inv[k] -= column[:, :, None] * (column / column.gather(1, place[:, None]))[:, None]
        where = torch.zeros_like(q.row)
        where[k] = place
        self._clear(k, where)
        total = q.lam[k].sum(1)
        q.lam[k] /= total.clamp(min=1e-300)[:, None]
        q.status[k], q.again[k] = RUN, False
        self._start(k[~(total > 1e-9)])

    def _outside(self, k, done):
        """The working set leaves these queries out: ask all points. Returns who goes up."""
        q, cloud = self.q, self.cloud
        for tier in (0, 1):
            w = -q.y[k]
            length = w.norm(dim=1)
            w = w / length.clamp(min=1e-300)[:, None]
            height = (w * q.z[k]).sum(1)
            own = torch.bmm(q.pts[k], w[..., None])[..., 0] / q.reach[k].gather(1, q.corral[k])
            known = torch.where(q.on[k], own, -torch.inf).amax(1) + height
            if self.unit:  # points closer to the plane than the tolerance belong to the problem
                plane = height - self.tol
            else:
                plane = height - self.slack * length
                plane = torch.where(q.on[k].any(1), plane, -2 * cloud.radius)  # any point will do
            asked = (torch.minimum(known, height), q.fresh[k], q.limit[k], tier)
            ids, top, pairs = cloud.price(w, plane, *asked)
            self.pairs += pairs
            # those of the working set have had their say: ask for others beyond them
            again = self._only_old(k, ids).nonzero()[:, 0]
            if len(again):
                rest = (t[again] for t in asked[:-1])
                higher = height if self.unit else plane + 1e-12 * cloud.radius
                ids[again], top[again], pairs = cloud.price(w[again], higher[again], *rest, tier)
                self.pairs += pairs
                if not self.unit:
                    ids[self._only_old(k, ids)] = -1
            gap = height - top
            keep = (q.fresh[k] > 0) if tier == 0 else torch.ones_like(q.fresh[k], dtype=torch.bool)
            q.gap[k] = torch.where(keep, torch.minimum(q.gap[k], gap), gap)
            clear = (ids < 0).all(1)
            self._add(k[~clear], ids[~clear])
            k = k[clear]
            if not len(k):
                return k
        # outside by less than the tolerance counts as inside
        near = q.y[k].norm(dim=1) / (q.lam[k] * q.reach[k].gather(1, q.corral[k])).sum(1)
        close = (near <= self.tol) & q.on[k].any(1)
        if close.any():
            self._inside(k[close], done)
            k = k[~close]
        row = q.row[k]
        self.y[row], self.gap[row], q.low[k] = q.y[k], q.gap[k], q.limit[k]
        end = (q.high[k] <= cloud.n) | (q.limit[k] == cloud.n)
        done[k[end]] = True
        up = k[~end]
        q.level[up] += 1
        q.fresh[up] = q.level[up]
        q.limit[up] = torch.tensor(cloud.ends, device=q.z.device)[q.level[up]]
        return up

    def _only_old(self, k, ids):
        """Where all of the points that were found are in the working set already."""
        old = (ids[:, :, None] == self.q.idx[k][:, None]).any(2)
        return (ids >= 0).any(1) & (old | (ids < 0)).all(1)

    def _add(self, k, ids):
        """Take points into the working set, in place of those that lie deepest in the hull."""
        if not len(k):
            return
        q = self.q
        ids = ids.sort(1, descending=True)[0][:, : int((ids >= 0).sum(1).max())]
        score = torch.bmm(q.y[k][:, None], q.pt[k])[:, 0]
        score = torch.where(q.idx[k] < 0, torch.inf, score)
        taken = torch.zeros_like(score).scatter_add_(1, q.corral[k], q.on[k].to(score))
        score = torch.where(taken > 0, -torch.inf, score)
        places = score.topk(ids.shape[1], 1)[1]
        q.idx[k[:, None], places] = torch.where(ids >= 0, ids, q.idx[k].gather(1, places))
        self._load(k, places)
        q.fresh[k], q.status[k], q.again[k] = 0, RUN, False
        self._start(k[~q.on[k].any(1)])

    def _load(self, k, places):
        """Fetch the points in these places (len(k), s) of the working sets."""
        q = self.q
        ids = q.idx[k].gather(1, places)
        p = self.cloud.x.index_select(0, ids.clamp(min=0).flatten()).view(
            *ids.shape, self.cloud.rank
        )
        p = p - q.z[k][:, None]
        length = p.norm(dim=2).clamp(min=1e-300) if self.unit else torch.ones_like(p[..., 0])
        rows = k[:, None]
        q.pt[rows, :, places] = p / length[..., None]
        q.reach[rows, places] = 1 / length
        counts = (ids >= 0) & (ids < q.limit[k][:, None])
        q.bar[rows, places] = torch.where(counts, 0.0, torch.inf).to(p)

    def _start(self, k):
        """Begin with the one vertex furthest towards the hull; with none, the query is outside."""
        if not len(k):
            return
        q = self.q
        best, j = (torch.bmm(q.y[k][:, None], q.pt[k])[:, 0] + q.bar[k]).min(1)
        q.on[k], q.lam[k], q.pts[k], q.inv[k] = False, 0.0, 0.0, 0.0
        q.corral[k, 0], q.on[k, 0], q.lam[k, 0] = j, best < torch.inf, 1.0
        q.pts[k, 0] = q.pt[k, :, j]
        q.inv[k, 0, 0] = 1 / (1 + q.pts[k, 0].square().sum(1))
        q.status[k] = torch.where(best < torch.inf, RUN, OUT)

    def _alone(self, i):
        """One query where the inverse is of no use (dependent vertices): least squares each time."""
        q, c = self.q, self.c
        places = (q.bar[i] == 0).nonzero()[:, 0]
        p, reach = q.pt[i][:, places].T, q.reach[i][places]
        taken = [int(p.square().sum(1).argmin())]
        lam = p.new_ones(1)
        for _ in range(50 * c):
            rows = p[taken]
            system = torch.cat([rows.T, torch.ones_like(rows[:, :1].T)])
            target = torch.cat([torch.zeros_like(p[0]), p.new_ones(1)])
            # on the CPU: a GPU has no driver for systems of any rank
            a = torch.linalg.lstsq(system.cpu(), target[:, None].cpu(), driver="gelsd").solution[
                :, 0
            ]
            a = (a / a.sum()).to(lam.device)
            if (a <= 1e-15).any():
                ratio = torch.where(a <= 1e-15, lam / (lam - a).clamp(min=1e-300), torch.inf)
                lam = (lam + ratio.min().clamp(max=1) * (a - lam)).clamp(min=0)
                lam[ratio.argmin()] = 0.0
                taken = [t for t, keep in zip(taken, (lam > 0).tolist(), strict=True) if keep]
                lam = lam[lam > 0]
                lam = lam / lam.sum()
                continue
            lam, y = a, a @ rows
            if len(taken) > 1:  # short as it may be, y is orthogonal to the corral
                edges = torch.linalg.qr((rows[1:] - rows[0]).T)[0]
                for _ in range(2):
                    y = y - edges @ (edges.T @ y)
            score = p @ y
            square, j = y @ y, int(score.argmin())
            near = square.sqrt() / (lam @ reach[taken])
            inside = near <= TINY
            if inside or score[j] >= self.slack * square or j in taken:
                break
            taken.append(j)
            lam = torch.cat([lam, lam.new_zeros(1)])
        inside = inside or near <= self.tol
        while len(taken) > c:  # Caratheodory: move along a dependency until a weight is zero
            rows = torch.cat([p[taken].T, p.new_ones(1, len(taken))])
            null = torch.linalg.svd(rows)[2][-1]
            ratio = torch.where(null > 0, lam / null, torch.inf)
            lam = (lam - ratio.min() * null).clamp(min=0)
            gone = int(ratio.argmin())
            taken.pop(gone)
            lam = torch.cat([lam[:gone], lam[gone + 1 :]])
            lam = lam / lam.sum()
            y = lam @ p[taken]
        if (not inside and not score.min() > 0) or len(taken) > c:
            return  # still stuck
        q.status[i] = IN if inside else OUT
        q.y[i] = y
        q.on[i], q.lam[i], q.pts[i] = False, 0.0, 0.0
        n = len(taken)
        while self.q.on.shape[1] < n:
            q.on[i] = True
            self._grow()
        q.on[i] = False
        q.on[i, :n], q.lam[i, :n], q.pts[i, :n] = True, lam, p[taken]
        q.corral[i, :n] = places[taken]
        q.inv[i] = _inverse(q.pts[i : i + 1], q.on[i : i + 1])[0]


def _inverse(pts, on):
    """Inverse of P P' + 1 1' over the corral, zero elsewhere."""
    both = on[:, :, None] & on[:, None]
    gram = torch.where(both, pts @ pts.mT + 1, 0.0)
    gram.diagonal(dim1=1, dim2=2).masked_fill_(~on, 1.0)
    return torch.where(both, torch.linalg.inv_ex(gram)[0], 0.0)
