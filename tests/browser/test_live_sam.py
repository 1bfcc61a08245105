"""Chapter 36's live figure computes what `collage` computes."""

import math

import pytest
import torch
from live import calls

from collage.sam import ascent, gradient

pytestmark = pytest.mark.browser
ORDERS = {1: 1.0, 2: 2.0, "Infinity": math.inf}


def wells(w):
    x, y = w
    return (1.1 - torch.exp(-((x + 0.9) ** 2 + y**2) / 0.0968)
            - torch.exp(-((x - 0.9) ** 2 + y**2) / 1.125) + 0.04 * (x**2 + y**2))  # fmt: skip


def valley(w):
    x, y = w
    q = 3 * torch.exp(-1.5 * x) * (y - 0.4 * torch.sin(2 * x)) ** 2
    return q / (1 + q)


SURFACES = {"wells": wells, "valley": valley}


def points(n, seed):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(n, 2, generator=rng, dtype=torch.float64) * 4 - 2


@pytest.mark.parametrize("name", SURFACES)
def test_losses_and_slopes(window, site, name):
    at = points(200, 0)
    found = calls(window, site, "sam", f"(m, [x, y]) => [m.surfaces.{name}.loss(x, y), ...m.surfaces.{name}.slope(x, y)]", at.tolist())  # fmt: skip
    for w, (loss, *slope) in zip(at, found, strict=True):
        assert loss == pytest.approx(SURFACES[name](w).item(), abs=1e-9)
        assert slope == pytest.approx(torch.func.grad(SURFACES[name])(w).tolist(), abs=1e-9)


@pytest.mark.parametrize("p", ORDERS)
def test_the_climb(window, site, p):
    """Random gradients, ties, a single entry, zero, tiny and huge ones."""
    edges = [[0.0, 0], [1, 1], [-2, 2], [0, 3], [1e-150, 1e-150], [1e150, 3]]
    g = torch.cat([points(200, 1), torch.tensor(edges, dtype=torch.float64)])
    rho = 0.1 + torch.rand(len(g), generator=torch.Generator().manual_seed(2)).double()
    found = calls(window, site, "sam", f"(m, [x, y, rho]) => m.ascend([x, y], rho, {p})",
                  torch.cat([g, rho[:, None]], 1).tolist())  # fmt: skip
    for one, r, e in zip(g, rho, found, strict=True):
        assert e == pytest.approx(ascent([one], r.item(), ORDERS[p])[0].tolist(), abs=1e-9)


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("name", SURFACES)
def test_a_step(window, site, name, p):
    """Of gradient descent with momentum along the gradient that `collage.sam.gradient` finds."""
    w, v, z = points(200, 3), points(200, 4), points(200, 5) / 4
    found = calls(window, site, "sam", f"""(m, [w, v, z]) => {{
      const next = m.step(m.surfaces.{name}, w, v, {{rho: 0.3, p: {p}, eta: 0.05, momentum: 0.9, z}});
      return [...next.w, ...next.v];
    }}""", torch.stack([w, v, z], 1).tolist())  # fmt: skip
    for i, four in enumerate(found):

        def noisy(t, i=i):
            return SURFACES[name](t[0]) + t[0] @ z[i]

        _, (g,) = gradient(noisy, [w[i]], 0.3, ORDERS[p])
        velocity = 0.9 * v[i] + g
        assert four == pytest.approx(
            [*(w[i] - 0.05 * velocity).tolist(), *velocity.tolist()], abs=1e-9
        )
