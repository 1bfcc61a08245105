"""Which of many points lie beyond a plane: one matrix product, most of it never formed.

Cloud          points in whitened coordinates, sorted so that most of them need no product
block_max      largest entries of X W, block of rows by block of rows (a Triton kernel on a GPU)

A price is <w, x>: how far the point x lies in the direction w. Float32 products propose points;
whatever is said of them in the end has been computed in float64.
"""

import math

import torch

BLOCK = 16  # rows of which the largest price is kept
GROUP = 8  # blocks looked at together in float64
PICKS = 32  # points proposed for one query at the most
CELLS = 1 << 19  # entries of one product on a CPU, so that it stays in the cache
SHARE = 8  # the longest points, one of so many or fewer, are priced first


def block_max(x, w, counts=None):
    """Largest entry of each block of 16 rows of x w.

    x (16 b, d), w (d, m) float32 -> (b, m). Where counts (m,) is given, falling, only the first
    counts[j] blocks of column j are wanted; the rest may be -inf. On CUDA a Triton kernel takes
    the maximum while the product is in registers; elsewhere torch does it.

    >>> block_max(torch.arange(1.0, 33.0)[:, None], torch.tensor([[1.0, -1.0]]))
    tensor([[ 16.,  -1.],
            [ 32., -17.]])
    """
    if x.is_cuda and triton is not None:
        return triton_block_max(x, w, counts)
    return (x @ w).view(-1, BLOCK, w.shape[1]).amax(1)


try:
    import triton
    import triton.language as tl
except ImportError:  # the torch path does the same
    triton = None

