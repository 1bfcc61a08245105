"""Sharpness-aware minimisation as an optimiser of torch, around any of its own."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from collage.common.graph import Captured
from collage.common.networks import frozen_batch_statistics
from collage.sam.arguments import base_class, check_capture, check_group, loss_value, single_radius
from collage.sam.core import check_order, dual, joined, shaped_like
from collage.sam.flat import Flat
from collage.sam.fused import FlatBase

Closure = Callable[[], Any]  # computes a loss, calls backward and returns the loss


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation around any first-order optimiser of torch.

    g = grad L_B(theta),  e = `ascent`(g),  g_SAM = grad L_B(theta + e);  the base optimiser
    steps from theta along g_SAM.

    base_optimizer is a class of torch.optim or its name; `base_kwargs` (lr, momentum,
    weight_decay, ...) are its own, so weight decay acts at theta and not inside the maximum.
    A parameter group may carry its own rho and `adaptive`; the norm is always over all groups.
    adaptive=True is ASAM (arXiv 2102.11600): the ball is measured in units of T = |theta| + eta,
    so e = T `ascent`(T g), for every tensor (the authors' code leaves biases out).

    fused=True moves the parameters into one flat buffer for each group, gradients likewise, and
    the base optimiser sees one tensor: fewest kernels, for elementwise base optimisers. A
    parameter that is frozen, or to which no gradient came, is left alone as torch leaves it.

    maximize=True climbs J by descending -J: the perturbation is then the worst one for J.

    The second pass has torch's random numbers of the first, dropout masks among them, but not
    numpy's. Normalisation layers update their running statistics in the first pass only.

    Raises ValueError for a bad rho, p or base optimiser, differentiable=True, a parameter given
    twice, a sparse gradient, and a closure that leaves no gradient; with fused=True also where a
    parameter without gradient in some step has one again and the base counts its steps, as Adam
    does. Source: arXiv 2010.01412, Algorithm 1.

    >>> net = torch.nn.Linear(4, 2)
    >>> opt = SAM(net.parameters(), "SGD", rho=0.05, lr=0.1, momentum=0.9)
    >>> def closure():
    ...     loss = net(torch.ones(8, 4)).square().mean()
    ...     loss.backward()
    ...     return loss
    >>> bool(opt.step(closure) > closure())  # the loss before the step, and after it
    True
    """

    def __init__(
        self,
        params: Iterable,
        base_optimizer: str | type[torch.optim.Optimizer],
        rho: float = 0.05,
        p: float = 2.0,
        adaptive: bool = False,
        *,
        eta: float = 0.01,
        fused: bool = False,
        **base_kwargs: Any,
    ) -> None:
        self.p, self.fused = check_order(p), bool(fused)
        self._flat: FlatBase | None = None
        self._reset()
        own = {"rho": single_radius(rho), "adaptive": bool(adaptive), "eta": eta}
        base = base_class(base_optimizer, fused, SAM)
        # A trial: the base refuses bad settings before anything is moved.
        base([torch.nn.Parameter(torch.zeros(1))], **base_kwargs)
        super().__init__(params, {**own, **base_kwargs})
        if fused:  # the base has groups of its own: one flat tensor in place of each list
            self._flat = FlatBase(base, self.param_groups, base_kwargs)
            self.base = self._flat.base
        else:  # one set of groups and one state: schedulers and checkpoints see everything
            self.base = base(self.param_groups, **base_kwargs)
            self.param_groups, self.state = self.base.param_groups, self.base.state
        self.defaults = {**self.base.defaults, **own}

    def _reset(self) -> None:
        """Between two steps: nothing perturbed, nothing banked."""
        self._perturbed: tuple[list[Tensor], list[Tensor]] | None = None  # and copies of theta
        self._still = frozen_batch_statistics()  # open between ascend() and restore()
        self._retreated = False  # theta restored, base step still to come
        self._clear_bank()

    def _clear_bank(self) -> None:
        """m-sharpness: sums of gradients, of how many chunks, and who had a gradient in them."""
        self._bank: dict[Tensor, Tensor] = {}
        self._banked = 0
        self._had_gradient: set[Tensor] = set()

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Closure | Iterable[Closure] | None = None,
        first_pass: Callable[[], AbstractContextManager] | None = None,
    ) -> Tensor | None:
        """One SAM step; returns the loss at the unperturbed weights.

        closure() computes the loss of one batch, calls backward and returns the loss; it runs
        twice. A list of closures is m-sharpness: every chunk of the batch has its own
        perturbation, and the step follows the mean gradient. `first_pass` makes a context for the
        first pass: with `ddp.no_sync` each rank climbs its own gradient (a local perturbation),
        without it DDP averages first (a global one).

        Without a closure it ends the two-phase form, as `descend` does.
        """
        if closure is not None:
            return self._step(closure, first_pass or nullcontext, same_draws=True)
        if not self._retreated:
            self._retreat("step() without a closure")
        self._base_step()
        return None

    step.hooked = True  # type: ignore[attr-defined]  # the base's step is profiled: once is enough

    def _step(
        self,
        closure: Closure | Iterable[Closure],
        first_pass: Callable[[], AbstractContextManager],
        same_draws: bool,
    ) -> Tensor:
        chunks = [closure] if callable(closure) else list(closure)
        if not chunks:
            raise ValueError("closure: got an empty list, wanted at least one closure")
        device = next(iter(self._tensors())).device
        gpus, losses = [device] if device.type == "cuda" else [], []
        try:
            for chunk in chunks:
                if self._perturbed:
                    self.bank()
                self.zero_grad()
                # Torch's random numbers are put back after the first pass: the second draws them again.
                with torch.random.fork_rng(gpus, enabled=same_draws):
                    with torch.enable_grad(), first_pass():
                        losses.append(loss_value(chunk()))
                    self.ascend()
                with torch.enable_grad():
                    chunk()
        except BaseException:  # whatever went wrong, theta is as it was before the step
            self.restore()
            self._clear_bank()
            raise
        self._retreat("step()")
        self._base_step()
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    @torch.no_grad()
    def ascend(self) -> None:
        """First of two phases, after a backward: climb to theta + e and clear the gradients.

        With gradient accumulation call it after the last micro-batch, then run them all again.
        Gradients may be scaled (AMP): e does not change. An inf or NaN in them makes e NaN, so
        that the second pass shows it to the scaler and the whole step is skipped.
        """
        if self._perturbed:
            self.restore()
            raise RuntimeError("ascend() twice: wanted bank() or descend() between; the weights "
                               "are restored (with a GradScaler use descend(scaler))")  # fmt: skip
        any_gradient = self._collect_gradients()
        groups = [(group, [t for t in tensors if t.grad is not None])
                  for group, tensors in self._groups()]  # fmt: skip
        tensors = [t for _, members in groups for t in members]
        if not (tensors and any_gradient):
            raise ValueError("gradients: got none, wanted a closure that calls backward() and "
                             "parameters that take part in its loss")  # fmt: skip
        climb = iter(self._perturbation(groups))
        self._perturbed = tensors, [t.clone() for t in tensors]
        self._still.__enter__()
        for group, members in groups:
            if members:
                steps = [next(climb) for _ in members]
                worse = -1 if group.get("maximize") else 1  # where the objective gets worse
                torch._foreach_add_(members, steps, alpha=worse * float(group["rho"]))
        self.zero_grad()

    def _perturbation(self, groups: list[tuple[dict, list[Tensor]]]) -> list[Tensor]:
        """e for rho = 1, one tensor for each: `dual` of all gradients as one vector.

        Adaptive: T dual(T g), with T = |theta| + eta.
        """
        tensors = [t for _, members in groups for t in members]
        grads = [t.grad for t in tensors if t.grad is not None]
        if any(g.layout is not torch.strided for g in grads):
            raise ValueError("gradients: got a sparse one, wanted dense gradients")
        units = {t: t.abs() + g["eta"] for g, ts in groups if g["adaptive"] for t in ts}
        grads = [g * units.get(t, 1) if units else g for t, g in zip(tensors, grads, strict=True)]
        climb = shaped_like(dual(joined(grads), 1.0, self.p), grads)
        return [e * units.get(t, 1) if units else e for t, e in zip(tensors, climb, strict=True)]

    @torch.no_grad()
    def restore(self, caller: str = "") -> None:
        """Back to theta, bit for bit and in place; nothing to do where it is not perturbed.

        Then a RuntimeError instead where a caller is named, which needs it to be.
        """
        if self._perturbed:
            torch._foreach_copy_(*self._perturbed)
            self._perturbed = None
            self._still.__exit__()
        elif caller:
            raise RuntimeError(f"{caller}: the weights are not perturbed, wanted ascend() before")

    @torch.no_grad()
    def bank(self) -> None:
        """End one chunk of m-sharpness: restore theta, put the gradient aside, start the next.

        `descend` after the last chunk follows the mean of all of them.
        """
        self.restore("bank()")
        self._collect_gradients()
        for t in self._tensors():
            if t.grad is not None:
                self._bank[t] = t.grad.clone() if t not in self._bank else self._bank[t] + t.grad
        for flat in self.flats():
            self._had_gradient.update(p for p in flat.params if p.grad is not None)
        self._banked += 1
        self.zero_grad()

    @torch.no_grad()
    def descend(self, scaler: Any = None) -> None:
        """Second of two phases, after the second backward: restore theta, then the base step.

        A `torch.amp.GradScaler` unscales and skips the step where it finds an inf or NaN.
        """
        self._retreat("descend()")
        self._retreated = True
        try:
            if scaler is None:
                self.step()
            else:
                scaler.step(self)  # calls step(), or skips it
        finally:
            self._retreated = False

    def capture(self, closure: Closure) -> Callable[[], Tensor]:
        """A whole step (both passes, climb, base step) as one CUDA graph: run() -> loss.

        Refill the closure's input tensors in place before each run(). The first one is a step like
        any other, the second records it, later ones replay the recording. lr and rho are frozen
        into it (unless lr is a tensor), and a dropout mask differs between the passes, since a
        graph draws its own numbers.

        Raises ValueError without fused=True, off the GPU, and for Adam and its like without
        capturable=True, whose steps ask the host.
        """
        flats = [flat.whole for flat in self.flats()]
        check_capture(self.base, flats)
        step = torch.no_grad()(lambda: self._step(closure, nullcontext, same_draws=False))
        captured = Captured(step, device=flats[0].device)
        return lambda: captured().clone()  # the next replay overwrites it

    # -- what an optimiser of torch owes its users -------------------------------------------------

    def add_param_group(self, group: dict) -> None:
        if self._flat is not None:
            raise ValueError("param_group: got a new one, wanted all at the start with fused=True")
        super().add_param_group(check_group(group, self.defaults, self.fused))

    def register_step_pre_hook(self, hook: Callable) -> Any:
        return (super() if self._flat else self.base).register_step_pre_hook(hook)  # type: ignore[union-attr]

    def register_step_post_hook(self, hook: Callable) -> Any:
        return (super() if self._flat else self.base).register_step_post_hook(hook)  # type: ignore[union-attr]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients: none at all, or zeros in place."""
        for flat in self.flats():
            flat.zero(set_to_none)
        if self._flat is None:
            super().zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume bit for bit; the same layout with and without `fused`."""
        if self._flat:
            self._flat.read_state(self.state)
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        kernels = [group.get("fused") for group in self.param_groups]  # the base's, not the other's
        super().load_state_dict(state_dict)
        for group, fused in zip(self.param_groups, kernels, strict=True):
            if "fused" in group:
                group["fused"] = fused
        if self._flat:
            self._flat.write_state(self.state)
        else:
            self.base.__setstate__({"state": self.state, "param_groups": self.param_groups})

    def __getstate__(self) -> dict[str, Any]:
        if self._perturbed or self._banked:
            raise RuntimeError(
                "copy: weights perturbed or gradients banked, wanted one between steps"
            )
        own = {k: self.__dict__[k] for k in ("p", "fused", "base", "_flat")}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._reset()
        super().__setstate__(state)

    # -- parameters, in lists or in flat buffers ---------------------------------------------------

    def flats(self) -> list[Flat]:
        return self._flat.flats if self._flat else []

    def _groups(self) -> list[tuple[dict, list[Tensor]]]:
        """(group, the tensors that are climbed with): the parameters, or one flat tensor."""
        if self._flat is None:
            return [(group, group["params"]) for group in self.param_groups]
        return [(g, [f.whole]) for g, f in zip(self.param_groups, self.flats(), strict=True)]

    def _tensors(self) -> Iterator[Tensor]:
        return (t for _, tensors in self._groups() for t in tensors)

    def _collect_gradients(self) -> bool:
        """Gather the gradients into the flat buffers; False where there is none in any."""
        gathered = [flat.collect() for flat in self.flats()]  # of all, whatever the first says
        return not gathered or any(gathered)

    def _retreat(self, caller: str) -> None:
        """Restore theta and leave the mean gradient of all chunks, ready for the base step."""
        self.restore(caller)
        self._collect_gradients()
        if not self._banked:
            return
        for t in self._tensors():
            parts = [g for g in (t.grad, self._bank.get(t)) if g is not None]
            if parts:
                mean = sum(parts[1:], parts[0]) / (self._banked + 1)
                t.grad = mean if t.grad is None else t.grad.copy_(mean)
        for flat in self.flats():
            for p, view in zip(flat.params, flat.grads, strict=True):
                p.grad = view if p in self._had_gradient else p.grad
        self._clear_bank()

    def _base_step(self) -> None:
        if self._flat is None:
            self.base.step()
            return
        for hook in self._optimizer_step_pre_hooks.values():
            hook(self, (), {})
        self._flat.step(self.param_groups)
        for hook in self._optimizer_step_post_hooks.values():
            hook(self, (), {})
