"""Exact derivatives of long unrolls: cut off at the unroll, or carried along.

derivative                 an unroll by autograd
TruncatedBackprop, RTRL    gradients of long unrolls by backpropagation, and by forward mode
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from collage import runtime
from collage.common.checks import check_finite
from collage.common.populations import tree_leaves, tree_map
from collage.pes.core import Nest, Problem
from collage.pes.inputs import (
    all_or_nothing,
    check_generator,
    check_lengths,
    check_particles,
    check_problem,
    check_theta,
    checked,
)


def derivative(unroll: Callable, theta: Tensor, state: Nest, steps: int) -> tuple[Nest, Tensor]:
    """An unroll by autograd: its state, and the gradients (n, P) of its losses at theta (n, P)."""
    theta = theta.clone().requires_grad_()
    with torch.enable_grad():
        state, losses = checked(unroll, detach=False)(theta, state, steps)
    if not any(t.requires_grad for t in [losses, *tree_leaves(state)]):
        raise ValueError("unroll: nothing in its state and losses depends on theta for autograd")
    gradient = None
    if losses.requires_grad:  # a first loss may come before theta has done anything
        (gradient,) = torch.autograd.grad(losses.sum(), theta, allow_unused=True)
    gradient = torch.zeros_like(theta) if gradient is None else gradient
    if not bool(losses.isfinite().all() & gradient.isfinite().all()):
        raise ValueError("losses: they or their gradient are inf or NaN, wanted finite ones")
    return tree_map(Tensor.detach, state), gradient


class Carried(NamedTuple):
    """All that a step changes, besides the generator."""

    theta: tuple[torch.Size, torch.dtype]  # of what kind it is: (P,) or (R, P)
    state: Nest = None  # (R, ...), or (R P, ...) in forward mode; None before a reset
    tangents: tuple[Tensor, ...] = ()  # derivatives of its leaves of floats, (R P, ...)
    age: int = 0  # steps since the reset


class TruncatedBackprop:
    """Backpropagation through the last unroll only: exact derivatives, cut off at its beginning.

    g = d L_u(theta; s) / d theta   with the state s held fixed

    problem, truncation, horizon and generator as in `PES`, without noise: one inner problem for each
    run. `step(theta)` takes (P,) or (R, P). A step that fails or is interrupted leaves everything as
    it was.

    Raises ValueError for K > T, a state without the particle axis, losses of another shape, a
    gradient that is not finite, and an unroll that autograd cannot follow.

    >>> from collage.pes.problems import Influence
    >>> exact = TruncatedBackprop(Influence(), truncation=1, horizon=30)
    >>> exact.step(torch.tensor([0.5]))  # (s_0 - 1) ds_0 / dtheta, after one step from ones
    tensor([0.5000])
    """

    def __init__(
        self,
        problem: Problem,
        *,
        truncation: int,
        horizon: int,
        generator: torch.Generator | None = None,
    ) -> None:
        self.problem, self.generator = check_problem(problem), check_generator(generator)
        self.truncation, self.horizon = check_lengths(truncation, horizon)
        self.carried: Carried | None = None  # made by the first step

    def step(self, theta: Tensor) -> Tensor:
        """The gradient, shaped like theta, from the next unroll of K steps."""
        rows = check_theta(theta, self.carried.theta if self.carried else None)
        carried = self.carried or Carried((theta.shape, theta.dtype))
        with all_or_nothing([self]):
            gradient, left = torch.zeros_like(rows), self.truncation
            while left:
                if carried.age == 0:
                    carried = self._begin(rows, carried)
                steps = min(left, self.horizon - carried.age)
                piece, carried = self._unroll(rows, carried, steps)
                gradient = gradient + piece
                left, age = left - steps, carried.age + steps
                carried = carried._replace(age=0 if age == self.horizon else age)
            check_finite("losses: their gradient", gradient)
            self.carried = carried
            return gradient.view(theta.shape)

    def _begin(self, rows: Tensor, carried: Carried) -> Carried:
        if self.generator is None:
            self.generator = runtime.generator(0, rows.device)
        state = self.problem.reset(len(rows), self.generator)
        check_particles("reset", state, len(rows))
        return carried._replace(state=state)

    def _unroll(self, rows: Tensor, carried: Carried, steps: int) -> tuple[Tensor, Carried]:
        state, gradient = derivative(self.problem.unroll, rows, carried.state, steps)
        return gradient, carried._replace(state=state)


class RTRL(TruncatedBackprop):
    """The exact gradient online: derivatives of the state are carried forward with it.

    S <- df/ds S + df/dtheta,    g = dL/ds S + dL/dtheta

    As `TruncatedBackprop`; each problem is run P times, once for each parameter, as tangents of
    one forward-mode pass. Exact for frozen theta, at P times the price and without smoothing.

    Source: Williams & Zipser 1989.

    >>> from collage.pes.problems import Influence
    >>> exact = RTRL(Influence(), truncation=500, horizon=1000)
    >>> [exact.step(torch.tensor([0.5])).item() for _ in range(2)]  # L = (6 theta + 1)^2 / 2 by then
    [24.0, 24.0]
    """

    def _begin(self, rows: Tensor, carried: Carried) -> Carried:
        carried = super()._begin(rows, carried)
        state = tree_map(lambda t: t.repeat_interleave(rows.shape[1], 0), carried.state)
        return carried._replace(state=state, tangents=tuple(map(torch.zeros_like, floats(state))))

    def _unroll(self, rows: Tensor, carried: Carried, steps: int) -> tuple[Tensor, Carried]:
        n, p = rows.shape
        axes = torch.eye(p, dtype=rows.dtype, device=rows.device).repeat(n, 1)

        def run(theta: Tensor, primals: list[Tensor]) -> tuple:
            rest = iter(primals)
            state = tree_map(lambda t: next(rest) if t.is_floating_point() else t, carried.state)
            state, losses = checked(self.problem.unroll, detach=False)(theta, state, steps)
            return (floats(state), losses), state

        at = rows.repeat_interleave(p, 0), floats(carried.state)
        along = axes, list(carried.tangents)
        _, (tangents, gradient), state = torch.func.jvp(run, at, along, has_aux=True)  # type: ignore[misc]
        check_finite("losses: the state's derivative", tangents)
        return gradient.view(n, p), carried._replace(state=state, tangents=tuple(tangents))


def floats(state: Nest) -> list[Tensor]:
    """The leaves of a state that have derivatives."""
    return [t for t in tree_leaves(state) if t.is_floating_point()]
