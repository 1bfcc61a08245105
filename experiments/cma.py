"""Evolution by covariance-matrix adaptation, and a population shared out to ranks.

CMAES               learns which directions are worth a longer step; asked and told as `OpenES`
state_of, restore   carry a search over a checkpoint, bit for bit
score               the fitness of a population, its members shared out to ranks
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from collage.common.checks import check_finite, check_whole
from collage.common.populations import Shard
from collage.sensory_neuron.strategies import Strategy


class CMAES(Strategy):
    """Covariance-matrix adaptation: sample, keep the better half, and learn from the steps it took.

    x_k = m + s y_k,  y_k ~ N(0, C);    m <- m + s y_w,  y_w = sum_i w_i y_{i:P}
    p_s <- (1 - c_s) p_s + sqrt(c_s (2 - c_s) mu) C^{-1/2} y_w,    s <- s exp(c_s / d_s (|p_s| / E|N| - 1))
    p_c <- (1 - c_c) p_c + h sqrt(c_c (2 - c_c) mu) y_w
    C <- (1 - c_1 - c_mu + (1 - h) c_1 c_c (2 - c_c)) C + c_1 p_c p_c^T + c_mu sum_i w_i y_{i:P} y_{i:P}^T

    mean (d,), sigma the first step size s, population P >= 4, the constants those of Hansen's tutorial
    with positive weights only. gap: generations between two eigendecompositions of C; None is the
    tutorial's choice. Where d is large and C learns slowly, a larger gap saves most of the time and
    changes little. Larger fitness is better.

    Raises ValueError for a population below 4, a fitness that is not (P,) or not finite.
    Source: Hansen 2016 (arXiv 1604.00772), figure 6 and table 1.

    >>> search = CMAES(torch.zeros(3, dtype=torch.float64), 0.5, 8, torch.Generator().manual_seed(0))
    >>> for _ in range(100):
    ...     search.tell(-(search.ask() - 1).square().sum(1))
    >>> bool((search.mean - 1).abs().max() < 1e-6)
    True
    """

    moving = ("mean", "sigma", "C", "B", "D", "path_c", "path_s", "decomposed")

    def __init__(
        self,
        mean: Tensor,
        sigma: float,
        population: int,
        generator: Generator,
        gap: int | None = None,
    ) -> None:
        super().__init__(mean, sigma, population, generator, 4)
        d, half = len(mean), self.population // 2
        like = {"device": mean.device, "dtype": mean.dtype}
        rank = torch.arange(1, half + 1, **like)
        raw = math.log((self.population + 1) / 2) - rank.log()
        self.weights = raw / raw.sum()
        self.mu = mu = 1 / float(self.weights.square().sum())
        self.c_s = (mu + 2) / (d + mu + 5)
        self.d_s = 1 + 2 * max(0.0, math.sqrt((mu - 1) / (d + 1)) - 1) + self.c_s
        self.c_c = (4 + mu / d) / (d + 4 + 2 * mu / d)
        self.c_1 = 2 / ((d + 1.3) ** 2 + mu)
        self.c_mu = min(1 - self.c_1, 2 * (mu - 2 + 1 / mu) / ((d + 2) ** 2 + mu))
        self.expected = math.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d * d))  # E|N(0, I)|
        self.gap = (
            max(1, int(1 / (self.c_1 + self.c_mu) / d / 10))
            if gap is None
            else check_whole("gap", gap)
        )
        self.sigma = torch.tensor(self.start_sigma, **like)
        self.C, self.B, self.D = torch.eye(d, **like), torch.eye(d, **like), torch.ones(d, **like)
        self.path_c, self.path_s = torch.zeros(d, **like), torch.zeros(d, **like)
        self.decomposed = torch.tensor(0)

    def ask(self) -> Tensor:
        """A population (P, d)."""
        self.z = self.normal(self.population)
        self.y = (self.z * self.D) @ self.B.T
        self.asked = self.mean + self.sigma * self.y
        return self.asked

    def tell(self, fitness: Tensor) -> None:
        """Move on by the fitness (P,) of what was asked for; larger is better. No value of it matters,
        its order alone."""
        best = self.order(fitness).argsort(descending=True, stable=True)[: len(self.weights)]
        chosen, step = self.y[best], self.weights @ self.y[best]
        white = self.B @ (self.weights @ self.z[best])  # C^{-1/2} times the step
        c, age = self.c_s, self.generations + 1
        path_s = (1 - c) * self.path_s + math.sqrt(c * (2 - c) * self.mu) * white
        length = path_s.norm() / self.expected
        # Where the step size must first grow, the covariance waits for it.
        settled = length / math.sqrt(1 - (1 - c) ** (2 * age)) < 1.4 + 2 / (len(step) + 1)
        settled = settled.to(self.C)
        c = self.c_c
        path_c = (1 - c) * self.path_c + settled * math.sqrt(c * (2 - c) * self.mu) * step
        # What a path that waits has not given to C:
        missing = self.c_1 * c * (2 - c) * (1 - settled)
        C = self.C * (1 - self.c_1 - self.c_mu + missing)
        C.addr_(path_c, path_c, alpha=self.c_1)
        C.addmm_(chosen.T * self.weights, chosen, alpha=self.c_mu)
        new = {"mean": self.mean + self.sigma * step, "path_s": path_s, "path_c": path_c, "C": C,
               "sigma": self.sigma * torch.exp(self.c_s / self.d_s * (length - 1))}  # fmt: skip
        if age - int(self.decomposed) >= self.gap and bool(C.isfinite().all()):
            values, new["B"] = torch.linalg.eigh((C + C.T) / 2)
            new["D"] = values.clamp(min=1e-20).sqrt()
            new["decomposed"] = torch.tensor(age)
        self.move(**new)


def state_of(search):
    """{name: tensor} of a strategy, to be saved between `tell` and `ask`."""
    tensors = {name: getattr(search, name) for name in search.moving}
    generations = torch.tensor(search.generations)
    return {**tensors, "generations": generations, "generator": search.generator.get_state()}


def restore(search, state):
    """Go on from a `state_of`; returns the strategy."""
    shapes = {name: getattr(search, name).shape for name in search.moving}
    found = {name: state[name].shape for name in search.moving if name in state}
    if found != shapes or not {"generations", "generator"} <= state.keys():
        raise ValueError(f"state: got {found}, wanted {shapes}, generations and generator")
    check_finite("state", [state[name] for name in search.moving])
    for name in search.moving:
        setattr(search, name, state[name].to(getattr(search, name)))
    search.generations, search.asked = int(state["generations"]), None
    search.generator.set_state(state["generator"].to(torch.uint8).cpu())
    return search


def score(fitness: Callable[[Tensor], Tensor], population: Tensor, shard: Shard) -> Tensor:
    """fitness(rows) -> (n,) of a population (P, d), each rank of a `Shard` seeing its own rows only.

    >>> score(lambda rows: rows.sum(1), torch.ones(2, 3), Shard(False))
    tensor([3., 3.])
    """
    rows = population[shard.slice(len(population))]
    scores = fitness(rows) if len(rows) else rows.new_zeros(0)  # more ranks than members
    return shard.gather(scores[None, None], len(population))[0, 0]
