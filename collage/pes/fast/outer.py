"""A whole outer step as one program: noise, unroll, estimate and Adam without Python in between.

Adam, outer_step    the step as a pure function of tensors
OuterLoop           PES with Adam in lock-step, run plainly, compiled, or as a captured CUDA graph
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from collage import runtime
from collage.common.checks import check_positive, check_single, check_whole
from collage.common.graph import Captured
from collage.common.populations import estimate, tree_map
from collage.pes.core import Nest, Problem
from collage.pes.inputs import (
    check_generator,
    check_pairs,
    check_particles,
    check_problem,
    check_sigma,
    check_theta,
)


class Adam(NamedTuple):
    """Outer parameters and what Adam remembers of their gradients."""

    theta: Tensor  # (R, P)
    mean: Tensor  # (R, P), of the gradients
    square: Tensor  # (R, P), mean of their squares
    powers: Tensor  # (2,): b1^t and b2^t after t steps, ones at first


class Settings(NamedTuple):
    steps: int  # K, of an unroll
    sigma: float | Tensor  # of the noise, one number or (R,)
    lr: float
    betas: Tensor  # (2,)
    eps: float


def outer_step(
    adam: Adam, xi: Tensor, state: Nest, noise: Tensor, unroll: Callable, settings: Settings
) -> tuple[Adam, Tensor, Nest]:
    """One outer step of PES with Adam, in lock-step: `core.pes`, then theta <- Adam(theta, g).

    xi <- xi + sigma z,   g = 1 / (N sigma^2) sum_j xi_j (L_j^+ - L_j^-)

    xi (R, M, P); state of 2 M R particles, in each run the plus ones first; noise z (R, M, P) standard
    normal. Returns the first three anew.

    >>> zero, square = torch.zeros(1, 1), lambda theta, state, steps: (state, (theta**2).sum(1))
    >>> settings = Settings(1, sigma=0.5, lr=0.1, betas=torch.tensor([0.9, 0.999]), eps=1e-8)
    >>> adam = Adam(zero + 1, zero, zero, torch.ones(2))
    >>> one = torch.ones(1, 1, 1)
    >>> outer_step(adam, 0 * one, torch.zeros(2), one, square, settings)[0].theta
    tensor([[0.9000]])
    """
    theta, mean, square, powers = adam
    steps, sigma, lr, betas, small = settings
    eps = (sigma.view(-1, 1, 1) if isinstance(sigma, Tensor) else sigma) * noise
    xi, powers = xi + eps, powers * betas
    centre, shift = theta.T[:, :, None], eps.permute(2, 0, 1)
    # As `antithetic`, but each parameter's values lie side by side, as vector units like them.
    particles = torch.stack([centre + shift, centre - shift], 2).flatten(1).T
    state, losses = unroll(particles, state, steps)
    g = estimate(losses.view(len(theta), 2, -1), xi, sigma)
    (b1, b2), (c1, c2) = betas.unbind(), (1 - powers).unbind()
    mean, square = torch.lerp(g, mean, b1), torch.lerp(g * g, square, b2)
    step = mean / c1 / ((square / c2).sqrt() + small)
    return Adam(torch.sub(theta, step, alpha=lr), mean, square, powers), xi, state


@functools.cache
def compiled_step() -> Callable:
    return torch.compile(outer_step, fullgraph=True, dynamic=False)


class OuterLoop:
    """PES with Adam on R runs at once, inner problem after inner problem.

    theta (R, P) is copied; `run(problems)` makes horizon / truncation outer steps in each and
    returns theta. The other arguments as in `collage.pes.PES` and `torch.optim.Adam`; the same
    generator gives the same noise as there. mode: "plain"; "compile" makes one program of an outer
    step with torch.compile; "graph" records a whole inner problem as a CUDA graph.

    Raises ValueError where the horizon is no multiple of the truncation, for a graph off the GPU,
    and for parameters that became inf or NaN. A run that fails leaves theta, Adam's moments and the
    generator as they were.

    >>> from collage.pes.problems import Toy
    >>> toy, start = Toy(), torch.full((1, 2), -4.0).double()
    >>> loop = OuterLoop(toy, start, sigma=0.3, particles=100, truncation=10, horizon=100)
    >>> bool(toy.loss(loop.run(20)) < toy.loss(start))
    True
    """

    def __init__(
        self,
        problem: Problem,
        theta: Tensor,
        *,
        sigma: float | Tensor,
        particles: int,
        truncation: int,
        horizon: int,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        generator: torch.Generator | None = None,
        mode: str = "plain",
    ) -> None:
        rows = check_theta(theta, None)
        if theta.dim() != 2:
            raise ValueError(f"theta: got {tuple(theta.shape)}, wanted (R, P) of floats")
        self.problem, self.pairs = check_problem(problem), check_pairs(particles)
        if check_whole("horizon", horizon) % check_whole("truncation", truncation):
            raise ValueError(f"horizon: got {horizon}, wanted a multiple of {truncation}")
        sigma, lr = check_sigma(check_positive("sigma", sigma), rows), check_single("lr", lr)
        if mode not in ("plain", "compile", "graph"):
            raise ValueError(f"mode: got {mode!r}, wanted 'plain', 'compile' or 'graph'")
        if mode == "graph" and not theta.is_cuda:
            raise ValueError(f"mode: got 'graph' on {theta.device}, wanted a CUDA device")
        self.generator = check_generator(generator) or runtime.generator(0, theta.device)
        self.mode, self.unrolls = mode, horizon // truncation
        self.settings = Settings(truncation, sigma, lr, rows.new_tensor(betas), eps)
        zero = torch.zeros_like(rows)
        self.adam = Adam(rows.clone(), zero, zero, rows.new_ones(2))
        self.captured = Captured(self._problem, [self.generator])

    @torch.no_grad()
    def run(self, problems: int = 1) -> Tensor:
        """theta (R, P) after so many inner problems more."""
        adam, random = self.adam, self.generator.get_state()
        solve = self.captured if self.mode == "graph" else self._problem
        try:
            for _ in range(problems):
                adam = solve(*adam)
            if not all(bool(t.isfinite().all()) for t in adam):
                wanted = "finite losses in every particle, small enough to be squared"
                raise ValueError(f"theta: it or Adam's moments became inf or NaN, wanted {wanted}")
        except BaseException:
            self.generator.set_state(random)
            raise
        self.adam = Adam(*(t.clone() for t in adam))  # the next replay writes over these
        return self.adam.theta.clone()

    def _problem(self, theta: Tensor, mean: Tensor, square: Tensor, powers: Tensor) -> Adam:
        """One inner problem: a reset, then an outer step for each of its unrolls."""
        adam, (runs, size) = Adam(theta, mean, square, powers), theta.shape
        state = self.problem.reset(runs * self.pairs, self.generator)
        check_particles("reset", state, runs * self.pairs)

        def for_both_signs(t: Tensor) -> Tensor:
            """Each pair's state given to both members: (R M, ...) -> (2 M R, ...)."""
            t = t.unflatten(0, (runs, 1, -1))
            return t.expand(-1, 2, *t.shape[2:]).flatten(0, 2).contiguous()

        state = tree_map(for_both_signs, state)
        xi = theta.new_zeros(runs, self.pairs, size)
        like: dict[str, Any] = {"dtype": xi.dtype, "device": xi.device}
        step = compiled_step() if self.mode == "compile" else outer_step
        for _ in range(self.unrolls):
            noise = torch.randn(xi.shape, generator=self.generator, **like)
            adam, xi, state = step(adam, xi, state, noise, self.problem.unroll, self.settings)
        return adam
