"""Sharpness-Aware Minimization in one file (Foret et al. 2021, arXiv 2010.01412).

The idea: do not ask for weights of low loss, ask for weights whose whole neighbourhood
has low loss. To first order the worst neighbour lies up the gradient g, so climb there,
take the slope, and step with it from where you were:

    theta <- theta - eta * grad L(theta + rho * g / |g|),    g = grad L(theta)

What you will see: a network is trained on data of which 40 % have wrong labels. SGD
learns the wrong labels by heart and is right less often than at its best; SAM resists
for longer. Data are synthetic: ten Gaussian clouds in 20 dimensions.

    python sam.py [figure.png] [--seed 0] [--quick]    # about 10 s

MIT licence, the ML Collage contributors; explained in chapter 36 of ML Collage.
"""

import argparse
from collections.abc import Callable, Iterable

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

METHOD, PLAIN = "#D55E00", "#0072B2"  # Okabe and Ito's palette


# The method: copy these two functions.
def ascent(grads: list[Tensor], rho: float) -> list[Tensor]:
    """The step of length rho up the gradient, rho g / |g|: one norm for all tensors."""
    length = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
    return [rho * g / length.clamp(min=1e-12) for g in grads]


def sam_step(
    loss: Callable[[], Tensor],
    params: Iterable[Tensor],
    optimizer: torch.optim.Optimizer,
    rho: float,
) -> Tensor:
    """One step of an optimizer with the gradient of SAM; returns the loss before it.

    Any optimizer whose step() needs no closure: Adam, but not LBFGS. loss() is called
    twice and must see the same batch (and dropout mask) both times.
    """
    params = list(params)
    value = loss()
    e = ascent(list(torch.autograd.grad(value, params)), rho)
    here = [p.detach().clone() for p in params]
    try:
        with torch.no_grad():
            for p, d in zip(params, e):
                p.add_(d)  # up to the worst neighbour
        optimizer.zero_grad()
        loss().backward()  # the slope there
    finally:
        with torch.no_grad():
            for p, old in zip(params, here):
                p.copy_(old)  # back, exactly, even if loss() has failed
    optimizer.step()
    return value.detach()


# The experiment: ten Gaussian clouds, and training labels of which 40 % are wrong.
CLASSES, DIMENSIONS, TRAIN, TEST, WRONG = 10, 20, 500, 2000, 0.4
METHODS = ("SGD", 0.0, PLAIN, "--"), ("SAM", 1.0, METHOD, "-")  # with their rho


def clouds(rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Points x (n, 20), their true classes (n,), and what training is told."""
    centres = torch.randn(CLASSES, DIMENSIONS, generator=rng)
    true = torch.randint(CLASSES, (TRAIN + TEST,), generator=rng)
    x = centres[true] + torch.randn(len(true), DIMENSIONS, generator=rng)
    other = (true + torch.randint(1, CLASSES, true.shape, generator=rng)) % CLASSES
    lie = torch.rand(true.shape, generator=rng) < WRONG
    return x, true, torch.where(lie, other, true)


def network(rng: torch.Generator) -> nn.Module:
    net = nn.Sequential(nn.Linear(DIMENSIONS, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    for p in net.parameters():  # both methods start from the same weights
        scale = p.shape[-1] ** -0.5 if p.dim() > 1 else 0.0
        p.data = scale * torch.randn(p.shape, generator=rng)
    return net


def train(rho: float, seed: int, steps: int, every: int = 50) -> list[list[float]]:
    """Every 50 steps: test points right, wrong labels learned (%). SGD has rho = 0."""
    rng = torch.Generator().manual_seed(seed)
    x, true, told = clouds(rng)
    net = network(rng)
    sgd = torch.optim.SGD(net.parameters(), lr=0.3)
    lie = (told != true)[:TRAIN]
    log = []
    for step in range(1, steps + 1):
        b = torch.randint(TRAIN, (50,), generator=rng)

        def loss(x: Tensor = x[b], y: Tensor = told[b]) -> Tensor:
            return F.cross_entropy(net(x), y)

        sam_step(loss, net.parameters(), sgd, rho)
        if step % every == 0:
            answer = net(x).argmax(1)
            right = (answer == true)[TRAIN:]
            learned = (answer == told)[:TRAIN][lie]
            log.append([100 * v.float().mean().item() for v in (right, learned)])
    return log


def main() -> None:
    parser = argparse.ArgumentParser(description="SGD and SAM on wrong labels")
    parser.add_argument("figure", nargs="?", help="file to save to; shown if left out")
    parser.add_argument("--seed", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--quick", action="store_true", help="a short version")
    args = parser.parse_args()
    torch.set_num_threads(1)  # tensors this small only lose by more
    seeds, steps = (2, 200) if args.quick else (5, 1000)

    fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.6), layout="constrained")
    for name, rho, colour, line in METHODS:
        runs = torch.tensor([train(rho, args.seed + i, steps) for i in range(seeds)])
        mean, spread = runs.mean(0), runs.std(0)  # (steps / 50, 2)
        right, learned = (f"{m:.0f} ± {s:.0f} %" for m, s in zip(mean[-1], spread[-1]))
        best = f"{right} of test points right (at best {mean[:, 0].max():.0f} %)"
        print(f"{name}: {best}, {learned} of wrong labels learned")
        step = torch.arange(1, len(mean) + 1) * (steps // len(mean))
        for ax, m, s in zip(axes, mean.T, spread.T):
            ax.plot(step, m, line, color=colour, lw=2, label=name)
            ax.fill_between(step, m - s, m + s, color=colour, alpha=0.2, lw=0)
    labels = "test points right (%)", "wrong labels learned by heart (%)"
    for ax, label in zip(axes, labels):
        ax.set(xlabel="training step", ylabel=label)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#E4E1DA")
    axes[0].set_title("40 % of the labels are wrong", loc="left", weight="bold")
    axes[0].legend(frameon=False)
    fig.savefig(args.figure, dpi=150) if args.figure else plt.show()


if __name__ == "__main__":
    main()
