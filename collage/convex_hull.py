"""Is a point in the convex hull of many? Exactly, with a proof, for many points at once.

After Balestriero, Pesenti and LeCun, "Learning in High Dimension Always Amounts to Extrapolation"
(arXiv 2110.09485): a point is interpolated where it lies in the hull, the boundary included.

membership                     inside or outside, with certificates; the prefix that lets it in
verify                         check the certificates again, independently
inside_curve                   share inside the hull of the first n points
nearest                        nearest point of the hull, and the distance
gaussian_inside_probability    the exact probability for Gaussian data (Kabluchko, Zaporozhets)
wendel                         the same for the origin and symmetric data
"""

import functools
import math

import torch

from collage.pricing import Cloud
from collage.wolfe import Pool


class Membership:
    """Where M queries stand to the hull of N points: see `membership`."""

    def __init__(self, cloud, z, flat, inside, separator, margin, pairs, tol):
        self.inside, self.separator, self.margin = inside, separator, margin
        self._cloud, self._z, self._flat, self._pairs, self._tol = cloud, z, flat, pairs, tol

    @functools.cached_property
    def _entries(self):
        """(entry, witness, support, weights): found when one of them is asked for first."""
        cloud, tol = self._cloud, self._tol
        m, d = self.separator.shape
        entry = torch.full((m,), cloud.n + 1, device=self.inside.device)
        witness = self.separator.clone()
        support = torch.full((m, d + 1), -1, device=entry.device)
        weights = witness.new_zeros(m, d + 1)
        rows = self.inside.nonzero()[:, 0]
        place = torch.cumsum(self._flat, 0) - 1  # a query's row in z
        for k in rows.split(_chunk(cloud)):
            if cloud.rank == 0:
                entry[k], support[k], weights[k, 0] = 1, 0, 1.0
                continue
            pool = Pool(cloud, self._z[place[k]], entries=True, tol=tol).run()
            _refuse(pool, k)
            entry[k], self._pairs = pool.entry, self._pairs + pool.pairs
            witness[k] = _direction(cloud, -pool.y)[0]
            support[k] = pool.support.amax(1, keepdim=True)
            support[k, : pool.c] = torch.where(pool.support < 0, support[k, :1], pool.support)
            weights[k, : pool.c] = pool.weights
        return entry, witness, support, weights

    @property
    def entry(self):
        return self._entries[0]

    @property
    def witness(self):
        return self._entries[1]

    @property
    def support(self):
        return self._entries[2]

    @property
    def weights(self):
        return self._entries[3]

    @property
    def passes(self):
        return self._pairs / max(1, self._cloud.n * len(self.inside))

    def __repr__(self):
        return f"Membership({int(self.inside.sum())} of {len(self.inside)} inside)"


def membership(points, queries, tol=1e-9):
    points, queries = _checked(points, queries)
    cloud = Cloud(points, tol)
    z, rest = cloud.place(queries)
    beside = rest.norm(dim=1)
    flat = beside <= cloud.floor
    inside = flat.clone()
    separator = rest / beside.clamp(min=1e-300)[:, None] * ~flat[:, None]
    margin = (beside - cloud.thick) * ~flat
    z, pairs = z[flat], 0
    if cloud.rank:
        for k, part in zip(flat.nonzero()[:, 0].split(_chunk(cloud)), z.split(_chunk(cloud))):
            pool = Pool(cloud, part, entries=False, tol=tol).run()
            _refuse(pool, k)
            pairs += pool.pairs
            out = pool.entry > cloud.n
            inside[k] = ~out
            direction, shrink = _direction(cloud, -pool.y[out])
            separator[k[out]], margin[k[out]] = direction, pool.gap[out] * shrink
    return Membership(cloud, z, flat, inside, separator, margin, pairs, tol)


def _refuse(pool, k):
    if not pool.fine.all():
        raise RuntimeError(f"queries {k[~pool.fine].tolist()[:5]}: float64 does not decide")


def _chunk(cloud):
    return max(64, min(4096, (1 << 28) // cloud.n))


def _direction(cloud, w):
    """A direction of the cloud's coordinates as a unit vector of the space, and its shrinkage."""
    w = w / w.norm(dim=1, keepdim=True).clamp(min=1e-300)
    w = w @ cloud.to.T
    length = w.norm(dim=1).clamp(min=1e-300)
    return w / length[:, None], 1 / length


def _checked(points, queries):
    return points.double(), queries.double()
