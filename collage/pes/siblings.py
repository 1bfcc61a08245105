"""The relatives of PES: noise that is reused, full and truncated unrolls, a direct part that is known."""

import torch

from collage.common.populations import (
    join,
    leaves,
    nest,
)
from collage.pes.estimators import PES
from collage.pes.exact import (
    derivative,
)


class NoiseReuseES(PES):
    """Evolution strategies that draw one noise for a whole inner problem, and step after each unroll.

    g = 1 / (N sigma^2) sum_j eps_j (L_j^+ - L_j^-),    eps_j drawn at the reset

    As `PES`; the variance does not depend on the number of unrolls. The estimates of one inner
    problem add up to that of `FullES` with the same noise.

    Source: arXiv 2304.12180 (NRES), arXiv 2304.11153 (ES-Single).
    """

    reuse, accumulate = True, False


class FullES(NoiseReuseES):
    """Evolution strategies on the whole inner problem: one gradient from T steps.

    g = 1 / (N sigma^2) sum_j eps_j (J_j^+ - J_j^-),    J = sum_u L_u

    As `PES`, but `step` runs all T steps, in pieces of K whose losses it adds up. Always in
    lock-step. Source: arXiv 2112.13835.
    """

    def _settle(self):
        self._lockstep_only("for full unrolls")
        self.window = self.horizon

    def _estimate(self):
        """Of the losses so far, so that a pair which is lost late is left out as a whole."""
        if self.gradient is None:
            self.total, self.lost = 0, torch.zeros_like(self.losses[:, 0], dtype=torch.bool)
        self.total = self.total + self.losses
        if self.dead is not None:
            self.lost = self.lost | self.dead
        self.dead = self.lost if bool(self.lost.any()) else None
        self.gradient = 0  # the estimate takes the place of the last one
        return self._weigh(self.total, self.eps)


class TruncatedES(PES):
    """Evolution strategies on the unroll at hand, from the state that theta itself has reached.

    g = 1 / (N sigma^2) sum_j eps_j (L_j^+ - L_j^-),    both from the same unperturbed state

    As `PES`. Biased: it ignores how theta made the state. Beside each pair an unperturbed particle
    carries the state on (half as many particles again); with shared=True one of them serves all
    pairs of a run, for problems that do not differ between resets (lock-step only).

    Source: arXiv 2112.13835 (its "truncated ES").
    """

    accumulate = False

    def __init__(self, unroll, reset, sigma, particles, truncation, horizon, generator=None, *,
                 shared=False, **options):  # fmt: skip
        self.shared = shared
        super().__init__(unroll, reset, sigma, particles, truncation, horizon, generator, **options)

    def _settle(self):
        if self.shared:
            self._lockstep_only("with shared=True")

    def _problems(self):
        problems = super()._problems()
        if self.shared and any(bool((t != t[:, :1]).any()) for t in leaves(problems)):
            raise ValueError("reset: got problems that differ, wanted equal ones with shared=True")
        return problems

    def ask(self, theta):
        particles, state, steps = super().ask(theta)
        if len(self.ages) > 1 or self.ages[0] + steps < self.horizon:
            return particles, state, steps
        self.asked = self.runs * 2 * self.share  # this ends the problem: no carriers
        return particles[: self.asked], nest(lambda t: t[: self.asked], state), steps

    def _open(self, theta):
        super()._open(theta)
        first = self.runs * 2 * self.share
        self.state = self._seats(
            nest(lambda t: t[first:].unflatten(0, (self.runs, -1)), self.state)
        )

    def _particles(self, theta):
        means = theta.repeat_interleave(1 if self.shared else self.share, 0)
        return torch.cat([super()._particles(theta), means])

    def _seats(self, problems):
        carried = nest(lambda t: t[:, : 1 if self.shared else self.share].flatten(0, 1), problems)
        every = nest(lambda t: t.expand(-1, self.share, *t.shape[2:]), problems)
        return join([super()._seats(every), carried])


class PESAnalytic(PES):
    """PES for what the past noise did, backpropagation for what theta does in this unroll.

    g = p + 1 / (N sigma^2) sum_j xi_j^prev ((L_j^+ - L_j^-) - 2 eps_j . p)

    As `PES`, for an unroll that autograd can follow. p is the gradient of this unroll's loss at
    theta itself, from the state of one unperturbed particle (with the problem of the first pair);
    xi^prev leaves out the noise of this unroll. Unbiased where p is the exact mean of the direct
    part: for quadratic losses, and for sigma -> 0. Lock-step only.

    Source: arXiv 2112.13835, Eq. 9.
    """

    def _settle(self):
        self._lockstep_only("with backpropagation")

    def ask(self, theta):
        particles, state, steps = super().ask(theta)
        rows = theta.detach().reshape(self.runs, -1)
        self.mean, self.direct = derivative(self.unroll, rows, self.mean, steps)
        return particles, state, steps

    def _problems(self):
        problems = super()._problems()
        self.mean = nest(lambda t: t[:, 0].clone(), problems)
        return problems

    def _estimate(self):
        along = (self.eps @ self.direct.unsqueeze(-1)).squeeze(-1)  # eps_j . p
        rest = torch.stack([self.losses[:, 0] - along, self.losses[:, 1] + along], 1)
        return self.direct + self._weigh(rest, self.xi - self.eps)
