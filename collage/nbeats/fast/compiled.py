"""The gradient of `core.loss` as one compiled program for a member, on a CPU."""

import functools
from typing import Any

import torch
from torch import Tensor

from collage.common.program import Program
from collage.nbeats import core
from collage.nbeats.core import Basis, Networks


class CompiledGradient:
    """Losses (E,) and gradients (E, P) on batches of B windows, as `Gradient` has them.

    One member after the other goes through the same program: what a member leaves behind is all
    that the cache has to hold, and it is compiled once, however many there are. Without a compiler
    a warning says so once, and autograd does the same, slower (see `Program`).

    Raises ValueError for weights off the CPU, and for another dtype of products than theirs.
    """

    def __init__(
        self, networks: Networks, weights: Tensor, product: torch.dtype | None = None
    ) -> None:
        if weights.device.type != "cpu":
            raise ValueError(f"compiled: got weights on {weights.device}, wanted them on a CPU")
        if product not in (None, weights.dtype):
            raise ValueError(f"product: got {product}, wanted none with compiled=True")
        self.weights, self.gradient = weights.detach(), torch.zeros_like(weights)
        self.members = [networks.some(slice(i, i + 1)) for i in range(len(weights))]
        self.blocks, self.shapes = networks.blocks, tuple(map(tuple, networks.shapes))

    def __call__(
        self,
        x: Tensor,  # (E, B, L)
        seen: Tensor,
        y: Tensor,  # (E, B, H)
        known: Tensor,
        period: int = 1,
    ) -> tuple[Tensor, Tensor]:
        form = x.shape[1:], y.shape[1:], x.dtype
        program = _program(self.blocks, self.shapes, period, *form)
        values = []
        for i, member in enumerate(self.members):
            rows = [t[i : i + 1] for t in (self.gradient, self.weights, x, seen, y, known)]
            bases = [t for basis in member.bases for t in basis]
            values.append(program(*rows, member.inside, member.losses, *bases))
        return torch.cat(values), self.gradient


@functools.cache
def _program(blocks: int, shapes: tuple, period: int, *form: Any) -> Program:
    """One member's loss (1,); its gradient goes to the first argument. Kept for the next fit.

    form: what else the program depends on, shapes and dtype of the windows and their targets.
    """
    networks = Networks([], 0, [], blocks, list(map(list, shapes)), [], *2 * [torch.empty(0)])

    def member(
        out: Tensor, weights: Tensor, x: Tensor, seen: Tensor, y: Tensor, known: Tensor,
        inside: Tensor, losses: Tensor, *bases: Tensor,
    ) -> Tensor:  # fmt: skip
        own = [Basis(*pair) for pair in zip(bases[::2], bases[1::2], strict=True)]
        alone = networks._replace(inside=inside, losses=losses, bases=own)

        def value(weights: Tensor) -> Tensor:
            return core.loss(alone, weights, x, seen, y, known, period).sum()

        slope, found = torch.func.grad_and_value(value)(weights)
        out.copy_(slope)
        return found[None]

    return Program(member)
