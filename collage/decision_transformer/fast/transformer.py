"""The transformer without work on what nobody reads, and dropout from fewer random numbers.

transformer   `core.transformer`, its last layer only for the tokens that are read
Dropout       four decisions from one draw of 64 bits
random_bits   what it draws
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from collage.decision_transformer import core
from collage.decision_transformer.core import STATES, Affine, Block, Drop, Parameters, keep

LEVELS = 2**16  # the chance of dropout is a multiple of 1 / LEVELS


def transformer(
    x: Tensor,  # (E, B, L, d)
    p: Parameters,
    heads: int,
    read: slice = STATES,
    real: Tensor | None = None,  # (E, B, K) bool
    drop: Drop = keep,
) -> Tensor:
    """`core.transformer`: the same numbers, to rounding, for less work in the last layer."""
    x, mask = drop(x), None if real is None else core.causal_mask(x, real)
    for layer in p.blocks[:-1]:
        x = core.block(x, layer, heads, mask, drop)
    mask = core.causal_mask(x, real, read)
    return core.norm(_last_block(x, p.blocks[-1], heads, read, mask, drop), p.norm_out)


def _last_block(
    x: Tensor, layer: Block, heads: int, read: slice, mask: Tensor, drop: Drop
) -> Tensor:
    """`core.block` with keys and values of all tokens, but queries and MLP of those that are read."""
    d = x.shape[-1]
    normed, x = core.norm(x, layer.norm_1), x[:, :, read]
    parts = zip(*(t.split([d, 2 * d], -1) for t in layer.qkv))
    to_q, to_kv = (Affine(weight, bias) for weight, bias in parts)
    (q,) = core.split_heads(core.linear(normed[:, :, read], to_q), 1, heads)
    k, v = core.split_heads(core.linear(normed, to_kv), 2, heads)
    mixed = core.join_heads(core.attend(q, k, v, mask, drop), len(x))
    x = x + drop(core.linear(mixed, layer.out))
    return x + drop(core.mlp(core.norm(x, layer.norm_2), layer))


class Dropout:
    """Each number of x (E, ...) or (E B, ...) dropped with `chance`, the others scaled to keep the mean.

    The chance is rounded to a multiple of 1 / 65536. noise (E, n): 64 random bits each, for four
    numbers of their member; every call takes the next of them. `used` so far.
    """

    def __init__(self, chance: float, noise: Tensor) -> None:
        self.dropped, self.noise, self.used = round(chance * LEVELS), noise, 0

    def __call__(self, x: Tensor) -> Tensor:
        numbers = x.numel() // len(self.noise)
        words = self.noise[:, self.used : self.used + -(-numbers // 4)]
        self.used += words.shape[1]
        kept = words.view(torch.int16)[:, :numbers].reshape(x.shape) >= self.dropped - LEVELS // 2
        return x * kept * (LEVELS / (LEVELS - self.dropped))


def random_bits(n: int, generators: Sequence[Generator], device: torch.device) -> Tensor:
    """(E, n) int64, all 64 bits at random: a row from each generator."""
    rows = torch.empty(len(generators), n, dtype=torch.int64, device=device)
    for row, generator in zip(rows, generators, strict=True):
        row.random_(-(2**63), None, generator=generator)
    return rows


class Needed:
    """In the place of `Dropout`: drops nothing, and counts the draws of 64 bits of each member (`used`)."""

    def __init__(self, members: int) -> None:
        self.members, self.used = members, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.used += -(-x.numel() // (4 * self.members))
        return x
