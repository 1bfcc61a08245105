"""Learning in High Dimension, in one file (Balestriero et al. 2021, arXiv 2110.09485).

The idea: a new point z is interpolation if it lies in the convex hull of the training
points x_1 ... x_N, that is, if it is a weighted average of them:

    z = sum_i a_i x_i,    a_i >= 0,    sum_i a_i = 1

What you will see: with N Gaussian points in d dimensions, the share of new ones inside
falls from nearly all to none within a few dimensions, and ten times the points buy only
a few dimensions more. What counts is the dimension of the flat space that the data
fill, not how many coordinates they have. Data are drawn from Gaussians.

    python convex_hull.py [figure.png] [--seed 0] [--quick]    # about 5 s

MIT licence, the ML Collage contributors; explained in chapter 39 of ML Collage.
"""

import argparse

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

METHOD, PLAIN, OTHER = "#D55E00", "#0072B2", "#009E73"  # Okabe and Ito's palette

Array = NDArray[np.float64]


# The method: copy these three functions.
def minimiser(p: Array) -> Array:
    """Weights a of sum 1, of any sign, for which a @ p is shortest: (m, d) -> (m,).

    Along all points of p, of about unit size, the shortest has the same product, so
    (P P' + 1 1') a is the same number everywhere.
    """
    a = np.linalg.solve(p @ p.T + 1, np.ones(len(p)))
    return a / a.sum()


def nearest(z: Array, x: Array, tol: float = 1e-9) -> Array:
    """The vector from z (d,) to the nearest point of the hull of the rows of x (N, d).

    Wolfe's method (1976): keep a few points, the corral, and their weights; take in the
    one furthest beyond the plane through the best average; drop those it does not need.
    Nearer than tol, in units of the furthest coordinate, is near enough.
    """
    p = x - z
    size = np.abs(p).max() or 1.0
    p = p / size  # so that the answer does not hang on the data's units
    corral, weights = [int((p**2).sum(1).argmin())], np.ones(1)
    last = np.inf
    while True:
        while True:  # to the best average of the corral
            a = minimiser(p[corral])
            if (a > 1e-14).all():
                break
            bad = a <= 1e-14  # go only until the first weight vanishes; it leaves
            step = (weights[bad] / (weights[bad] - a[bad])).min()
            weights = weights + step * (a - weights)
            leaves = np.flatnonzero(bad)[weights[bad].argmin()]
            weights = np.delete(weights, leaves)
            del corral[leaves]
        weights, y = a, a @ p[corral]
        length = np.sqrt(y @ y)
        reach = p @ y
        far = int(reach.argmin())
        optimal = reach[far] >= (1 - 1e-10) * length**2 or far in corral
        if length <= tol or optimal or length >= last:
            return size * y
        last = length
        corral.append(far)
        weights = np.append(weights, 0.0)


def inside(z: Array, x: Array, tol: float = 1e-9) -> bool:
    """Is z a weighted average of the rows of x?"""
    return bool(np.linalg.norm(nearest(z, x, tol)) <= tol * np.abs(x - z).max())


# The experiment: Gaussian points in more and more dimensions.
DIMENSIONS = np.array([1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20])
LOOKS = {50: (PLAIN, "s--"), 500: (METHOD, "o-"), 5000: (OTHER, "^-.")}


def share(x: Array, new: Array) -> float:
    return 100 * float(np.mean([inside(z, x) for z in new]))


def in_disguise(rng: np.random.Generator, n: int, m: int, d: int, flat: int) -> float:
    """The share for points that fill `flat` dimensions but are written in d numbers."""
    place = rng.standard_normal((flat, d)) / np.sqrt(d)
    x, new = (rng.standard_normal((k, flat)) @ place for k in (n, m))
    return share(x, new)


def main() -> None:
    parser = argparse.ArgumentParser(description="how often new points are in the hull")
    parser.add_argument("figure", nargs="?", help="file to save to; shown if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a short version")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    sets, sizes = (3, (50, 500)) if args.quick else (5, (50, 500, 5000))
    queries = 40

    fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for n in sizes:
        colour, line = LOOKS[n]
        shares = np.zeros((sets, len(DIMENSIONS)))
        for i, j in np.ndindex(shares.shape):
            x, new = (rng.standard_normal((k, DIMENSIONS[j])) for k in (n, queries))
            shares[i, j] = share(x, new)
        mean, spread = shares.mean(0), shares.std(0, ddof=1)
        half = np.interp(-50, -mean, DIMENSIONS)  # where the falling curve crosses 50 %
        five = f"{mean[4]:3.0f} ± {spread[4]:2.0f} % inside in 5 dimensions"
        print(f"{n:5} points: {five}; half are inside in about {half:.1f}")
        ax.plot(DIMENSIONS, mean, line, color=colour, lw=2, label=f"{n:,} points")
        low, high = mean - spread, mean + spread
        ax.fill_between(DIMENSIONS, low, high, color=colour, alpha=0.2, lw=0)
    hidden = [in_disguise(rng, 500, queries, 50, 5) for _ in range(sets)]
    mean, spread = np.mean(hidden), np.std(hidden, ddof=1)
    five = f"{mean:.0f} ± {spread:.0f} % inside"
    print(f"  500 points that fill 5 dimensions of 50: {five}")
    label = "500 points that fill\n5 of 50 dimensions"
    ax.errorbar(5, mean, spread, fmt="kD", capsize=4, zorder=5, label=label)
    ax.set(xlabel="dimension", ylabel="new points inside the hull (%)", ylim=(-4, 104))
    ax.set_xticks(range(0, 21, 5))
    ax.set_title("New points leave the hull", loc="left", weight="bold")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#E4E1DA")
    ax.legend(frameon=False)
    fig.savefig(args.figure, dpi=150) if args.figure else plt.show()


if __name__ == "__main__":
    main()
