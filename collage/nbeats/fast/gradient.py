"""The gradient of `core.loss`, written out: what autograd does, with less traffic.

Gradient            losses and gradients of all members on one batch
members_in_cache    how many members a CPU's cache holds
members_in_memory   how many members a GPU's memory lets through together

Blocks that share weights lie side by side in one buffer for each layer. So the gradient of a layer
is one product over all its uses, where autograd makes one for each use and adds them up; nothing is
allocated for it during a step, and the gradient is born in the layout of the weights.
"""

import torch
from torch import Tensor

from collage import runtime
from collage.nbeats import core
from collage.nbeats.core import Basis, Networks, Shapes

_relu_back = torch.ops.aten.threshold_backward.grad_input
CACHE = 2**22  # floats of activations and their slopes, of the members that go through together


def members_in_cache(shapes: Shapes, blocks: int, batch: int) -> int:
    """So many members leave behind no more than a CPU's cache holds; shapes as `core.shapes` has them.

    >>> members_in_cache([[(24, 64), (1, 64), (64, 6), (1, 6)]], blocks=3, batch=128)
    69
    """
    floats = sum(blocks * batch * sum(weight) for stack in shapes for weight in stack[::2])
    return max(1, CACHE // floats)


def members_in_memory(
    shapes: Shapes, blocks: int, batch: int, members: int, free: float, stored: int = 4,
    product: int = 4,
) -> int:  # fmt: skip
    """How many of the members can go through together in so many bytes, while all are trained.

    All keep a gradient, Adam's two moments and a copy of where they began, of `stored` bytes a number.
    Those that go through together leave inputs and slopes of every layer, and copies of its weights
    and products, of `product` bytes; a fifth of the memory is left for what comes and goes.

    Raises ValueError, with how many members would fit, where not even one can.

    >>> members_in_memory([[(24, 64), (1, 64), (64, 6), (1, 6)]], 3, 128, 100, free=8e6)
    12
    """
    weights = sum(i * o for stack in shapes for i, o in stack)
    left = sum(blocks * batch * (i + o) for stack in shapes for i, o in stack[::2])
    kept, passing = 4 * stored * weights, product * (left + 2 * weights)
    room = 0.8 * free
    at_once = int((room - members * kept) // passing)
    if at_once < 1:
        fit = max(0, int((room - passing) // kept))
        raise ValueError(
            f"members: got {members}, of {kept + passing:,} bytes while one is trained and {kept:,} "
            f"otherwise, wanted at most {fit} for the {free / 1e9:.2f} GB that are free (or a smaller "
            "batch)"
        )
    return min(members, at_once)


def at_once_on(
    networks: Networks, weights: Tensor, batch: int, product: torch.dtype | None = None
) -> int:
    """How many members go through together where the weights (E, P) lie."""
    if not weights.is_cuda:
        return min(len(weights), members_in_cache(networks.shapes, networks.blocks, batch))
    room = runtime.free_memory(weights.device)
    sizes = weights.dtype.itemsize, (product or weights.dtype).itemsize
    return members_in_memory(networks.shapes, networks.blocks, batch, len(weights), room, *sizes)


class Gradient:
    """Losses (E,) and gradients (E, P) on batches of B windows, without autograd.

    Going back through the blocks k = K ... 1, with d the slope of the loss in the forecast:
        dtheta_k = [V^f d, -V^b dx_{k+1}],   dx_k = dx_{k+1} + FC_k'(dtheta_k)

    Called as `core.loss` without its first two arguments; the gradient is a buffer that the next
    call overwrites. at_once: so many members go through the network together. Without it as many
    as a GPU has memory for, and on a CPU so many that what they leave behind stays in the cache.
    product: the dtype in which layers multiply, such as torch.bfloat16: windows, weights and slopes
    are rounded to it on their way in, sums are kept in float32 by the hardware. Forecasts, losses,
    the weights themselves and the gradient keep their dtype. Without it that of the weights.
    """

    def __init__(
        self,
        networks: Networks,
        weights: Tensor,  # (E, P)
        batch: int,
        at_once: int | None = None,
        product: torch.dtype | None = None,
    ) -> None:
        self.weights, self.shapes, members = weights.detach(), networks.shapes, len(weights)
        if at_once is None:
            at_once = at_once_on(networks, weights, batch, product)
        at_once = min(max(1, at_once), members)
        parts = [slice(i, min(i + at_once, members)) for i in range(0, members, at_once)]
        self.parts = [(part, networks.some(part)) for part in parts]
        self.gradient = torch.zeros_like(self.weights)
        self.any_mase = bool(networks.losses[:, 2].any())
        self.uses = [  # of each block its stack, and its rows in the buffers of that stack
            (s, slice(b * batch, (b + 1) * batch))
            for s in range(len(networks.stacks))
            for b in range(networks.blocks)
        ]

        def empty(*shape: int) -> Tensor:
            return self.weights.new_empty(at_once, *shape, dtype=product)

        rows, matrices = networks.blocks * batch, [stack[::2] for stack in self.shapes]
        self.inputs = [[empty(rows, i) for i, _ in stack] for stack in matrices]  # of each layer
        self.slopes = [[empty(rows, o) for _, o in stack] for stack in matrices]  # in its output
        # A GPU is fast where a matrix begins at a multiple of 16 bytes, as in a row of weights few do.
        self.copied = weights.is_cuda or product not in (None, weights.dtype)
        if self.copied:
            self.copies = [[empty(*shape) for shape in stack] for stack in self.shapes]
            self.products = [[empty(*shape) for shape in stack] for stack in matrices]

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,  # (E, B, L)
        seen: Tensor,
        y: Tensor,  # (E, B, H)
        known: Tensor,
        period: int = 1,
    ) -> tuple[Tensor, Tensor]:
        losses = []
        for part, networks in self.parts:
            batch = (x[part], seen[part], y[part], known[part])
            losses.append(self._part(part, networks, *batch, period=period))
        return torch.cat(losses), self.gradient

    def _part(self, part: slice, networks: Networks, *batch: Tensor, period: int) -> Tensor:
        """The losses of some members; their gradient goes to its place."""
        x, seen, y, known = batch
        layers = self._layers(part)
        inputs, slopes = (
            [[t[: len(x)] for t in stack] for stack in buffers]
            for buffers in (self.inputs, self.slopes)
        )
        generic = [name == "generic" for name, _ in networks.stacks]
        left, mask, f = core.newest_first(x, seen, networks.inside)
        for s, rows in self.uses:
            h = [t[:, rows] for t in inputs[s]]
            back, ahead = _forward(left, layers[s], networks.bases[s], generic[s], h)
            left = left - back * mask
            f = f + ahead
        naive: Tensor | float = 0.0
        if self.any_mase:
            naive = core.naive_error(x, seen * networks.inside.flip(-1), period)
        w, gap = core.error_weights(networks.losses, y, f, known, naive), f - y
        slope_ahead = w * gap.sign() / gap[0].numel()  # in the forecast, and so in each block's
        slope_left: Tensor | None = None  # in what is left of the window; nobody sees the last
        for s, rows in reversed(self.uses):
            h, d = [t[:, rows] for t in inputs[s]], [t[:, rows] for t in slopes[s]]
            slope_back = None if slope_left is None else -slope_left * mask
            curves = (slope_ahead, slope_back)
            through = _backward(*curves, layers[s], networks.bases[s], generic[s], h, d)
            slope_left = through if slope_left is None else slope_left + through
        self._multiply(part, inputs, slopes)
        return (w * gap.abs()).mean((1, 2))

    def _layers(self, part: slice) -> list[list[Tensor]]:
        """The weights of some members, in the dtype of products."""
        layers = core.unpack(self.weights[part], self.shapes)
        if not self.copied:
            return layers
        return [
            [c[: len(w)].copy_(w) for c, w in zip(copies, stack, strict=True)]
            for copies, stack in zip(self.copies, layers, strict=True)
        ]

    def _multiply(
        self, part: slice, inputs: list[list[Tensor]], slopes: list[list[Tensor]]
    ) -> None:
        """The gradient of each layer: one product over all its uses."""
        for s, stack in enumerate(core.unpack(self.gradient[part], self.shapes)):
            for i, (h, d) in enumerate(zip(inputs[s], slopes[s], strict=True)):
                w, b = stack[2 * i], stack[2 * i + 1]
                if self.copied:
                    w.copy_(torch.bmm(h.mT, d, out=self.products[s][i][: len(w)]))
                else:
                    torch.bmm(h.mT, d, out=w)
                torch.sum(d, 1, keepdim=True, dtype=b.dtype, out=b)


def _forward(
    x: Tensor, layers: list[Tensor], basis: Basis, generic: bool, h: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """As `core.block`; h: where the inputs of its layers go."""
    h[0].copy_(x)
    for i in range(len(h) - 1):
        torch.baddbmm(layers[2 * i + 1], h[i], layers[2 * i], out=h[i + 1])
        h[i + 1].relu_()
    theta, n = torch.baddbmm(layers[-1], h[-1], layers[-2]).to(x.dtype), len(basis.forecast)
    ahead, back = theta[..., :n], theta[..., n:]
    return (back, ahead) if generic else (back @ basis.backcast, ahead @ basis.forecast)


def _backward(
    ahead: Tensor,
    back: Tensor | None,
    layers: list[Tensor],
    basis: Basis,
    generic: bool,
    h: list[Tensor],
    d: list[Tensor],
) -> Tensor:
    """The slope in a block's window, from those in its forecast and its backcast.

    d: where the slopes in the outputs of its layers go.
    """
    n = len(basis.forecast)
    d[-1][..., :n] = ahead if generic else ahead @ basis.forecast.mT
    if back is None:
        d[-1][..., n:] = 0
    else:
        d[-1][..., n:] = back if generic else back @ basis.backcast.mT
    for i in range(len(h) - 1, 0, -1):
        torch.bmm(d[i], layers[2 * i].mT, out=d[i - 1])
        _relu_back(d[i - 1], h[i], 0, grad_input=d[i - 1])
    return torch.bmm(d[0], layers[0].mT).to(ahead.dtype)
