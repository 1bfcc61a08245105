"""Gradients of long unrolls from short ones (Vicol, Metz & Sohl-Dickstein, 2021; arXiv 2112.13835).

An inner problem runs for T steps under the outer parameters theta. Its loss is known after every
unroll of K steps, and theta is to be updated there and then. One family of estimators:

    PES              one noise for each unroll; losses weighed by the sum of the noises so far

and its relatives, in `siblings` and `exact`:

    TruncatedES      the noise of this unroll only: forgets how theta made the state (biased)
    FullES           one noise and one update for the whole inner problem
    NoiseReuseES     one noise for the whole inner problem, an update after each unroll
    PESAnalytic      PES for the past, backpropagation for this unroll
    TruncatedBackprop, RTRL    exact derivatives, cut off at the unroll or carried along

A problem is two functions: reset(n, generator) -> state, and unroll(theta (n, P), state, steps)
-> (state, losses (n,)), where a state is any nest of tensors with a leading particle axis.
"""

import math
import warnings

import torch

from collage import runtime
from collage.common.checks import check_positive, check_real, check_whole
from collage.common.populations import (
    Shard,
    antithetic,
    check_particles,
    cut,
    estimate,
    join,
    nest,
    twins,
)
from collage.pes.exact import (
    check_lengths,
    check_problem,
    outcome,
    restore,
    snapshot,
    without_history,
)


