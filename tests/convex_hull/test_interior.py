"""Quick decisions: every one right, most made, and those too close to call left alone."""

import pytest
import torch

from collage import runtime
from collage.convex_hull import membership
from collage.convex_hull.fast import interior
from collage.convex_hull.fast.interior import quick
from collage.convex_hull.fast.pool import Pool
from collage.convex_hull.fast.prices import Prices
from collage.convex_hull.frame import Cloud


def posed(n, d, size=1.0, queries=200, seed=0):
    g = runtime.generator(seed)
    x, z = (torch.randn(k, d, generator=g, dtype=torch.float64) for k in (n, queries))
    cloud = Cloud(x)
    return Prices(cloud, [n]), cloud.place(size * z).coordinates


@pytest.mark.parametrize(
    "n, d, size, queries",
    [(3000, 2, 1, 200), (3000, 5, 1, 200), (3000, 10, 1, 200), (3000, 20, 1, 200),
     (12, 10, 1, 200), (3000, 20, 0.6, 200), (20_000, 16, 0.7, 200), (1000, 70, 0.18, 30)],
)  # fmt: skip
def test_it_decides_nearly_all_and_as_the_pool_does(n, d, size, queries):
    prices, z = posed(n, d, size, queries)
    found = quick(prices, z, 1e-9)
    pool = Pool(prices, z, [n]).run()
    assert len(found.sure) >= 0.9 * len(z)
    assert torch.equal(found.entry, pool.entry[found.sure])


def test_outside_its_direction_is_a_proof_with_the_margin_that_it_says():
    prices, z = posed(3000, 10)
    found = quick(prices, z, 1e-9)
    out = found.entry > prices.n
    w, zs = -found.y[out], z[found.sure[out]]
    margin = (w * zs).sum(1) - (prices.x @ w.T).amax(0)
    assert 20 < len(w) < 180 and (margin > 0).all()
    assert torch.allclose(margin, found.gap[out], rtol=1e-9)


def test_many_at_once_are_answered_as_a_few_at_a_time(monkeypatch):
    prices, z = posed(500, 6)
    every = quick(prices, z, 1e-9)
    monkeypatch.setattr(interior, "ENTRIES", 7 * interior.WIDTH * 49)
    few = quick(prices, z, 1e-9)
    assert torch.equal(every.sure, few.sure) and torch.equal(every.entry, few.entry)


def test_a_query_on_the_border_is_left_to_others():
    prices, _ = posed(500, 4)
    vertices = prices.x[prices.x.norm(dim=1).topk(20)[1]]
    edge = vertices * (1 + 1e-12)
    found = quick(prices, edge, 1e-9)
    assert len(found.sure) == 0


def test_steps_are_taken_in_one_thread_and_the_users_number_comes_back(monkeypatch):
    seen, before = [], torch.get_num_threads()
    step = interior._step
    monkeypatch.setattr(
        interior, "_step", lambda q: seen.append(torch.get_num_threads()) or step(q)
    )
    torch.set_num_threads(2)
    try:
        g = runtime.generator(1)
        membership(torch.randn(400, 6, generator=g), torch.randn(50, 6, generator=g))
        assert seen and set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_points_that_do_not_span_what_they_are_in_are_no_trouble():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64).repeat(40, 1)
    cloud = Cloud(x)
    z = cloud.place(torch.tensor([[0.3, 0.3], [0.9, 0.9]], dtype=torch.float64)).coordinates
    found = quick(Prices(cloud, [len(x)]), z, 1e-9)
    assert found.sure.tolist() == [0, 1] and found.entry.tolist() == [120, 121]
