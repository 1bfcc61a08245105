"""Networks as plain tensors: stacks of K trained at once, flat buffers, still statistics.

mlp, forward        K ReLU networks as stacked weights (K, in, out)
Stack               K networks in one buffer (K, P), trained by heavy-ball SGD
Flat                a list of parameters as views of one tensor
still_statistics    forward passes from which normalisation layers do not learn
looking             the same, and torch's random numbers are put back
only_looking        a function that runs inside `still_statistics`
"""

import contextlib
import functools
import math
import operator
import weakref
from itertools import pairwise
from typing import ClassVar

import torch
from torch.nn.modules.batchnorm import _NormBase

from collage.common.checks import check_shape


def mlp(sizes, networks, generator):
    """Stacked weights of ReLU networks: [(K, in, out), (K, 1, out)] for each layer, He-normal.

    sizes: widths from input to output. Source of the scale: He et al. 2015 (arXiv 1502.01852).

    >>> [tuple(t.shape) for t in mlp([4, 8, 2], networks=3, generator=torch.Generator())]
    [(3, 4, 8), (3, 1, 8), (3, 8, 2), (3, 1, 2)]
    """
    params = []
    for fan_in, fan_out in pairwise(sizes):
        w = torch.randn(networks, fan_in, fan_out, generator=generator, device=generator.device)
        params += [w * math.sqrt(2 / fan_in), torch.zeros(networks, 1, fan_out, device=w.device)]
    return params


def forward(params, x):
    """Outputs (K, B, C) of the networks of `mlp` on x (K, B, D), or (B, D) shared by all."""
    if x.dim() == 2:
        x = x.expand(len(params[0]), *x.shape)
    for weight, bias in zip(params[0::2], params[1::2], strict=True):
        if weight is not params[0]:
            x = x.relu()
        x = torch.baddbmm(bias, x, weight)
    return x


