"""Membership and nearest points: slow twins, certificates, invariances, hard data, bad input."""

import math

import pytest
import torch
from scipy.spatial import ConvexHull

from collage import runtime
from collage.convex_hull import hull, inside_curve, membership, nearest, verify
from collage.convex_hull.fast import prices
from tests.convex_hull.clouds import (
    CLOUDS,
    FLOAT,
    by_linprog,
    normal,
    pixels,
    rng,
    rotation,
    uniform,
)


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


def test_a_point_lies_in_the_hull_of_itself_and_another_whatever_rounding_leaves():
    g = runtime.generator(0)
    for d in range(8, 28):  # alone, and so with other roundings than in a batch
        x = torch.randn(2, d, generator=g, dtype=FLOAT)
        for z in (x[:1], x[1:], x):
            result = membership(x, z)
            assert result.inside.all()
            verify(result, x, z)


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
    for function in (membership, nearest, lambda x, z, tol: inside_curve(x, z, [3], tol)):
        for tol in (-1e-9, 1.0, math.nan):
            with pytest.raises(ValueError, match="tol: got"):
                function(x, x, tol=tol)
    for sizes in ([11], [-1]):
        with pytest.raises(ValueError, match="sizes: got"):
            inside_curve(x, x, sizes)


@pytest.mark.parametrize("name", ["plane", "gaussian 5", "pixels", "curve 4", "fewer than d + 1",
                                  "all the same", "beside the plane", "constant column"])  # fmt: skip
def test_curve_is_the_share_of_entries(name):
    """However many sizes are asked for, in whichever order."""
    x, z = CLOUDS[name]()
    entry = membership(x, z).entry
    every = torch.arange(len(x) + 1)
    for sizes in (every, every[::7].flip(0), torch.tensor([len(x), 0, len(x), 1]), every[:0]):
        wanted = (entry[None] <= sizes[:, None]).double().mean(1)
        assert torch.equal(inside_curve(x, z, sizes), wanted)


def test_small_and_large_products_give_the_same_answers(monkeypatch):
    """Prices formed whole in float64, and found through float32 blocks."""
    for x, z in ((normal(3000, 6), normal(80, 6, seed=1)), CLOUDS["pixels"](), CLOUDS["curve 4"]()):
        answers = []
        for small in (0, 1 << 40):
            monkeypatch.setattr(prices, "SMALL", small)
            result = membership(x, z)
            verify(result, x, z)
            answers.append((result.inside, result.entry, nearest(x, z).distance))
        assert torch.equal(answers[0][0], answers[1][0])
        assert torch.equal(answers[0][1], answers[1][1])
        assert torch.allclose(answers[0][2], answers[1][2], atol=1e-9)


@pytest.mark.parametrize("d", [2, 3, 4, 5])
def test_against_qhull_facets(d):
    x, z = normal(1500, d), normal(1000, d, seed=1)
    facets = ConvexHull(x.numpy()).equations
    inside = (z.numpy() @ facets[:, :-1].T + facets[:, -1] <= 0).all(1)
    assert membership(x, z).inside.tolist() == inside.tolist()


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


@pytest.mark.cuda
def test_cuda_gives_the_same_answers():
    x, z = normal(3000, 8), normal(150, 8, seed=1)
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


@pytest.mark.cuda
def test_queries_go_through_in_the_memory_there_is(monkeypatch):
    """A few at a time, to the same answers; where there is no room for one, that is said."""
    x, z = normal(900, 5).cuda(), 0.8 * normal(40, 5, seed=1).cuda()
    whole = membership(x, z)
    each = 900 + 32 * 6**2
    monkeypatch.setattr(runtime, "free_memory", lambda device: 15 * each)
    few = membership(x, z)
    assert torch.equal(few.inside, whole.inside) and torch.equal(few.entry, whole.entry)
    seen = []
    made = hull.Pool

    def noted(prices, queries, *rest, **kwargs):
        seen.append(len(queries))
        return made(prices, queries, *rest, **kwargs)

    monkeypatch.setattr(hull, "Pool", noted)
    membership(x, z)
    assert seen == [15, 15, 10]
    monkeypatch.setattr(runtime, "free_memory", lambda device: each - 1)
    with pytest.raises(ValueError, match=r"points: got 900, .* wanted fewer: 2,051 are free"):
        membership(x, z)
