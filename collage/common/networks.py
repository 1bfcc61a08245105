"""Networks as plain tensors: stacks of K trained at once; forward passes that leave no trace.

mlp, forward               K ReLU networks as stacked weights (K, in, out)
Stack                      K networks in one buffer (K, P), trained by heavy-ball SGD
frozen_batch_statistics    forward passes from which normalisation layers do not learn
no_side_effects            the same, and torch's random numbers are put back
"""

import contextlib
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Generator, Tensor
from torch.nn.modules.batchnorm import _NormBase

from collage.common.checks import check_shape


def mlp(sizes: Sequence[int], networks: int, generator: Generator) -> list[Tensor]:
    """Stacked weights of ReLU networks: [(K, in, out), (K, 1, out)] for each layer, He-normal.

    sizes: widths from input to output. Source of the scale: He et al. 2015 (arXiv 1502.01852).

    >>> [tuple(t.shape) for t in mlp([4, 8, 2], networks=3, generator=torch.Generator())]
    [(3, 4, 8), (3, 1, 8), (3, 8, 2), (3, 1, 2)]
    """
    params: list[Tensor] = []
    for fan_in, fan_out in pairwise(sizes):
        w = torch.randn(networks, fan_in, fan_out, generator=generator, device=generator.device)
        params += [w * math.sqrt(2 / fan_in), torch.zeros(networks, 1, fan_out, device=w.device)]
    return params


def forward(params: Sequence[Tensor], x: Tensor) -> Tensor:
    """Outputs (K, B, C) of the networks of `mlp` on x (K, B, D), or (B, D) shared by all."""
    if x.dim() == 2:
        x = x.expand(len(params[0]), *x.shape)
    for weight, bias in zip(params[0::2], params[1::2], strict=True):
        if weight is not params[0]:
            x = x.relu()
        if torch.compiler.is_compiling() and x.device.type == "cpu":
            x = torch.bmm(x, weight) + bias  # added in passing; baddbmm would copy the bias first
        else:
            x = torch.baddbmm(bias, x, weight)
    return x


Losses = Callable[[list[Tensor]], Tensor]  # of stacked parameters, one for each network


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

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float | Tensor = 0.05,
        momentum: float | Tensor = 0.9,
        weight_decay: float | Tensor = 0.0,
    ) -> None:
        params = list(params)
        sizes = {len(t) if t.dim() else None for t in params}
        if len(sizes) != 1 or None in sizes:
            shapes = [tuple(t.shape) for t in params]
            raise ValueError(f"params: got shapes {shapes}, wanted stacked tensors (K, ...)")
        if len({(t.data_ptr(), t.numel()) for t in params}) < len(params):
            raise ValueError("params: got a tensor twice, wanted each once")
        self.size = len(params[0])
        self.flat = torch.cat([t.detach().reshape(self.size, -1) for t in params], 1)
        self.params = views(self.flat, [t.shape for t in params])
        self.velocity = torch.zeros_like(self.flat)
        self.lr = self.setting("lr", lr)
        self.momentum = self.setting("momentum", momentum)
        self.weight_decay = self.setting("weight_decay", weight_decay)
        self.decays = bool(self.weight_decay.any())

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k != "params"} | {
            "shapes": [t.shape for t in self.params]}  # fmt: skip

    def __setstate__(self, state: dict) -> None:
        """Views do not survive a pickle: they are made anew."""
        shapes = state.pop("shapes")
        self.__dict__.update(state)
        self.params = views(self.flat, shapes)

    def setting(self, name: str, value: float | Tensor) -> Tensor:
        """`value` as a tensor (K,): checked, and repeated where it is one number."""
        value = torch.as_tensor(value, dtype=self.flat.dtype, device=self.flat.device)
        if value.shape not in ((), (self.size,)) or not bool((value >= 0).all()):
            raise ValueError(f"{name}: got {value.tolist()}, wanted one number or {self.size}, "
                             "none negative")  # fmt: skip
        return value.expand(self.size)

    def gradients(self, losses: Losses) -> tuple[Tensor, Tensor]:
        """Losses (K,) and gradients (K, P) at the parameters."""
        return self.gradients_at(self.params, losses)

    def gradients_at(self, params: list[Tensor], losses: Losses) -> tuple[Tensor, Tensor]:
        """Losses (K,) and gradients (K, P) at leaves (K, ...) of the shapes of `params`.

        One backward of the sum serves all: network k's loss depends on network k only.
        """
        with torch.enable_grad():
            values = losses(params)
            check_shape("losses", values, (self.size,))
            if not values.requires_grad or not all(t.requires_grad for t in params):
                raise ValueError("losses: do not depend on every one of params, or one is frozen")
            grads = torch.autograd.grad(values.sum(), params, allow_unused=True)
        for i, g in enumerate(grads):
            if g is None:
                raise ValueError(f"losses: do not depend on params[{i}], wanted all of them")
        return values.detach(), torch.cat([g.reshape(self.size, -1) for g in grads], 1)

    @torch.no_grad()
    def step(self, losses: Losses | Sequence[Losses], scale: float = 1.0) -> Tensor:
        """One step of all networks; losses(params) -> (K,); scale multiplies lr (a schedule).

        A list of such functions, chunks of the batch, averages their gradients. Returns the
        losses (K,) before the step.
        """
        chunks = [losses] if callable(losses) else list(losses)
        if not chunks:
            raise ValueError("losses: got an empty list, wanted at least one function")
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
        return sum(values[1:], values[0]) / len(values)


def views(flat: Tensor, shapes: Iterable[torch.Size]) -> list[Tensor]:
    """The rows of `flat` (K, P) seen as leaves of the shapes (K, ...)."""
    shapes = list(shapes)
    pieces = flat.split([math.prod(shape[1:]) for shape in shapes], 1)
    return [c.view(s).detach().requires_grad_() for c, s in zip(pieces, shapes, strict=True)]


class frozen_batch_statistics(contextlib.ContextDecorator):
    """A context, or decorator, in which normalisation layers in training mode learn no statistics.

    They normalise by the batch as usual, but their buffers are out of sight: nothing is copied,
    `momentum=None` counts right, and a CUDA graph can record it. (Outside such a context torch
    itself asks the host how often a layer with `momentum=None` has learned: no graph can.) It hooks
    the call of those layers only, in eager mode; other modules run at full speed. Contexts nest.

    >>> norm = torch.nn.BatchNorm1d(2)
    >>> with frozen_batch_statistics():
    ...     _ = norm(torch.randn(8, 2))
    >>> norm.num_batches_tracked
    tensor(0)
    """

    # The open contexts; one that is dropped without exit is closed.
    active: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    def __enter__(self) -> None:
        if _NormBase.__call__ is not _norm_call:
            _NormBase.__call__ = _norm_call  # type: ignore[method-assign]  # once; outside such a context it does nothing
        self.active.add(self)

    def __exit__(self, *error: object) -> None:
        self.active.discard(self)

    def _recreate_cm(self) -> Self:
        """As a decorator: a context of its own for each call."""
        return type(self)()


@contextlib.contextmanager
def no_side_effects(device: torch.device | str) -> Iterator[None]:
    """A context in which forward passes change neither running statistics nor torch's random numbers."""
    devices = [device] if torch.device(device).type == "cuda" else []
    with frozen_batch_statistics(), torch.random.fork_rng(devices):
        yield


def _norm_call(module: _NormBase, *args: Any, **kwargs: Any) -> Any:
    if not (frozen_batch_statistics.active and module.training and module.track_running_stats):
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
