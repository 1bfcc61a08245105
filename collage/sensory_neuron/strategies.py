"""Evolution strategies, which search for parameters by asking and telling.

Strategy         what they share; `experiments/cma.py` has another one
OpenES           antithetic steps along the estimated gradient, with ranks instead of fitness, and Adam
centred_ranks    the ranks

`ask()` gives a population (P, d), `tell(fitness)` moves on, `mean` is the best guess.
"""

from typing import ClassVar

import torch
from torch import Generator, Tensor

from collage.common.checks import as_tensor, check_real, check_single, check_whole
from collage.common.populations import antithetic, estimate


class Strategy:
    """A mean (d,), a step size, a generator; the population that was asked for; what is saved."""

    moving: ClassVar[tuple[str, ...]] = ("mean",)  # the tensors of a run

    def __init__(
        self, mean: Tensor, sigma: float, population: int, generator: Generator, least: int
    ) -> None:
        mean = as_tensor("mean", mean)
        check_real("mean", mean.dtype)
        if mean.dim() != 1 or not len(mean) or not bool(mean.isfinite().all()):
            raise ValueError(f"mean: got {tuple(mean.shape)}, wanted finite numbers (d,)")
        self.mean = mean.detach().clone()
        self.population = check_whole("population", population, least)
        self.generator, self.generations = generator, 0
        self.asked: Tensor | None = None
        self.start_sigma = check_single("sigma", sigma)

    def normal(self, rows: int) -> Tensor:
        like, size = self.mean, (rows, len(self.mean))
        return torch.randn(size, generator=self.generator, device=like.device, dtype=like.dtype)

    def order(self, fitness: Tensor) -> Tensor:
        """The places (P,) of a fitness in its order, which alone matters; ties share one.

        As whole numbers the order survives in any precision. Raises ValueError before anything is
        changed.
        """
        if self.asked is None:
            raise ValueError("tell: got a fitness before a population was asked for")
        fitness = as_tensor("fitness", fitness)
        if fitness.shape != (self.population,) or not bool(fitness.isfinite().all()):
            wanted = f"({self.population},), all finite"
            raise ValueError(f"fitness: got {tuple(fitness.shape)}, wanted {wanted}")
        return fitness.unique(return_inverse=True)[1].to(self.mean)

    def move(self, **values: Tensor) -> None:
        """Take in new values, all of them, or none where one is not finite."""
        for name, value in values.items():
            if not bool(value.isfinite().all()):
                wanted = f"a sigma within the range of {self.mean.dtype}"
                raise ValueError(f"{name}: became inf or NaN in this step, which is not taken; "
                                 f"wanted {wanted}")  # fmt: skip
        self.__dict__.update(values, asked=None, generations=self.generations + 1)


class OpenES(Strategy):
    """Evolution strategies of OpenAI's kind: a gradient from antithetic pairs, followed by Adam.

    g = 1 / (2 M sigma^2) sum_j eps_j (r_j^+ - r_j^-),    r the centred ranks of the fitness

    mean (d,), sigma the noise's standard deviation, population P = 2 M, lr of Adam (0.9, 0.999).
    Larger fitness is better. Adam is written out, in the order of operations that the recorded
    searches and chapter 33 were run with.

    Raises ValueError for a population that is odd or below 2, a fitness that is not (P,) or not finite.
    Source: Salimans et al. 2017 (arXiv 1703.03864).

    >>> search = OpenES(torch.zeros(3), 0.1, 16, torch.Generator().manual_seed(0), lr=0.05)
    >>> for _ in range(100):
    ...     search.tell(-(search.ask() - 1).square().sum(1))
    >>> bool((search.mean - 1).abs().max() < 0.2)
    True
    """

    moving = ("mean", "first", "second")

    def __init__(
        self, mean: Tensor, sigma: float, population: int, generator: Generator, lr: float = 0.03
    ) -> None:
        super().__init__(mean, sigma, population, generator, 2)
        if self.population % 2:
            wanted = "an even number: it comes in pairs"
            raise ValueError(f"population: got {population}, wanted {wanted}")
        self.sigma, self.lr = self.start_sigma, check_single("lr", lr)
        self.first, self.second = torch.zeros_like(self.mean), torch.zeros_like(self.mean)

    def ask(self) -> Tensor:
        """A population (P, d): mean + noise, then mean - the same noise."""
        self.noise = self.sigma * self.normal(self.population // 2)[None]
        self.asked = antithetic(self.mean[None], self.noise).flatten(0, 2)
        return self.asked

    def tell(self, fitness: Tensor) -> None:
        """Move on by the fitness (P,) of what was asked for; larger is better."""
        losses = -centred_ranks(self.order(fitness)).view(1, 2, -1)
        gradient = estimate(losses, self.noise, self.sigma)[0]
        age = self.generations + 1
        first = torch.lerp(self.first, gradient, 0.1)
        second = torch.lerp(self.second, gradient.square(), 0.001)
        rate = self.lr / (1 - 0.9**age)
        width = (second / (1 - 0.999**age)).sqrt() + 1e-8
        self.move(mean=self.mean - rate * first / width, first=first, second=second)


def centred_ranks(losses: Tensor) -> Tensor:
    """Losses (P,) replaced by their ranks, evenly spaced in [-1/2, 1/2]; ties share their mean rank.

    It makes the step blind to the scale of the losses, and the estimate a biased one.

    >>> centred_ranks(torch.tensor([3.0, -1.0, 100.0]))
    tensor([ 0.0000, -0.5000,  0.5000])
    """
    ordered = losses.sort()[0]
    low, high = (torch.searchsorted(ordered, losses, right=right) for right in (False, True))
    return ((low + high - 1) / 2 / (len(losses) - 1) - 0.5).to(losses.dtype)