class PES:
    """Persistent evolution strategies: an unbiased gradient after every truncated unroll.

    xi_j <- xi_j + eps_j,    g = 1 / (N sigma^2) sum_j xi_j (L_j^+ - L_j^-),    eps_j ~ N(0, sigma^2 I)

    N particles in N / 2 pairs theta +- eps_j keep their own states over the whole inner problem.
    xi_j sums up the noise that has acted since the reset; at the end of the inner problem state
    and xi are reset together. Where that falls inside an unroll, losses before it multiply the old
    xi + eps and losses after it the new eps alone. Frozen theta: the sum of the estimates over an
    inner problem is unbiased for the gradient of the loss smoothed by independent noise in every
    unroll (the gradient itself for quadratic losses).

    unroll(theta (n, P), state, steps) -> (state, losses (n,)): the losses of these steps; it leaves
    its arguments as they are. reset(n, generator) -> state: n new inner problems; the two members
    of a pair get the same one, so whatever is random in a problem (data, seeds) belongs into it.
    sigma: a number, or one for each run (R,). particles: N, even. truncation: K steps.
    horizon: T steps. generator: on theta's device; None makes one with seed 0.

    starts: "lockstep", or "staggered": inner problems end at different times, since those of later
    pairs are shorter the first time. nonfinite: "raise", or "mask" to leave out pairs with an inf
    or NaN loss (`masked` counts them). group: ranks that share the population (see `Shard`); where
    one of them fails alone, the others wait for it, as in any collective operation.

    `step(theta)` takes (P,) and returns (P,), or (R, P) for R independent runs in one batch.
    A step that fails or is interrupted leaves the estimator and its generator as they were.

    Raises ValueError for an odd number of particles, K > T, sigma <= 0, a state without the
    particle axis, losses of another shape or not finite.
    Source: arXiv 2112.13835.

    >>> def unroll(theta, state, steps):  # s' = s / 2 + theta, loss s
    ...     losses = 0
    ...     for _ in range(steps):
    ...         state = state / 2 + theta[:, 0]
    ...         losses = losses + state
    ...     return state, losses
    >>> zeros = lambda n, generator: torch.zeros(n)
    >>> pes = PES(unroll, zeros, sigma=0.1, particles=100_000, truncation=1, horizon=2)
    >>> print(f"{sum(pes.step(torch.ones(1)) for _ in range(2)).item():.1f}")  # d(s1 + s2) = 1 + 1.5
    2.5
    """

    reuse = False  # one noise for a whole inner problem, not one for each unroll
    accumulate = True  # weigh losses by the sum of the noises since the reset

    def __init__(self, unroll, reset, sigma, particles, truncation, horizon, generator=None, *,
                 starts="lockstep", nonfinite="raise", group=None):  # fmt: skip
        if check_whole("particles", particles, 2) % 2:
            raise ValueError(f"particles: got {particles}, wanted an even number")
        check_problem(unroll, reset, generator)
        self.truncation, self.horizon = check_lengths(truncation, horizon)
        if starts not in ("lockstep", "staggered"):
            raise ValueError(f"starts: got {starts!r}, wanted 'lockstep' or 'staggered'")
        if nonfinite not in ("raise", "mask"):
            raise ValueError(f"nonfinite: got {nonfinite!r}, wanted 'raise' or 'mask'")
        self.unroll, self.reset, self.generator = unroll, reset, generator
        self.sigma, self.pairs = check_positive("sigma", sigma), int(particles) // 2
        self.starts, self.nonfinite, self.group = starts, nonfinite, group
        self.window = self.truncation  # steps for one gradient
        self.shape = None  # of theta, once a step has been asked for
        self.done = 0  # steps since this window began
        self.masked = 0  # pairs left out in the last window because of inf or NaN
        self._settle()

    def _settle(self):
        """What a sibling has to add to the constructor."""

    def _lockstep_only(self, why):
        if self.starts != "lockstep":
            raise ValueError(f"starts: got {self.starts!r}, wanted 'lockstep' {why}")

    def step(self, theta):
        """The gradient (P,) or (R, P) of one window: the next unroll of K steps."""
        return together([self], [theta])[0]

    def ask(self, theta):
        """Particles (n, P), their states and a number of steps: what is to be unrolled next.

        `tell` takes the outcome; `together` does both for several estimators in one batch, and
        takes care that a failure leaves nothing behind.
        """
        self._check(theta)
        if self.done == 0:
            self._open(theta)
        piece = self.truncation - self.done % self.truncation
        self.steps = min(piece, self.horizon - max(self.ages))
        particles = self._particles(theta.detach().reshape(self.runs, -1))
        self.asked = particles.shape[0]
        return particles, self.state, self.steps

    def tell(self, state, losses):
        """Take in states and losses; the gradient where a window is complete, else None."""
        if losses.shape != (self.asked,):
            raise ValueError(f"losses: got {tuple(losses.shape)}, wanted ({self.asked},)")
        check_particles("state", state, self.asked)
        self.state = nest(without_history, state)
        own = losses.detach()[: self.runs * 2 * self.share].to(self.xi.dtype)
        own = own.view(self.runs, 2, self.share)
        self.losses = self.shard.gather(own, self.pairs)
        self._refuse_nonfinite()
        piece = self._estimate()
        if not math.isfinite(piece.sum()) and not bool(piece.isfinite().all()):
            raise ValueError("losses: their estimate is inf or NaN, wanted smaller losses")
        self.gradient = piece if self.gradient is None else self.gradient + piece
        self.done += self.steps
        self.ages = tuple(age + self.steps for age in self.ages)
        closed = self.done == self.window
        if max(self.ages) == self.horizon:
            self._renew(closed)
        if not closed:
            return None
        self.done = 0
        return self.gradient.view(self.shape)

    # What the siblings change: who weighs the losses, which particles there are.

    def _estimate(self):
        weights = self.xi if self.accumulate else self.eps
        return self._weigh(self.losses, weights)

    def _weigh(self, losses, weights):
        """The estimate over the pairs that are left."""
        if self.dead is None:
            return estimate(losses, weights, self.sigma)
        losses = torch.where(self.dead.unsqueeze(-2), 0.0, losses)
        left = (~self.dead).sum(-1, keepdim=True).clamp(min=1)
        return estimate(losses, weights, self.sigma) * (self.pairs / left)

    def _particles(self, theta):
        return antithetic(theta, self.eps[:, self.own])

    def _seats(self, problems):
        """From the states of this rank's pairs (R, m, ...) to those of all particles (n, ...)."""
        return twins(problems)

    # A window and its problems.

    def _check(self, theta):
        if not isinstance(theta, torch.Tensor):
            raise ValueError(f"theta: got {type(theta).__name__}, wanted a tensor")
        if self.shape is None:
            if theta.is_floating_point():
                check_real("theta", theta.dtype)
            if theta.dim() not in (1, 2) or not theta.numel() or not theta.is_floating_point():
                raise ValueError(f"theta: got {tuple(theta.shape)} of {theta.dtype}, wanted (P,) or "
                                 "(R, P) of floats")  # fmt: skip
        elif (theta.shape, theta.dtype) != (self.shape, self.xi.dtype):
            raise ValueError(f"theta: got {tuple(theta.shape)} of {theta.dtype}, wanted "
                             f"{tuple(self.shape)} of {self.xi.dtype} as before")  # fmt: skip
        self.theta = theta

    def _open(self, theta):
        if self.generator is None:
            self.generator = runtime.generator(0, theta.device)
        if self.shape is None:
            self._begin(theta)
        self.masked, self.gradient, self.dead = 0, None, None
        if not self.reuse:
            self.eps = self._noise()
        if self.accumulate:
            self.xi = self.xi + self.eps

    def _begin(self, theta):
        self.shape, self.runs = theta.shape, 1 if theta.dim() == 1 else len(theta)
        if isinstance(self.sigma, torch.Tensor):
            if self.sigma.shape != (self.runs,):
                raise ValueError(f"sigma: got {tuple(self.sigma.shape)}, wanted one number or "
                                 f"({self.runs},)")  # fmt: skip
            self.sigma = self.sigma.to(theta)
        self.shard = Shard(self.group)
        self.shard.check_same(self.generator)
        self.own = self.shard.slice(self.pairs)
        self.share = self.own.stop - self.own.start
        if self.pairs < self.shard.world:
            raise ValueError(f"particles: got {2 * self.pairs} for {self.shard.world} ranks, wanted "
                             "a pair for each")  # fmt: skip
        parts = 1
        if self.starts == "staggered":
            parts = max(1, min(self.pairs, self.horizon // self.truncation))
        unrolls = self.horizon // self.truncation
        self.ages = tuple(i * unrolls // parts * self.truncation for i in range(parts))
        self.part = torch.arange(self.pairs, device=theta.device) * parts // self.pairs
        blank = theta.detach().new_zeros(self.runs, self.pairs, theta.shape[-1])
        self.xi = self.eps = blank
        self.state = self._fresh()
        if self.reuse:
            self.eps = self._noise()

    def _noise(self):
        noise = torch.randn(self.xi.shape, generator=self.generator, dtype=self.xi.dtype,
                            device=self.xi.device)  # fmt: skip
        several = isinstance(self.sigma, torch.Tensor)
        return noise * (self.sigma.view(-1, 1, 1) if several else self.sigma)

    def _problems(self):
        """New inner problems (R, M, ...), drawn for every pair on every rank."""
        problems = self.reset(self.runs * self.pairs, self.generator)
        check_particles("reset", problems, self.runs * self.pairs)
        return nest(lambda t: t.unflatten(0, (self.runs, -1)), problems)

    def _fresh(self):
        return self._seats(nest(lambda t: t[:, self.own], self._problems()))

    def _renew(self, closed):
        """New problems in place of those that have ended, their noise forgotten."""
        ends = [age == self.horizon for age in self.ages]
        self.ages = tuple(0 if end else age for age, end in zip(self.ages, ends))
        if len(ends) == 1:
            self.state = self._fresh()
            self.eps = self._noise() if self.reuse else self.eps
            self.xi = torch.zeros_like(self.eps) if closed else self.eps
            return
        ended = torch.tensor(ends, device=self.xi.device)[self.part]
        seats = self._seats(ended[self.own].expand(self.runs, -1))

        def fill(new, old):
            return torch.where(seats.view(-1, *[1] * (new.dim() - 1)), new, old)

        self.state = nest(fill, self._fresh(), self.state)
        ended = ended[:, None]
        if self.reuse:
            self.eps = torch.where(ended, self._noise(), self.eps)
        if self.accumulate:
            self.xi = torch.where(ended, 0.0 if closed else self.eps, self.xi)

    def _refuse_nonfinite(self):
        """An error where a loss is not finite, or a mark on the pairs to leave out."""
        self.dead = None
        if math.isfinite(self.losses.sum().item()):  # quick; the sum may overflow, hence below
            return
        fine = self.losses.isfinite()
        if bool(fine.all()):
            return
        if not bool(self.theta.isfinite().all()):
            raise ValueError("theta: got inf or NaN in it, wanted finite numbers")
        if self.nonfinite == "raise":
            raise ValueError(f"losses: got {int((~fine).sum())} of {fine.numel()} that are inf or "
                             "NaN, wanted finite ones (nonfinite='mask' leaves such pairs out)")  # fmt: skip
        self.dead = ~fine.all(-2)
        count = int(self.dead.sum())
        self.masked = max(self.masked, count)
        warnings.warn(f"{count} of {self.dead.numel()} pairs have an inf or NaN loss and are left out",
                      RuntimeWarning, stacklevel=5)  # fmt: skip


def together(estimators, thetas):
    """One unroll for several estimators of the same problem: a whole comparison as one batch.

    estimators with the same unroll function and the same lengths; thetas: (P,) or (R, P) for
    each. Unrolls until a gradient is complete; returns a list of gradients, None for those (of
    full unrolls) that are still under way. Raises ValueError for problems that differ.

    >>> from collage.pes import FullES
    >>> square = lambda theta, state, steps: (state, (theta**2).sum(1))
    >>> nothing = lambda n, generator: torch.zeros(n)
    >>> pes, full = (kind(square, nothing, 0.1, 2, 1, 2) for kind in (PES, FullES))
    >>> [g is None for g in together([pes, full], [torch.ones(1), torch.ones(4, 1)])]
    [False, True]
    """
    first = estimators[0] if estimators else None
    if first is None or len(set(map(id, estimators))) < len(estimators):
        raise ValueError(f"estimators: got {len(estimators)}, wanted different ones, at least one")
    if any(e.unroll != first.unroll for e in estimators):
        raise ValueError("estimators: got several unroll functions, wanted the same one")
    if len({(e.truncation, e.horizon) for e in estimators}) > 1:
        lengths = sorted({(e.truncation, e.horizon) for e in estimators})
        raise ValueError(f"estimators: got truncations and horizons {lengths}, wanted the same")
    before = [snapshot(e) for e in estimators]
    try:
        while True:
            asked = [e.ask(t) for e, t in zip(estimators, thetas, strict=True)]
            steps = {e.steps for e in estimators}
            if len(steps) > 1:
                raise ValueError(
                    f"estimators: got unrolls of {sorted(steps)} steps, wanted the same"
                )
            particles, states, _ = zip(*asked, strict=True)
            sizes = [p.shape[0] for p in particles]
            told = first.unroll(join(particles), join(states), steps.pop())
            state, losses = outcome(told, sum(sizes))
            parts = zip(estimators, cut(state, sizes), cut(losses, sizes), strict=True)
            gradients = [e.tell(state, losses) for e, state, losses in parts]
            if any(g is not None for g in gradients):
                return gradients
    except BaseException:
        for estimator, kept in reversed(list(zip(estimators, before, strict=True))):
            restore(estimator, kept)
        raise
