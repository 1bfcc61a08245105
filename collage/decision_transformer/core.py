"""Decision Transformer: reinforcement learning as sequence modelling.

Chen, Lu, Rajeswaran, Lee, Grover, Laskin, Abbeel, Srinivas & Mordatch 2021 (arXiv 2106.01345): its
algorithm 1 in functions, for E models of one shape at once.

returns_to_go                    what is still to come of each episode, step by step
Window, windows                  pieces of recorded episodes, gathered
Affine, Block, Parameters        the tensors of the models
predict, loss                    actions from (R, s, a, t), and how far off they are
tokens                           (R_1, s_1, a_1, R_2, s_2, a_2, ..., R_K, s_K) as vectors
transformer, block               causal self-attention over them, layer by layer
attention, attend, causal_mask   who looks at whom
mlp, linear, norm, look_up       the small parts; keep: no dropout
split_heads, join_heads          shapes of heads, and back

E members, B sequences, K steps in L = 3K - 1 tokens, d units, states of S numbers, actions of A.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from collage.common import stack
from collage.common.checks import as_tensor, check_finite, check_real

STATES = slice(1, None, 3)  # the tokens at which actions are predicted
Drop: TypeAlias = Callable[[Tensor], Tensor]  # dropout of (E, ...) or (E B, ...)


def returns_to_go(rewards: Tensor, ends: Tensor) -> Tensor:
    """R_t = r_t + r_{t+1} + ... to the end of the episode, without discount.

    rewards (N,): of episodes end to end; ends (N,) bool: true at the last step of each. What follows
    the last end counts as an episode, too. Summed in float64, returned in the dtype of the rewards.

    Raises ValueError for other shapes, NaN or inf. Source: arXiv 2106.01345, section 3.

    >>> returns_to_go(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([False, True, False, True]))
    tensor([3., 2., 7., 4.])
    """
    rewards, ends = as_tensor("rewards", rewards), as_tensor("ends", ends)
    if rewards.dim() != 1 or ends.shape != rewards.shape or ends.dtype != torch.bool:
        shapes = f"{ends.dtype} {tuple(ends.shape)} for rewards {tuple(rewards.shape)}"
        raise ValueError(f"ends: got {shapes}, wanted two (N,), ends bool")
    check_finite("rewards", rewards)
    if rewards.is_floating_point():
        check_real("rewards", rewards.dtype)
    if not len(rewards):
        return rewards.clone()
    sums, step = rewards.double(), torch.arange(len(rewards), device=rewards.device)
    last = torch.where(ends, step, len(step) - 1).flip(0).cummin(0).values.flip(0)
    reach, longest = 1, int((last - step).max()) + 1
    while reach < longest:  # sums[t] is that of `reach` steps, as far as the episode goes
        further = torch.where(step[:-reach] + reach <= last[:-reach], sums[reach:], 0.0)
        sums = torch.cat([sums[:-reach] + further, sums[-reach:]])
        reach *= 2
    return sums.to(rewards.dtype)


class Window(NamedTuple):
    """Pieces of K steps: (B, K), or (E, B, K) for E models with batches of their own.

    What lies behind the end of an episode is zero, and false in the mask. A causal model need not be
    told: nothing that counts comes later.
    """

    returns: Tensor  # (B, K) returns-to-go, in the environment's unit
    states: Tensor  # (B, K, S)
    actions: Tensor  # (B, K) whole numbers, or (B, K, A)
    steps: Tensor  # (B, K) time since the start of the episode
    rewards: Tensor  # (B, K)
    over: Tensor  # (B, K) bool: the episode terminates with this step
    mask: Tensor  # (B, K) bool: the step was recorded


def windows(recorded: Iterable[Tensor], first: Tensor, behind: Tensor, k: int) -> Window:
    """Pieces of k steps that begin at the rows `first` (B,): one gather.

    recorded: the fields of a `Window` but for the mask, for all steps (N, ...). behind (B,): the row
    after the last one of the episode, where the piece is cut off.
    """
    rows = first[:, None] + torch.arange(k, device=first.device)
    mask = rows < behind[:, None]
    rows = torch.where(mask, rows, 0).flatten()

    def gather(field: Tensor) -> Tensor:
        pieces = field.index_select(0, rows).unflatten(0, mask.shape)
        return pieces * mask.view(*mask.shape, *[1] * (pieces.dim() - 2))

    return Window._make([*map(gather, recorded), mask])


class Affine(NamedTuple):
    """A layer of all members, or the gain and bias of a norm."""

    weight: Tensor  # (E, in, out); of a norm (E, 1, d)
    bias: Tensor  # (E, 1, out)


class Block(NamedTuple):
    """One layer of the transformer."""

    norm_1: Affine
    qkv: Affine  # d -> 3d: queries, keys and values
    out: Affine  # d -> d
    norm_2: Affine
    up: Affine  # d -> 4d
    down: Affine  # 4d -> d


class Parameters(NamedTuple):
    """All that is learned."""

    embed_return: Affine  # 1 -> d
    embed_state: Affine  # S -> d
    embed_action: Affine | Tensor  # A -> d, or a table (E, A, d) of whole actions
    embed_time: Tensor  # (E, longest, d)
    norm_in: Affine
    blocks: list[Block]
    norm_out: Affine
    predict_action: Affine  # d -> A
    predict_return: Affine | None  # d -> 1


def keep(x: Tensor) -> Tensor:
    """No dropout."""
    return x


def tokens(R: Tensor, s: Tensor, a: Tensor, t: Tensor, p: Parameters) -> Tensor:
    """LN(W_R R_t + e_t, W_s s_t + e_t, W_a a_t + e_t), the last action left out: (E, B, 3K - 1, d).

    R (E, B, K), s (E, B, K, S), a (E, B, K, A) or whole numbers (E, B, K), times t (E, B, K): one
    embedding e_t of the time in the episode serves the three tokens of a step.
    """
    time = look_up(t, p.embed_time)
    R = R[..., None] * p.embed_return.weight[:, None] + p.embed_return.bias[:, None]
    s = linear(s, p.embed_state)
    if isinstance(p.embed_action, Tensor):
        a = look_up(a, p.embed_action)
    else:
        a = linear(a, p.embed_action)
    steps = torch.stack([R + time, s + time, a + time], 3)  # (E, B, K, 3, d)
    return norm(steps.flatten(2, 3)[:, :, :-1], p.norm_in)


def transformer(
    x: Tensor,  # (E, B, L, d)
    p: Parameters,
    heads: int,
    read: slice = STATES,
    real: Tensor | None = None,  # (E, B, K) bool: the steps that are not padding
    drop: Drop = keep,
) -> Tensor:
    """Blocks and a last norm, at the tokens that are read: (E, B, K, d) for those of the states."""
    x, mask = drop(x), None if real is None else causal_mask(x, real)
    for layer in p.blocks:
        x = block(x, layer, heads, mask, drop)
    return norm(x[:, :, read], p.norm_out)


def block(x: Tensor, layer: Block, heads: int, mask: Tensor | None, drop: Drop) -> Tensor:
    """x = x + Attention(LN(x)),  x = x + W_2 relu(W_1 LN(x)),  (E, B, L, d)."""
    x = x + drop(attention(norm(x, layer.norm_1), layer, heads, mask, drop))
    return x + drop(mlp(norm(x, layer.norm_2), layer))


def attention(x: Tensor, layer: Block, heads: int, mask: Tensor | None, drop: Drop) -> Tensor:
    """Each token x (E, B, L, d) mixes in the values of those that it sees, head by head."""
    q, k, v = split_heads(linear(x, layer.qkv), 3, heads)
    return linear(join_heads(attend(q, k, v, mask, drop), len(x)), layer.out)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, drop: Drop) -> Tensor:
    """softmax(q k^T / sqrt(d / heads)) v, where the mask is true; without one, `causal_mask`."""
    if drop is keep:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~(causal_mask(k) if mask is None else mask), -torch.inf)
    return drop(scores.softmax(-1)) @ v


def causal_mask(x: Tensor, real: Tensor | None = None, read: slice = slice(None)) -> Tensor:
    """True where a token (row) sees another: itself, and those before it that are not padding.

    x (..., L, d) -> (L, L), or (E B, 1, L, L) where it is told which steps are real (E, B, K); the
    rows of those tokens alone that are read.
    """
    place = torch.arange(x.shape[-2], device=x.device)
    row = place[read, None]
    if real is None:
        return place <= row
    real = real.flatten(0, 1).repeat_interleave(3, 1)[:, None, None, :-1]
    return (place <= row) & (real | (place == row))


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(E, B, L, parts d) -> parts tensors (E B, heads, L, d / heads)."""
    return x.flatten(0, 1).unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def join_heads(x: Tensor, members: int) -> Tensor:
    """(E B, heads, L, d / heads) -> (E, B, L, d)."""
    return x.transpose(1, 2).flatten(2).unflatten(0, (members, -1))


