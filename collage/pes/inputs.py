"""What the estimators take, checked where it comes in, and how a step that fails is undone.

check_problem, check_generator, check_lengths    what an estimator is built of
check_theta, checked                             outer parameters, and what an unroll returns
check_particles                                  what a state of particles must be
all_or_nothing                                   a step that changes everything or nothing
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from collage.common.checks import check_real, check_whole
from collage.common.populations import tree_leaves, tree_map
from collage.pes.core import Nest, Problem


def check_problem(problem: Problem) -> Problem:
    for name in ("reset", "unroll"):
        if not callable(getattr(problem, name, None)):
            wanted = f"an object with a function {name}"
            raise ValueError(f"problem: got {type(problem).__name__}, wanted {wanted}")
    return problem


def check_generator(generator: torch.Generator | None) -> torch.Generator | None:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"generator: got {type(generator).__name__}, wanted a torch.Generator")
    return generator


def check_pairs(particles: int) -> int:
    """The number of antithetic pairs."""
    if check_whole("particles", particles, 2) % 2:
        raise ValueError(f"particles: got {particles}, wanted an even number")
    return int(particles) // 2


def check_lengths(truncation: int, horizon: int) -> tuple[int, int]:
    truncation, horizon = check_whole("truncation", truncation), check_whole("horizon", horizon)
    if truncation > horizon:
        wanted = f"no more than the horizon, {horizon}"
        raise ValueError(f"truncation: got {truncation}, wanted {wanted}")
    return truncation, horizon


def check_theta(theta: Tensor, before: tuple[torch.Size, torch.dtype] | None) -> Tensor:
    """Outer parameters (P,) or (R, P), as they were in the steps before, as rows (R, P)."""
    if before is not None and isinstance(theta, Tensor) and (theta.shape, theta.dtype) == before:
        return theta.detach().reshape(-1, theta.shape[-1])
    if not isinstance(theta, Tensor):
        raise ValueError(f"theta: got {type(theta).__name__}, wanted a tensor")
    got = f"{tuple(theta.shape)} of {theta.dtype}"
    if theta.dim() not in (1, 2) or not theta.numel() or not theta.is_floating_point():
        raise ValueError(f"theta: got {got}, wanted (P,) or (R, P) of floats")
    check_real("theta", theta.dtype)
    if before is not None:
        shape, dtype = before
        raise ValueError(f"theta: got {got}, wanted {tuple(shape)} of {dtype} as before")
    return theta.detach().reshape(-1, theta.shape[-1])


def check_sigma(sigma: float | Tensor, rows: Tensor) -> float | Tensor:
    """Noise scales: one number, or one for each run (R,) of theta's kind."""
    if not isinstance(sigma, Tensor):
        return sigma
    if sigma.shape != rows.shape[:1]:
        raise ValueError(f"sigma: got {tuple(sigma.shape)}, wanted one number or ({len(rows)},)")
    return sigma.to(rows)


def check_particles(name: str, state: Any, n: int) -> None:
    """Raise ValueError unless every leaf of a nest is a tensor with a leading axis of n."""
    for leaf in tree_leaves(state):
        if not isinstance(leaf, Tensor) or leaf.dim() == 0 or leaf.shape[0] != n:
            got = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
            raise ValueError(f"{name}: got a leaf {got}, wanted tensors with a leading particle "
                             f"axis of {n}")  # fmt: skip


def checked(unroll: Callable, detach: bool = True) -> Callable[..., tuple[Nest, Tensor]]:
    """An unroll whose states and losses have a leading axis of particles, else ValueError."""

    def run(theta: Tensor, state: Nest, steps: int) -> tuple[Nest, Tensor]:
        outcome = unroll(theta, state, steps)
        if not isinstance(outcome, tuple | list) or len(outcome) != 2:
            raise ValueError(f"unroll: got {type(outcome).__name__}, wanted a pair (state, losses)")
        state, losses = outcome
        check_particles("state", state, len(theta))
        if not isinstance(losses, Tensor) or losses.shape != theta.shape[:1]:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(f"losses: got {got}, wanted ({len(theta)},)")
        if not detach:
            return state, losses
        return tree_map(lambda t: t.detach() if t.requires_grad else t, state), losses.detach()

    return run


class Estimator(Protocol):
    generator: torch.Generator | None
    carried: Any  # what a step replaces, and never changes in place


@contextlib.contextmanager
def all_or_nothing(estimators: Sequence[Estimator]) -> Iterator[None]:
    """Where the body fails or is interrupted, estimators and their generators are as they were."""
    before = [(e, e.carried, e.generator, e.generator and e.generator.get_state())
              for e in estimators]  # fmt: skip
    try:
        yield
    except BaseException:
        for estimator, carried, generator, random in reversed(before):
            estimator.carried, estimator.generator = carried, generator
            if generator is not None:
                generator.set_state(random)
        raise
