"""Persistent Evolution Strategies in one file (Vicol et al. 2021, arXiv 2112.13835).

The idea: an inner run of T steps is cut into unrolls of K, and theta is updated after
each. Particles keep their states, get new noise eps in each unroll, and a loss is
credited to the sum xi of all the noise that its particle has felt since the run began:

    xi_j <- xi_j + eps_j,    g = 1 / (N sigma^2) * sum_j xi_j (L_j^+ - L_j^-)

What you will see: theta = two logarithms of learning rates, first and last, of gradient
descent on a wiggly function (the paper's toy problem, a formula). With the newest noise
alone the search goes astray; with all of it, it reaches the valley.

    python pes.py [figure.png] [--seed 0] [--quick]    # about 5 s

MIT licence, the ML Collage contributors; explained in chapter 35 of ML Collage.
"""

import argparse
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from torch import Tensor

METHOD, PLAIN, INK = "#D55E00", "#0072B2", "#000000"  # Okabe and Ito's palette

State = tuple[Tensor, ...]  # (..., N) each: the state of every particle
Unroll = Callable[[Tensor, State, int], tuple[State, Tensor]]  # (theta, state, K)


# The method: copy this function.
def pes(
    unroll: Unroll,
    theta: Tensor,  # (..., P), of as many independent searches as you like
    state: State,  # (..., N): plus before minus
    xi: Tensor,  # (..., N/2, P): zeros when the inner run begins
    eps: Tensor,  # (..., N/2, P): new noise, N(0, sigma^2)
    sigma: float,
    K: int,
) -> tuple[Tensor, State, Tensor]:
    """Gradient after one more unroll of K steps, the states, and all noise so far."""
    xi = xi + eps
    centre = theta[..., None, :]
    pairs = torch.cat([centre + eps, centre - eps], -2)
    state, losses = unroll(pairs, state, K)  # each particle goes on from its own state
    plus, minus = losses.chunk(2, -1)
    N = losses.shape[-1]
    g = ((plus - minus)[..., None] * xi).sum(-2) / (N * sigma**2)
    return g, state, xi


# The experiment: tuning a learning-rate schedule while the run goes on.
T, K, N, SIGMA = 100, 10, 100, 0.3
START = torch.tensor([-4.0, -4.0], dtype=torch.float64)
WAYS = ("newest noise only", False, PLAIN, "--"), ("all noise (PES)", True, METHOD, "-")


def begin(*shape: int) -> State:
    """Inner runs at their first step: two variables and a clock."""
    one = torch.ones(shape, dtype=torch.float64)
    return one, one, 0 * one


def toy(theta: Tensor, state: State, steps: int) -> tuple[State, Tensor]:
    """So many steps of gradient descent, and the sum of the losses after each.

    f(x, y) = sqrt(x^2 + 5) - sqrt 5 + sin^2(y) exp(-5 x^2) + |y - 100| / 4
    """
    (x, y, t), total = state, torch.zeros(())
    first, last = theta.exp().unbind(-1)
    for _ in range(steps):
        rate = first + (last - first) * (t / T)
        bump = torch.exp(-5 * x**2)
        dx = x / (x**2 + 5).sqrt() - 10 * x * y.sin() ** 2 * bump
        dy = (2 * y).sin() * bump + (y - 100).sign() / 4
        x, y, t = x - rate * dx, y - rate * dy, t + 1
        wiggle = y.sin() ** 2 * torch.exp(-5 * x**2)
        total = total + (x**2 + 5).sqrt() - 5**0.5 + wiggle + (y - 100).abs() / 4
    return (x, y, t), total


def whole_loss(theta: Tensor) -> Tensor:
    return toy(theta, begin(*theta.shape[:-1]), T)[1]


def search(memory: bool, seed: int, runs: int, unrolls: int) -> Tensor:
    """Paths (unrolls + 1, runs, 2) of theta. Without memory: only the newest noise.

    (Truncated ES as published also starts all particles of an unroll from one state.)
    """
    rng = torch.Generator().manual_seed(seed)
    theta = START.repeat(runs, 1)
    adam = torch.optim.Adam([theta], 0.02, (0.99, 0.999))
    path = [theta.clone()]
    for u in range(unrolls):
        if u % (T // K) == 0:  # a new inner run: forget states and noise
            state, xi = begin(runs, N), torch.zeros(runs, N // 2, 2).double()
        xi = xi if memory else torch.zeros_like(xi)
        eps = SIGMA * torch.randn(xi.shape, generator=rng, dtype=xi.dtype)
        theta.grad, state, xi = pes(toy, theta, state, xi, eps, SIGMA, K)
        adam.step()
        path.append(theta.clone())
    return torch.stack(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="a rate tuned while it is used")
    parser.add_argument("figure", nargs="?", help="file to save to; shown if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a short version")
    args = parser.parse_args()
    torch.set_num_threads(1)  # tensors this small only lose by more
    runs, unrolls = (2, 100) if args.quick else (5, 600)

    fig, ax = plt.subplots(figsize=(6.4, 5), layout="constrained")
    axis = torch.linspace(-5, 4, 121, dtype=torch.float64)
    heights = whole_loss(torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1))
    look = {"levels": 16, "cmap": "YlGnBu_r", "alpha": 0.7}
    filled = ax.contourf(axis, axis, heights.clamp(max=2500), **look)
    fig.colorbar(filled, label="loss of the whole inner run")
    print(f"loss at the start: {whole_loss(START):.0f}")
    for name, memory, colour, line in WAYS:
        path = search(memory, args.seed, runs, unrolls)
        ends = whole_loss(path[-1])
        print(f"{name}: {ends.mean():.0f} ± {ends.std():.0f} ({runs} runs)")
        for i, way in enumerate(path.unbind(1)):
            ax.plot(*way.T, line, color=colour, lw=2, label=None if i else name)
        ax.plot(*path[-1].T, "o", color=colour, mec="white", ms=8)
    ax.plot(*START, "o", color=INK, ms=9, label="start")
    ax.set(xlabel="log of the first learning rate", ylabel="log of the last")
    ax.set_title("Credit to all noise leaves the plain", loc="left", weight="bold")
    ax.legend(loc="upper left")
    fig.savefig(args.figure, dpi=150) if args.figure else plt.show()


if __name__ == "__main__":
    main()
