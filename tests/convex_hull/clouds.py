"""Clouds and queries that the tests of this folder share, and a slow answer to all of them."""

import math

import numpy as np
import torch
from scipy.optimize import linprog

FLOAT = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=FLOAT)


def rotation(d, k, seed=1):
    return torch.linalg.qr(normal(d, k, seed=seed))[0]


def by_linprog(x, z):
    """The slow twin: is there a convex combination? One linear program a query."""
    a = np.vstack([x.numpy().T, np.ones(len(x))])
    answer = linprog(np.zeros(len(x)), A_eq=a, b_eq=np.append(z.numpy(), 1), method="highs")
    assert answer.status in (0, 2), answer.message
    return answer.status == 0


def fourier(t, d, seed=5):
    """A closed random curve of 40 harmonics."""
    k = torch.arange(1, 41, dtype=FLOAT)
    a, b = normal(2, 40, d, seed=seed) / k[:, None] ** 0.5
    return (2 * math.pi * t[:, None] * k).cos() @ a + (2 * math.pi * t[:, None] * k).sin() @ b


def uniform(n, seed):
    return torch.rand(n, generator=rng(seed), dtype=FLOAT)


def pixels(n, d, seed):
    return torch.randint(0, 5, (n, d), generator=rng(seed)).to(FLOAT)


def ball(n, d, seed):
    g = normal(n, d, seed=seed)
    return g / g.norm(dim=1, keepdim=True) * uniform(n, seed + 1)[:, None] ** (1 / d)


CLOUDS = {
    "line": lambda: (normal(40, 1), normal(60, 1, seed=1)),
    "plane": lambda: (normal(300, 2), normal(100, 2, seed=1)),
    "gaussian 5": lambda: (normal(700, 5), normal(150, 5, seed=1)),
    "gaussian 12": lambda: (normal(400, 12), 0.7 * normal(150, 12, seed=1)),
    "small shell of 30": lambda: (normal(90, 30), 0.3 * normal(60, 30, seed=1)),
    "pixels": lambda: (pixels(500, 6, 0), pixels(120, 6, 1)),
    "few levels": lambda: (pixels(80, 3, 0), pixels(80, 3, 1)),
    "curve 4": lambda: (fourier(uniform(3000, 0), 4), fourier(uniform(100, 1), 4)),
    "curve 10": lambda: (fourier(uniform(3000, 0), 10), fourier(uniform(100, 1), 10)),
    "flat": lambda: (normal(300, 3) @ rotation(20, 3).T + 1, normal(60, 3, seed=1) @ rotation(20, 3).T + 1),
    "beside the plane": lambda: (normal(300, 3) @ rotation(9, 3).T, normal(60, 9, seed=1)),
    "constant column": lambda: (pixels(200, 4, 0) * torch.tensor([1.0, 0, 1, 1]), pixels(50, 4, 1) * torch.tensor([1.0, 0, 1, 1])),
    "one point": lambda: (normal(1, 4), torch.cat([normal(1, 4), normal(3, 4, seed=1)])),
    "two points": lambda: (normal(2, 4), torch.cat([normal(2, 4), normal(2, 4).mean(0, keepdim=True), normal(3, 4, seed=1)])),
    "fewer than d + 1": lambda: (normal(5, 9), torch.cat([normal(5, 9), normal(5, 9).mean(0, keepdim=True), normal(3, 9, seed=1)])),
    "all the same": lambda: (normal(1, 3).expand(50, 3), torch.cat([normal(1, 3), normal(2, 3, seed=1)])),
    "thin": lambda: (normal(400, 5) @ torch.diag(torch.logspace(0, -6, 5, dtype=FLOAT)), normal(60, 5, seed=1) @ torch.diag(torch.logspace(0, -6, 5, dtype=FLOAT))),
    "far away": lambda: (normal(400, 4) + 1e4, normal(100, 4, seed=1) + 1e4),
    "several segments": lambda: (normal(6000, 7), normal(60, 7, seed=1)),
}  # fmt: skip
