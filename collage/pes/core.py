"""Persistent evolution strategies (Vicol, Metz & Sohl-Dickstein, 2021; arXiv 2112.13835).

An inner problem runs for T steps under the outer parameters theta, and is cut into unrolls of K
steps, with a loss L_u after each. theta is to be updated there and then:

pes               one noise an unroll; losses weighed by the sum of the noises since the reset
truncated_es      one noise an unroll, and nothing of the past: biased
noise_reuse_es    one noise for the whole inner problem, an estimate after each unroll
full_es           one noise and one estimate for the whole inner problem
pes_analytic      PES for the past, backpropagation for this unroll

Each is one unroll, for R runs of M antithetic pairs (N = 2 M particles) at once: theta (R, P),
noise eps and its sum xi (R, M, P), losses (R, 2, M), where plus comes before minus, and states,
which are nests of tensors (R, 2, M, ...). `yield` hands out what is to be unrolled and brings back
states and losses, so that the caller decides how: `batch.unrolled` for one estimator or several in
one batch, `PES` on several processes. What a function returns besides the gradient is carried to the
next unroll; at a reset the state is made anew, and xi and the total begin at zero.

Problem, Unroll    what there is to unroll
variance           of PES and of full ES, in closed form
"""

from collections.abc import Generator
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from collage.common.populations import antithetic, estimate

Nest = Any  # a tensor, or a tuple, list or dict of nests


class Problem(Protocol):
    """An inner problem: how it begins, and how it goes on. All that is random in it is in its state."""

    def reset(self, n: int, generator: torch.Generator) -> Nest:
        """The states (n, ...) of n new problems."""

    def unroll(self, theta: Tensor, state: Nest, steps: int) -> tuple[Nest, Tensor]:
        """The states after so many steps under theta (n, P), and the losses (n,) of these steps."""


class Unroll(NamedTuple):
    """What an estimator asks for."""

    theta: Tensor  # (R, 2, M, P); an axis of size 1 serves all that the state has there
    state: Nest  # (R, 2, M, ...); likewise
    steps: int


Result = TypeVar("Result")
Outcome = tuple[Nest, Tensor]  # states and losses, with the leading axes of what was unrolled
Step = Generator[list[Unroll], list[Outcome], Result]  # an estimator at work on one unroll


def pes(
    theta: Tensor, eps: Tensor, xi: Tensor, state: Nest, steps: int, sigma: float | Tensor
) -> Step[tuple[Tensor, Tensor, Nest]]:
    """Persistent evolution strategies: unbiased after every unroll.

    xi_j <- xi_j + eps_j,    g = 1 / (N sigma^2) sum_j xi_j (L_j^+ - L_j^-)

    eps (R, M, P): new noise, N(0, sigma^2 I). Returns g (R, P), xi and the state.
    Source: arXiv 2112.13835.

    >>> from collage.pes.batch import unrolled
    >>> power = lambda theta, state, steps: (state * theta, (state * theta).sum(1))
    >>> one = torch.ones(1, 1, 1)
    >>> [(g, xi, _)] = unrolled([pes(one[0], one, 2 * one, one[None], 1, 1.0)], power)
    >>> g.item(), xi.item()  # theta + eps = 2, theta - eps = 0
    (3.0, 3.0)
    """
    xi = xi + eps
    [(state, losses)] = yield [Unroll(antithetic(theta, eps), state, steps)]
    g = estimate(losses, xi, sigma)  # (L^+ - L^-) @ xi / (N sigma^2)
    return g, xi, state


def truncated_es(
    theta: Tensor, eps: Tensor, state: Nest, steps: int, sigma: float | Tensor
) -> Step[tuple[Tensor, Nest]]:
    """Truncated evolution strategies: from the state (R, 1, M, ...) that theta itself has reached.

    g = 1 / (N sigma^2) sum_j eps_j (L_j^+ - L_j^-),    both members from the same state

    eps (R, M, P): new noise. An unperturbed particle beside each pair, or one for all of them
    (R, 1, 1, ...), carries the state on. Returns g (R, P) and its state.
    """
    [(_, losses), (state, _)] = yield [
        Unroll(antithetic(theta, eps), state, steps),
        Unroll(theta[:, None, None], state, steps),
    ]
    g = estimate(losses, eps, sigma)  # (L^+ - L^-) @ eps / (N sigma^2)
    return g, state


