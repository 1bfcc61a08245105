"""The gradient of an ensemble of residual stacks, written out: what autograd does, with less traffic.

Gradient    losses and gradients of all members on one batch

Blocks that share weights lie side by side in one buffer for each layer. So the gradient of a layer
is one product over all its uses, where autograd makes one for each use and adds them up; nothing is
allocated for it during a step, and the gradient is born in the layout of the weights.
"""

import torch

_relu_back = torch.ops.aten.threshold_backward.grad_input
CACHE = 2**22  # floats of activations and their slopes, of the members that go through together


class Gradient:
    """Losses (E,) and gradients (E, P) of an `Ensemble` on batches of B windows, without autograd.

    Going back through its blocks k = K ... 1, with d the slope of the loss in the forecast:
        dtheta_k = [B_f d, -B_b dx_{k+1}],   dx_k = dx_{k+1} + FC_k'(dtheta_k)

    Called as `Ensemble.loss`, with windows (E, B, L) of each member's own; the gradient is a buffer
    that the next call overwrites. at_once: so many members go through the network together. Without
    it all of them on a GPU, and on a CPU so many that what they leave behind stays in the cache.
    product: the dtype in which layers multiply, such as torch.bfloat16: windows, weights and slopes
    are rounded to it on their way in, sums are kept in float32 by the hardware. Forecasts, losses,
    the weights themselves and the gradient keep their dtype. Without it that of the weights.
    """

    def __init__(self, ensemble, batch, at_once=None, product=None):
        self.ensemble = ensemble
        weights = ensemble.weights.detach()
        self.gradient = torch.zeros_like(weights)
        networks = ensemble.tensors(weights)
        self.place, uses = [], [0] * len(networks)  # of each block, among those with its weights
        for _, n in ensemble.plan:
            self.place.append(slice(uses[n] * batch, (uses[n] + 1) * batch))
            uses[n] += 1
        floats = sum(count * batch * sum(w.shape[1:])
                     for count, network in zip(uses, networks, strict=True)
                     for w in network[::2])  # fmt: skip
        self.cached = max(1, CACHE // floats)  # so many members stay in a CPU's cache
        if at_once is None:
            at_once = self.cached if weights.device.type == "cpu" else len(weights)
        self.at_once = min(max(1, at_once), len(weights))

        product = product or weights.dtype

        def buffers(side):  # the inputs (1) or outputs (2) of each layer, for all uses
            return [[weights.new_empty(self.at_once, count * batch, w.shape[side], dtype=product)
                     for w in network[::2]]
                    for count, network in zip(uses, networks, strict=True)]  # fmt: skip

        self.inputs, self.outputs = buffers(1), buffers(2)
        # A GPU is fast where a matrix begins at a multiple of 16 bytes, as in a row of weights few do.
        self.copies = self.slopes = None
        if weights.is_cuda or product != weights.dtype:
            self.copies, self.slopes = (
                [[weights.new_empty(self.at_once, *w.shape[1:], dtype=product)
                  for w in network[::every]] for network in networks]
                for every in (1, 2))  # fmt: skip

    @torch.no_grad()
    def __call__(self, x, seen, y, known, period=1):
        losses = []
        for i in range(0, len(self.gradient), self.at_once):
            part = slice(i, min(i + self.at_once, len(self.gradient)))
            batches = [t[part] for t in (x, seen, y, known)]
            losses.append(self._some(part, *batches, period))
        return torch.cat(losses), self.gradient

    def _some(self, part, x, seen, y, known, period):
        """The losses of some members; their gradient goes to its place."""
        e, networks = self.ensemble, self.ensemble.tensors(self.ensemble.weights.detach()[part])
        if self.copies is not None:
            networks = [[c[: len(x)].copy_(w) for c, w in zip(copies, network, strict=True)]
                        for copies, network in zip(self.copies, networks, strict=True)]  # fmt: skip
        inputs, outputs = ([[t[: len(x)] for t in network] for network in side]
                           for side in (self.inputs, self.outputs))  # fmt: skip
        own, mask, level = e._turn(x, seen, part)
        unit, f = e._unit(own), level if e.level else torch.zeros_like(level)
        left = own if unit is None else own / unit
        for (s, n), at in zip(e.plan, self.place, strict=True):
            h = [t[:, at] for t in inputs[n]]
            back, ahead = self._forward(networks[n], e.stacks[s][0], part, h, left)
            left = left - back * mask
            f = f + (ahead if unit is None else ahead * unit)
        weight = e._weight(x, seen, y, f, known, period, part)
        gap = f - y
        slope = weight * gap.sign() / gap[0].numel()
        slope, further = slope if unit is None else slope * unit, None
        for (s, n), at in zip(reversed(e.plan), reversed(self.place), strict=True):
            h, d = [t[:, at] for t in inputs[n]], [t[:, at] for t in outputs[n]]
            through = self._backward(networks[n], e.stacks[s][0], part, h, d, slope,
                                     None if further is None else further * mask)  # fmt: skip
            further = through if further is None else further + through
        for n, slopes in enumerate(e.tensors(self.gradient[part])):
            places = slopes[::2]
            if self.slopes is not None:
                places = [t[: len(x)] for t in self.slopes[n]]
            for h, d, place, w, b in zip(inputs[n], outputs[n], places, slopes[::2], slopes[1::2],
                                         strict=True):  # fmt: skip
                torch.bmm(h.mT, d, out=place)
                if place is not w:
                    w.copy_(place)
                torch.sum(d, 1, keepdim=True, dtype=b.dtype, out=b)
        return (weight * gap.abs()).mean((1, 2))

    def _forward(self, network, name, part, h, x):
        """A block's backcast and forecast; h: where the inputs of its layers go."""
        e = self.ensemble
        h[0].copy_(x)
        for i in range(e.layers):
            torch.baddbmm(network[2 * i + 1], h[i], network[2 * i], out=h[i + 1])
            h[i + 1].relu_()
        parameters = torch.baddbmm(network[-1], h[-1], network[-2]).to(x.dtype)
        ahead, back = parameters.tensor_split([e.sizes[name][0]], -1)
        if name != "generic":
            ahead, back = ahead @ e.basis(name, "f", part), back @ e.basis(name, "b", part)
        return back, ahead

    def _backward(self, network, name, part, h, d, ahead, back):
        """The slope in a block's window; d: where the slopes in the outputs of its layers go."""
        e, size = self.ensemble, self.ensemble.sizes[name][0]
        if name != "generic":
            ahead = ahead @ e.basis(name, "f", part).mT
            back = None if back is None else back @ e.basis(name, "b", part).mT
        d[-1][..., :size] = ahead
        d[-1][..., size:] = 0 if back is None else -back  # nobody listens to the last backcast
        for i in range(e.layers, 0, -1):
            torch.bmm(d[i], network[2 * i].mT, out=d[i - 1])
            _relu_back(d[i - 1], h[i], 0, grad_input=d[i - 1])
        return torch.bmm(d[0], network[0].mT).to(ahead.dtype)
