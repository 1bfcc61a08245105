"""Hulls: slow twins, certificates, invariances, exact probabilities, hard data, bad input."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.spatial import ConvexHull

from collage.convex_hull import (
    gaussian_inside_probability,
    inside_curve,
    membership,
    nearest,
    verify,
    wendel,
)
from collage.convex_hull.fast import prices as pricing

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
    found = linprog(np.zeros(len(x)), A_eq=a, b_eq=np.append(z.numpy(), 1), method="highs")
    assert found.status in (0, 2), found.message
    return found.status == 0


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


@pytest.mark.slow
@pytest.mark.parametrize("name", CLOUDS)
def test_certificates_and_the_slow_twin(name):
    x, z = CLOUDS[name]()
    result = membership(x, z)
    verify(result, x, z)
    if name != "beside the plane":  # an LP has no notion of a tolerance there
        size = x.abs().max()
        x, z = (x - x.mean(0)) / size, (z - x.mean(0)) / size
    if name == "thin":
        scale = torch.logspace(0, 6, 5, dtype=FLOAT)
        x, z = x * scale, z * scale
    if name in ("one point", "two points", "fewer than d + 1", "all the same", "flat"):
        return  # the solver's own tolerance decides; test_degenerate has these answers
    for i in range(min(25, len(z))):
        assert bool(result.inside[i]) == by_linprog(x, z[i]), f"query {i}"


def test_degenerate_answers():
    for name, inside in (("one point", [1, 0, 0, 0]), ("two points", [1, 1, 1, 0, 0, 0]),
                         ("fewer than d + 1", [1] * 6 + [0] * 3), ("all the same", [1, 0, 0])):  # fmt: skip
        x, z = CLOUDS[name]()
        assert membership(x, z).inside.tolist() == [bool(i) for i in inside]
    assert membership(*CLOUDS["all the same"]()).entry.tolist() == [1, 51, 51]
    x, z = CLOUDS["flat"]()
    latent = membership(normal(300, 3), normal(60, 3, seed=1))
    assert torch.equal(membership(x, z).inside, latent.inside)
    x, z = CLOUDS["beside the plane"]()
    result = membership(x, z)
    assert not result.inside.any()
    plane = rotation(9, 3)
    off = (z - z @ plane @ plane.T).norm(dim=1)
    assert torch.allclose(result.margin, off, rtol=1e-9)


@pytest.mark.parametrize("name", ["plane", "few levels", "curve 4"])
def test_entry_is_the_first_prefix_that_holds_the_query(name):
    x, z = CLOUDS[name]()
    x, z = x[:200], z[:12]
    entry = membership(x, z).entry
    for i, n in enumerate(entry.tolist()):
        assert n == len(x) + 1 or by_linprog(x[:n], z[i])
        assert n == 1 or not by_linprog(x[: n - 1], z[i])


@pytest.mark.slow
def test_more_points_never_put_a_query_out():
    x, z = normal(3000, 5), normal(300, 5, seed=1)
    whole = membership(x, z)
    for n in (10, 64, 65, 300, 1500):
        part = membership(x[:n], z)
        assert torch.equal(part.inside, whole.entry <= n)
        assert torch.equal(part.entry[part.inside], whole.entry[part.inside])
    shares = inside_curve(x, z, [0, 10, 64, 300, 3000])
    assert torch.equal(
        shares[1:-1], torch.stack([(whole.entry <= n).double().mean() for n in (10, 64, 300)])
    )
    assert shares[0] == 0 and shares[-1] == whole.inside.double().mean()


MAPS = {
    "small": lambda t: t * 1e-6, "large": lambda t: t * 1e6, "far": lambda t: t + 1e4,
    "affine": lambda t: (t @ torch.diag(torch.logspace(0, 6, 6, dtype=FLOAT))) @ rotation(6, 6),
    "constant": lambda t: torch.cat([t, torch.full_like(t[:, :1], 3.7)], 1),
    "embedded": lambda t: t @ rotation(128, 6).T + 5, "reversed": lambda t: t.flip(1),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MAPS)
def test_affine_maps_change_no_answer(name):
    x, z = normal(2000, 6), normal(400, 6, seed=1)
    before, after = membership(x, z), membership(MAPS[name](x), MAPS[name](z))
    assert torch.equal(before.inside, after.inside) and torch.equal(before.entry, after.entry)
    assert 0.2 < before.inside.double().mean() < 0.95
    verify(after, MAPS[name](x), MAPS[name](z))


@pytest.mark.slow
def test_order_duplicates_and_batches_change_no_answer():
    x, z = normal(1500, 6), normal(300, 6, seed=1)
    result = membership(x, z)
    order = torch.randperm(1500, generator=rng())
    assert torch.equal(membership(x[order], z).inside, result.inside)
    twice = membership(torch.cat([x, x]), z)
    assert torch.equal(twice.inside, result.inside)
    assert torch.equal(twice.entry[twice.inside], result.entry[result.inside])
    alone = torch.cat([membership(x, part).entry for part in z[:40].split(1)])
    assert torch.equal(alone, result.entry[:40])


def test_what_must_lie_inside_and_outside():
    x = normal(2000, 6)
    rows = membership(x, x[:200])
    assert rows.inside.all() and (rows.entry <= torch.arange(200) + 1).all()
    weights = torch.rand(100, 2000, generator=rng(), dtype=FLOAT) ** 8
    mixed = (weights / weights.sum(1, keepdim=True)) @ x
    middles = (x[:100] + x[100:200]) / 2
    simplices = x[torch.randint(2000, (100, 7), generator=rng())].mean(1)
    for z in (mixed, middles, simplices):
        assert membership(x, z).inside.all()
    corners = x[ConvexHull(x.numpy()).vertices[:200]]
    beyond = membership(x, corners + 1e-6 * (corners - x.mean(0)))
    assert not beyond.inside.any() and (beyond.margin > 0).all()


@pytest.mark.parametrize("d", [6, 10])
def test_hypercube_every_vertex_is_extreme(d):
    cube = torch.tensor([[i >> b & 1 for b in range(d)] for i in range(2**d)], dtype=FLOAT)
    for i in range(0, 2**d, 2 ** (d - 4)):
        others = torch.cat([cube[:i], cube[i + 1 :]])
        assert not membership(others, cube[i : i + 1]).inside.any()
    edge, centre, out = (cube[0] + cube[1]) / 2, cube.mean(0), cube[3] + 1e-6 * (cube[3] - 0.5)
    found = membership(
        cube, torch.stack([edge, centre, cube[3], out, cube[3] - 1e-6 * (cube[3] - 0.5)])
    )
    assert found.inside.tolist() == [True, True, True, False, True]


def test_moment_curve_is_in_convex_position():
    t = uniform(300, 0)
    k = torch.arange(1, 4, dtype=FLOAT) * 2 * math.pi
    curve = torch.cat([(t[:, None] * k).cos(), (t[:, None] * k).sin()], 1)
    assert not membership(curve[:200], curve[200:]).inside.any()


def test_tolerance_counts_the_boundary_as_inside():
    x = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]], dtype=FLOAT)
    z = torch.tensor([[1, 0.5], [1 + 1e-12, 0.5], [1 + 1e-4, 0.5]], dtype=FLOAT)
    assert membership(x, z).inside.tolist() == [True, True, False]
    assert membership(x, z, tol=1e-2).inside.tolist() == [True, True, True]


def test_other_dtypes_mean_the_same_numbers():
    x, z = pixels(200, 4, 0), pixels(50, 4, 1)
    answer = membership(x, z)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8):
        same = membership(x.to(dtype), z.to(dtype))
        assert torch.equal(same.inside, answer.inside) and same.margin.dtype == FLOAT


def test_no_queries_and_what_is_said():
    result = membership(normal(20, 3), torch.zeros(0, 3))
    assert result.inside.shape == (0,) and result.entry.shape == (0,)
    assert result.support.shape == (0, 4) and result.passes == 0
    assert repr(membership(normal(20, 2), normal(20, 2))) == "Membership(20 of 20 inside)"
    assert nearest(normal(20, 3), torch.zeros(0, 3)).point.shape == (0, 3)


def test_inputs_are_left_alone():
    x, z = normal(300, 4), normal(60, 4, seed=1)
    x0, z0, state = x.clone(), z.clone(), torch.get_rng_state()
    first = membership(x, z)
    assert first.entry.numel() and torch.equal(x, x0) and torch.equal(z, z0)
    assert torch.equal(state, torch.get_rng_state())
    again = membership(x.requires_grad_(), z)
    assert torch.equal(again.separator, first.separator)


@pytest.mark.parametrize("x, z, words", [
    (torch.zeros(0, 3), torch.zeros(2, 3), "points: got .*at least one point"),
    (torch.zeros(3, 0), torch.zeros(2, 0), "points: got"),
    (torch.zeros(4, 3), torch.zeros(2, 4), "queries: got 4 coordinates, wanted the 3"),
    (torch.zeros(4), torch.zeros(2, 4), "points: got .4,., wanted a tensor of two axes"),
    (torch.zeros(4, 3), [["a"] * 3], "queries: got what is no array"),
    (torch.full((4, 3), math.nan), torch.zeros(2, 3), "points: got NaN or inf"),
    (torch.zeros(4, 3), torch.full((2, 3), math.inf), "queries: got NaN or inf"),
    (torch.zeros(4, 3, dtype=torch.bool), torch.zeros(2, 3), "points: got torch.bool"),
    (torch.zeros(4, 3, dtype=torch.complex64), torch.zeros(2, 3), "points: got torch.complex64"),
])  # fmt: skip
def test_bad_input(x, z, words):
    for function in (membership, nearest):
        with pytest.raises(ValueError, match=words):
            function(x, z)


def test_more_bad_input():
    x = normal(10, 2)
    for tol in (-1e-9, 1.0, math.nan):
        with pytest.raises(ValueError, match="tol: got"):
            membership(x, x, tol=tol)
    for sizes in ([11], [-1]):
        with pytest.raises(ValueError, match="sizes: got"):
            inside_curve(x, x, sizes)
    for n, d, s2, word in ((0, 2, 1, "n: got"), (2.5, 2, 1, "n: got"), (9, 0, 1, "d: got"),
                           (9, 41, 1, "d: got"), (9, 2, -1, "sigma2: got"), (9, 2, math.nan, "sigma2")):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            gaussian_inside_probability(n, d, s2)
    for n, d in ((0, 1), (1, 0), (1.5, 2)):
        with pytest.raises(ValueError, match="n, d: got"):
            wendel(n, d)


def test_verify_sees_every_forgery():
    x, z = normal(300, 3), normal(60, 3, seed=1)
    fresh = lambda: membership(x, z)  # noqa: E731
    inside, outside = int(fresh().inside.nonzero()[3]), int((~fresh().inside).nonzero()[0])

    def forged(change, words):
        result = fresh()
        assert result.entry.numel()
        change(result)
        with pytest.raises(ValueError, match=words):
            verify(result, x, z)

    def at(name, i, value):
        def change(result):
            getattr(result, name)[i] = value

        return change

    forged(lambda r: r.weights[inside].mul_(1.1), f"query {inside}: .*not convex")
    forged(lambda r: r.weights[inside].copy_(r.weights[inside].flip(0)), f"query {inside}: ")
    forged(at("entry", inside, 300), f"query {inside}: its witness leaves")
    forged(lambda r: r.entry[inside].sub_(1), f"query {inside}: its support")
    forged(at("inside", outside, True), f"query {outside}: ")
    forged(at("inside", inside, False), f"query {inside}: outside, and yet")
    forged(at("margin", outside, 9.0), f"query {outside}: margin")
    forged(lambda r: r.separator[outside].mul_(-1), f"query {outside}: ")
    forged(lambda r: r.witness[outside].mul_(-1), f"query {outside}: its witness")
    with pytest.raises(ValueError, match="query"):
        verify(fresh(), x + 1, z)
    with pytest.raises(ValueError, match="queries: got 59"):
        verify(fresh(), x, z[:59])


# exact probabilities

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


@pytest.mark.parametrize("d", [2, 3, 4, 5])
def test_against_qhull_facets(d):
    x, z = normal(1500, d), normal(1000, d, seed=1)
    facets = ConvexHull(x.numpy()).equations
    inside = (z.numpy() @ facets[:, :-1].T + facets[:, -1] <= 0).all(1)
    assert membership(x, z).inside.tolist() == inside.tolist()


# nearest points


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CLOUDS if n not in ("thin", "far away")])
def test_nearest_is_certified_by_its_own_plane(name):
    x, z = CLOUDS[name]()
    distance, point = nearest(x, z)
    inside = membership(x, z).inside
    assert torch.equal(distance == 0, inside)
    assert torch.allclose((point - z).norm(dim=1), distance, rtol=1e-9)
    w = (z - point)[~inside] / distance[~inside, None]
    gap = (w * z[~inside]).sum(1) - (x @ w.T).amax(0)  # no point of the hull is nearer than this
    assert torch.allclose(gap, distance[~inside], rtol=1e-6, atol=1e-7 * float(x.abs().max()))
    close = membership(x, point, tol=1e-6)
    assert close.inside.all()


def test_nearest_in_closed_form():
    x = torch.eye(4, dtype=FLOAT)
    found = nearest(x, torch.zeros(1, 4))
    assert torch.allclose(found.point, torch.full((1, 4), 0.25).double())
    assert found.distance.item() == pytest.approx(0.5)
    cube = torch.tensor([[i >> b & 1 for b in range(5)] for i in range(32)], dtype=FLOAT)
    z = 3 * normal(100, 5)
    assert torch.allclose(nearest(cube, z).point, z.clamp(0, 1), atol=1e-8)
    scaled = nearest(1e6 * cube, 1e6 * z)
    assert torch.allclose(scaled.point, 1e6 * z.clamp(0, 1), atol=1e-2)


# the pricing pass


def test_block_max_and_price_against_plain_products():
    x, w = torch.randn(160, 7, generator=rng()), torch.randn(7, 9, generator=rng(1))
    assert torch.equal(pricing.block_max(x, w), torch.stack([(b @ w).amax(0) for b in x.split(16)]))
    cloud = pricing.Cloud(normal(5000, 7))
    w = torch.nn.functional.normalize(normal(40, 7, seed=2), dim=1)
    prices = cloud.x @ w.T
    for h, limit in ((3.0, 5000), (2.0, 3333), (9.0, 5000), (-1.0, 70)):
        best = prices[:limit].amax(0)
        found, top = torch.zeros(40, dtype=torch.bool), torch.full((40,), -99.0).double()
        for tier in (0, 1):
            ids, met, _ = cloud.price(w, torch.full((40,), h).double(), top, torch.zeros(40).long(),
                                      torch.full((40,), limit), tier)  # fmt: skip
            for q in range(40):
                for i in ids[q][ids[q] >= 0].tolist():
                    assert i < limit and prices[i, q] >= h - 1e-9
            found |= (ids >= 0).any(1)
            top = torch.maximum(top, met)
        assert torch.equal(found, best >= h)
        assert torch.allclose(top[~found], best[~found], atol=1e-12)


# Sums of a hundred products in float32, in another order on every kind of CPU.
TRITON = """
import torch
from collage.convex_hull.fast import prices as pricing
for n, d, m in ((64, 3, 5), (400, 33, 129), (48, 100, 40), (160, 200, 70)):
    g = torch.Generator().manual_seed(n)
    x, w = torch.randn(n, d, generator=g), torch.randn(d, m, generator=g)
    wanted = pricing.block_max(x, w)
    assert (pricing.triton_block_max(x, w) - wanted).abs().max() < 1e-4
    counts = torch.randint(0, n // 16 + 1, (m,), generator=g).sort(descending=True)[0]
    found = pricing.triton_block_max(x, w, counts)
    asked = torch.arange(n // 16)[:, None] < counts
    assert (found - wanted)[asked].abs().max() < 1e-4
    assert ((found == -torch.inf) | ((found - wanted).abs() < 1e-4)).all()
print("equal")
"""


# Older interpreters cannot loop over a number that is only known in the run.
@pytest.mark.skipif(not pricing.triton or [int(n) for n in pricing.triton.__version__.split(".")[:2]] < [3, 9],
                    reason="Triton is not installed, or older than 3.9 (pip install triton)")  # fmt: skip
def test_triton_kernel_in_the_interpreter():
    run = subprocess.run([sys.executable, "-c", TRITON], capture_output=True, text=True, check=False,
                         env={**os.environ, "TRITON_INTERPRET": "1"})  # fmt: skip
    assert run.stdout == "equal\n", run.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_gives_the_same_answers():
    x, z = normal(5000, 10), normal(500, 10, seed=1)
    here, there = membership(x, z), membership(x.cuda(), z.cuda())
    assert torch.equal(here.inside, there.inside.cpu()) and torch.equal(
        here.entry, there.entry.cpu()
    )
    verify(there, x.cuda(), z.cuda())


@pytest.mark.slow
@pytest.mark.parametrize("thin", [7, 8, 9, 10, 11])
def test_directions_near_the_tolerance_keep_honest_certificates(thin):
    """Data as thin as the tolerance: queries beside them need a direction at a right angle."""
    for seed in range(8):
        scale = torch.logspace(0, -thin, 4, dtype=FLOAT)
        x, z = normal(200, 4, seed=seed) * scale, 2 * normal(30, 4, seed=50 + seed) * scale
        for queries in (z, z + torch.tensor([0, 0, 0, 1e-8], dtype=FLOAT)):
            verify(membership(x, queries), x, queries)
