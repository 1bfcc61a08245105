"""How an ensemble is trained: Adam on windows that each member draws for itself."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from collage import runtime
from collage.common.checkpoint import digest
from collage.common.checks import check_real, check_single, check_whole
from collage.common.program import Program
from collage.common.train import train
from collage.nbeats.core import Member, Networks
from collage.nbeats.fast.compiled import CompiledGradient
from collage.nbeats.fast.gradient import Gradient
from collage.nbeats.panels import Windows, check_panel

CHUNK = 32  # steps whose random numbers are drawn at once


def fit(
    networks: Networks,
    weights: nn.Parameter,  # (E, P)
    series: Sequence[ArrayLike],
    steps: int,
    *,
    batch: int = 1024,
    lr: float = 1e-3,
    recent: int | None = None,
    period: int = 1,
    clip: float = 1.0,
    checkpoint: str | Path | None = None,
    every: int = 100,
    progress: bool = False,
    product: torch.dtype | None = None,
    compiled: bool = False,
) -> Tensor:
    """Train all members for so many steps, in place; returns their losses (steps, E).

    Adam, its rate halved after each third of the steps, gradients clipped to the norm `clip` for
    each member on its own. Windows: a series uniformly, then one of its `recent` last cuts. What a
    member draws follows from its own seed: it comes out the same in any company (but for rounding).

    series: list of (n_i,), n_i >= 2, finite. period: the lag m of the MASE loss. checkpoint: a
    file, written every so many steps; where it exists, training goes on from there, to the same
    result. progress: a bar. product: the dtype in which layers multiply, such as torch.bfloat16
    (see `Gradient`). On a GPU a step is a CUDA graph. compiled: losses and gradients come from
    a compiled program, which takes a minute to make (see `CompiledGradient`).

    Raises ValueError for a bad panel, a period as long as the lookback of a MASE member, weights
    that are no longer finite, or a checkpoint of another run; the weights are then those before
    the call.
    """
    steps, batch = check_whole("steps", steps), check_whole("batch", batch)
    every, period = check_whole("every", every), check_whole("period", period)
    recent = None if recent is None else check_whole("recent", recent)
    lr, clip = check_single("lr", lr), check_single("clip", clip)
    if product is not None:
        check_real("product", product, torch.bfloat16, torch.float16)
    members, lookback = networks.members, networks.inside.shape[-1]
    panel = check_panel(series, 2)
    _check_losses(members, panel, period)
    windows = Windows(panel, lookback, networks.horizon, weights.device, weights.dtype)
    gradient: CompiledGradient | Gradient
    if compiled:
        gradient = CompiledGradient(networks, weights, batch, product)
    else:
        gradient = Gradient(networks, weights, batch, product=product)
    uniform: list[Tensor] = []  # of this chunk

    def inputs(i: int) -> tuple[Tensor]:
        if i % CHUNK == 0 or not uniform:
            uniform[:] = [draws(members, i // CHUNK, batch).to(weights.device)]
        return (uniform[0][:, i % CHUNK],)

    def drawn(uniform: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return windows.at(*windows.draw(uniform, recent))

    look_up = Program(drawn) if compiled and weights.is_cuda else drawn

    def losses_and_gradient(uniform: Tensor) -> tuple[Tensor, Tensor]:
        x, seen, y, known = look_up(uniform)
        return gradient(x, seen, y, known, period)

    setting = {
        "members": [list(m) for m in members],
        "network": [networks.horizon, networks.stacks, networks.blocks, networks.shapes],
        "fit": [steps, batch, lr, recent, period, clip, str(product)],
        "panel": digest(windows.values) + digest(windows.lengths),
        "start": None if checkpoint is None else digest(weights),
    }
    return train(
        weights,
        inputs,
        losses_and_gradient,
        steps,
        optimizer=torch.optim.Adam,
        rate=lambda i: lr * 0.5 ** (i // max(1, steps // 3)),
        clip=clip,
        setting=setting,
        checkpoint=checkpoint,
        every=every,
        progress=progress,
    )


def draws(members: Sequence[Member], chunk: int, batch: int) -> Tensor:
    """(E, CHUNK, batch, 2) in [0, 1): what each member draws in so many steps, from its own seed."""
    numbers = []
    for m in members:
        g = runtime.generator(runtime.seed_for(m, "windows", chunk))
        numbers.append(torch.rand(CHUNK, batch, 2, dtype=torch.float64, generator=g))
    return torch.stack(numbers)


def _check_losses(members: Sequence[Member], panel: Sequence[Tensor], period: int) -> None:
    """Refuse a loss that is zero whatever is forecast: nothing would be learned."""
    shortest = min((m.lookback for m in members if m.loss == "mase"), default=math.inf)
    if period >= shortest:
        raise ValueError(
            f"period: got {period}, wanted less than the lookback {shortest} of a member with the "
            "MASE loss, which would learn nothing"
        )
    losses = {m.loss for m in members}
    still = [len(s) <= period or bool((s[period:] == s[:-period]).all()) for s in panel]
    if "mase" in losses and all(still):
        raise ValueError(
            f"series: got a panel that is constant at lag {period}, for which MASE is undefined; "
            "wanted another loss, or series that change"
        )
    if "mape" in losses and not any(bool(s.any()) for s in panel):
        raise ValueError("series: got zeros alone, for which MAPE is undefined")
