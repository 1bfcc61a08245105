"""Sharpness-aware minimisation as an optimiser of torch, around any of its own."""

import inspect
from contextlib import nullcontext

import torch
from torch import Tensor

from collage.common.networks import still_statistics
from collage.sam.core import check_order, check_radius, dual, joined, shaped_like
from collage.sam.flat import Flat

COUNTS = (
    "step",
    "mu_product",
    "eta",
    "mu",
)  # what base optimisers keep once for each parameter, not entry
UNCOUNTED = ("SGD", "RMSprop", "Adadelta")  # whose steps do not depend on such a count


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

    replay=True (default) gives the second pass torch's random numbers of the first: same dropout
    masks, same draws (numpy's are the closure's own business). Normalisation layers update their running statistics in the first pass only.

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

    def __init__(self, params, base_optimizer, rho=0.05, p=2.0, adaptive=False, *,
                 eta=0.01, fused=False, replay=True, **base_kwargs):  # fmt: skip
        self.p, self.replay, self._fused = check_order(p), replay, bool(fused)
        self._saved = None  # the tensors and their copies, while the weights are perturbed
        self._clear_bank()  # m-sharpness: sums of gradients, of how many chunks, of which tensors
        self._still = still_statistics()  # open between ascend() and restore()
        self._retreated = False  # theta restored, base step still to come
        self._flats = None
        # fused: parameters to which no gradient came in some step, and their counts then (None: no state)
        self._idle = {}
        own = {"rho": check_radius(rho), "adaptive": bool(adaptive), "eta": eta}
        base = _base_class(base_optimizer, fused)
        base(
            [torch.nn.Parameter(torch.zeros(1))], **base_kwargs
        )  # refuses before anything is moved
        super().__init__(params, {**own, **base_kwargs})
        if fused:  # the base has groups of its own: one flat tensor in place of each list
            self._flats = [Flat(group["params"]) for group in self.param_groups]
            pairs = zip(self.param_groups, self._flats, strict=True)
            if "fused" in inspect.signature(base).parameters and not base_kwargs.get("foreach"):
                base_kwargs["fused"] = True
            self.base = base([{**group, "params": [flat.whole]} for group, flat in pairs],
                             **base_kwargs)  # fmt: skip
            for group, theirs in zip(self.param_groups, self.base.param_groups, strict=True):
                group.update({k: v for k, v in theirs.items() if k != "params"})
        else:  # one set of groups and one state: schedulers and checkpoints see everything
            self.base = base(self.param_groups, **base_kwargs)
            self.param_groups, self.state = self.base.param_groups, self.base.state
        self.defaults = {**self.base.defaults, **own}

    def add_param_group(self, group):
        check_radius(group.get("rho", self.defaults["rho"]))
        if not isinstance(group["params"], Tensor | set):  # torch refuses a set itself
            group = {**group, "params": list(group["params"])}
        if group.get("differentiable", self.defaults.get("differentiable")):
            raise ValueError("differentiable: got True, wanted False: a step of SAM is not recorded "
                             "(`collage.sam.gradient` can be differentiated)")  # fmt: skip
        on_cpu = any(p.device.type == "cpu" for p in _listed(group["params"]))
        if on_cpu and not self._fused and group.get("capturable", self.defaults.get("capturable")):
            raise ValueError("capturable: got True for parameters on the CPU, wanted False there")
        if self._flats is not None:
            raise ValueError("param_group: got a new one, wanted all at the start with fused=True")
        if len(set(map(id, _listed(group["params"])))) < len(_listed(group["params"])):
            raise ValueError("params: got a parameter twice, wanted each once")
        super().add_param_group(group)

    def __getstate__(self):
        if self._saved or self._banked:
            raise RuntimeError("copy: the weights are perturbed or gradients banked, wanted a copy between "
                               "steps")  # fmt: skip
        own = ("p", "replay", "base", "_fused", "_flats", "_idle")
        return {**super().__getstate__(), **{k: self.__dict__[k] for k in own}}

    def __setstate__(self, state):
        self._saved, self._still, self._retreated = None, still_statistics(), False
        self._clear_bank()
        super().__setstate__(state)

    @torch.no_grad()
    def step(self, closure=None, first_pass=None):
        """One SAM step; returns the loss at the unperturbed weights.

        closure() computes the loss of one batch, calls backward and returns the loss; it runs
        twice. A list of closures is m-sharpness: every chunk of the batch has its own
        perturbation, and the step follows the mean gradient. `first_pass` makes a context for the
        first pass: with `ddp.no_sync` each rank climbs its own gradient (a local perturbation),
        without it DDP averages first (a global one).

        Without a closure it ends the two-phase form, as `descend` does.
        """
        if closure is None:
            if not self._retreated:
                self._retreat("step() without a closure")
            self._base_step()
            return None
        chunks = list(closure) if isinstance(closure, list | tuple) else [closure]
        if not chunks:
            raise ValueError("closure: got an empty list, wanted at least one closure")
        losses = []
        try:
            for chunk in chunks:
                if self._saved:
                    self.bank()
                self.zero_grad()
                before = self._random_state()
                with torch.enable_grad(), (first_pass or nullcontext)():
                    losses.append(_loss(chunk()))
                self.ascend()
                self._set_random_state(before)
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
    def ascend(self):
        """First of two phases, after a backward: climb to theta + e and clear the gradients.

        With gradient accumulation call it after the last micro-batch, then run them all again.
        Gradients may be scaled (AMP): e does not change. An inf or NaN in them makes e NaN, so
        that the second pass shows it to the scaler and the whole step is skipped.
        """
        if self._saved:
            self.restore()
            raise RuntimeError("ascend() twice: wanted bank() or descend() between; the weights "
                               "are restored (with a GradScaler use descend(scaler))")  # fmt: skip
        touched = self._link()
        groups = [(group, [t for t in tensors if t.grad is not None])
                  for group, tensors in self._groups]  # fmt: skip
        tensors = [t for _, members in groups for t in members]
        if not (tensors and touched):
            raise ValueError("gradients: got none, wanted a closure that calls backward() and "
                             "parameters that take part in its loss")  # fmt: skip
        grads = [t.grad for t in tensors]
        if any(g.layout is not torch.strided for g in grads):
            raise ValueError("gradients: got a sparse one, wanted dense gradients")
        units = {t: t.abs() + g["eta"] for g, ts in groups if g["adaptive"] for t in ts}
        if units:
            grads = [g * units[t] if t in units else g for t, g in zip(tensors, grads, strict=True)]
        climb = shaped_like(dual(joined(grads), 1.0, self.p), grads)
        if units:
            climb = [e * units[t] if t in units else e for t, e in zip(tensors, climb, strict=True)]
        self._saved = tensors, [t.clone() for t in tensors]
        self._still.__enter__()
        climb = iter(climb)
        for group, members in groups:
            if members:
                steps = [next(climb) for _ in members]
                worse = -1 if group.get("maximize") else 1  # where the objective gets worse
                torch._foreach_add_(members, steps, alpha=worse * float(group["rho"]))
        self.zero_grad()

    @torch.no_grad()
    def restore(self):
        """Back to theta, bit for bit and in place; nothing to do where it is not perturbed."""
        if self._saved:
            torch._foreach_copy_(*self._saved)
            self._saved = None
            self._still.__exit__()

    @torch.no_grad()
    def bank(self):
        """End one chunk of m-sharpness: restore theta, put the gradient aside, start the next.

        `descend` after the last chunk follows the mean of all of them.
        """
        self._need_ascend("bank()")
        self.restore()
        self._link()
        for t in self._tensors:
            if t.grad is not None:
                self._bank[t] = t.grad.clone() if t not in self._bank else self._bank[t] + t.grad
        self._came.update(
            p for flat in self._flats or [] for p in flat.params if p.grad is not None
        )
        self._banked += 1
        self.zero_grad()

    @torch.no_grad()
    def descend(self, scaler=None):
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

    def capture(self, closure, warmup=3):
        """Record a whole step (both passes, climb, base step) as one CUDA graph.

        Returns run() -> loss, which replays it: refill the closure's input tensors in place
        first. For the start of training: the weights stay as they are, the optimiser's state is
        cleared. lr and rho are frozen into the graph (unless lr is a tensor), and a dropout mask
        differs between the passes, since a graph draws its own numbers. The warm-up calls closure:
        running statistics of a batch norm move.

        Raises ValueError without fused=True, off the GPU, and for a base optimiser that cannot be
        recorded (Adam and its like without capturable=True) or whose state does not begin with zeros.
        """
        if not self._flats or any(f.whole.device.type != "cuda" for f in self._flats):
            raise ValueError("capture: wanted fused=True and parameters on a CUDA device")
        _check_recordable(self.base)
        weights = [flat.whole.detach().clone() for flat in self._flats]
        replay, self.replay = self.replay, False
        side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(side):
                for _ in range(warmup):
                    self.step(closure)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                loss = self.step(closure)
        finally:  # also where the closure cannot be recorded
            self.replay = replay
            for flat, kept in zip(self._flats, weights, strict=True):
                flat.whole.data.copy_(kept)
            for state in self.base.state.values():  # a zero momentum starts as none at all does
                for value in state.values():
                    if isinstance(value, Tensor):
                        value.zero_()

        def run():
            graph.replay()
            return loss.clone()  # the next replay overwrites it

        return run

    step.hooked = True  # torch need not wrap this one too: the base optimiser's step is profiled

    # -- what an optimiser of torch owes its users -------------------------------------------------

    def register_step_pre_hook(self, hook):
        mine = super() if self._flats is not None else self.base
        return mine.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook):
        mine = super() if self._flats is not None else self.base
        return mine.register_step_post_hook(hook)

    def zero_grad(self, set_to_none=True):
        """Clear the gradients: none at all, or zeros in place."""
        if self._flats is None:
            return super().zero_grad(set_to_none)
        for flat in self._flats:
            flat.zero(set_to_none)

    def state_dict(self):
        """Everything needed to resume bit for bit; the same layout with and without `fused`."""
        for flat in self._flats or []:
            for p, cut in zip(flat.params, flat.cuts, strict=True):
                counts = self._idle.get(p, {})
                if counts is None:
                    self.state.pop(p, None)
                    continue
                self.state[p] = {k: v[cut].view_as(p) if k not in COUNTS and _is_like(v, flat.whole)
                                 else _copied(counts.get(k, v))
                                 for k, v in self.base.state[flat.whole].items()}  # fmt: skip
        return super().state_dict()

    def load_state_dict(self, state_dict):
        kernels = [group.get("fused") for group in self.param_groups]  # the base's, not the other's
        super().load_state_dict(state_dict)
        for group, fused in zip(self.param_groups, kernels, strict=True):
            if "fused" in group:
                group["fused"] = fused
        if self._flats is None:
            self.base.__setstate__({"state": self.state, "param_groups": self.param_groups})
        self._idle = {}
        for flat in self._flats or []:
            parts = [self.state.get(p, {}) for p in flat.params]
            furthest = max(parts, key=lambda part: float(part.get("step", 0)))
            for p, part in zip(flat.params, parts, strict=True):
                if any(parts) and not part:
                    self._idle[p] = None
                elif float(part.get("step", 0)) < float(furthest.get("step", 0)):
                    self._idle[p] = {k: part[k] for k in COUNTS if k in part}
            first = {k: v for part in [*parts, furthest] for k, v in part.items()}
            self.base.state[flat.whole] = {
                k: torch.cat([part.get(k, torch.zeros_like(p)).reshape(-1)
                              for part, p in zip(parts, flat.params, strict=True)])
                if k not in COUNTS and _is_entrywise(k, parts, flat.params) else v
                for k, v in first.items()}  # fmt: skip

    @property
    def _groups(self):
        """(group, the tensors that are climbed with): the parameters, or one flat tensor."""
        if self._flats is None:
            return [(group, group["params"]) for group in self.param_groups]
        pairs = zip(self.param_groups, self._flats, strict=True)
        return [(group, [flat.whole]) for group, flat in pairs]

    @property
    def _tensors(self):
        return [t for _, tensors in self._groups for t in tensors]

    def _link(self):
        return self._flats is None or any([flat.link() for flat in self._flats])  # noqa: C419 - all

    def _need_ascend(self, what):
        if not self._saved:
            raise RuntimeError(f"{what}: the weights are not perturbed, wanted ascend() before")

    def _retreat(self, what):
        """Restore theta and leave the mean gradient of all chunks, ready for the base step."""
        self._need_ascend(what)
        self.restore()
        self._link()
        if self._banked:
            for t in self._tensors:
                total = [g for g in (t.grad, self._bank.get(t)) if g is not None]
                if total:
                    mean = sum(total) / (self._banked + 1)
                    t.grad = mean if t.grad is None else t.grad.copy_(mean)
            for flat in self._flats or []:
                for p, view in zip(flat.params, flat.grads, strict=True):
                    p.grad = view if p in self._came else p.grad
            self._clear_bank()

    def _clear_bank(self):
        self._bank, self._banked, self._came = {}, 0, set()

    def _base_step(self):
        if self._flats is None:
            self.base.step()
            return
        for group, theirs in zip(self.param_groups, self.base.param_groups, strict=True):
            theirs.update(
                {k: v for k, v in group.items() if k != "params"}
            )  # schedulers write to ours
        for hook in self._optimizer_step_pre_hooks.values():
            hook(self, (), {})
        restore_idle = self._keep_idle()
        try:
            self.base.step()
        finally:
            restore_idle()
        for hook in self._optimizer_step_post_hooks.values():
            hook(self, (), {})

    def _keep_idle(self):
        """Keep the parts of weights and state of parameters without gradient, which a step of the whole
        moves, too; returns a function that puts them back."""
        thawed = [p for p in self._idle if p.grad is not None]
        exact = type(self.base).__name__ in UNCOUNTED
        if thawed and (not exact or any(g.get("dampening") for g in self.base.param_groups)):
            raise ValueError("gradients: got one for a parameter that had none in an earlier step, which "
                             f"{type(self.base).__name__} counts otherwise: wanted fused=False")  # fmt: skip
        for p in thawed:
            del self._idle[p]
        kept = []
        for flat in self._flats:
            state, runs = self.base.state[flat.whole], flat.without_gradient()
            for p in flat.params:
                if p.grad is None and p not in self._idle:  # how far it has been counted
                    counts = {k: _copied(state[k]) for k in COUNTS if k in state}
                    self._idle[p] = counts if state else None
            if runs:
                tensors = {k: v for k, v in state.items() if _is_like(v, flat.whole)}
                tensors[None] = flat.whole.data
                kept.append((flat.whole, runs, {k: [t[r].clone() for r in runs]
                                                for k, t in tensors.items()}))  # fmt: skip

        def restore_idle():
            for whole, runs, before in kept:
                after = {k: v for k, v in self.base.state[whole].items() if _is_like(v, whole)}
                for k, t in [*after.items(), (None, whole.data)]:
                    for i, r in enumerate(runs):
                        t[r] = before[k][i] if k in before else 0  # a state that this step has made

        return restore_idle

    def _random_state(self):
        if not self.replay:
            return None
        device = self._device()
        on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return torch.default_generator.get_state(), on_gpu

    def _set_random_state(self, state):
        if state is not None:
            torch.default_generator.set_state(state[0])
            if state[1] is not None:
                torch.cuda.set_rng_state(state[1], self._device())

    def _device(self):
        return next(p.device for group in self.param_groups for p in group["params"])


