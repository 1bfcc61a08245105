"""The estimators of `core` as objects: inner problem after inner problem, runs, ranks, failures.

PES                                                  one gradient for each call of `step`
TruncatedES, NoiseReuseES, FullES, PESAnalytic       its relatives
together                                             several of them in one batch
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from collage import runtime
from collage.common.checks import check_positive
from collage.common.populations import Shard, tree_leaves, tree_map
from collage.pes import core
from collage.pes.batch import unrolled
from collage.pes.core import Nest, Problem, Step
from collage.pes.exact import derivative
from collage.pes.inputs import (
    all_or_nothing,
    check_generator,
    check_lengths,
    check_pairs,
    check_particles,
    check_problem,
    check_sigma,
    check_theta,
    checked,
)


class Carried(NamedTuple):
    """All that a step changes, besides the generator: R runs of M pairs, m of them on this rank."""

    theta: tuple[torch.Size, torch.dtype]  # of what kind it is, (P,) or (R, P)
    shard: Shard  # which pairs are this rank's
    xi: Tensor  # (R, M, P): the noises since the reset, without that of a window under way
    eps: Tensor  # (R, M, P): the noise of this window, or of this inner problem if it is reused
    total: Tensor  # (R, 2, M): the losses since the reset, for full ES
    state: Nest = None  # (R, 2, m, ...) of the particles; an axis of size 1 holds equal ones
    mean: Nest = None  # (R, ...) of the unperturbed particle of PES+Analytic
    age: int = 0  # steps since the reset
    done: int = 0  # steps since the window began
    gradient: Tensor | None = None  # (R, P): the estimate of this window so far


class PES:
    """Persistent evolution strategies: an unbiased gradient after every truncated unroll.

    xi_j <- xi_j + eps_j,    g = 1 / (N sigma^2) sum_j xi_j (L_j^+ - L_j^-),    eps_j ~ N(0, sigma^2 I)

    N particles in N / 2 pairs theta +- eps_j keep their own states over the whole inner problem;
    xi_j sums up the noise that has acted since the reset. At the end of the inner problem state and
    xi are reset together; where that falls inside an unroll, losses before it multiply the old
    xi + eps and losses after it the new eps alone. Frozen theta: the sum of the estimates over an
    inner problem is unbiased for the gradient of the loss smoothed by independent noise in every
    unroll (the gradient itself for quadratic losses).

    problem: see `core.Problem`; its unroll leaves its arguments as they are, and its states are any
    nest of tensors with a leading axis of particles. The two members of a pair begin with the same
    one, so whatever is random in a problem (data, seeds) belongs into it. sigma: a number, or one
    for each run (R,). particles: N, even. truncation: K steps. horizon: T steps. generator: on
    theta's device; None makes one with seed 0. group: ranks that share the population (see `Shard`);
    where one of them fails alone, the others wait for it, as in any collective operation.

    `step(theta)` takes (P,) and returns (P,), or (R, P) for R independent runs in one batch.
    A step that fails or is interrupted leaves the estimator and its generator as they were.

    Raises ValueError for an odd number of particles, K > T, sigma <= 0, a state without the
    particle axis, losses of another shape or not finite.
    Source: arXiv 2112.13835.

    >>> class Decay:  # s' = s / 2 + theta, loss s
    ...     def reset(self, n, generator):
    ...         return torch.zeros(n)
    ...     def unroll(self, theta, state, steps):
    ...         state = state / 2 + theta[:, 0]
    ...         return state, state
    >>> pes = PES(Decay(), sigma=0.1, particles=100_000, truncation=1, horizon=2)
    >>> print(f"{sum(pes.step(torch.ones(1)) for _ in range(2)).item():.1f}")  # d(s1 + s2) = 1 + 1.5
    2.5
    """

    reuse = False  # one noise for a whole inner problem, not one for each unroll
    whole = False  # one gradient for a whole inner problem, not one for each unroll

    def __init__(
        self,
        problem: Problem,
        *,
        sigma: float | Tensor,
        particles: int,
        truncation: int,
        horizon: int,
        generator: torch.Generator | None = None,
        group: Any = None,
    ) -> None:
        self.problem, self.generator = check_problem(problem), check_generator(generator)
        self.sigma, self.pairs = check_positive("sigma", sigma), check_pairs(particles)
        self.truncation, self.horizon = check_lengths(truncation, horizon)
        self.group = group
        self.window = self.horizon if self.whole else self.truncation  # steps for one gradient
        self.carried: Carried | None = None  # made by the first step

    def step(self, theta: Tensor) -> Tensor:
        """The gradient (P,) or (R, P) of one window: the next unroll of K steps."""
        (gradient,) = together([self], [theta])
        assert gradient is not None
        return gradient

    def advance(self, theta: Tensor) -> Step[Tensor | None]:
        """One unroll, cut short where an inner problem ends, for `together` to drive.

        Returns the gradient where a window is complete, else None.
        """
        rows = check_theta(theta, self.carried.theta if self.carried else None)
        carried = self.carried or self._begin(rows, theta)
        if carried.done == 0 and not self.reuse:
            carried = carried._replace(eps=self._noise(carried))
        steps = min(self.truncation - carried.done % self.truncation, self.horizon - carried.age)
        g, new = yield from self._shared(self._unroll(rows, carried, steps), rows, carried)
        gradient = g if self.whole or carried.gradient is None else carried.gradient + g
        age, done = carried.age + steps, carried.done + steps
        if done == self.window:
            new = new._replace(age=age, done=0, gradient=None)
        else:  # the noise of a window is added once, at its end
            new = new._replace(age=age, done=done, gradient=gradient, xi=carried.xi)
        self.carried = self._reset(new) if age == self.horizon else new
        return gradient.view(theta.shape) if done == self.window else None

    # What the siblings change.

    def _unroll(self, theta: Tensor, carried: Carried, steps: int) -> Step[tuple[Tensor, Carried]]:
        args = theta, carried.eps, carried.xi, carried.state, steps, self.sigma
        g, xi, state = yield from core.pes(*args)
        return g, carried._replace(xi=xi, state=state)

    def _place(self, carried: Carried, problems: Nest) -> Carried:
        """New inner problems (R, 1, M, ...), drawn for every pair on every rank, as states."""
        own = carried.shard.slice(self.pairs)
        return carried._replace(state=tree_map(lambda t: t[:, :, own], problems))

    # Beginnings, noise and ranks.

    def _begin(self, rows: Tensor, theta: Tensor) -> Carried:
        if self.generator is None:
            self.generator = runtime.generator(0, rows.device)
        self.sigma = check_sigma(self.sigma, rows)
        shard = Shard(self.group)
        shard.check_same(self.generator)
        if self.pairs < shard.world:
            got = f"{2 * self.pairs} for {shard.world} ranks"
            raise ValueError(f"particles: got {got}, wanted a pair for each")
        blank = rows.new_zeros(len(rows), self.pairs, rows.shape[1])
        total = rows.new_zeros(len(rows), 2, self.pairs)
        return self._reset(Carried((theta.shape, theta.dtype), shard, blank, blank, total))

    def _reset(self, carried: Carried) -> Carried:
        """New inner problems, and the old noise forgotten."""
        n = len(carried.xi) * self.pairs
        assert self.generator is not None
        problems = self.problem.reset(n, self.generator)
        check_particles("reset", problems, n)
        problems = tree_map(lambda t: t.unflatten(0, (-1, 1, self.pairs)), problems)
        carried = self._place(carried, problems)
        eps = self._noise(carried) if self.reuse else carried.eps
        xi, total = torch.zeros_like(carried.xi), torch.zeros_like(carried.total)
        return carried._replace(age=0, xi=xi, eps=eps, total=total)

    def _noise(self, carried: Carried) -> Tensor:
        shape, kind, device = carried.xi.shape, carried.xi.dtype, carried.xi.device
        noise = torch.randn(shape, generator=self.generator, dtype=kind, device=device)
        return noise * (self.sigma.view(-1, 1, 1) if isinstance(self.sigma, Tensor) else self.sigma)

    def _shared(
        self, step: Step[tuple[Tensor, Carried]], theta: Tensor, carried: Carried
    ) -> Step[tuple[Tensor, Carried]]:
        """An unroll of which this rank runs its own pairs, and knows the losses of all."""
        own, requests = carried.shard.slice(self.pairs), next(step)
        if carried.shard.world > 1:  # an axis of size 1 is everybody's
            requests = [r._replace(theta=r.theta[:, :, own]) if r.theta.shape[2] > 1 else r
                        for r in requests]  # fmt: skip
        outcomes = yield requests
        state, losses = outcomes[0]  # of the pairs, whose losses count
        losses = carried.shard.gather(losses.to(theta.dtype), self.pairs)
        try:
            step.send([(state, losses), *outcomes[1:]])
        except StopIteration as end:
            gradient, new = end.value
        if not math.isfinite(gradient.sum()) and not bool(gradient.isfinite().all()):
            _refuse(theta, losses)  # a sum may overflow where no entry does
        return gradient, new


def _refuse(theta: Tensor, losses: Tensor) -> None:
    """Say why an estimate is not finite."""
    if not bool(theta.isfinite().all()):
        raise ValueError("theta: got inf or NaN in it, wanted finite numbers")
    if broken := int((~losses.isfinite()).sum()):
        got = f"{broken} of {losses.numel()} that are inf or NaN"
        raise ValueError(f"losses: got {got}, wanted finite ones")
    raise ValueError("losses: their estimate is inf or NaN, wanted smaller losses")


class NoiseReuseES(PES):
    """As `PES`, with one noise for a whole inner problem and a step after each unroll.

    See `core.noise_reuse_es`. The variance does not depend on the number of unrolls; the estimates of
    one inner problem add up to that of `FullES` with the same noise.
    """

    reuse = True

    def _unroll(self, theta: Tensor, carried: Carried, steps: int) -> Step[tuple[Tensor, Carried]]:
        args = theta, carried.eps, carried.state, steps, self.sigma
        g, state = yield from core.noise_reuse_es(*args)
        return g, carried._replace(state=state)


class FullES(PES):
    """As `PES`, but `step` runs all T steps, in pieces of K whose losses it adds up.

    See `core.full_es`.
    """

    reuse = whole = True

    def _unroll(self, theta: Tensor, carried: Carried, steps: int) -> Step[tuple[Tensor, Carried]]:
        args = theta, carried.eps, carried.total, carried.state, steps, self.sigma
        g, total, state = yield from core.full_es(*args)
        return g, carried._replace(total=total, state=state)


class TruncatedES(PES):
    """As `PES`, from the state that theta itself has reached: biased, for it ignores how.

    See `core.truncated_es`. Beside each pair an unperturbed particle carries the state on (half as
    many particles again); with shared=True one of them serves all pairs of a run, for problems that
    do not differ between resets: ValueError where they do.
    """

    def __init__(self, problem: Problem, *, shared: bool = False, **settings: Any) -> None:
        self.shared = shared
        super().__init__(problem, **settings)

    def _unroll(self, theta: Tensor, carried: Carried, steps: int) -> Step[tuple[Tensor, Carried]]:
        args = theta, carried.eps, carried.state, steps, self.sigma
        g, state = yield from core.truncated_es(*args)
        return g, carried._replace(state=state)

    def _place(self, carried: Carried, problems: Nest) -> Carried:
        if not self.shared:
            return super()._place(carried, problems)
        if any(bool((t != t[:, :, :1]).any()) for t in tree_leaves(problems)):
            raise ValueError("reset: got problems that differ, wanted equal ones with shared=True")
        return carried._replace(state=tree_map(lambda t: t[:, :, :1], problems))


class PESAnalytic(PES):
    """As `PES`, with backpropagation for what theta does in this unroll, which autograd can follow.

    See `core.pes_analytic`; its p is the gradient of this unroll's loss at theta itself, from the
    state of one unperturbed particle (with the problem of the first pair). Unbiased where p is the
    exact mean of the direct part: for quadratic losses, and for sigma -> 0.
    """

    def _unroll(self, theta: Tensor, carried: Carried, steps: int) -> Step[tuple[Tensor, Carried]]:
        mean, direct = derivative(self.problem.unroll, theta, carried.mean, steps)
        args = theta, carried.eps, carried.xi, direct, carried.state, steps, self.sigma
        g, xi, state = yield from core.pes_analytic(*args)
        return g, carried._replace(xi=xi, state=state, mean=mean)

    def _place(self, carried: Carried, problems: Nest) -> Carried:
        mean = tree_map(lambda t: t[:, 0, 0].clone(), problems)
        return super()._place(carried, problems)._replace(mean=mean)


def together(estimators: Sequence[PES], thetas: Sequence[Tensor]) -> list[Tensor | None]:
    """One unroll for several estimators of the same problem: a whole comparison as one batch.

    estimators with the same unroll function and the same lengths; thetas: (P,) or (R, P) for
    each. Unrolls until a gradient is complete; returns a list of gradients, None for those (of
    full unrolls) that are still under way. Raises ValueError for problems that differ.

    >>> from types import SimpleNamespace
    >>> square = SimpleNamespace(reset=lambda n, generator: torch.zeros(n),
    ...                          unroll=lambda theta, state, steps: (state, (theta**2).sum(1)))
    >>> pes, full = (kind(square, sigma=0.1, particles=2, truncation=1, horizon=2)
    ...              for kind in (PES, FullES))
    >>> [g is None for g in together([pes, full], [torch.ones(1), torch.ones(4, 1)])]
    [False, True]
    """
    if not estimators or len(set(map(id, estimators))) < len(estimators):
        raise ValueError(f"estimators: got {len(estimators)}, wanted different ones, at least one")
    unroll = estimators[0].problem.unroll
    if any(e.problem.unroll != unroll for e in estimators):
        raise ValueError("estimators: got several unroll functions, wanted the same one")
    lengths = sorted({(e.truncation, e.horizon) for e in estimators})
    if len(lengths) > 1:
        raise ValueError(f"estimators: got truncations and horizons {lengths}, wanted the same")
    with all_or_nothing(estimators):
        while True:
            steps = [e.advance(theta) for e, theta in zip(estimators, thetas, strict=True)]
            gradients = unrolled(steps, checked(unroll))
            if any(g is not None for g in gradients):
                return gradients