class Stack:
    """K networks in one buffer, trained together by heavy-ball SGD.

    v_k <- mu_k v_k + g_k + lambda_k theta_k,    theta_k <- theta_k - eta_k v_k

    params: stacked tensors (K, ...), copied into `flat (K, P)` of which `params` are views.
    lr (eta), momentum (mu), weight_decay (lambda): a number, or one for each network (K,).

    A step whose gradient is not finite is refused, on the CPU; on a GPU, where asking costs a wait,
    NaN spreads in that network alone. What the stack holds it trains, frozen or not.

    Raises ValueError for stacks of different K or given twice, settings of another length, losses that
    do not depend on every tensor, and gradients that are not finite.

    >>> nets = Stack([torch.ones(2, 1)], lr=torch.tensor([0.1, 0.2]), momentum=0.0)
    >>> nets.step(lambda params: params[0].square().sum(1))
    tensor([1., 1.])
    >>> nets.flat.squeeze(1)
    tensor([0.8000, 0.6000])
    """

    def __init__(self, params, lr=0.05, momentum=0.9, weight_decay=0.0):
        params = list(params)
        sizes = {len(t) if t.dim() else None for t in params}
        if len(sizes) != 1 or None in sizes:
            shapes = [tuple(t.shape) for t in params]
            raise ValueError(f"params: got shapes {shapes}, wanted stacked tensors (K, ...)")
        if len({(t.data_ptr(), t.numel()) for t in params}) < len(params):
            raise ValueError("params: got a tensor twice, wanted each once")
        self.size = sizes.pop()
        self.flat = torch.cat([t.detach().reshape(self.size, -1) for t in params], 1)
        self.params = views(self.flat, [t.shape for t in params])
        self.velocity = torch.zeros_like(self.flat)
        self.lr = self.setting("lr", lr)
        self.momentum = self.setting("momentum", momentum)
        self.weight_decay = self.setting("weight_decay", weight_decay)
        self.decays = bool(self.weight_decay.any())

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "params"} | {
            "shapes": [t.shape for t in self.params]}  # fmt: skip

    def __setstate__(self, state):  # views do not survive a pickle: they are made anew
        shapes = state.pop("shapes")
        self.__dict__.update(state)
        self.params = views(self.flat, shapes)

    def setting(self, name, value):
        """`value` as a tensor (K,): checked, and repeated where it is one number."""
        value = torch.as_tensor(value, dtype=self.flat.dtype, device=self.flat.device)
        if value.shape not in ((), (self.size,)) or not bool((value >= 0).all()):
            raise ValueError(f"{name}: got {value.tolist()}, wanted one number or {self.size}, "
                             "none negative")  # fmt: skip
        return value.expand(self.size)

    def gradients(self, losses, params=None):
        """Losses (K,) and gradients (K, P) at the parameters, or at others of the same shapes.

        One backward of the sum serves all: network k's loss depends on network k only.
        """
        params = self.params if params is None else params
        with torch.enable_grad():
            values = losses(params)
            check_shape("losses", values, (self.size,))
            if not values.requires_grad or not all(t.requires_grad for t in params):
                raise ValueError(
                    "losses: do not depend on every tensor in params, or one is frozen"
                )
            grads = torch.autograd.grad(values.sum(), params, allow_unused=True)
        for i, g in enumerate(grads):
            if g is None:
                raise ValueError(f"losses: do not depend on params[{i}], wanted all of them")
        return values.detach(), torch.cat([g.reshape(self.size, -1) for g in grads], 1)

    @torch.no_grad()
    def step(self, losses, scale=1.0):
        """One step of all networks; losses(params) -> (K,); scale multiplies lr (a schedule).

        A list of such functions, chunks of the batch, averages their gradients. Returns the
        losses (K,) before the step.
        """
        chunks = list(losses) if isinstance(losses, list | tuple) else [losses]
        values, grads = zip(*[self.gradients(chunk) for chunk in chunks], strict=True)
        g = sum(grads[1:], grads[0]) / len(grads)
        if g.device.type == "cpu" and not math.isfinite(g.sum()):
            bad = (~g.isfinite().all(1)).nonzero()[:, 0].tolist()
            if bad:
                raise ValueError(f"losses: their gradients are inf or NaN in networks {bad}")
        if self.decays:
            g.addcmul_(self.flat, self.weight_decay[:, None])
        self.velocity.mul_(self.momentum[:, None]).add_(g)
        self.flat.addcmul_(self.velocity, self.lr[:, None], value=-scale)
        return sum(values) / len(values)


def views(flat, shapes):
    """The rows of `flat` (K, P) seen as leaves of the shapes (K, ...)."""
    pieces = flat.split([math.prod(shape[1:]) for shape in shapes], 1)
    return [c.view(s).detach().requires_grad_() for c, s in zip(pieces, shapes, strict=True)]


