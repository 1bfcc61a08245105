"""N-BEATS: forecasts peeled off a series, block by block (Oreshkin et al., 2020; arXiv 1905.10437).

A block looks at a window, and says two things: a backcast, its share of the window, and a forecast,
what that share will do next. The backcast is subtracted from the window, the next block looks at
the rest, and all forecasts are added up.

NBeats      one network
Ensemble    members that differ in lookback, loss and seed, as one stack of weights (E, ...)
"""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor, nn

from collage import runtime
from collage.common.checkpoint import digest
from collage.common.checks import as_tensor, check_positive, check_real, check_whole
from collage.common.train import train
from collage.nbeats.fast.gradient import Gradient
from collage.nbeats.measures import season
from collage.nbeats.members import Member, check_members, seasonal_basis, trend_basis
from collage.nbeats.panels import Windows, check_panel

CHUNK = 32  # steps whose random numbers are drawn at once


class Parts(NamedTuple):
    """A forecast and a window in parts: S stacks, or K blocks.

    level + forecasts.sum(0) is the forecast; backcasts.sum(0) + residual is the window.
    """

    names: tuple  # (S,) of str: the stack of each part
    level: torch.Tensor  # (..., B, H): the last observation, repeated
    forecasts: torch.Tensor  # (S, ..., B, H)
    backcasts: torch.Tensor  # (S, ..., B, L), oldest point first
    residual: torch.Tensor  # (..., B, L): what no block claimed