def noise_reuse_es(
    theta: Tensor, eps: Tensor, state: Nest, steps: int, sigma: float | Tensor
) -> Step[tuple[Tensor, Nest]]:
    """Evolution strategies with one noise for a whole inner problem.

    g = 1 / (N sigma^2) sum_j eps_j (L_j^+ - L_j^-)

    eps (R, M, P): drawn at the reset. Returns g (R, P) and the state.
    Source: arXiv 2304.12180 (NRES), arXiv 2304.11153 (ES-Single).
    """
    [(state, losses)] = yield [Unroll(antithetic(theta, eps), state, steps)]
    g = estimate(losses, eps, sigma)  # (L^+ - L^-) @ eps / (N sigma^2)
    return g, state


def full_es(
    theta: Tensor, eps: Tensor, total: Tensor, state: Nest, steps: int, sigma: float | Tensor
) -> Step[tuple[Tensor, Tensor, Nest]]:
    """Evolution strategies on the whole inner problem.

    g = 1 / (N sigma^2) sum_j eps_j (J_j^+ - J_j^-),    J = sum_u L_u

    eps (R, M, P): drawn at the reset. total (R, 2, M): the losses since then. Returns g (R, P) of the
    total so far, which is the gradient after the last unroll, the total and the state.
    """
    [(state, losses)] = yield [Unroll(antithetic(theta, eps), state, steps)]
    total = total + losses
    g = estimate(total, eps, sigma)
    return g, total, state


def pes_analytic(
    theta: Tensor,
    eps: Tensor,
    xi: Tensor,
    direct: Tensor,
    state: Nest,
    steps: int,
    sigma: float | Tensor,
) -> Step[tuple[Tensor, Tensor, Nest]]:
    """PES for what the past noise did, and a known gradient for what theta does in this unroll.

    g = p + 1 / (N sigma^2) sum_j xi_j (L_j^+ - L_j^- - 2 eps_j . p),    xi_j <- xi_j + eps_j

    direct (R, P): p, the gradient of this unroll's loss from the state of an unperturbed particle. xi
    here leaves out the noise eps of this unroll. Returns g (R, P), the new xi and the state.
    Source: arXiv 2112.13835, Eq. 9.
    """
    [(state, losses)] = yield [Unroll(antithetic(theta, eps), state, steps)]
    plus, minus = losses.unbind(1)
    along = (eps @ direct.unsqueeze(-1)).squeeze(-1)  # eps_j . p
    indirect = torch.stack([plus - along, minus + along], 1)
    g = direct + estimate(indirect, xi, sigma)
    return g, xi + eps, state


def variance(slopes: Tensor) -> tuple[float, float]:
    """Variance of the PES and the full-ES estimate where losses are linear, in closed form.

    L_u = sum_{v <= u} p_{vu} . theta_v,    q_{vw} = sum_{u >= max(v, w)} p_{vu}
    tr Var(PES) = P sum_{vw} |q_{vw}|^2 + sum_{vw} q_{vw} . q_{wv},    tr Var(ES) = (P + 1) |g|^2

    slopes (W, W, P): p_{vu}, what the loss of unroll u owes to theta as unroll v saw it; entries
    with v > u are not read. Returns two floats, for one antithetic pair, of the estimate summed
    over the W unrolls; divide by the number of pairs. The gradient is g = sum_v q_{vv}.

    Raises ValueError for another shape. Source: derived in chapter 35; the second is arXiv
    2304.11153's.

    >>> variance(torch.eye(4)[:, :, None] * torch.ones(8) / 4)  # four equal, separate slopes
    (42.0, 72.0)
    """
    if slopes.dim() != 3 or slopes.shape[0] != slopes.shape[1]:
        raise ValueError(f"slopes: got {tuple(slopes.shape)}, wanted (W, W, P)")
    w, _, size = slopes.shape
    index = torch.arange(w, device=slopes.device)
    acted = (index[:, None] <= index)[..., None]  # theta_v has acted by unroll u
    later = torch.where(acted, slopes, 0).flip(1).cumsum(1).flip(1)  # sums over u >= the column
    q = later.gather(1, torch.maximum(index[:, None], index)[..., None].expand(-1, -1, size))
    pes = size * q.square().sum() + (q * q.transpose(0, 1)).sum()
    gradient = q.diagonal().sum(-1)
    return float(pes), float((size + 1) * gradient.square().sum())