def mlp(x: Tensor, layer: Block) -> Tensor:
    """W_2 relu(W_1 x)."""
    return linear(linear(x, layer.up).relu_(), layer.down)


def linear(x: Tensor, layer: Affine) -> Tensor:
    """x W + b: (E, ..., in) -> (E, ..., out)."""
    return stack.linear(x.flatten(1, -2), *layer).unflatten(1, x.shape[1:-1])


def norm(x: Tensor, layer: Affine) -> Tensor:
    """Layer norm of x (E, ..., d)."""
    if len(x) == 1:
        return F.layer_norm(x, x.shape[-1:], layer.weight.view(-1), layer.bias.view(-1))
    gain, bias = (t.view(len(x), *[1] * (x.dim() - 2), -1) for t in layer)
    return torch.addcmul(bias, F.layer_norm(x, x.shape[-1:]), gain)


def look_up(index: Tensor, table: Tensor) -> Tensor:
    """Rows of each member's own table: (E, B, K) whole numbers, (E, V, d) -> (E, B, K, d)."""
    member = torch.arange(len(table), device=index.device)[:, None, None]
    return F.embedding(index + member * table.shape[1], table.flatten(0, 1))


def predict(
    R: Tensor,
    s: Tensor,
    a: Tensor,
    t: Tensor,
    p: Parameters,
    heads: int,
    transformer: Callable[..., Tensor] = transformer,  # this one, or a faster one
) -> tuple[Tensor, Tensor | None]:
    """Actions a_t given R_1, s_1, a_1, ..., R_t, s_t, for all t at once: (E, B, K, A).

    They are tanh(W x + b) at the token s_t, which has not seen a_t, or logits where actions are whole
    numbers. With a second head also R_t at s_t (E, B, K), else None. R, s, a, t: as in `tokens`.
    Source: arXiv 2106.01345, algorithm 1.
    """
    x = transformer(tokens(R, s, a, t, p), p, heads)
    actions = linear(x, p.predict_action)
    if not isinstance(p.embed_action, Tensor):
        actions = actions.tanh()
    returns = None if p.predict_return is None else linear(x, p.predict_return)[..., 0]
    return actions, returns


def loss(predicted: tuple[Tensor, Tensor | None], window: Window) -> Tensor:
    """Mean of |a - a_t|^2 / A over real steps, or of -log pi(a_t) for whole actions: (E,).

    predicted: what `predict` gives for the window (E, B, K, ...). Where it has returns, their squared
    error is added. Source: arXiv 2106.01345, algorithm 1.
    """
    actions, returns = predicted
    if window.actions.is_floating_point():
        error = (actions - window.actions).square().mean(-1)
    else:
        target = window.actions.flatten()
        error = F.cross_entropy(actions.flatten(0, 2), target, reduction="none")
        error = error.view_as(window.mask)
    if returns is not None:
        error = error + (returns - window.returns).square()
    return (error * window.mask).sum((1, 2)) / window.mask.sum((1, 2)).clamp(min=1)
