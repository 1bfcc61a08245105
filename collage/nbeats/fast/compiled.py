"""The gradient of `core.loss` as a compiled program: on a CPU for a member, on a GPU for many."""

import functools
import itertools
from typing import Any

import torch
from torch import Tensor

from collage.common.program import Program
from collage.nbeats import core
from collage.nbeats.core import Basis, Networks
from collage.nbeats.fast.gradient import at_once_on


class CompiledGradient:
    """Losses (E,) and gradients (E, P) on batches of B windows, as `Gradient` has them.

    On a CPU one member after the other goes through the same program: what a member leaves behind
    is all that the cache has to hold, and it is compiled once, however many there are. On a GPU as
    many go together as it has memory for, and what is done entry by entry between two products is
    one kernel. Without a compiler a warning says so once, and autograd does the same, slower (see
    `Program`).

    Raises ValueError for another dtype of products than the weights'.
    """

    def __init__(
        self, networks: Networks, weights: Tensor, batch: int, product: torch.dtype | None = None
    ) -> None:
        if product not in (None, weights.dtype):
            raise ValueError(f"product: got {product}, wanted none with compiled=True")
        self.weights, self.gradient = weights.detach(), torch.zeros_like(weights)
        size = at_once_on(networks, weights, batch) if weights.is_cuda else 1
        parts = [slice(i, i + size) for i in range(0, len(weights), size)]
        self.parts = [(part, networks.some(part)) for part in parts]
        names = tuple(name for name, _ in networks.stacks)
        self.frozen = names, networks.blocks, tuple(map(tuple, networks.shapes))

    def __call__(
        self,
        x: Tensor,  # (E, B, L)
        seen: Tensor,
        y: Tensor,  # (E, B, H)
        known: Tensor,
        period: int = 1,
    ) -> tuple[Tensor, Tensor]:
        values = []
        for part, networks in self.parts:
            rows = [t[part] for t in (self.gradient, self.weights, x, seen, y, known)]
            form = len(rows[0]), x.shape[1:], y.shape[1:], x.dtype, x.device
            program = _program(*self.frozen, period, *form)
            bases = [t for basis in networks.bases for t in basis]
            values.append(program(*rows, networks.inside, networks.losses, *bases))
        return torch.cat(values), self.gradient


@functools.cache
def _program(names: tuple, blocks: int, shapes: tuple, period: int, *form: Any) -> Program:
    """Losses of some members; their gradient goes to the first argument. Kept for the next fit.

    form: what else the program depends on: members, shapes, dtype and device of the windows.
    """
    stacks, here = [(name, 0) for name in names], torch.empty(0)
    networks = Networks([], 0, stacks, blocks, list(map(list, shapes)), [], here, here)

    def some(
        out: Tensor, weights: Tensor, x: Tensor, seen: Tensor, y: Tensor, known: Tensor,
        inside: Tensor, losses: Tensor, *bases: Tensor,
    ) -> Tensor:  # fmt: skip
        own = [Basis(*pair) for pair in zip(bases[::2], bases[1::2], strict=True)]
        alone = networks._replace(inside=inside, losses=losses, bases=own)

        found, slope = written_out(alone, weights, x, seen, y, known, period)
        out.copy_(slope)
        return found

    return Program(some)


def written_out(
    networks: Networks,
    weights: Tensor,
    x: Tensor,
    seen: Tensor,
    y: Tensor,
    known: Tensor,
    period: int,
) -> tuple[Tensor, Tensor]:
    """Losses (E,) and gradients (E, P) as `Gradient` finds them, without its buffers.

    A compiler lets the uses of a layer write side by side by itself.
    """
    stacks = core.unpack(weights, networks.shapes)
    inputs: list[list[list[Tensor]]] = [[[] for _ in stack[::2]] for stack in stacks]
    slopes: list[list[list[Tensor]]] = [[[] for _ in stack[::2]] for stack in stacks]
    order = [s for s in range(len(stacks)) for _ in range(networks.blocks)]
    x_left, mask, f = core.newest_first(x, seen, networks.inside)
    for s in order:
        h, basis, generic = x_left, networks.bases[s], networks.stacks[s][0] == "generic"
        for i, kept in enumerate(inputs[s]):
            h = h.relu() if i else h
            kept.append(h)
            h = torch.baddbmm(stacks[s][2 * i + 1], h, stacks[s][2 * i])
        ahead, back = h.split([len(basis.forecast), h.shape[-1] - len(basis.forecast)], -1)
        if not generic:
            ahead, back = ahead @ basis.forecast, back @ basis.backcast
        x_left, f = x_left - back * mask, f + ahead
    naive = core.naive_error(x, seen * networks.inside.flip(-1), period)
    w, gap = core.error_weights(networks.losses, y, f, known, naive), f - y
    below = w * gap.sign() / gap[0].numel()  # the slope in the forecast, and so in each block's
    left: Tensor | None = None  # in what is left of the window; nobody sees the last
    for k, s in reversed(list(enumerate(order))):
        basis, generic = networks.bases[s], networks.stacks[s][0] == "generic"
        back = torch.zeros_like(x_left) if left is None else -left * mask
        curves = (below, back)
        if not generic:
            curves = (below @ basis.forecast.mT, back @ basis.backcast.mT)
        through = torch.cat(curves, -1)
        for i in reversed(range(len(inputs[s]))):
            slopes[s][i].append(through)
            through = torch.bmm(through, stacks[s][2 * i].mT)
            if i:
                through = through * (inputs[s][i][k % networks.blocks] > 0)
        left = through if left is None else left + through
    pieces = []
    for hs, ds in zip(itertools.chain(*inputs), itertools.chain(*slopes), strict=True):
        h, d = torch.cat(hs, 1), torch.cat(ds[::-1], 1)
        pieces += [torch.bmm(h.mT, d).flatten(1), d.sum(1)]
    return (w * gap.abs()).mean((1, 2)), torch.cat(pieces, 1)
