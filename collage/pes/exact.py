"""Unrolls: what they must return, how to undo a step, and their exact derivatives.

outcome, derivative        a state and losses, checked; and the gradients of the losses
snapshot, restore          an estimator before a step, and back to it
TruncatedBackprop, RTRL    gradients of long unrolls by backpropagation, and by forward mode

A problem is two functions: reset(n, generator) -> state, and unroll(theta (n, P), state, steps)
-> (state, losses (n,)), where a state is any nest of tensors with a leading particle axis.
"""

import torch

from collage import runtime
from collage.common.checks import check_finite, check_whole
from collage.common.populations import check_particles, leaves, nest


def outcome(told, n):
    """What an unroll returned, checked: a state and losses (n,)."""
    if not isinstance(told, tuple | list) or len(told) != 2:
        raise ValueError(f"unroll: got {type(told).__name__}, wanted a pair (state, losses)")
    state, losses = told
    check_particles("state", state, n)
    if not isinstance(losses, torch.Tensor) or losses.shape != (n,):
        got = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
        raise ValueError(f"losses: got {got}, wanted ({n},)")
    return state, losses


def derivative(unroll, rows, state, steps):
    """An unroll by autograd: its state, and the gradients (n, P) of its losses at rows."""
    rows = rows.clone().requires_grad_()
    with torch.enable_grad():
        state, losses = outcome(unroll(rows, state, steps), len(rows))
    if not any(t.requires_grad for t in [losses, *leaves(state)]):
        raise ValueError("unroll: nothing in its state and losses depends on theta for autograd")
    gradient = None
    if losses.requires_grad:  # a first loss may come before theta has done anything
        (gradient,) = torch.autograd.grad(losses.sum(), rows, allow_unused=True)
    gradient = torch.zeros_like(rows) if gradient is None else gradient
    if not bool(losses.isfinite().all() and gradient.isfinite().all()):
        raise ValueError("losses: they or their gradient are inf or NaN, wanted finite ones")
    return nest(without_history, state), gradient


def without_history(t):
    return t.detach() if t.requires_grad else t


def snapshot(estimator):
    """Everything that a step may change; tensors are never changed in place."""
    random = None if estimator.generator is None else estimator.generator.get_state()
    return dict(estimator.__dict__), random


def restore(estimator, before):
    attributes, random = before
    estimator.__dict__.clear()
    estimator.__dict__.update(attributes)
    if random is not None:
        estimator.generator.set_state(random)


def check_lengths(truncation, horizon):
    truncation, horizon = check_whole("truncation", truncation), check_whole("horizon", horizon)
    if truncation > horizon:
        raise ValueError(
            f"truncation: got {truncation}, wanted no more than the horizon, {horizon}"
        )
    return truncation, horizon


def check_problem(unroll, reset, generator):
    for name, function in (("unroll", unroll), ("reset", reset)):
        if not callable(function):
            raise ValueError(f"{name}: got {type(function).__name__}, wanted a function")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"generator: got {type(generator).__name__}, wanted a torch.Generator")


class TruncatedBackprop:
    """Backpropagation through the last unroll only: exact derivatives, cut off at its beginning.

    g = d L_u(theta; s) / d theta   with the state s held fixed

    unroll, reset, truncation, horizon and generator as in `PES`, without noise; problems: how many
    inner problems it averages over. `step(theta)` takes (P,) or (R, P). A step that fails or is
    interrupted leaves everything as it was.

    Raises ValueError for K > T, problems < 1, a state without the particle axis, losses of another
    shape, a gradient that is not finite, and an unroll that autograd cannot follow.
    """

    def __init__(self, unroll, reset, truncation, horizon, generator=None, *, problems=1):
        check_problem(unroll, reset, generator)
        self.truncation, self.horizon = check_lengths(truncation, horizon)
        self.problems = check_whole("problems", problems)
        self.unroll, self.reset, self.generator = unroll, reset, generator
        self.age, self.state, self.shape = 0, None, None

    def step(self, theta):
        """The gradient, shaped like theta, from the next unroll of K steps."""
        before = snapshot(self)
        try:
            return self._step(theta)
        except BaseException:
            restore(self, before)
            raise

    def _step(self, theta):
        fine = isinstance(theta, torch.Tensor) and theta.dim() in (1, 2) and theta.numel()
        if not fine or not theta.is_floating_point() or self.shape not in (None, theta.shape):
            got = tuple(theta.shape) if isinstance(theta, torch.Tensor) else type(theta).__name__
            raise ValueError(
                f"theta: got {got}, wanted (P,) or (R, P) of floats, the same each time"
            )
        self.shape = theta.shape
        rows = theta.detach().reshape(-1, theta.shape[-1]).repeat_interleave(self.problems, 0)
        gradient, left = 0, self.truncation
        while left:
            if self.state is None:
                self._begin(rows)
            steps = min(left, self.horizon - self.age)
            gradient = gradient + self._unroll(rows, steps)
            left, self.age = left - steps, self.age + steps
            if self.age == self.horizon:
                self.age, self.state = 0, None
        if not bool(gradient.isfinite().all()):
            raise ValueError("losses: their gradient is inf or NaN, wanted a finite one")
        return gradient.unflatten(0, (-1, self.problems)).mean(1).view(theta.shape)

    def _begin(self, rows):
        if self.generator is None:
            self.generator = runtime.generator(0, rows.device)
        self.state = self.reset(len(rows), self.generator)
        check_particles("reset", self.state, len(rows))

    def _unroll(self, rows, steps):
        self.state, gradient = derivative(self.unroll, rows, self.state, steps)
        return gradient


class RTRL(TruncatedBackprop):
    """The exact gradient online: derivatives of the state are carried forward with it.

    S <- df/ds S + df/dtheta,    g = dL/ds S + dL/dtheta

    As `TruncatedBackprop`; each problem is run P times, once for each parameter, as tangents of
    one forward-mode pass. Exact for frozen theta, at P times the price and without smoothing.

    Source: Williams & Zipser 1989.
    """

    def _begin(self, rows):
        super()._begin(rows)
        p = rows.shape[1]
        self.state = nest(lambda t: t.repeat_interleave(p, 0), self.state)
        self.tangents = [torch.zeros_like(t) for t in leaves(self.state) if t.is_floating_point()]

    def _unroll(self, rows, steps):
        n, p = rows.shape
        axes = torch.eye(p, dtype=rows.dtype, device=rows.device).repeat(n, 1)

        primals = [t for t in leaves(self.state) if t.is_floating_point()]

        def run(rows, floats):
            floats = iter(floats)
            state = nest(lambda t: next(floats) if t.is_floating_point() else t, self.state)
            state, losses = outcome(self.unroll(rows, state, steps), len(rows))
            return ([t for t in leaves(state) if t.is_floating_point()], losses), state

        _, (self.tangents, gradient), state = torch.func.jvp(
            run, (rows.repeat_interleave(p, 0), primals), (axes, self.tangents), has_aux=True
        )
        self.state = state
        check_finite("losses: the state's derivative", self.tangents)
        return gradient.view(n, p)
