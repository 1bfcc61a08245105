"""Ensembles of N-BEATS networks, as torch modules.

grid        the paper's ensemble
Parts       a forecast and a window in parts
Ensemble    members that differ in lookback, loss and seed, as one tensor of weights (E, P)
NBeats      one network
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from collage import runtime
from collage.common.checks import as_tensor, check_whole
from collage.nbeats import core
from collage.nbeats.core import LOSSES, Member, Networks, Shapes
from collage.nbeats.fit import fit
from collage.nbeats.panels import Windows

# The paper's networks: the stacks (basis, width), and how many blocks each has.
KINDS = {
    "interpretable": ([("trend", 256), ("seasonality", 2048)], 3),
    "generic": ([("generic", 512)] * 30, 1),
}
BASES = ("generic", "seasonality", "trend")


def grid(
    horizon: int,
    lookbacks: Iterable[int] = (2, 3, 4, 5, 6, 7),
    losses: str | Iterable[str] = tuple(LOSSES),
    seeds: int = 10,
) -> list[Member]:
    """The paper's ensemble: every lookback (in horizons) with every loss and seed (section 3.4).

    >>> len(grid(6)), grid(6)[0]
    (180, Member(lookback=12, loss='smape', seed=0))
    """
    horizon, seeds = check_whole("horizon", horizon), check_whole("seeds", seeds)
    lookbacks = [check_whole("lookbacks", l) for l in lookbacks]
    losses = [losses] if isinstance(losses, str) else losses
    cells = itertools.product(losses, range(seeds), lookbacks)
    return [Member(l * horizon, loss, seed) for loss, seed, l in cells]


class Parts(NamedTuple):
    """A forecast and a window in parts: S stacks, or K blocks.

    level + forecasts.sum(0) is the forecast; backcasts.sum(0) + residual is the window.
    """

    names: tuple[str, ...]  # (S,): the basis of each part
    level: Tensor  # (..., B, H): the last observation, repeated
    forecasts: Tensor  # (S, ..., B, H)
    backcasts: Tensor  # (S, ..., B, L), oldest point first
    residual: Tensor  # (..., B, L): what no block claimed


class Ensemble(nn.Module):
    """E networks that share nothing but their size, as one tensor of weights (E, P).

    members: list of Member (see `grid`); horizon: H. Windows have the length L of the longest
    lookback; each member sees the newest points of it only, so that short and long lookbacks stack.
    kind "interpretable": a stack of 3 trend blocks of width 256, then one of 3 seasonal blocks of
    width 2048; the blocks of a stack share their weights. "generic": 30 stacks of one block of
    width 512, whose coefficients are backcast and forecast themselves.

    stacks: [(basis, width)] in place of the kind's, basis "trend", "seasonality" or "generic";
    blocks: in each stack; layers: hidden ones, 4 in the paper; device: where the weights go, the
    same numbers on any. Forecasts start from the last observation, as in the authors' code.

    Raises ValueError for unknown kinds, bases or losses, members given twice, sizes below one.
    Source: arXiv 1905.10437.

    >>> ensemble = Ensemble([Member(4), Member(6)], horizon=2, stacks=[("trend", 8)], layers=1)
    >>> ensemble(torch.ones(5, 6)).shape
    torch.Size([2, 5, 2])
    """

    def __init__(
        self,
        members: Member | Sequence[Member | tuple],
        horizon: int,
        kind: str = "interpretable",
        *,
        stacks: Sequence[tuple[str, int]] | None = None,
        blocks: int | None = None,
        layers: int = 4,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind: got {kind!r}, wanted one of {sorted(KINDS)}")
        self.horizon, self.members = check_whole("horizon", horizon), _check_members(members)
        stacks = _check_stacks(KINDS[kind][0] if stacks is None else stacks)
        blocks = check_whole("blocks", KINDS[kind][1] if blocks is None else blocks)
        layers, lookbacks = check_whole("layers", layers), [m.lookback for m in self.members]
        self.lookback = max(lookbacks)
        own_shapes = [core.shapes(stacks, layers, lookback, self.horizon) for lookback in lookbacks]
        inside = torch.arange(self.lookback) < torch.tensor(lookbacks)[:, None]
        losses = torch.tensor([LOSSES[m.loss] for m in self.members])
        self._networks = Networks(
            members=self.members,
            horizon=self.horizon,
            stacks=stacks,
            blocks=blocks,
            shapes=core.shapes(stacks, layers, self.lookback, self.horizon),
            bases=[core.make_basis(name, lookbacks, self.horizon) for name, _ in stacks],
            inside=inside[:, None].float(),
            losses=losses[..., None, None].float(),
        )
        self.weights = nn.Parameter(
            _first_weights(self._networks, own_shapes, device or torch.get_default_device())
        )

    @property
    def networks(self) -> Networks:
        """All but the weights, in their dtype and on their device."""
        return self._networks.each(lambda t: t.to(self.weights))

    def tensors(self) -> list[list[Tensor]]:
        """The weights as views: for each stack [(E, in, out), (E, 1, out), ...]."""
        return core.unpack(self.weights, self._networks.shapes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Forecasts (E, B, H) of windows x (B, L), or (E, B, L) for windows of their own.

        mask, of the same shape: which points are real; the newest must be. What lies under the mask
        does not matter. Raises ValueError for other shapes, NaN, or a newest point that is masked.
        """
        networks, (x, mask) = self.networks, self._check_windows(x, mask)
        windows = core.newest_first(x, mask, networks.inside)
        return core.stack_blocks(*windows, core.blocks_of(networks, self.weights))[0]

    def decompose(self, x: Tensor, mask: Tensor | None = None, by: str = "stack") -> Parts:
        """`Parts` of the forecasts and of the windows; by "stack" or "block".

        The parts add up to the forecast, and to the window (zero where it is masked). Arguments as
        for `forward`.
        """
        if by not in ("stack", "block"):
            raise ValueError(f"by: got {by!r}, wanted 'stack' or 'block'")
        networks, (x, mask) = self.networks, self._check_windows(x, mask)
        x, mask, level = core.newest_first(x, mask, networks.inside)
        blocks = core.blocks_of(networks, self.weights)
        _, *curves = core.stack_blocks(x, mask, level, blocks)
        size = networks.blocks if by == "stack" else 1  # blocks to a part
        starts = range(0, len(blocks), size)
        backcasts, forecasts = (
            torch.stack([sum(side[i : i + size], torch.zeros(())) for i in starts])
            for side in curves
        )
        names = tuple(networks.stacks[i // networks.blocks][0] for i in starts)
        residual = x - backcasts.sum(0)
        level = level.expand_as(forecasts[0])
        return Parts(names, level, forecasts, backcasts.flip(-1), residual.flip(-1))

    def fit(self, series: Sequence[ArrayLike], steps: int, **settings: Any) -> Tensor:
        """Train all members for so many steps; returns their losses (steps, E).

        settings, such as batch and lr: those of `collage.nbeats.fit.fit`, which says how.
        """
        return fit(self.networks, self.weights, series, steps, **settings)

    @torch.no_grad()
    def forecast(self, series: Sequence[ArrayLike]) -> Tensor:
        """Forecasts (E, N, H) of a panel, from the last observations of each series."""
        weights = self.weights
        windows = Windows(series, self.lookback, self.horizon, weights.device, weights.dtype)
        width = max(width for _, width in self._networks.stacks)
        size = max(1, 2**26 // (width * len(self.members)))  # activations of 256 MB
        pairs = zip(*(t.split(size) for t in windows.last()), strict=True)
        return torch.cat([self(x, seen) for x, seen in pairs], 1)

    def _check_windows(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Windows in the weights' dtype, zero where they are masked, and their mask."""
        E, L = len(self.members), self.lookback
        x = as_tensor("x", x).to(self.weights.device)
        if x.dim() not in (2, 3) or x.shape[-1] != L or (x.dim() == 3 and len(x) != E):
            raise ValueError(f"x: got {tuple(x.shape)}, wanted (B, {L}) or ({E}, B, {L})")
        mask = torch.ones_like(x) if mask is None else torch.as_tensor(mask, device=x.device)
        if mask.shape != x.shape:
            raise ValueError(f"mask: got {tuple(mask.shape)}, wanted {tuple(x.shape)} as x")
        mask = mask.bool()
        if not bool(mask[..., -1].all()):
            raise ValueError("mask: got windows whose newest point is masked, wanted it seen")
        x = x.masked_fill(~mask, 0).to(self.weights.dtype)
        if not bool(x.isfinite().all()):
            raise ValueError(
                f"x: got NaN, inf or numbers beyond the range of {x.dtype}, wanted finite numbers "
                "(or a mask over them)"
            )
        return x, mask


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

    def __init__(
        self,
        lookback: int,
        horizon: int,
        kind: str = "interpretable",
        *,
        loss: str = "smape",
        seed: int = 0,
        **shape: Any,  # stacks, blocks, layers, device
    ) -> None:
        super().__init__()
        self.ensemble = Ensemble([Member(lookback, loss, seed)], horizon, kind, **shape)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.ensemble(_check_flat(x), mask)[0]

    def decompose(self, x: Tensor, mask: Tensor | None = None, by: str = "stack") -> Parts:
        """`Parts` of the forecast (B, H) and of the window (B, L); by "stack" or "block"."""
        names, level, forecasts, backcasts, residual = self.ensemble.decompose(
            _check_flat(x), mask, by
        )
        return Parts(names, level[0], forecasts[:, 0], backcasts[:, 0], residual[0])

    def fit(self, series: Sequence[ArrayLike], steps: int, **settings: Any) -> Tensor:
        """Train it alone; see `Ensemble.fit`. Returns the losses (steps,)."""
        return self.ensemble.fit(series, steps, **settings)[:, 0]

    def forecast(self, series: Sequence[ArrayLike]) -> Tensor:
        """Forecasts (N, H) of a panel."""
        return self.ensemble.forecast(series)[0]


def _first_weights(
    networks: Networks, own_shapes: list[Shapes], device: torch.device | str
) -> Tensor:
    """Fresh weights (E, P): uniform within 1 / sqrt(fan-in), zero where a short lookback ends.

    What is drawn has each member's own shapes and is then padded: its company does not matter.
    """
    padded = list(itertools.chain(*networks.shapes))
    weights = torch.empty(len(own_shapes), sum(i * o for i, o in padded), device=device)

    def fill(i: int) -> None:
        g = runtime.generator(runtime.seed_for(networks.members[i], "weights"))
        drawn, pieces = list(itertools.chain(*own_shapes[i])), []
        for j, ((rows, columns), (high, wide)) in enumerate(zip(drawn, padded, strict=True)):
            fan_in = drawn[j - j % 2][0]  # a bias has the bound of its weights
            w = torch.rand(rows, columns, generator=g, device=g.device)
            w = w.mul_(2).sub_(1).div_(math.sqrt(fan_in))
            pieces.append(nn.functional.pad(w, (0, wide - columns, 0, high - rows)).flatten())
        weights[i] = torch.cat(pieces)

    if weights.is_cuda:  # several members are drawn at the same time
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(fill, range(len(own_shapes))))
    else:
        for i in range(len(own_shapes)):
            fill(i)
    return weights


def _check_members(members: Member | Sequence[Member | tuple]) -> list[Member]:
    checked = []
    for m in [members] if isinstance(members, Member) else members:
        if not isinstance(m, tuple | list) or not 1 <= len(m) <= 3:
            raise ValueError(f"members: got {m!r}, wanted Member(lookback, loss, seed)")
        lookback, loss, seed = Member(*m)
        if loss not in tuple(LOSSES):
            raise ValueError(f"members: got the loss {loss!r}, wanted one of {tuple(LOSSES)}")
        lookback, seed = check_whole("lookback", lookback), check_whole("seed", seed, 0)
        checked.append(Member(lookback, loss, seed))
    if not checked or len(set(checked)) < len(checked):
        raise ValueError(
            f"members: got {len(checked)}, {len(set(checked))} of them different; wanted at least "
            "one, and none twice"
        )
    return checked


def _check_stacks(stacks: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    stacks = list(stacks)
    if not stacks or not all(isinstance(s, tuple | list) and len(s) == 2 for s in stacks):
        raise ValueError(f"stacks: got {stacks!r}, wanted at least one pair (basis, width)")
    if unknown := {str(name) for name, _ in stacks} - set(BASES):
        raise ValueError(f"stacks: got {sorted(unknown)}, wanted one of {list(BASES)}")
    return [(str(name), check_whole("width", width)) for name, width in stacks]


def _check_flat(x: Tensor) -> Tensor:
    x = torch.as_tensor(x)
    if x.dim() != 2:
        raise ValueError(f"x: got {tuple(x.shape)}, wanted (B, L)")
    return x
