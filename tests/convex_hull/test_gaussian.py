"""Exact probabilities: tables, limits, and what is counted."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull

from collage.convex_hull import gaussian_inside_probability, membership, wendel
from tests.convex_hull.clouds import ball, normal

GAUSSIAN = {
    (2, 1): 1 / 3, (3, 2): (1 - 6 / math.pi * math.asin(1 / 3)) / 4, (4, 2): 0.175479656092,
    (10, 2): 0.488748141608, (5, 3): 0.048923441862, (10, 3): 0.208076519801,
    (100, 5): 0.430939119441, (1000, 8): 0.484964676186, (1000, 10): 0.262882190139,
    (10**4, 10): 0.646842250399, (10**4, 16): 0.149995887378, (10**5, 16): 0.445672916365,
    (10**4, 20): 0.030788829084, (10**5, 20): 0.180905148768, (10**6, 20): 0.450692169620,
    (10**5, 30): 0.004214163242, (10**6, 30): 0.039404382609}  # fmt: skip


@pytest.mark.parametrize("n, d", GAUSSIAN)
def test_gaussian_probability_table(n, d):
    assert gaussian_inside_probability(n, d) == pytest.approx(GAUSSIAN[n, d], abs=2e-12)


@pytest.mark.slow
def test_gaussian_probability_limits():
    for n in (2, 3, 10, 1000):  # any continuous distribution on the line
        assert gaussian_inside_probability(n, 1) == pytest.approx((n - 1) / (n + 1), abs=1e-13)
    for d in (2, 3, 5, 12, 40):  # d + 2 points against d + 1
        ratio = gaussian_inside_probability(d + 2, d) / gaussian_inside_probability(d + 1, d)
        assert ratio == pytest.approx((d + 2) / 2, rel=1e-10)
        assert gaussian_inside_probability(d, d) == 0
    for n, d in ((40, 7), (13, 12), (500, 20)):  # the origin: Wendel
        assert gaussian_inside_probability(n, d, 0.0) == pytest.approx(1 - wendel(n, d), abs=1e-13)
    for s2, wanted in ((0.25, 0.99562), (0.5, 0.796716), (2.0, 0.032626)):
        assert gaussian_inside_probability(1000, 10, s2) == pytest.approx(wanted, abs=6e-6)
    for d in (5, 8):  # the two ways of summing meet where one takes over
        curve = np.array([gaussian_inside_probability(n, d) for n in range(d + 20, d + 34)])
        steps = np.diff(curve)
        assert (steps > 0).all() and (abs(np.diff(steps, 2)) < 2e-5).all()
    for d, half in {2: 11, 4: 63, 6: 278, 8: 1084, 10: 3934, 12: 13608, 16: 148227}.items():
        assert (
            gaussian_inside_probability(half - 1, d) < 0.5 <= gaussian_inside_probability(half, d)
        )
    assert gaussian_inside_probability(10**30, 40) == pytest.approx(1, abs=1e-9)


@pytest.mark.slow
def test_gaussian_probability_against_monte_carlo():
    for d, n in ((10, 1000), (16, 20000), (3, 30)):
        inside = torch.stack([membership(normal(n, d, seed=s), normal(400, d, seed=100 + s)).inside.double().mean()
                              for s in range(4 if n > 100 else 40)])  # fmt: skip
        exact = gaussian_inside_probability(n, d)
        error = math.sqrt(exact * (1 - exact) / 400 / len(inside) + 0.06**2 / len(inside) / n**0.25)
        assert abs(inside.mean() - exact) < 4 * error


@pytest.mark.slow
def test_wendel():
    assert wendel(10, 3) == 0.08984375 and wendel(3, 3) == 1.0 and wendel(2, 5) == 1.0
    for d in (1, 2, 7, 30):
        assert wendel(2 * d, d) == 0.5
    assert wendel(10**5, 40) == 0.0
    trials, (n, d) = 800, (6, 3)
    missed = sum(
        not membership(normal(n, d, seed=s), torch.zeros(1, d)).inside for s in range(trials)
    )
    assert abs(missed / trials - wendel(n, d)) < 4 * math.sqrt(0.25 / trials)


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 3])
def test_kingman_a_simplex_of_the_ball(d):
    """P(a new point lies in the simplex of d + 1) for the ball: 35 / 48 pi^2 and 9 / 715."""
    exact = {2: 35 / (48 * math.pi**2), 3: 9 / 715}[d]
    sets, queries = 400, ball(500, d, seed=99)
    share = torch.stack([membership(ball(d + 1, d, seed=2 * s), queries).inside.double().mean()
                         for s in range(sets)])  # fmt: skip
    assert abs(share.mean() - exact) < 4 * share.std() / math.sqrt(sets)


@pytest.mark.slow
def test_efron_against_qhull():
    """Extreme points by leaving one out are Qhull's vertices; their mean number is Efron's."""
    counts = []
    for seed in range(6):
        x = normal(120, 5, seed=seed)
        out = [
            i
            for i in range(120)
            if not membership(torch.cat([x[:i], x[i + 1 :]]), x[i : i + 1]).inside
        ]
        assert out == sorted(ConvexHull(x.numpy()).vertices.tolist())
        counts.append(len(out))
    mean = 120 * (1 - gaussian_inside_probability(119, 5))
    assert mean == pytest.approx(63.344, abs=0.01)
    assert abs(np.mean(counts) - mean) < 4 * np.std(counts) / math.sqrt(5)


def test_bad_input():
    for n, d, s2, word in ((0, 2, 1, "n: got"), (2.5, 2, 1, "n: got"), (9, 0, 1, "d: got"),
                           (9, 41, 1, "d: got"), (9, 2, -1, "sigma2: got"), (9, 2, math.nan, "sigma2")):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            gaussian_inside_probability(n, d, s2)
    for n, d in ((0, 1), (1, 0), (1.5, 2)):
        with pytest.raises(ValueError, match="n, d: got"):
            wendel(n, d)
