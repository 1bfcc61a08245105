"""The estimators as functions of one unroll, against sums over pairs; the closed form of the variance."""

import itertools

import pytest
import torch

from collage.pes import PES, FullES, core, variance
from collage.pes.batch import unrolled
from tests.pes.helpers import Tanh, assert_mean, seeded, totals

R, M, P, K = 2, 3, 3, 2  # runs, pairs, parameters, steps of an unroll
SIGMA = torch.tensor([0.5, 0.7]).double()


@pytest.fixture
def drawn():
    """theta (R, P), noise and its sum (R, M, P), states (R, 1, M, ...) shared by the two of a pair."""
    theta, eps, xi = (torch.randn(s, generator=seeded(i)).double()
                      for i, s in enumerate([(R, P), (R, M, P), (R, M, P)]))  # fmt: skip
    state = Tanh().reset(R * M, seeded(5))
    return theta, eps, xi, {name: t.view(R, 1, M, *t.shape[1:]) for name, t in state.items()}


def one_by_one(theta, eps, state, weights, sigma=SIGMA):
    """1 / (N sigma^2) sum_j w_j (L_j^+ - L_j^-), each particle unrolled alone; and the losses."""
    g, losses = torch.zeros(R, P).double(), torch.zeros(R, 2, M).double()
    for r, j in itertools.product(range(R), range(M)):
        start = {name: t[r, 0, j][None] for name, t in state.items()}
        for i, sign in enumerate((1, -1)):
            particle = (theta[r] + sign * eps[r, j])[None]
            losses[r, i, j] = Tanh().unroll(particle, start, K)[1]
        g[r] += weights[r, j] * (losses[r, 0, j] - losses[r, 1, j])
    return g / (2 * M * sigma[:, None] ** 2), losses


def alone(step):
    (returned,) = unrolled([step], Tanh().unroll)
    return returned


def test_pes(drawn):
    theta, eps, xi, state = drawn
    g, new, after = alone(core.pes(theta, eps, xi, state, K, SIGMA))
    assert torch.allclose(g, one_by_one(theta, eps, state, xi + eps)[0])
    assert torch.equal(new, xi + eps) and after["s"].shape == (R, 2, M, 3)
    assert bool((after["t"] == K).all() and (after["s"][:, 0] != after["s"][:, 1]).all())


def test_truncated_es(drawn):
    theta, eps, _, state = drawn
    g, after = alone(core.truncated_es(theta, eps, state, K, SIGMA))
    assert torch.allclose(g, one_by_one(theta, eps, state, eps)[0])
    for r, j in itertools.product(range(R), range(M)):  # carried on by theta itself
        start = {name: t[r, 0, j][None] for name, t in state.items()}
        assert torch.allclose(Tanh().unroll(theta[r, None], start, K)[0]["s"], after["s"][r, 0, j])
    shared = {name: t[:, :, :1] for name, t in state.items()}
    g, after = alone(core.truncated_es(theta, eps, shared, K, SIGMA))
    copies = {name: t.expand(-1, -1, M, *t.shape[3:]) for name, t in shared.items()}
    assert torch.allclose(g, one_by_one(theta, eps, copies, eps)[0])
    assert after["s"].shape == (R, 1, 1, 3)


def test_noise_reuse_and_full_es(drawn):
    theta, eps, _, state = drawn
    g, losses = one_by_one(theta, eps, state, eps)
    reused, _ = alone(core.noise_reuse_es(theta, eps, state, K, SIGMA))
    full, total, _ = alone(core.full_es(theta, eps, losses, state, K, SIGMA))
    assert torch.allclose(reused, g)
    assert torch.allclose(full, 2 * g) and torch.allclose(total, 2 * losses)


def test_pes_analytic(drawn):
    theta, eps, xi, state = drawn
    p = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]).double()
    g, new, _ = alone(core.pes_analytic(theta, eps, xi, p, state, K, SIGMA))
    past, _ = one_by_one(theta, eps, state, xi)
    along = torch.einsum("rmp,rp->rm", eps, p)  # eps_j . p
    known = torch.einsum("rmp,rm->rp", xi, along) / (M * SIGMA[:, None] ** 2)
    assert torch.allclose(g, p + past - known) and torch.equal(new, xi + eps)


# The closed form of the variance.


class Linear:
    """Losses linear in the thetas of all unrolls: L_u = sum_{v <= u} p_vu . theta_v, one step each."""

    def __init__(self, slopes):
        self.slopes = slopes

    def reset(self, n, generator):
        w = len(self.slopes)
        return torch.zeros(n, w, dtype=torch.float64), torch.zeros(n, dtype=torch.long)

    def unroll(self, theta, state, steps):
        owed, t = state
        total = 0
        for _ in range(steps):
            u = int(t[0])
            owed = owed + theta @ self.slopes[u].T  # what each later loss owes to this theta
            total = total + owed[:, u]
            t = t + 1
        return (owed, t), total


@pytest.mark.parametrize("kind", ["repeat", "independent", "dense"])
def test_variance_in_closed_form(kind):
    w, size = 6, 4
    g = seeded(3)
    if kind == "dense":
        slopes = torch.randn(w, w, size, generator=g, dtype=torch.float64)
    else:
        rows = torch.randn(1 if kind == "repeat" else w, size, generator=g, dtype=torch.float64)
        slopes = torch.eye(w)[..., None] * rows.expand(w, size)[:, None]
    slopes = slopes * (torch.arange(w)[:, None] <= torch.arange(w))[..., None]
    problem, theta = Linear(slopes), torch.zeros(size).double()
    for estimator, wanted in zip((PES, FullES), variance(slopes), strict=True):
        samples = totals(estimator, problem, theta, 0.7, 1, w, 100_000)
        gradient = slopes.sum((0, 1))
        assert_mean(samples, gradient)
        squares = (samples - gradient).square().sum(1)
        assert abs(squares.mean() - wanted) < 4 * squares.std() / len(squares) ** 0.5


def test_variance_special_cases():
    for w, size in itertools.product((1, 3, 20), (1, 8)):
        slope = torch.randn(size, generator=seeded(w), dtype=torch.float64)
        pes, full = variance(torch.eye(w)[..., None] * slope)
        square = (w * slope).square().sum()
        assert abs(pes / square - (size * (w + 1) / 2 + 1) / w) < 1e-9
        assert abs(full / square - (size + 1)) < 1e-9
    by_loops = 0.0
    w, size = 5, 3
    p = torch.randn(w, w, size, generator=seeded(1), dtype=torch.float64)
    q = [[sum(p[v, u] for u in range(max(v, x), w)) for x in range(w)] for v in range(w)]
    for v, x in itertools.product(range(w), range(w)):
        by_loops += size * q[v][x] @ q[v][x] + q[v][x] @ q[x][v]
    assert abs(variance(p)[0] - by_loops) < 1e-9
    with pytest.raises(ValueError, match="slopes"):
        variance(torch.ones(3, 4, 2))
