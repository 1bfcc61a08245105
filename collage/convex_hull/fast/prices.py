"""Which of many points lie beyond a plane: one matrix product, most of it never formed.

block_max      largest entries of X W, block of rows by block of rows
fourfold       segment ends that grow fourfold
Prices         points of a cloud, sorted so that most of them need no product

A price is <w, x>: how far the point x lies in the direction w. Float32 products propose points;
whatever is said of them in the end has been computed in float64.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from collage.convex_hull.frame import Cloud
from collage.runtime import product_precision

BLOCK = 16  # rows of which the largest price is kept
GROUP = 8  # blocks looked at together in float64
PICKS = 32  # points proposed for one query at the most
CELLS = 1 << 19  # entries of one product on a CPU, so that it stays in the cache
SMALL = 1 << 22  # multiplications of a product that is cheaper formed whole, in float64
ROUNDING = {"ieee": 2.0**-23, "tf32": 2.0**-10, "bf16": 2.0**-7}  # of a float32 product's factors
SHARE = 8  # the longest points, one of so many or fewer, are priced first


def block_max(
    x: Tensor,  # (16 b, d) float32
    w: Tensor,  # (d, m) float32
    counts: Tensor | None = None,  # (m,) falling
) -> Tensor:  # (b, m)
    """Largest entry of each block of 16 rows of x w.

    Where counts is given, only the first counts[j] blocks of column j are wanted; the rest may be
    -inf. On CUDA a Triton kernel takes the maximum while the product is in registers; elsewhere
    torch does it.

    >>> block_max(torch.arange(1.0, 33.0)[:, None], torch.tensor([[1.0, -1.0]]))
    tensor([[ 16.,  -1.],
            [ 32., -17.]])
    """
    if x.is_cuda and (kernel := triton_kernel()):
        return kernel(x, w, BLOCK, counts)
    return (x @ w).view(-1, BLOCK, w.shape[1]).amax(1)


@functools.cache
def triton_kernel() -> Callable[..., Tensor] | None:
    """The kernel, imported on the first call; None without Triton: torch does the same."""
    try:
        from collage.convex_hull.fast.kernel import triton_block_max
    except ImportError:
        return None
    return triton_block_max


def fourfold(n: int, first: int = 64) -> list[int]:
    """Ends 64, 256, ... up to n, so that few queries see the long segments.

    >>> fourfold(5000)
    [64, 256, 1024, 4096, 5000]
    """
    ends = [min(n, first)]
    while ends[-1] < n:
        ends.append(min(n, 4 * ends[-1]))
    return ends


class Question(NamedTuple):
    """Planes <w, x> = height, asked about points of index below a limit."""

    w: Tensor  # (m, r) unit vectors
    height: Tensor  # (m,)
    known: Tensor  # (m,) a price that some point is known to have
    first: Tensor  # (m,) long: the segments before it have been asked already
    limit: Tensor  # (m,) long


class Beyond(NamedTuple):
    """What lies beyond the planes; that nothing does is proved in float64."""

    ids: Tensor  # (m, PICKS) long: points beyond; -1 where there is none
    top: Tensor  # (m,) the largest price met, or `known`
    pairs: int  # how many pairs of a point and a query were priced
    whole: bool  # whether both tiers were looked at


class Prices:
    """The points of a cloud in segments of their order, made ready to be priced many times.

    ends: index at which each segment ends, rising to N. Each segment is sorted by length, in a
    float32 copy: a point shorter than the plane's distance cannot lie beyond it, so only the
    first blocks count.
    """

    def __init__(self, cloud: Cloud, ends: Sequence[int]) -> None:
        self.cloud, self.x, self.n, self.rank = cloud, cloud.x, cloud.n, cloud.rank
        self.ends, self.stops = list(ends), torch.tensor(ends, device=cloud.x.device)
        orders, self.starts = [], [0]
        for a, b in zip([0, *self.ends[:-1]], self.ends, strict=True):
            order = cloud.norms[a:b].float().argsort(descending=True) + a
            orders.append(torch.cat([order, order[-1:].expand(-(b - a) % BLOCK)]))
            self.starts.append(self.starts[-1] + len(orders[-1]) // BLOCK)
        order = torch.cat(orders)
        self.order = order.view(-1, BLOCK)
        self.x32 = self.x.float().index_select(0, order)
        self.reach = cloud.norms.float()[self.order[:, 0]] * (1 + 1e-5)  # longest of each block
        self.share = max(SHARE, 512 >> self.rank)  # in few dimensions, few points are extreme
        self.error = 2 * (self.rank + 4) * ROUNDING[product_precision()] * cloud.radius.float()

    def segment(self, n: Tensor) -> Tensor:
        """Which segment the point of index n is in."""
        return torch.searchsorted(self.stops, n, right=True)

    def points_beyond(self, asked: Question, tier: int) -> Beyond:
        """Points beyond each plane: of each segment the longest (tier 0) or the others (tier 1).

        Where all of them are few, both tiers are looked at in one.
        """
        m, limit = len(asked.w), int(asked.limit.max())
        if m * limit * (self.rank + 8) <= (SMALL << 6 if self.x.is_cuda else SMALL):
            return self._all(asked, limit)
        turn = asked.height.argsort()  # queries that need the most blocks first
        w, h, known, first, limits = (t[turn] for t in asked)
        w32, h32 = w.T.float().contiguous(), h.float()
        bar = torch.minimum(known, h).float() - self.error  # nothing below it can matter
        rising = bar.flip(0).cummin(0)[0].flip(0).contiguous()
        prices, numbers, pairs = [], [], 0
        last = next(i for i, end in enumerate(self.ends) if end >= limit) + 1
        for s in range(int(first.min()), last):
            largest, block, work = self._segment(s, w32, rising, first, limits, tier)
            pairs += work
            if len(largest):
                prices.append(largest)
                numbers.append(block)
        ids = torch.full((m, PICKS), -1, device=w.device)
        top = known.clone()
        if prices:
            v, block = torch.cat(prices), torch.cat(numbers)
            pad = -len(v) % GROUP
            v = torch.nn.functional.pad(v, (0, 0, 0, pad), value=-torch.inf)
            block = torch.nn.functional.pad(block, (0, pad)).view(-1, GROUP)
            group = v.view(-1, GROUP, m).amax(1)
            peak = group.amax(0)
            self._propose(ids, w, w32, h, limits, v, group, block, peak)
            self._prove(ids, top, w, h, limits, group, block, torch.maximum(
                torch.minimum(peak, h32) - 2 * self.error, bar))  # fmt: skip
        back = turn.argsort()
        return Beyond(ids[back], top[back], pairs, False)

    def _all(self, asked: Question, limit: int) -> Beyond:
        """Every point below the limit, in float64: the furthest of each of 32 stretches."""
        m, device = len(asked.w), self.x.device
        price = asked.w @ self.x[:limit].T
        if bool((asked.limit < limit).any()):
            index = torch.arange(limit, device=device)
            price.masked_fill_(index >= asked.limit[:, None], -torch.inf)
        stretch = -(-limit // PICKS)
        price = torch.nn.functional.pad(price, (0, PICKS * stretch - limit), value=-torch.inf)
        largest, at = price.view(m, PICKS, stretch).max(2)
        ids = at + stretch * torch.arange(PICKS, device=device)
        top = largest.amax(1)
        almost = torch.maximum(top, asked.height - 1e-13 * self.cloud.radius)  # up to rounding
        line = torch.minimum(asked.height, almost)
        ids = torch.where(largest >= line[:, None], ids, -1)
        return Beyond(ids, torch.maximum(top, asked.known), m * limit, True)

    def _segment(
        self, s: int, w32: Tensor, bar: Tensor, first: Tensor, limit: Tensor, tier: int
    ) -> tuple[Tensor, Tensor, int]:
        """Largest prices (b, m) in the blocks (b,) of one segment, and how many pairs it took."""
        start, end = (0, *self.ends)[s], self.ends[s]
        a, size = self.starts[s], self.starts[s + 1] - self.starts[s]
        cut = max(size // self.share, min(size, 8))
        low, high = (0, cut) if tier == 0 else (cut, size)
        reach = -self.reach[a : a + size]
        wants = (first <= s) & (limit > start)
        counts = torch.searchsorted(reach, -bar, right=True).clamp(max=high)
        most = int(torch.where(wants, counts, 0).max())
        if most <= low:
            return w32[:0], first[:0], 0
        m, pairs = w32.shape[1], 0
        out = w32.new_full((most - low, m), -torch.inf)
        whole = wants & (limit >= end)
        for part, cut_off in ((whole, False), (wants & ~whole, True)):
            columns = part.nonzero()[:, 0]
            if not len(columns):
                continue
            every = len(columns) == m
            w, count = (w32, counts) if every else (w32[:, columns], counts[columns])
            # the kernel forms no product; torch forms a piece at a time
            cells = CELLS << 7 if w.is_cuda else CELLS
            fused = w.is_cuda and triton_kernel() is not None and not cut_off
            step = high if fused else max(1, cells // (BLOCK * len(columns)))
            at = torch.arange(low, max(low, int(count[0])), step, device=w.device)
            active = (len(columns) - torch.searchsorted(count.flip(0), at, right=True)).tolist()
            for b, k in zip(at.tolist(), active, strict=True):
                e = min(b + step, int(count[0]))
                rows = slice((a + b) * BLOCK, (a + e) * BLOCK)
                pairs += (e - b) * BLOCK * k
                if cut_off:
                    v = (self.x32[rows] @ w[:, :k]).view(-1, BLOCK, k)
                    v.masked_fill_(self.order[a + b : a + e, :, None] >= limit[columns[:k]],
                                   -torch.inf)  # fmt: skip
                    v = v.amax(1)
                else:
                    v = block_max(self.x32[rows], w[:, :k], (count[:k] - b).clamp(min=0))
                if every:
                    out[b - low : e - low, :k] = v
                else:
                    out[b - low : e - low, columns[:k]] = v
        return out, torch.arange(a + low, a + most, device=w32.device), pairs

    def _propose(
        self, ids: Tensor, w: Tensor, w32: Tensor, h: Tensor, limit: Tensor, v: Tensor,
        group: Tensor, block: Tensor, peak: Tensor,
    ) -> None:  # fmt: skip
        """The longest price of each of 32 strides of groups, where it is beyond the plane."""
        suspect = (peak > h.float() - self.error).nonzero()[:, 0]
        if not len(suspect):
            return
        strides = min(PICKS, len(group))
        part = group.index_select(1, suspect)
        part = torch.nn.functional.pad(part, (0, 0, 0, -len(part) % strides), value=-torch.inf)
        best, which = part.view(-1, strides, len(suspect)).max(0)
        i, j = (best > h.float()[suspect] - self.error).nonzero(as_tuple=True)
        g, q = which[i, j] * strides + i, suspect[j]
        member = g[:, None] * GROUP + torch.arange(GROUP, device=w.device)
        b = block[g].gather(1, v[member, q[:, None]].argmax(1, keepdim=True))[:, 0]
        points = self.order[b]
        rows = b[:, None] * BLOCK + torch.arange(BLOCK, device=w.device)
        x = self.x32.index_select(0, rows.flatten()).view(len(q), BLOCK, self.rank)
        price = torch.bmm(x, w32.T[q][..., None])[..., 0]
        price = torch.where(points < limit[q][:, None], price, -torch.inf)
        pick = points.gather(1, price.argmax(1, keepdim=True))[:, 0]
        true = (self.x.index_select(0, pick) * w[q]).sum(1) >= h[q]
        ids[q[true], i[true]] = pick[true]

    def _prove(
        self, ids: Tensor, top: Tensor, w: Tensor, h: Tensor, limit: Tensor, group: Tensor,
        block: Tensor, low: Tensor,
    ) -> None:  # fmt: skip
        """Float64 prices of all groups that may hold the largest one, where nothing was proposed."""
        rest = (ids < 0).all(1).nonzero()[:, 0]
        part = group.index_select(1, rest)
        g, j = ((part >= low[rest]) & (part > -torch.inf)).nonzero(as_tuple=True)
        for near, q in zip(g.split(8192), rest[j].split(8192), strict=True):
            points = self.order[block[near]].flatten(1)
            x = self.x.index_select(0, points.flatten()).view(*points.shape, self.rank)
            price = torch.bmm(x, w[q][..., None])[..., 0]
            price = torch.where(points < limit[q][:, None], price, -torch.inf)
            if not len(q):
                return
            price, at = price.max(1)
            top.scatter_reduce_(0, q, price, "amax")
            beyond = (price >= top[q]) & (price >= h[q] - 1e-13 * self.cloud.radius)
            ids[q[beyond], 0] = points.gather(1, at[:, None])[beyond, 0]
