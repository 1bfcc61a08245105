"""Chapter 39's live figure computes what `collage` computes."""

import json

import pytest
import torch
from live import calls

from collage.convex_hull import membership, nearest
from tools.live import LIVE, convex_hull
from tools.site import HTML

pytestmark = pytest.mark.browser


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("n", "d"), [(10, 2), (20, 2), (50, 5), (200, 12), (5, 8)])
def test_nearest_points_and_membership(window, site, n, d):
    """Random queries, the data points themselves, midpoints of two, and queries far away."""
    points = random(n, d, seed=n + d)
    border = (points + points.roll(1, 0)) / 2
    queries = torch.cat([random(200, d, seed=1) / 2, points, border, 9 * random(20, d, seed=2)])
    found = calls(window, site, "convex_hull", f"""(m, z) => {{
      const r = m.nearest({points.tolist()}, z);
      return [r.y, r.corral, r.weights, r.inside];
    }}""", queries.tolist())  # fmt: skip
    wanted = nearest(points, queries)
    inside = membership(points, queries).inside
    assert 0 < inside.sum() < len(queries)
    for i, (y, corral, weights, said) in enumerate(found):
        assert said == bool(inside[i])
        assert y == pytest.approx((wanted.point[i] - queries[i]).tolist(), abs=1e-8)
        assert min(weights) >= 0 and sum(weights) == pytest.approx(1)
        mixed = torch.tensor(weights, dtype=torch.float64) @ points[corral]
        assert mixed.tolist() == pytest.approx(
            (queries[i] + torch.tensor(y, dtype=torch.float64)).tolist(), abs=1e-9
        )


def test_linear_systems(window, site):
    A, b = random(200, 6, 6, seed=3), random(200, 6, seed=4)
    found = calls(window, site, "convex_hull", "(m, [A, [b]]) => m.solve(A, b)",
                  [[a.tolist(), [v.tolist()]] for a, v in zip(A, b, strict=True)])  # fmt: skip
    for x, a, v in zip(found, A, b, strict=True):
        assert (a @ torch.tensor(x, dtype=torch.float64)).tolist() == pytest.approx(
            v.tolist(), abs=1e-8
        )


def test_corners_are_what_lies_outside_the_rest(window, site):
    clouds = random(200, 12, 2, seed=5)
    found = calls(window, site, "convex_hull", "(m, points) => m.corners(points)", clouds.tolist())
    for points, edge in zip(clouds[:40], found, strict=False):
        alone = [p for i, p in enumerate(points)
                 if not membership(torch.cat([points[:i], points[i + 1 :]]), p[None]).inside]  # fmt: skip
        assert sorted(edge) == sorted(p.tolist() for p in alone)


def test_the_file_is_what_the_package_computes():
    for folder in (LIVE, HTML / "_static" / "live"):
        assert json.loads((folder / "convex_hull.json").read_text()) == convex_hull()