class Ensemble(nn.Module):
    """E networks that share nothing but their size, as one stack: each layer is one baddbmm.

    Doubly residual stacking, for blocks k = 1 ... K and x_1 the window, newest point first:
        theta_k = FC_k(x_k),  x_{k+1} = x_k - B_b theta_k^b,  y = x_newest + sum_k B_f theta_k^f

    members: list of Member (see `grid`); horizon: H. Windows have the length L of the longest
    lookback; each member sees the newest points of it only, so that short and long lookbacks stack.
    kind "interpretable": 3 trend blocks of width 256, then 3 seasonal ones of width 2048, weights
    shared within a stack. "generic": 30 stacks of one block of width 512, theta is back- and
    forecast themselves.

    stacks: [(basis, width)] in place of the kind's, basis "trend", "seasonality" or "generic";
    blocks: per stack; share: weights within a stack; layers: hidden ones, 4 in the paper; degree of
    the trend; level: start from the last observation, as the authors' code does, or from zero;
    scale: divide each window by its largest absolute value, instead of raw input. device: where the
    weights go, the same on any.

    Raises ValueError for unknown kinds, bases or losses, members given twice, sizes below one.
    Source: arXiv 1905.10437.

    >>> ensemble = Ensemble([Member(4), Member(6)], horizon=2, stacks=[("trend", 8)], layers=1)
    >>> ensemble(torch.ones(5, 6)).shape
    torch.Size([2, 5, 2])
    """

    def __init__(self, members, horizon, kind="interpretable", *, stacks=None, blocks=None,
                 share=True, layers=4, degree=2, level=True, scale=False, device=None):  # fmt: skip
        super().__init__()
        self.horizon, self.layers = check_whole("horizon", horizon), check_whole("layers", layers)
        self.degree, self.level, self.scale = check_whole("degree", degree, 0), level, scale
        self.members = check_members(members)
        self.lookback = max(m.lookback for m in self.members)
        kinds = {"interpretable": ([("trend", 256), ("seasonality", 2048)], 3),
                 "generic": ([("generic", 512)] * 30, 1)}  # fmt: skip
        if kind not in kinds:
            raise ValueError(f"kind: got {kind!r}, wanted one of {sorted(kinds)}")
        self.kind, self.share = kind, bool(share)
        stacks = kinds[kind][0] if stacks is None else list(stacks)
        if not stacks or not all(isinstance(s, tuple | list) and len(s) == 2 for s in stacks):
            raise ValueError(f"stacks: got {stacks!r}, wanted at least one pair (basis, width)")
        self.stacks = [(str(name), check_whole("width", width)) for name, width in stacks]
        self.blocks = check_whole("blocks", kinds[kind][1] if blocks is None else blocks)
        own = torch.tensor([m.lookback for m in self.members])
        points = torch.arange(self.lookback)
        self.register_buffer("inside", (points < own[:, None]).float()[:, None], persistent=False)
        coefficients = {"smape": (1, 1, 0, 200), "mape": (1, 0, 0, 1), "mase": (0, 0, 1, 1)}
        rows = torch.tensor([coefficients[m.loss] for m in self.members])
        self.register_buffer("losses", rows.float()[:, :, None, None], persistent=False)
        self._bases(own)
        self.shapes = self._shapes(self.lookback)
        self.plan = [(s, s * copies + (b % copies)) for s in range(len(self.stacks))
                     for copies in [1 if self.share else self.blocks]
                     for b in range(self.blocks)]  # fmt: skip
        self.weights = nn.Parameter(self._starts(torch.device(device or "cpu")))
        self.to(self.weights.device)

    def _bases(self, own):
        """For each basis its size, and its rows on forecast and backcast."""
        L, H, degree = self.lookback, self.horizon, self.degree
        self.sizes = {"trend": (degree + 1, degree + 1), "generic": (H, L),
                      "seasonality": (2 * ((H + 1) // 2),) * 2}  # fmt: skip
        if unknown := {name for name, _ in self.stacks} - set(self.sizes):
            raise ValueError(f"stacks: got {sorted(unknown)}, wanted one of {sorted(self.sizes)}")
        # Each member's trend runs over its own lookback; the waves are the same for all.
        trend = torch.stack([trend_basis(L, l, degree) for l in own.tolist()])
        for name, basis in (("trend_f", trend_basis(H, H, degree)), ("trend_b", trend),
                            ("seasonality_f", seasonal_basis(H, H)),
                            ("seasonality_b", seasonal_basis(L, H))):  # fmt: skip
            self.register_buffer(name, basis, persistent=False)

    def _shapes(self, lookback):
        """Shapes of a network's tensors, weights and biases in turn, as they lie in a row of weights."""
        found = []
        for name, width in self.stacks:
            last = self.horizon + lookback if name == "generic" else sum(self.sizes[name])
            sizes = [lookback, *[width] * self.layers, last]
            one = [shape for i, o in itertools.pairwise(sizes) for shape in ((i, o), (1, o))]
            found += one * (1 if self.share else self.blocks)
        return found

    def _starts(self, device):
        """Fresh weights (E, P); for a GPU several members are drawn at the same time."""
        size = sum(i * o for i, o in self.shapes)
        weights = torch.empty(len(self.members), size, device=device)

        def fill(i):
            weights[i] = self._start(self.members[i])

        if device.type == "cuda":
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(fill, range(len(weights))))
        else:
            for i in range(len(weights)):
                fill(i)
        return weights

    def _start(self, member):
        """Fresh weights (P,): uniform within 1 / sqrt(fan-in), zero where a short lookback ends.

        The member's own shapes are drawn and then padded, so that its company does not matter.
        """
        g, pieces = runtime.generator(runtime.seed_for(member, "weights")), []
        own = self._shapes(member.lookback)
        for i, ((rows, columns), (high, wide)) in enumerate(zip(own, self.shapes, strict=True)):
            fan_in = own[i - i % 2][0]  # a bias has the bound of its weights
            w = torch.rand(rows, columns, generator=g).mul_(2).sub_(1).div_(math.sqrt(fan_in))
            if w.shape != (high, wide):
                w = nn.functional.pad(w, (0, wide - columns, 0, high - rows))
            pieces.append(w.flatten())
        return torch.cat(pieces)

    def tensors(self, weights=None):
        """Weights (E, P) as views: for each block's network [(E, in, out), (E, 1, out), ...]."""
        cuts = (self.weights if weights is None else weights).split(
            [i * o for i, o in self.shapes], 1
        )
        views = [c.view(-1, i, o) for c, (i, o) in zip(cuts, self.shapes, strict=True)]
        per = 2 * (self.layers + 1)
        return [views[i : i + per] for i in range(0, len(views), per)]

    def basis(self, name, side, part=slice(None)):
        """The rows of "trend" or "seasonality" on the forecast, "f", or the backcast, "b"."""
        found = getattr(self, f"{name}_{side}")
        return found[part] if found.dim() == 3 else found

    def forward(self, x, mask=None):
        """Forecasts (E, B, H) of windows x (B, L), or (E, B, L) for windows of their own.

        mask, of the same shape: which points are real; the newest must be. What lies under the mask
        does not matter. Raises ValueError for other shapes, NaN, or a newest point that is masked.
        """
        x, mask, level = self._enter(x, mask)
        return self._leave(x, mask, level)

    def _leave(self, x, mask, level):
        total, unit = (level if self.level else 0), self._unit(x)
        for _, _, ahead in self._peel(x if unit is None else x / unit, mask):
            total = total + (ahead if unit is None else ahead * unit)
        return total

    def decompose(self, x, mask=None, by="stack"):
        """`Parts` of the forecasts and of the windows; by "stack" or "block".

        The parts add up to the forecast, and to the window (zero where it is masked).
        """
        if by not in ("stack", "block"):
            raise ValueError(f"by: got {by!r}, wanted 'stack' or 'block'")
        x, mask, level = self._enter(x, mask)
        unit, names, backs, aheads = self._unit(x), [], [], []
        for s, back, ahead in self._peel(x if unit is None else x / unit, mask, whole=True):
            back, ahead = (back, ahead) if unit is None else (back * unit, ahead * unit)
            if by == "stack" and len(names) > s:
                backs[s], aheads[s] = backs[s] + back, aheads[s] + ahead
            else:
                names, backs, aheads = [*names, self.stacks[s][0]], [*backs, back], [*aheads, ahead]
        backs, aheads = torch.stack(backs), torch.stack(aheads)
        level = (level if self.level else torch.zeros_like(level)).expand_as(aheads[0])
        residual = x - backs.sum(0)
        return Parts(tuple(names), level, aheads, backs.flip(-1), residual.flip(-1))

    def _enter(self, x, mask):
        """Window and mask, newest point first, (E, B, L), and the level (E, B, 1)."""
        E, L = len(self.members), self.lookback
        x = as_tensor("x", x).to(self.weights.device)
        if x.dim() not in (2, 3) or x.shape[-1] != L or (x.dim() == 3 and len(x) != E):
            raise ValueError(f"x: got {tuple(x.shape)}, wanted (B, {L}) or ({E}, B, {L})")
        if mask is None:
            mask = torch.ones_like(x, dtype=torch.bool)
        mask = torch.as_tensor(mask, device=x.device)
        if mask.shape != x.shape:
            raise ValueError(f"mask: got {tuple(mask.shape)}, wanted {tuple(x.shape)} as x")
        mask = mask.bool()
        if not bool(mask[..., -1].all()):
            raise ValueError("mask: got windows whose newest point is masked, wanted it seen")
        x = x.masked_fill(~mask, 0)
        if not bool(x.to(self.weights.dtype).isfinite().all()):
            raise ValueError("x: got NaN, inf or numbers beyond the range of "
                             f"{self.weights.dtype}, wanted finite numbers (or a mask over them)")  # fmt: skip
        return self._turn(x, mask)

    def _turn(self, x, mask, part=slice(None)):
        """As `_enter`, for windows that are known to be good, of some members."""
        inside = self.inside[part]
        x, mask = x.to(self.weights.dtype).flip(-1), mask.flip(-1) * inside
        return x * mask, mask, x[..., :1].expand(len(inside), -1, -1)

    def _unit(self, x):
        """The largest absolute value of each window (E, B, 1), or None for raw input."""
        if not self.scale:
            return None
        unit = x.abs().amax(-1, keepdim=True)
        return unit.where(unit > 0, 1)

    def _peel(self, x, mask, whole=False):
        """(stack, backcast, forecast) of each block; the last backcast only where it is asked for."""
        networks = self.tensors()
        for k, (s, network) in enumerate(self.plan):
            h, *layers = x, *networks[network]
            for w, b in zip(layers[:-2:2], layers[1:-2:2], strict=True):
                h = torch.baddbmm(b, h, w).relu_()
            w, b = layers[-2:]
            name = self.stacks[s][0]
            n, back = self.sizes[name][0], None
            needed = whole or k + 1 < len(self.plan)
            if not needed:  # nobody listens to the last backcast
                w, b = w[..., :n], b[..., :n]
            parameters = torch.baddbmm(b, h, w)
            ahead = parameters[..., :n]
            if name != "generic":
                ahead = ahead @ self.basis(name, "f")
            if needed:
                back = parameters[..., n:]
                if name != "generic":
                    back = back @ self.basis(name, "b")
                back = back * mask
                x = x - back
            yield s, back, ahead

    # Training.

    def loss(self, x, seen, y, known, period=1):
        """Each member's own loss (E,) on windows x (E, B, L) and targets y (E, B, H), with masks.

        All three are weighted absolute errors with detached weights, 1 / |y| for MAPE,
        200 / (|y| + |f|) for sMAPE, 1 / mean |x_t - x_{t-m}| for MASE, as one expression.
        """
        f = self._leave(*self._turn(x, seen))
        with torch.no_grad():
            weight = self._weight(x, seen, y, f, known, period)
        return (weight * (y - f).abs()).mean((1, 2))

    def _weight(self, x, seen, y, f, known, period, part=slice(None)):
        """What the absolute errors of some members are multiplied with, (E, B, H)."""
        absolute, relative, scaled, size = self.losses[part].unbind(1)
        below = absolute * y.abs() + relative * f.abs()
        if any(m.loss == "mase" for m in self.members):
            below = below + scaled * season(x, seen * self.inside[part].flip(-1), period)
        return (size / below).where((below > 0) & known, 0)

    def fit(self, series, steps, *, batch=1024, lr=1e-3, recent=None, period=1, clip=1.0,
            checkpoint=None, every=100, progress=False, compiled=False, product=None):  # fmt: skip
        """Train all members for so many steps; returns their losses (steps, E).

        Adam, its rate halved after each third of the steps, gradients clipped to the norm `clip` for
        each member on its own. Windows: a series uniformly, then one of its `recent` last cuts. What
        a member draws follows from its own seed: it comes out the same in any company (but for
        rounding), and on any number of ranks.

        series: list of (n_i,), n_i >= 2, finite. period: the lag m of the MASE loss. checkpoint: a
        file, written every so many steps; where it exists, training goes on from there, to the same
        result. progress: a bar. On a GPU a step is a CUDA graph (see `Captured` in `runtime`), or
        with compiled=True what torch.compile makes of the loss. product: the dtype in which layers
        multiply, such as torch.bfloat16 (see `Gradient` in `fast/gradient`).

        Raises ValueError for a bad panel, a period as long as the lookback of a MASE member, weights
        that are no longer finite, or a checkpoint of another run; the weights are then those before
        the call.
        """
        steps, batch = check_whole("steps", steps), check_whole("batch", batch)
        every = check_whole("every", every)
        recent = None if recent is None else check_whole("recent", recent)
        period = check_whole("period", period)
        shortest = min((m.lookback for m in self.members if m.loss == "mase"), default=math.inf)
        if period >= shortest:
            raise ValueError(f"period: got {period}, wanted less than the lookback {shortest} of a "
                             "member with the MASE loss, which would learn nothing")  # fmt: skip
        lr, clip = float(check_positive("lr", lr)), float(check_positive("clip", clip))
        if product is not None:
            check_real("product", product, torch.bfloat16, torch.float16)
        device, dtype = self.weights.device, self.weights.dtype
        windows = Windows(series, self.lookback, self.horizon, device, dtype)
        self._check_losses(series, period)
        before = self.weights.detach().clone()
        setting = {"members": [list(m) for m in self.members], "stacks": self.stacks,
                   "shape": [self.horizon, self.blocks, self.share, self.layers, self.degree,
                             self.level, self.scale],
                   "fit": [steps, batch, lr, recent, period, clip, str(product)],
                   "panel": digest(windows.values) + digest(windows.lengths),
                   "start": digest(before) if checkpoint is not None else None}  # fmt: skip
        gradient = self._compiled() if compiled else Gradient(self, batch, product=product)
        uniform: list[Tensor] = []

        def inputs(i):
            if i % CHUNK == 0 or not uniform:
                uniform[:] = [self._uniform(i // CHUNK, batch).to(device)]
            return (uniform[0][:, i % CHUNK],)

        def on_windows(uniform):
            return gradient(*windows.at(*windows.draw(uniform, recent)), period)

        return train(self.weights, inputs, on_windows, steps, optimizer=torch.optim.Adam,
                     rate=lambda i: lr * 0.5 ** (i // max(1, steps // 3)), clip=clip, setting=setting,
                     checkpoint=checkpoint, every=every, progress=progress, capture=not compiled)  # fmt: skip

    def _check_losses(self, series, period):
        """Refuse a panel on which a loss is zero whatever is forecast: nothing would be learned."""
        panel, kinds = check_panel(series), {m.loss for m in self.members}
        still = [len(s) <= period or bool((s[period:] == s[:-period]).all()) for s in panel]
        if "mase" in kinds and all(still):
            raise ValueError(f"series: got a panel that is constant at lag {period}, for which MASE is "
                             "undefined; wanted another loss, or series that change")  # fmt: skip
        if "mape" in kinds and not any(bool(s.any()) for s in panel):
            raise ValueError("series: got zeros alone, for which MAPE is undefined")

    def _compiled(self):
        """Losses and gradient by torch.compile; a CUDA graph on a GPU."""
        mode = "reduce-overhead" if self.weights.is_cuda else None
        loss = torch.compile(self.loss, mode=mode)

        def gradient(*batches):
            values = loss(*batches)
            (found,) = torch.autograd.grad(values.sum(), self.weights)
            return values.detach(), found

        return gradient

    def _uniform(self, chunk, batch):
        """(E, CHUNK, batch, 2): what each member draws in so many steps, from its own seed."""
        return torch.stack([
            torch.rand(CHUNK, batch, 2, dtype=torch.float64,
                       generator=runtime.generator(runtime.seed_for(m, "windows", chunk)))
            for m in self.members])  # fmt: skip

    @torch.no_grad()
    def forecast(self, series):
        """Forecasts (E, N, H) of a panel, from the last observations of each series."""
        windows = Windows(series, self.lookback, self.horizon, self.weights.device,
                          self.weights.dtype)  # fmt: skip
        width = max(w for _, w in self.stacks)
        size = max(1, 2**26 // (width * len(self.members)))  # activations of 256 MB
        pairs = zip(*(t.split(size) for t in windows.last()), strict=True)
        return torch.cat([self(x, seen) for x, seen in pairs], 1)

    def member(self, i):
        """Member i as an `NBeats` of its own, a copy."""
        if not -len(self.members) <= i < len(self.members):
            raise ValueError(f"i: got {i}, wanted one of {len(self.members)} members")
        i = range(len(self.members))[i]
        m = self.members[i]
        one = NBeats(m.lookback, self.horizon, self.kind, stacks=self.stacks, blocks=self.blocks,
                     share=self.share, layers=self.layers, degree=self.degree, level=self.level,
                     scale=self.scale, loss=m.loss, seed=m.seed)  # fmt: skip
        one.to(self.weights)
        with torch.no_grad():
            pairs = zip(itertools.chain(*one.ensemble.tensors()), itertools.chain(*self.tensors()),
                        strict=True)  # fmt: skip
            for mine, theirs in pairs:
                mine.copy_(theirs[i : i + 1, : mine.shape[1], : mine.shape[2]])
        return one


class NBeats(nn.Module):
    """One network: an `Ensemble` of one, which says what the settings mean.

    forward(x (B, L), mask (B, L) or None) -> (B, H). Source: arXiv 1905.10437.

    >>> model = NBeats(lookback=12, horizon=6)
    >>> sum(p.numel() for p in model.parameters())
    12842514
    >>> parts = model.decompose(torch.arange(12.0)[None])
    >>> parts.names, parts.forecasts.shape
    (('trend', 'seasonality'), torch.Size([2, 1, 6]))
    """

    def __init__(self, lookback, horizon, kind="interpretable", *, loss="smape", seed=0, **shape):
        super().__init__()
        self.ensemble = Ensemble([Member(lookback, loss, seed)], horizon, kind, **shape)

    def forward(self, x, mask=None):
        return self.ensemble(_flat(x), mask)[0]

    def decompose(self, x, mask=None, by="stack"):
        """`Parts` of the forecast (B, H) and of the window (B, L); by "stack" or "block"."""
        parts = self.ensemble.decompose(_flat(x), mask, by)
        level, residual = parts.level[0], parts.residual[0]
        return Parts(parts.names, level, parts.forecasts[:, 0], parts.backcasts[:, 0], residual)

    def fit(self, series, steps, **settings):
        """Train it alone; see `Ensemble.fit`. Returns the losses (steps,)."""
        return self.ensemble.fit(series, steps, **settings)[:, 0]

    def forecast(self, series):
        """Forecasts (N, H) of a panel."""
        return self.ensemble.forecast(series)[0]


def _flat(x):
    x = torch.as_tensor(x)
    if x.dim() != 2:
        raise ValueError(f"x: got {tuple(x.shape)}, wanted (B, L)")
    return x
