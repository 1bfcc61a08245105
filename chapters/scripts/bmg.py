"""Bootstrapped Meta-Learning in one file (Flennerhag et al. 2021, arXiv 2109.04504).

The idea: a learner x moves by an update rule with meta-parameters w (here: its rate).
Do not ask what K updates did for the loss; go on for L - 1 more, take one step on the
loss f itself, and ask w to have come nearer to where that leads:

    target = x^(K+L-1) - alpha * grad f(x^(K+L-1))               not differentiated
    w <- w - beta * grad_w mu(target, x^(K)(w)),  mu = |target - x|^2 / 2

What you will see: in a noisy valley, steep one way and flat the other, plain one-step
meta-gradients (MG) learn too small a rate: noise is felt at once, progress later. A
bootstrap looks 30 updates ahead and still backpropagates through one. The data are a
formula: f(x) = (x_0^2 + 0.01 x_1^2) / 2, and Gaussian noise on its slope.

    python bmg.py [figure.png] [--seed 0] [--quick]    # about 5 s

MIT licence, the ML Collage contributors; explained in chapter 37 of ML Collage.
"""

import argparse
import math
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from torch import Tensor

METHOD, PLAIN, OTHER = "#D55E00", "#0072B2", "#009E73"  # Okabe and Ito's palette

Update = Callable[[Tensor, Tensor], Tensor]  # (x, w) -> x, differentiable in w
Step = Callable[[Tensor], Tensor]  # x -> x
Objective = Callable[[Tensor], Tensor]  # x (S, ...) -> (S,)
Matching = Callable[[Tensor, Tensor], Tensor]  # (target, x) -> (S,)
Meta = tuple[Tensor, Tensor]  # the meta-gradient, and the x from which life goes on


# The method: copy these two functions. S learners side by side, each with its own w.
def mg(update: Update, f: Objective, x: Tensor, w: Tensor, K: int) -> Meta:
    """Plain meta-gradient: grad_w f(x^(K)(w)), and x^(K)."""
    w = w.detach().requires_grad_()
    for _ in range(K):
        x = update(x, w)
    (g,) = torch.autograd.grad(f(x).sum(), w)
    return g, x.detach()


def bmg(
    update: Update, real_step: Step, mu: Matching, x: Tensor, w: Tensor, K: int, L: int
) -> Meta:
    """Bootstrapped meta-gradient: grad_w mu(target, x^(K)(w)), and x^(K+L-1)."""
    w = w.detach().requires_grad_()
    for _ in range(K):
        x = update(x, w)
    with torch.no_grad():  # the target: from here on nothing is recorded
        onward = x.detach()
        for _ in range(L - 1):
            onward = update(onward, w)
        target = real_step(onward)  # without it w would be asked to repeat itself
    (g,) = torch.autograd.grad(mu(target, x).sum(), w)
    return g, onward


# The experiment: gradient descent in a noisy valley, with the rate exp(w).
CURVATURE = torch.tensor([1.0, 0.01], dtype=torch.float64)  # steep, flat
START, RATE, ALPHA, LEARNERS = (0.0, 30.0), 0.05, 0.1, 64


def f(x: Tensor) -> Tensor:
    return (CURVATURE * x.square()).sum(-1) / 2


def squared(target: Tensor, x: Tensor) -> Tensor:
    return (target - x).square().sum(-1) / 2


def lifetime(K: int, L: int | None, seed: int, steps: int) -> Tensor:
    """Rate and loss of each learner after each update, (2, steps, 64). L None: MG."""
    rng = torch.Generator().manual_seed(seed)

    def slope(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=rng, dtype=x.dtype)
        return CURVATURE * (x + noise)

    def update(x: Tensor, w: Tensor) -> Tensor:
        return x - w.exp()[:, None] * slope(x)

    def real_step(x: Tensor) -> Tensor:
        return x - ALPHA * slope(x)

    x = torch.tensor(START, dtype=torch.float64).expand(LEARNERS, 2)
    w = torch.full((LEARNERS,), math.log(RATE), dtype=torch.float64)
    kept = K if L is None else K + L - 1  # updates that life keeps, a meta-step
    adam = torch.optim.Adam([w], lr=0.01 * kept)  # none may move w further than another
    log: list[Tensor] = []
    while len(log) < steps:
        if L is None:
            w.grad, x = mg(update, f, x, w, K)
        else:
            w.grad, x = bmg(update, real_step, squared, x, w, K, L)
        adam.step()
        log += kept * [torch.stack([w.exp(), f(x)])]
    return torch.stack(log[:steps], 1)


LIVES = (  # name, K, L, colour, line
    ("MG, K = 1", 1, None, PLAIN, "--"),
    ("BMG, K = 1, L = 5", 1, 5, METHOD, ":"),
    ("BMG, K = 1, L = 30", 1, 30, METHOD, "-"),
    ("MG, K = 20", 20, None, OTHER, "-."),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="learning rates that look ahead")
    parser.add_argument("figure", nargs="?", help="file to save to; shown if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a short version")
    args = parser.parse_args()
    torch.set_num_threads(1)  # tensors this small only lose by more
    steps = 200 if args.quick else 1000

    fig, axes = plt.subplots(2, 1, figsize=(6.4, 5.4), layout="constrained")
    print(f"{LEARNERS} learners, last 50 of {steps} updates: median (quartiles)")
    for name, K, L, colour, line in LIVES:
        life = lifetime(K, L, args.seed, steps)
        for ax, what, each in zip(axes, ("rate", "loss"), life):
            low, mid, high = each.quantile(torch.tensor([0.25, 0.5, 0.75]).double(), 1)
            a, b, c = (v[-50:].median() for v in (low, mid, high))
            print(f"{name:18}  {what} {b:.2f} ({a:.2f} to {c:.2f})")
            ax.plot(mid, line, color=colour, lw=2, label=name)
            ax.fill_between(range(steps), low, high, color=colour, alpha=0.12, lw=0)
    axes[1].legend(frameon=False, loc="lower left")
    for ax, label in zip(axes, ("learned rate", "loss")):
        ax.set(yscale="log", xlabel="update", ylabel=label)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#E4E1DA")
    axes[0].set_title("median and quartiles of 64 learners", loc="left", weight="bold")
    fig.savefig(args.figure, dpi=150) if args.figure else plt.show()


if __name__ == "__main__":
    main()
