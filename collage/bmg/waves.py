"""Learning to learn from a few points: sine waves, and a start that adapts to each in K steps.

sinusoids  tasks: waves of several heights and phases, points to learn from and to be judged on
Adapter    gradient descent from a learned start (MAML), as an inner problem for meta-gradients
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from collage.common.checks import check_single, check_whole
from collage.common.networks import forward, mlp


class Tasks(NamedTuple):
    """S tasks, each of a lifetime of its own."""

    x: Tensor  # (S, shots, 1): points to learn from
    y: Tensor
    query: Tensor  # (S, queries, 1): points to be judged on
    answer: Tensor


def sinusoids(tasks: int, shots: int, generator: Generator, queries: int | None = None) -> Tasks:
    """Waves y = A sin(x - b), A in [0.1, 5], b in [0, pi], x in [-5, 5]; as many queries as shots.

    Source: Finn et al. 2017 (arXiv 1703.03400), section 5.1.

    >>> sinusoids(4, 10, torch.Generator()).y.shape
    torch.Size([4, 10, 1])
    """
    shots, queries = check_whole("shots", shots), check_whole("queries", queries or shots)
    shape = (check_whole("tasks", tasks), 1, 1)
    uniform = functools.partial(torch.rand, generator=generator, device=generator.device)
    height, phase = 0.1 + 4.9 * uniform(shape), math.pi * uniform(shape)
    x = 10 * uniform(len(height), shots + queries, 1) - 5
    y = height * (x - phase).sin()
    return Tasks(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])


class Adapter:
    """K steps of gradient descent on a task's points, from a start w that all tasks share (MAML).

    x^(0) = w,   x^(k+1) = x^(k) - lr grad mean (f_x(points) - y)^2

    `update`, `ground_truth_step` and `objective` are what `bmg.meta_gradient` wants; set `tasks` before
    each meta-step. w: a list of tensors (1, ...), repeated for each task by the first
    update. The real objective is the error on points and queries together.

    >>> adapter = Adapter([1, 8, 1], lr=0.01)
    >>> w = adapter.start(torch.Generator().manual_seed(0))
    >>> adapter.tasks = sinusoids(4, 10, torch.Generator().manual_seed(0))
    >>> adapter.objective(adapter.update(adapter.begin(w), w, 0)).shape
    torch.Size([4])
    """

    tasks: Tasks

    def __init__(self, sizes: Sequence[int] = (1, 40, 40, 1), lr: float = 0.01) -> None:
        self.sizes, self.lr = list(sizes), check_single("lr", lr)

    def start(self, generator: Generator) -> list[Tensor]:
        """Weights to begin meta-learning from, (1, ...)."""
        return mlp(self.sizes, 1, generator)

    def begin(self, w: list[Tensor]) -> list[Tensor]:
        """The state of every task before it is adapted."""
        return [t.detach().expand(len(self.tasks.x), *t.shape[1:]) for t in w]

    def answer(self, params: list[Tensor], x: Tensor) -> Tensor:
        """Outputs of the networks (S, n, 1); x is brought to [-1, 1] first."""
        return forward(params, x / 5)

    def error(self, params: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Mean squared error (S,)."""
        return (self.answer(params, x) - y).square().mean((1, 2))

    def _descend(self, params: list[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
        slopes = torch.func.grad(lambda p: self.error(p, x, y).sum())(params)
        return [p - self.lr * g for p, g in zip(params, slopes, strict=True)]

    def update(self, params: list[Tensor], w: list[Tensor], k: int) -> list[Tensor]:
        """A step on the points; the first one begins at w."""
        if k == 0:
            params = [t.expand(len(self.tasks.x), *t.shape[1:]) for t in w]
        return self._descend(params, self.tasks.x, self.tasks.y)

    def ground_truth_step(self, params: list[Tensor], k: int) -> list[Tensor]:
        """A step on all that is known of the task, points and queries."""
        t = self.tasks
        return self._descend(params, torch.cat([t.x, t.query], 1), torch.cat([t.y, t.answer], 1))

    def objective(self, params: list[Tensor]) -> Tensor:
        """The error on the queries (S,), what MAML descends."""
        return self.error(params, self.tasks.query, self.tasks.answer)