def _listed(params):
    params = [params] if isinstance(params, Tensor) else list(params)
    return [p[1] if isinstance(p, tuple) else p for p in params]  # with their names, or without


def _copied(value):
    return value.clone() if isinstance(value, Tensor) else value


def _base_class(base, fused):
    found = getattr(torch.optim, base, None) if isinstance(base, str) else base
    good = isinstance(found, type) and issubclass(found, torch.optim.Optimizer)
    never = (torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)
    if not good or found is never[0] or issubclass(found, (*never[1:], SAM)) or _needs(found):
        raise ValueError(f"base_optimizer: got {base!r}, wanted a first-order optimiser class "
                         "of torch (or its name there, such as 'SGD')")  # fmt: skip
    if fused and found.__name__ in ("Adafactor", "Muon"):  # they see rows and columns
        raise ValueError(f"base_optimizer: got {found.__name__} with fused=True, wanted one that "
                         "works entry by entry")  # fmt: skip
    return found


def _needs(base):
    """Whether a step of this optimiser cannot go without a closure."""
    words = list(inspect.signature(base.step).parameters.values())[1:]
    return any(w.default is w.empty and w.kind is w.POSITIONAL_OR_KEYWORD for w in words)


def _loss(value):
    if (
        value is None
        or isinstance(value, tuple | list | dict)
        or torch.as_tensor(value).numel() != 1
    ):
        said = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"closure: returned {said}, wanted the loss alone, one number")
    return torch.as_tensor(value).detach()


def _check_recordable(base):
    """Raise ValueError unless a base optimiser's step can be recorded, and begins with zeros."""
    name = type(base).__name__
    if name not in ("SGD", "Adam", "AdamW", "Adamax", "Adadelta", "RMSprop"):
        raise ValueError(f"capture: got {name}, wanted a base whose state begins with zeros: SGD, "
                         "Adam, AdamW, Adamax, Adadelta or RMSprop")  # fmt: skip
    for group in base.param_groups:
        if not group.get("capturable", True):
            raise ValueError(f"capture: got {name} without capturable=True")
        if group.get("dampening"):
            raise ValueError(f"capture: got dampening {group['dampening']}, wanted none: its first "
                             "step differs from the others")  # fmt: skip


def _is_like(value, tensor):
    return isinstance(value, Tensor) and value.shape == tensor.shape


def _is_entrywise(key, parts, params):
    """Whether a state is like each parameter that has it (one without gradients so far has none)."""
    return all(_is_like(part[key], p) for part, p in zip(parts, params, strict=True) if key in part)
