"""A whole step of SAM as one compiled program."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from collage.common.graph import Captured
from collage.common.program import Program
from collage.sam.core import dual
from collage.sam.flat import Flat
from collage.sam.optimizer import SAM

Loss = Callable[..., Tensor]  # (network, *batch) -> one number
SETTINGS = "rho", "momentum", "weight_decay", "eta", "adaptive"  # frozen in the program


def compiled_step(
    optimizer: SAM, model: torch.nn.Module, loss: Loss, compiled: bool = True
) -> Callable[..., Tensor]:
    """A step, both passes, climb and base step, as one program: run(*batch) -> loss before it.

    On a GPU the program is recorded, too, as one CUDA graph (see `Captured`).

    optimizer: SAM(model.parameters(), "SGD", fused=True, ...), one group; loss(net, *batch) calls
    net instead of the model, with the weights of the pass. Weights and momentum are the
    optimiser's own: `step`, checkpoints and schedulers of lr mix with it. All else is frozen, rho
    and momentum too, and at the first run whether the model trains. Every parameter takes the
    step, also one that the loss does not use. A dropout mask differs between the passes. The first
    run compiles (see `Program`); compiled=False runs the same operations one by one.

    Raises ValueError for an optimiser of another kind, parameters that are frozen or not the
    model's, and layers with running statistics; in a run for a batch of another shape than the
    first, and for settings that have changed; RuntimeError for parameters moved since,
    and on a GPU for another momentum buffer.
    Source: arXiv 2010.01412, Algorithm 1.

    >>> net = torch.nn.Linear(4, 2)
    >>> opt = SAM(net.parameters(), "SGD", fused=True, lr=0.1, momentum=0.9)
    >>> run = compiled_step(opt, net, lambda n, x: n(x).square().mean(), compiled=False)
    >>> x = torch.ones(8, 4)
    >>> bool(run(x) > run(x))
    True
    """
    flat, group = _check(optimizer, model)
    names = {p: name for name, p in model.named_parameters()}
    if any(p not in names for p in flat.params):
        raise ValueError("optimizer: got parameters that are not the model's")
    own = [names[p] for p in flat.params]
    frozen = _settings(group)
    rho, momentum, decay, eta, adaptive = frozen
    p, cut = optimizer.p, flat.cut

    def slope(whole: Tensor, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        def of(params: list[Tensor]) -> Tensor:
            weights = dict(zip(own, params, strict=True))
            return loss(lambda *x: torch.func.functional_call(model, weights, x), *batch)

        parts, value = torch.func.grad_and_value(of)(cut(whole))
        return torch.cat([g.reshape(-1) for g in parts]), value

    def step(whole: Tensor, velocity: Tensor, lr: Tensor, *batch: Tensor) -> Tensor:
        units = whole.abs() + eta if adaptive else 1
        g, value = slope(whole, batch)
        g, _ = slope(whole + units * dual(units * g, rho, p), batch)
        velocity.mul_(momentum).add_(g + decay * whole if decay else g)
        whole.sub_(lr * velocity)
        return value

    program, whole = Program(step, compiled), flat.whole.detach()
    lr, unkept = torch.zeros((), dtype=whole.dtype, device=whole.device), torch.zeros_like(whole)
    velocity = [unkept]

    def step_on(*batch: Tensor) -> Tensor:
        return program(whole, velocity[0], lr, *batch)

    recorded = Captured(step_on, device=whole.device)

    def run(*batch: Tensor) -> Tensor:
        group = optimizer.param_groups[0]  # another one once a checkpoint was loaded
        if (now := _settings(group)) != frozen:
            raise ValueError(f"optimizer: got {dict(zip(SETTINGS, now, strict=True))}, wanted the "
                             f"settings of this step, {dict(zip(SETTINGS, frozen, strict=True))}")  # fmt: skip
        flat.check_views()
        state = optimizer.base.state[flat.whole] if momentum else {"momentum_buffer": unkept}
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(whole)
        lr.fill_(float(group["lr"]))
        if (here := state["momentum_buffer"]).is_cuda and here is not velocity[0] is not unkept:
            raise RuntimeError("momentum: got another buffer than the recorded step reads")
        velocity[0] = here
        value = recorded(*batch)
        return value.clone() if value.is_cuda else value  # the next replay overwrites it

    return run


def _settings(group: dict) -> tuple[float, ...]:
    return tuple(float(group[name]) for name in SETTINGS)


def _check(optimizer: SAM, model: torch.nn.Module) -> tuple[Flat, dict]:
    """The flat buffer and the group of an optimiser that can be one program; else ValueError."""
    flats, groups, base = optimizer.flats(), optimizer.param_groups, optimizer.base
    if len(flats) != 1 or type(base) is not torch.optim.SGD:
        raise ValueError("optimizer: wanted SAM around SGD, with fused=True and one group")
    refused = [k for k in ("dampening", "nesterov", "maximize") if groups[0].get(k)]
    if refused:
        raise ValueError(f"optimizer: got {refused}, wanted SGD without")
    if not all(p.requires_grad for p in flats[0].params):
        raise ValueError("optimizer: got frozen parameters, wanted none: use SAM.step")
    if any(isinstance(m, _NormBase) and m.track_running_stats for m in model.modules()):
        raise ValueError("model: got layers with running statistics, wanted none: use SAM.step")
    return flats[0], groups[0]