class Flat:
    """A list of parameters as views of one tensor `whole`, their gradients gathered in its gradient.

    The loop of use is `zero()`, backward, `link()`, a step along `whole.grad`. A parameter to which
    no gradient came keeps `p.grad = None`, as under any optimiser; its part of `whole.grad` is zero.

    Raises ValueError for several dtypes or devices, and for parameters that are given twice or
    share memory.

    >>> net = torch.nn.Linear(2, 1)
    >>> flat = Flat(list(net.parameters()))
    >>> _ = flat.whole.data.fill_(1.0)
    >>> net.weight
    Parameter containing:
    tensor([[1., 1.]], requires_grad=True)
    """

    def __init__(self, params):
        if len({(p.dtype, p.device) for p in params}) > 1:
            raise ValueError("params: got several dtypes or devices, wanted one with fused=True")
        if not params:
            raise ValueError("params: got a group without any, wanted some with fused=True")
        if len({p.data_ptr() for p in params if p.numel()}) < sum(p.numel() > 0 for p in params):
            raise ValueError("params: got two that share memory, wanted each once with fused=True")
        whole = torch.nn.Parameter(torch.cat([p.detach().reshape(-1) for p in params]))
        self.__setstate__({"params": list(params), "whole": whole})

    def __getstate__(self):
        return {"params": self.params, "whole": self.whole}

    def __setstate__(self, state):  # views do not survive a copy or a pickle: they are made anew
        self.params, self.whole = state["params"], state["whole"]
        ends = torch.tensor([p.numel() for p in self.params]).cumsum(0).tolist()
        self.cuts = [slice(b - p.numel(), b) for p, b in zip(self.params, ends, strict=True)]
        self.whole.grad = torch.zeros_like(self.whole)
        self.grads = self.cut(self.whole.grad)
        for p, part in zip(self.params, self.cut(self.whole.data), strict=True):
            p.data = part
        self.places = [p.data_ptr() for p in self.params]
        self.zero()

    def cut(self, vector):
        """A vector's parts, in the shapes of the parameters."""
        return [vector[c].view_as(p) for c, p in zip(self.cuts, self.params, strict=True)]

    def zero(self, set_to_none=True):
        """Clear all gradients; backward then leaves its own, which `link` gathers."""
        if not set_to_none:
            self.whole.grad.zero_()
        for p, g in zip(self.params, self.grads, strict=True):
            p.grad = None if set_to_none else g

    def link(self):
        """Gather the gradients into `whole.grad`, of which they are views from here on.

        Returns whether there is any. Raises RuntimeError where a parameter was moved, cast or given
        another `data` since: it is no view of `whole` any more.
        """
        if [p.data_ptr() for p in self.params] != self.places:
            raise RuntimeError("params: moved, cast or replaced since the flat buffer was made, wanted "
                               "the optimiser made afterwards")  # fmt: skip
        there = [p.grad for p in self.params]
        if all(map(operator.is_, there, self.grads)):
            return True
        if any(g is not None and g.layout != torch.strided for g in there):
            raise ValueError("gradients: got a sparse one, wanted dense gradients")
        came = [(p, g, view) for p, g, view in zip(self.params, there, self.grads, strict=True)
                if g is not None]  # fmt: skip
        strange = [(view, g) for _, g, view in came if g is not view]
        if strange:
            torch._foreach_copy_(*map(list, zip(*strange, strict=True)))
        for p, _, view in came:
            p.grad = view
        if len(came) < len(there):
            for g, view in zip(there, self.grads, strict=True):
                if g is None:
                    view.zero_()
        return bool(came)


class still_statistics:
    """A context in which normalisation layers in training mode do not learn running statistics.

    They normalise by the batch as usual, but their buffers are out of sight: nothing is copied,
    `momentum=None` counts right, and a CUDA graph can record it. It hooks the call of those
    layers only, in eager mode; other modules run at full speed. Contexts nest.

    >>> norm = torch.nn.BatchNorm1d(2)
    >>> with still_statistics():
    ...     _ = norm(torch.randn(8, 2))
    >>> norm.num_batches_tracked
    tensor(0)
    """

    active: ClassVar = (
        weakref.WeakSet()
    )  # the open contexts; one that is dropped without exit is closed

    def __enter__(self):
        if _NormBase.__call__ is not _norm_call:
            _NormBase.__call__ = _norm_call  # once; outside such a context it does nothing
        self.active.add(self)

    def __exit__(self, *error):
        self.active.discard(self)


@contextlib.contextmanager
def looking(device):
    """A context for who only looks at a network: running statistics stay, torch's random numbers too."""
    devices = [device] if torch.device(device).type == "cuda" else []
    with still_statistics(), torch.random.fork_rng(devices):
        yield


def only_looking(function):
    """A function that runs inside `still_statistics`."""

    @functools.wraps(function)
    def still(*args, **kwargs):
        with still_statistics():
            return function(*args, **kwargs)

    return still


def _norm_call(module, *args, **kwargs):
    if not (still_statistics.active and module.training and module.track_running_stats):
        return torch.nn.Module.__call__(module, *args, **kwargs)
    names = ("running_mean", "running_var", "num_batches_tracked")
    kept = {name: module._buffers[name] for name in names}
    module._buffers.update(dict.fromkeys(names))
    module.track_running_stats = False
    try:
        return torch.nn.Module.__call__(module, *args, **kwargs)
    finally:
        module._buffers.update(kept)
        module.track_running_stats = True