if triton is not None:

    @triton.jit
    def _block_max(x, w, counts, out, blocks, m, d,
                   D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
        row, col = tl.program_id(0) * ROWS, tl.program_id(1) * COLS
        columns = col + tl.arange(0, COLS)
        block = row // SIZE + tl.arange(0, ROWS // SIZE)
        wanted = tl.load(counts + col)  # counts fall: no column of the tile wants more
        best = tl.full((ROWS // SIZE, COLS), float("-inf"), tl.float32)
        if row // SIZE < wanted:
            rows = row + tl.arange(0, ROWS)
            price = tl.zeros((ROWS, COLS), tl.float32)
            for first in range(0, d, D):  # of wide points a tile at a time
                k = first + tl.arange(0, D)
                a = tl.load(x + rows[:, None] * d + k[None],
                            (rows[:, None] < blocks * SIZE) & (k[None] < d), 0.0)  # fmt: skip
                b = tl.load(w + k[:, None] * m + columns[None],
                            (k[:, None] < d) & (columns[None] < m), 0.0)  # fmt: skip
                price = tl.dot(a, b, price, input_precision="ieee")
            best = tl.max(tl.reshape(price, (ROWS // SIZE, SIZE, COLS)), 1)
        tl.store(out + block[:, None] * m + columns[None], best,
                 (block[:, None] < blocks) & (columns[None] < m))  # fmt: skip

    def triton_block_max(x, w, counts=None):
        """`block_max` by the Triton kernel, for points of any width d."""
        blocks, m, d = len(x) // BLOCK, w.shape[1], x.shape[1]
        x, w = x.contiguous(), w.contiguous()
        if counts is None:
            counts = torch.full((m,), blocks, device=x.device)
        out = torch.empty(blocks, m, device=x.device)
        width = min(64, max(16, triton.next_power_of_2(d)))
        rows, cols = 128, 64  # two tiles of 48 KB in all: any GPU has room for them
        grid = (triton.cdiv(blocks * BLOCK, rows), triton.cdiv(m, cols))
        _block_max[grid](x, w, counts, out, blocks, m, d,
                         D=width, ROWS=rows, COLS=cols, SIZE=BLOCK)  # fmt: skip
        return out


class Cloud:
    """Points (N, d) made ready to be priced many times.

    x (N, r): the points in coordinates of unit covariance on the affine subspace that they span,
    in float64 (with whiten=False: distances kept, up to one factor). Beside it, a float32 copy
    in segments of the original order (their ends grow fourfold), each sorted by length: a point
    shorter than the plane's distance cannot lie beyond it, so only the first blocks count.

    noise (d,): how far rounding may have moved each coordinate; a direction in which the points
    spread no further than that, or than tol of their size, counts as flat.
    """

    def __init__(self, points, tol=1e-9, whiten=True, noise=None, first=64, growth=4):
        self.n, d = points.shape
        self.mean = points.mean(0)
        x = points - self.mean
        value, axes = torch.linalg.eigh(x.T @ x / self.n)
        sd = value.clamp(min=0).sqrt()
        if sd[0] < 1e-6 * sd[-1]:  # squares hide thin directions: ask the points themselves
            _, sd, axes = torch.linalg.svd(torch.linalg.qr(x, mode="r")[1], full_matrices=False)
            sd, axes = sd.flip(0) / math.sqrt(self.n), axes.T.flip(1)
        self.size = x.abs().max()
        self.eps = torch.finfo(points.dtype).eps
        self.noise = self.eps * points.abs().amax(0) if noise is None else noise
        self.floor = tol * self.size  # thinner than this is flat
        # points reach some standard deviations far
        keep = sd > self.floor / 8 + axes.abs().T @ self.noise
        self.axes, sd = axes[:, keep], sd[keep]
        self.rank = len(sd)
        self.scale = sd if whiten else sd.new_ones(()) * (sd.max() if self.rank else 1.0)
        self.to = self.axes / self.scale
        self.x = x @ self.to
        beside = x - x @ self.axes @ self.axes.T
        self.thick = beside.norm(dim=1).max() if self.rank < d else x.new_zeros(())
        norms = self.x.norm(dim=1)
        self.radius = norms.max()
        self.ends = [min(self.n, first)]
        while self.ends[-1] < self.n:
            self.ends.append(min(self.n, growth * self.ends[-1]))
        orders, self.starts = [], [0]
        for a, b in zip([0, *self.ends[:-1]], self.ends, strict=True):
            order = norms[a:b].float().argsort(descending=True) + a
            orders.append(torch.cat([order, order[-1:].expand(-(b - a) % BLOCK)]))
            self.starts.append(self.starts[-1] + len(orders[-1]) // BLOCK)
        order = torch.cat(orders)
        self.order = order.view(-1, BLOCK)
        self.x32 = self.x.float().index_select(0, order)
        self.reach = norms.float()[self.order[:, 0]] * (1 + 1e-5)  # longest point of each block
        self.share = max(SHARE, 512 >> self.rank)  # in few dimensions, few points are extreme
        self.error = 2 * (self.rank + 4) * torch.finfo(torch.float32).eps * self.radius.float()

    def place(self, queries):
        """Coordinates (M, r) of queries, what is left of them beside the subspace (M, d), and whether
        that is no more than the tolerance or rounding."""
        z = queries - self.mean
        if self.rank == z.shape[1]:
            return z @ self.to, torch.zeros_like(z), torch.ones_like(z[:, 0], dtype=torch.bool)
        rest = z - z @ self.axes @ self.axes.T
        rest = rest - rest @ self.axes @ self.axes.T  # what is short has lost its right angle
        length = rest.norm(dim=1)
        away = rest.abs() / length.clamp(min=1e-300)[:, None]
        rounding = 8 * (away @ self.noise) + 16 * self.eps * z.norm(dim=1)
        return z @ self.to, rest, length <= torch.maximum(self.floor + rounding, 1.01 * self.thick)

    def price(self, w, h, known, first, limit, tier):
        """Points beyond the planes <w, x> = h: the search for a counterexample.

        w (m, r) unit, h (m,), for points of index below limit (m,), in segments from first (m,)
        on; of each segment the longest points (tier 0) or the others (tier 1). known (m,): a
        price that some point is known to have. Returns ids (m, g), -1 where there is none, which
        is proved in float64; top (m,), the largest price met, or known; and the pairs priced.
        """
        m, device = len(w), w.device
        turn = h.argsort()  # queries that need the most blocks first
        w, h, known, first, limit = (t[turn] for t in (w, h, known, first, limit))
        w32, h32 = w.T.float().contiguous(), h.float()
        bar = torch.minimum(known, h).float() - self.error  # nothing below it can matter
        rising = bar.flip(0).cummin(0)[0].flip(0).contiguous()
        tops, blocks, work = [], [], 0
        last = next(i for i, end in enumerate(self.ends) if end >= int(limit.max())) + 1
        for s in range(int(first.min()), last):
            found = self._segment(s, w32, rising, first, limit, tier)
            work += found[2]
            if len(found[0]):
                tops.append(found[0])
                blocks.append(found[1])
        ids = torch.full((m, PICKS), -1, device=device)
        top = known.clone()
        if tops:
            v, block = torch.cat(tops), torch.cat(blocks)
            pad = -len(v) % GROUP
            v = torch.nn.functional.pad(v, (0, 0, 0, pad), value=-torch.inf)
            block = torch.nn.functional.pad(block, (0, pad)).view(-1, GROUP)
            group = v.view(-1, GROUP, m).amax(1)
            peak = group.amax(0)
            self._propose(ids, w, w32, h, limit, v, group, block, peak)
            self._prove(ids, top, w, h, limit, group, block, torch.maximum(
                torch.minimum(peak, h32) - 2 * self.error, bar))  # fmt: skip
        back = turn.argsort()
        return ids[back], top[back], work

    def _segment(self, s, w32, bar, first, limit, tier):
        """Largest prices in the blocks of one segment: (b, m), the blocks (b,), pairs priced."""
        start, end = (0, *self.ends)[s], self.ends[s]
        a, size = self.starts[s], self.starts[s + 1] - self.starts[s]
        cut = max(size // self.share, min(size, 8))
        low, high = (0, cut) if tier == 0 else (cut, size)
        reach = -self.reach[a : a + size]
        wants = (first <= s) & (limit > start)
        counts = torch.searchsorted(reach, -bar, right=True).clamp(max=high)
        most = int(torch.where(wants, counts, 0).max())
        if most <= low:
            return w32[:0], None, 0
        m, work = w32.shape[1], 0
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
            fused = w.is_cuda and triton is not None and not cut_off
            step = high if fused else max(1, cells // (BLOCK * len(columns)))
            at = torch.arange(low, max(low, int(count[0])), step, device=w.device)
            active = (len(columns) - torch.searchsorted(count.flip(0), at, right=True)).tolist()
            for b, k in zip(at.tolist(), active, strict=True):
                e = min(b + step, int(count[0]))
                rows = slice((a + b) * BLOCK, (a + e) * BLOCK)
                work += (e - b) * BLOCK * k
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
        return out, torch.arange(a + low, a + most, device=w32.device), work

    def _propose(self, ids, w, w32, h, limit, v, group, block, peak):
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

    def _prove(self, ids, top, w, h, limit, group, block, low):
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
            beyond = (price >= top[q]) & (price >= h[q] - 1e-13 * self.radius)
            ids[q[beyond], 0] = points.gather(1, at[:, None])[beyond, 0]
