"""Evolution strategies that search for parameters by asking and telling.

CMAES     covariance-matrix adaptation: it learns which directions are worth a longer step
OpenES    antithetic steps along the estimated gradient, with ranks instead of fitness, and Adam
score     the fitness of a population, its members shared out to ranks

Both know: `ask()` gives a population (P, d), `tell(fitness)` moves on, `mean` is the best guess, and
`state()` and `restore(state)` carry a run over a checkpoint, bit for bit.
"""

import math

import torch

from collage.common.checks import as_tensor, check_finite, check_real, check_single, check_whole
from collage.common.populations import antithetic, centred_ranks, estimate


class Strategy:
    """What the two share: a mean, a step size, a generator; the population that was asked for."""

    moving = ("mean",)  # the tensors of a run

    def __init__(self, mean, sigma, population, generator, least):
        mean = as_tensor("mean", mean)
        check_real("mean", mean.dtype)
        if mean.dim() != 1 or not len(mean) or not bool(mean.isfinite().all()):
            raise ValueError(f"mean: got {tuple(mean.shape)}, wanted finite numbers (d,)")
        self.mean = mean.detach().clone()
        self.population = check_whole("population", population, least)
        self.generator, self.generations, self.asked = generator, 0, None
        self.start_sigma = check_single("sigma", sigma)

    def normal(self, rows):
        like = {"device": self.mean.device, "dtype": self.mean.dtype}
        return torch.randn(rows, len(self.mean), generator=self.generator, **like)

    def ready(self, fitness):
        """The fitness (P,), checked before anything is changed."""
        if self.asked is None:
            raise ValueError("tell: got a fitness before a population was asked for")
        fitness = as_tensor("fitness", fitness)
        if fitness.shape != (self.population,) or not bool(fitness.isfinite().all()):
            raise ValueError(f"fitness: got {tuple(fitness.shape)}, wanted ({self.population},), all "
                             "finite")  # fmt: skip
        # Its order alone matters, and survives in any precision as whole numbers.
        order = fitness.unique(return_inverse=True)[1]
        return order.to(self.mean)

    def move(self, **values):
        """Take in new values, all of them, or none where one is not finite."""
        for name, value in values.items():
            if not bool(value.isfinite().all()):
                raise ValueError(f"{name}: became inf or NaN in this step, which is not taken; wanted "
                                 f"a sigma within the range of {self.mean.dtype}")  # fmt: skip
        self.__dict__.update(values, asked=None, generations=self.generations + 1)

    def state(self):
        """{name: tensor} to be saved between `tell` and `ask`."""
        kept = {name: getattr(self, name) for name in self.moving}
        return {**kept, "generations": torch.tensor(self.generations),
                "generator": self.generator.get_state()}  # fmt: skip

    def restore(self, state):
        """Go on from a `state`; returns the strategy."""
        wanted = {name: getattr(self, name).shape for name in self.moving}
        got = {name: state[name].shape for name in self.moving if name in state}
        if got != wanted or not {"generations", "generator"} <= state.keys():
            raise ValueError(f"state: got {got}, wanted {wanted}, generations and generator")
        check_finite("state", [state[name] for name in self.moving])
        for name in self.moving:
            setattr(self, name, state[name].to(getattr(self, name)))
        self.generations, self.asked = int(state["generations"]), None
        self.generator.set_state(state["generator"].to(torch.uint8).cpu())
        return self


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

    def __init__(self, mean, sigma, population, generator, gap=None):
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

    def ask(self):
        """A population (P, d)."""
        self.z = self.normal(self.population)
        self.y = (self.z * self.D) @ self.B.T
        self.asked = self.mean + self.sigma * self.y
        return self.asked

    def tell(self, fitness):
        """Move on by the fitness (P,) of what was asked for; larger is better. No value of it matters,
        its order alone."""
        best = self.ready(fitness).argsort(descending=True, stable=True)[: len(self.weights)]
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
        missing = (
            self.c_1 * c * (2 - c) * (1 - settled)
        )  # what a path that waits has not given to C
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


class OpenES(Strategy):
    """Evolution strategies of OpenAI's kind: a gradient from antithetic pairs, followed by Adam.

    g = 1 / (2 M sigma^2) sum_j eps_j (r_j^+ - r_j^-),    r the centred ranks of the fitness

    mean (d,), sigma the noise's standard deviation, population P = 2 M, lr of Adam (0.9, 0.999).
    Larger fitness is better.

    Raises ValueError for a population that is odd or below 2, a fitness that is not (P,) or not finite.
    Source: Salimans et al. 2017 (arXiv 1703.03864).

    >>> search = OpenES(torch.zeros(3), 0.1, 16, torch.Generator().manual_seed(0), lr=0.05)
    >>> for _ in range(100):
    ...     search.tell(-(search.ask() - 1).square().sum(1))
    >>> bool((search.mean - 1).abs().max() < 0.2)
    True
    """

    moving = ("mean", "first", "second")

    def __init__(self, mean, sigma, population, generator, lr=0.03):
        super().__init__(mean, sigma, population, generator, 2)
        if self.population % 2:
            raise ValueError(
                f"population: got {population}, wanted an even number: it comes in pairs"
            )
        self.sigma, self.lr = self.start_sigma, check_single("lr", lr)
        self.first, self.second = torch.zeros_like(self.mean), torch.zeros_like(self.mean)

    def ask(self):
        """A population (P, d): mean + noise, then mean - the same noise."""
        self.noise = self.sigma * self.normal(self.population // 2)[None]
        self.asked = antithetic(self.mean[None], self.noise)
        return self.asked

    def tell(self, fitness):
        """Move on by the fitness (P,) of what was asked for; larger is better."""
        losses = -centred_ranks(self.ready(fitness)).view(1, 2, -1)
        gradient = estimate(losses, self.noise, self.sigma)[0]
        age = self.generations + 1
        first = torch.lerp(self.first, gradient, 0.1)
        second = torch.lerp(self.second, gradient.square(), 0.001)
        rate = self.lr / (1 - 0.9**age)
        width = (second / (1 - 0.999**age)).sqrt() + 1e-8
        self.move(mean=self.mean - rate * first / width, first=first, second=second)


def score(fitness, population, shard):
    """fitness(rows) -> (n,) of a population (P, d), each rank of a `Shard` seeing its own rows only.

    >>> from collage.common.populations import Shard
    >>> score(lambda rows: rows.sum(1), torch.ones(2, 3), Shard(False))
    tensor([3., 3.])
    """
    mine = shard.slice(len(population))
    rows = population[mine]
    found = fitness(rows) if len(rows) else rows.new_zeros(0)  # more ranks than members
    return shard.gather(found[None, None], len(population))[0, 0]
