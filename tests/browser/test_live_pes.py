"""Chapter 35's live figure computes what `collage` computes."""

import pytest
import torch
from live import calls

from collage.pes import core
from collage.pes.batch import unrolled
from collage.pes.exact import TruncatedBackprop
from collage.pes.problems import Toy

pytestmark = pytest.mark.browser
TOY = Toy()


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(values):
    return pytest.approx(values, rel=1e-9, abs=1e-9)


def states(n, seed):
    """Where runs of calm schedules are, after 0 to 90 steps."""
    found = []
    for i in range(n):
        theta = normal(1, 2, seed=seed + i) - 2
        steps = 10 * (i % 10)
        found.append(torch.stack(TOY.unroll(theta, TOY.reset(1), steps)[0], -1)[0])
    return torch.stack(found)


def test_unrolls(window, site):
    """Losses, states and derivatives from anywhere in a run, for 1, 10 and 100 steps."""
    theta, begin = normal(200, 2, seed=0) - 1.5, states(200, 100)
    for steps in (1, 10):
        found = calls(window, site, "pes", f"""(m, [theta, state]) => {{
          const a = m.unroll(theta, state, {steps}), b = m.truncated(theta, state, {steps});
          return [...a.state, a.loss, ...b.g, ...b.state];
        }}""", torch.stack([torch.cat([theta, torch.zeros(200, 1).double()], 1), begin], 1).tolist())  # fmt: skip
        for one, state, got in zip(theta, begin, found, strict=True):
            at = one.clone().requires_grad_()
            after, loss = TOY.unroll(at[None], tuple(state[:, None]), steps)
            (g,) = torch.autograd.grad(loss.sum(), at)
            wanted = [*torch.stack(after).flatten().tolist(), loss.item()]
            assert (
                got[:4] == near(wanted)
                and got[4:6] == near(g.tolist())
                and got[6:] == near(wanted[:3])
            )


def test_truncated_backpropagation_is_the_package_s(window, site):
    theta = normal(200, 2, seed=1) - 2
    found = calls(
        window, site, "pes", "(m, theta) => m.truncated(theta, m.START, 10).g", theta.tolist()
    )
    wanted = TruncatedBackprop(TOY, truncation=10, horizon=100).step(theta)
    for got, g in zip(found, wanted, strict=True):
        assert got == near(g.tolist())


@pytest.mark.parametrize("name", ["pes", "es", "full"])
def test_estimators_over_a_whole_run(window, site, name):
    """Twenty runs of ten unrolls with four pairs: each gradient, with given noise."""
    sigma, pairs = 0.3, 4
    theta, noise = normal(20, 2, seed=2) - 2, sigma * normal(20, 10, pairs, 2, seed=3)
    found = calls(window, site, "pes", f"""(m, [theta, noise]) => {{
      const carried = m.fresh({pairs});
      return noise.map((eps) => m.estimators.{name}(theta, carried, eps, 10, {sigma}));
    }}""", [[t.tolist(), n.tolist()] for t, n in zip(theta, noise, strict=True)])  # fmt: skip
    for run in range(20):
        at, start = theta[run][None], [t[:, None, None].expand(1, 2, pairs) for t in TOY.reset(1)]
        centre = tuple(t[:, :1, :1] for t in start)
        state, xi, total = (
            tuple(start),
            torch.zeros(1, pairs, 2).double(),
            torch.zeros(1, 2, pairs).double(),
        )
        for u in range(10):
            eps = noise[run, u][None]
            if name == "pes":
                [(g, xi, state)] = unrolled([core.pes(at, eps, xi, state, 10, sigma)], TOY.unroll)
            elif name == "es":
                [(g, centre)] = unrolled(
                    [core.truncated_es(at, eps, centre, 10, sigma)], TOY.unroll
                )
            else:
                eps = noise[run, 0][None]
                [(g, total, state)] = unrolled(
                    [core.full_es(at, eps, total, state, 10, sigma)], TOY.unroll
                )
            got = found[run][u]
            assert got is None if name == "full" and u < 9 else got == near(g[0].tolist())


def test_adam(window, site):
    theta, slopes = torch.tensor([0.5, -1.0]).double(), normal(200, 2, seed=4)
    (found,) = calls(window, site, "adam", """(m, slopes) => {
      const a = {theta: [0.5, -1], m: [0, 0], v: [0, 0], t: 0};
      return slopes.map((g) => { m.adam(a, g); return a.theta; });
    }""", [slopes.tolist()])  # fmt: skip
    optimizer = torch.optim.Adam([theta], 0.03, (0.99, 0.999))
    for got, g in zip(found, slopes, strict=True):
        theta.grad = g.clone()
        optimizer.step()
        assert got == near(theta.tolist())
