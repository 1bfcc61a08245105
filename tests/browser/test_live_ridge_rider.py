"""Chapter 40's live figure computes what `collage` computes."""

import pytest
import torch
from live import calls

from collage.ridge_rider import descend, ride, ridges
from collage.ridge_rider.core import eigenpairs, turn

pytestmark = pytest.mark.browser


def bent(t):
    u, v = t[0] - 0.2 * t[1] ** 2, t[1]
    return (u**2 - 1) ** 2 + 2.4 * (v**2 / 9 - 1) ** 2 + 0.6 * u**2 * v**2 - 3.4


def bowls(t):
    x, y = t
    return (x**2 - 1) ** 2 + (y**2 - 1) ** 2 + 0.4 * x * y + 0.2 * x


LANDSCAPES = {"bent": bent, "bowls": bowls}
every = pytest.mark.parametrize("name", LANDSCAPES)


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(values, tolerance=1e-9):
    return pytest.approx(values, rel=tolerance, abs=tolerance)


@every
def test_losses_slopes_and_hessians(window, site, name):
    loss, at = LANDSCAPES[name], random(200, 2, seed=0)
    found = calls(window, site, "ridge_rider", f"""(m, p) => {{
      const l = m.landscapes.{name};
      return [l.loss(...p), ...l.slope(...p), ...l.hessian(...p)];
    }}""", at.tolist())  # fmt: skip
    for t, got in zip(at, found, strict=True):
        H = torch.func.hessian(loss)(t)
        wanted = [
            loss(t).item(),
            *torch.func.grad(loss)(t).tolist(),
            H[0, 0].item(),
            H[0, 1].item(),
            H[1, 1].item(),
        ]
        assert got == near(wanted)


def test_turns(window, site):
    """Random symmetric matrices, equal eigenvalues, nearly equal ones, zero."""
    H = random(200, 3, seed=1)
    edges = [[1.0, 0, 1], [-2, 0, -2], [1, 0, 1 + 1e-5], [-1, 1e-6, -1], [0, 0, 0], [3, 0, -3]]
    H = torch.cat([H, torch.tensor(edges, dtype=torch.float64)])
    e = torch.nn.functional.normalize(random(len(H), 2, seed=2))
    dimension = 1 + torch.arange(len(H)) % 2
    found = calls(window, site, "ridge_rider", """(m, [h, e, [d]]) => {
      const t = m.turn(e, m.eigenpairs(h), d);
      return [...t.e, t.value, t.overlap, t.dimension, ...m.eigenpairs(h).values];
    }""", [[h.tolist(), v.tolist(), [int(d)]] for h, v, d in zip(H, e, dimension, strict=True)])  # fmt: skip
    matrices = H[:, [0, 1, 1, 2]].view(-1, 2, 2)
    values, vectors = eigenpairs(matrices)
    turned, value, overlap, size = turn(e, values, vectors, dimension)
    for i, got in enumerate(found):
        wanted = [
            *turned[i].tolist(),
            value[i].item(),
            overlap[i].item(),
            int(size[i]),
            *values[i].tolist(),
        ]
        assert got == near(wanted, 1e-7 if i == 203 else 1e-9)


@every
def test_rides(window, site, name):
    """Along all ridges, both ways, from many points, with steps of 0.02 to 0.6: all of every path."""
    loss = LANDSCAPES[name]
    points = random(400, 2, seed=3) * 0.5
    lowest = torch.linalg.eigvalsh(torch.func.vmap(torch.func.hessian(loss))(points))[:, 0]
    points, rides = points[lowest < -0.1][:80], []
    for i, starts in enumerate(points.split(10)):
        ways = [(t, sign * e) for t in starts for e in ridges(loss, t).vectors for sign in (1, -1)]
        rides.append((0.02 + 0.08 * i, *(torch.stack(part) for part in zip(*ways, strict=True))))
    found = calls(window, site, "ridge_rider", f"""(m, [t, e, [step]]) => {{
      const land = m.landscapes.{name}, path = [], run = m.ride(land, t, e, step, 60);
      for (let r = run.next(); ; r = run.next()) {{
        if (r.done) return [m.ridges(land, t), path, r.value];
        if (r.value.good) path.push(r.value.theta);
      }}
    }}""", [[t.tolist(), e.tolist(), [step]] for step, at, ways in rides
            for t, e in zip(at, ways, strict=True)])  # fmt: skip
    assert len(found) >= 200
    found = iter(found)
    for step, starts, ways in rides:
        wanted = ride(loss, starts, ways, step, most=60, keep=True)
        for i, start in enumerate(starts):
            directions, path, why = next(found)
            points = torch.unique_consecutive(wanted.path[:, i], dim=0).tolist()
            assert directions == [near(v) for v in ridges(loss, start).vectors.tolist()]
            assert why == wanted.ended[i] and path == [near(p, 1e-8) for p in points]


@every
def test_descent(window, site, name):
    at = random(200, 2, seed=4)
    found = calls(
        window,
        site,
        "ridge_rider",
        f"(m, p) => m.descend(m.landscapes.{name}, p, 40, 0.01)",
        at.tolist(),
    )
    wanted = descend(LANDSCAPES[name], at, 40, 0.01)
    assert found == [near(p) for p in wanted.tolist()]


@every
def test_critical_points(window, site, name):
    """What Newton's method calls critical is, to rounding; a saddle is found from beside it."""
    loss, at = LANDSCAPES[name], random(200, 2, seed=5)
    found = calls(
        window, site, "ridge_rider", f"(m, p) => m.critical(m.landscapes.{name}, p)", at.tolist()
    )
    kept = [p for p in found if p]
    assert len(kept) > 150
    for p in kept:
        assert torch.func.grad(loss)(torch.tensor(p, dtype=torch.float64)).norm() < 1e-9
