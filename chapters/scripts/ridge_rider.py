"""Ridge Rider in one file (Parker-Holder et al. 2020, arXiv 2011.06505).

The idea: to find solutions that differ, do not start at random; leave a saddle along
each direction in which the loss bends down. Such a ridge is an eigenvector e of the
Hessian H with a negative eigenvalue. Step along it, and turn to the one that continues:

    theta <- theta + alpha * e,    e <- the e_j of H(theta) with the largest |<e_j, e>|

What you will see: on a surface with two shallow and two deep minima, gradient descent
from near the middle slides into the shallow ones. Four rides, two ridges both ways,
each finished by descent, find all four. The surface is a formula.

    python ridge_rider.py [figure.png] [--seed 0] [--quick]    # about 5 s

MIT licence, the ML Collage contributors; explained in chapter 40 of ML Collage.
"""

import argparse
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.func import grad, hessian

METHOD, PLAIN, INK = "#D55E00", "#0072B2", "#000000"  # Okabe and Ito's palette

Loss = Callable[[Tensor], Tensor]  # (P,) -> a number


# The method: copy this function.
def ride(loss: Loss, theta: Tensor, e: Tensor, alpha: float, most: int = 200) -> Tensor:
    """The points (T + 1, P) of a ride from theta along the ridge e, a unit vector.

    Ends where the loss no longer bends down along e. Each step takes the whole Hessian
    apart: for many parameters, use products with it and Lanczos' method instead.
    """
    path = [theta]
    for _ in range(most):
        theta = theta + alpha * e
        values, E = torch.linalg.eigh(hessian(loss)(theta))
        shares = E.T @ e  # <e_j, e> for all j
        j = shares.abs().argmax()  # the one that goes on
        e = E[:, j] * shares[j].sign()  # an eigenvector has no sign of its own
        path.append(theta)
        if values[j] >= 0:
            break
    return torch.stack(path)


def ridges(loss: Loss, saddle: Tensor) -> Tensor:
    """The eigenvectors (n, P) of negative eigenvalues at a saddle, both ways."""
    values, E = torch.linalg.eigh(hessian(loss)(saddle))
    down = E[:, values < 0].T
    return torch.cat([down, -down])


# The experiment: a surface with a curved valley.
DEEP = -2.3  # the deep minima lie below this height, the shallow ones above


def surface(t: Tensor) -> Tensor:
    """Heights (...) of points (..., 2): minima at both sides, and along the valley."""
    u, v = t[..., 0] - 0.2 * t[..., 1] ** 2, t[..., 1]
    side, along = (u**2 - 1) ** 2, 2.4 * (v**2 / 9 - 1) ** 2
    return side + along + 0.6 * u**2 * v**2 - 3.4


def descend(t: Tensor, steps: int = 2000, rate: float = 0.015) -> Tensor:
    """Paths (steps + 1, n, 2) of gradient descent from points (n, 2)."""
    slope, path = grad(lambda t: surface(t).sum()), [t]
    for _ in range(steps):
        path.append(path[-1] - rate * slope(path[-1]))
    return torch.stack(path)


def minima(ends: Tensor, apart: float = 0.1) -> Tensor:
    """The different places among end points (n, 2): closer than `apart` is the same."""
    places: list[Tensor] = []
    for end in ends:
        if all((end - place).norm() >= apart for place in places):
            places.append(end)
    return torch.stack(places)


def main() -> None:
    parser = argparse.ArgumentParser(description="rides along ridges to four minima")
    parser.add_argument("figure", nargs="?", help="file to save to; shown if left out")
    parser.add_argument("--seed", type=int, default=0, help="of the starts of descent")
    parser.add_argument("--quick", action="store_true", help="a short version")
    args = parser.parse_args()
    torch.set_num_threads(1)  # tensors this small only lose by more
    runs, starts = (5, 20) if args.quick else (20, 50)

    middle = torch.zeros(2, dtype=torch.float64)
    rides = [ride(surface, middle, e, alpha=0.1) for e in ridges(surface, middle)]
    rest = descend(torch.stack([path[-1] for path in rides]))

    rng = torch.Generator().manual_seed(args.seed)
    noise = torch.randn(runs * starts, 2, generator=rng, dtype=torch.float64)
    falls = descend(middle + 0.1 * noise)
    heights = surface(falls[-1]).view(runs, starts)
    deep = 100 * (heights < DEEP).double().mean(1)  # of each run's starts

    found = surface(minima(rest[-1])).tolist()
    depths = " ".join(f"{height:.2f}" for height in found)
    share = f"{deep.mean():.1f} ± {deep.std():.1f} %"
    print(f"{len(rides)} rides, then descent, find {len(found)} minima: {depths}")
    print(f"descent from near the middle: {share} of {starts} starts find a deep one")

    fig, ax = plt.subplots(figsize=(5.6, 5.2), layout="constrained")
    x, y = torch.linspace(-2, 3.4, 150), torch.linspace(-3.8, 3.8, 200)
    z = surface(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1))
    ax.contourf(x, y, z.clamp(max=4), 16, cmap="YlGnBu_r", alpha=0.7)
    fall, way, end = "descent from near it", "ride", "... then descent"  # once each
    for i, path in enumerate(falls[:, :12].unbind(1)):
        ax.plot(*path.T, color=PLAIN, lw=1.2, label=None if i else fall)
    for i, (path, tail) in enumerate(zip(rides, rest.unbind(1))):
        ax.plot(*path.T, color=METHOD, lw=3, label=None if i else way)
        ax.plot(*tail.T, ":", color=METHOD, lw=2.5, label=None if i else end)
    ax.plot(*rest[-1].T, "*", color=METHOD, ms=14, mec="white", label="minimum")
    ax.plot(*middle, "o", color=INK, ms=9, label="start")
    ax.set(xlabel="first weight", ylabel="second weight", aspect="equal")
    ax.set_title("Rides reach all four minima", loc="left", weight="bold")
    fig.legend(loc="outside right upper", frameon=False)
    fig.savefig(args.figure, dpi=150) if args.figure else plt.show()


if __name__ == "__main__":
    main()
