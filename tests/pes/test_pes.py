"""The estimators: exact identities, closed forms, slow twins, ranks, failures, bad input."""

import itertools
import os
import random
import subprocess
import sys
import warnings

import pytest
import torch

from collage import runtime
from collage.common.environments import CartPole, MountainCar
from collage.pes import (
    PES,
    RTRL,
    Control,
    FullES,
    Influence,
    LearnedOptimiser,
    NoiseReuseES,
    OuterLoop,
    PESAnalytic,
    Schedule,
    Toy,
    TruncatedBackprop,
    TruncatedES,
    together,
    variance,
)
from collage.pes.fast import outer

FAMILY = (PES, FullES, TruncatedES, NoiseReuseES, PESAnalytic)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Tanh:
    """A small nonlinear problem with random data, drawn at the reset: state {"s", "x", "t"}."""

    def reset(self, n, generator):
        draw = torch.randn(n, 7, generator=generator, dtype=torch.float64)
        return {"s": draw[:, :3], "x": draw[:, 3:], "t": torch.zeros(n, dtype=torch.long)}

    def unroll(self, theta, state, steps):
        s, x, t = state["s"], state["x"], state["t"]
        losses = 0
        for _ in range(steps):
            force = x.gather(1, (t % 4)[:, None])
            s = torch.tanh(s.roll(1, 1) + theta * force)
            losses = losses + (s.sum(1) - 1).square()
            t = t + 1
        return {"s": s, "x": x, "t": t}, losses


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


def whole(problem, theta, horizon, reset_seed=0, n=1):
    """The exact gradient of the whole loss, by backpropagation."""
    theta = theta.clone().requires_grad_()
    state = problem.reset(n, seeded(reset_seed))
    losses = problem.unroll(theta.expand(n, -1), state, horizon)[1]
    return torch.autograd.grad(losses.mean(), theta)[0]


def totals(kind, problem, theta, sigma, truncation, horizon, repeats, seed=0, **options):
    """Summed over the unrolls of one inner problem, for many independent single pairs (R, P)."""
    estimator = kind(
        problem.unroll, problem.reset, sigma, 2, truncation, horizon, seeded(seed), **options
    )
    windows = 1 if kind is FullES else horizon // truncation
    rows = theta.expand(repeats, -1)
    return sum(estimator.step(rows) for _ in range(windows))


def near(samples, wanted, errors=4):
    mean, error = samples.mean(0), samples.std(0) / len(samples) ** 0.5
    assert ((mean - wanted).abs() <= errors * error).all(), (mean, wanted, error)


# What the estimates are unbiased for.


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.1, 1.0])
@pytest.mark.parametrize(
    "truncation, exact, cut", [(1, 2198.4937, 167.6279), (5, 455.4130, 175.5398)]
)
def test_influence_balancing_with_frozen_theta(truncation, exact, cut, sigma):
    problem, theta = Influence(dtype=torch.float64), torch.tensor([0.5]).double()
    args = problem, theta, sigma, truncation, 30
    for kind in (PES, NoiseReuseES, FullES, PESAnalytic):
        near(totals(kind, *args, 60_000), exact)
    for shared in (False, True):
        near(totals(TruncatedES, *args, 60_000, shared=shared), cut)
    for reference, wanted in ((RTRL, exact), (TruncatedBackprop, cut)):
        estimator = reference(problem.unroll, problem.reset, truncation, 30)
        found = sum(estimator.step(theta) for _ in range(30 // truncation))
        assert abs(found.item() - wanted) < 1e-4


def test_analytic_is_exact_in_expectation_on_a_linear_quadratic_problem():
    g = seeded(5)
    matrix, drive = 0.4 * torch.randn(3, 3, generator=g), torch.randn(3, 2, generator=g)

    class Quadratic:
        def reset(self, n, generator):
            return torch.ones(n, 3).double()

        def unroll(self, theta, state, steps):
            losses = 0
            for _ in range(steps):
                state = state @ matrix.double() + theta @ drive.T.double()
                losses = losses + state.square().sum(1)
            return state, losses

    theta = torch.tensor([0.3, -0.2]).double()
    problem = Quadratic()
    exact = whole(problem, theta, 12)
    samples = totals(PESAnalytic, problem, theta, 0.5, 3, 12, 100_000)
    near(samples, exact)
    plain = totals(PES, problem, theta, 0.5, 3, 12, 100_000)
    near(plain, exact)
    assert samples.var(0).sum() < plain.var(0).sum()


def test_smoothing_by_independent_noise_is_what_pes_is_unbiased_for():
    """L = (theta_1 + theta_2)^4 at 0.3 each: independent noise of variance s^2 gives
    E (sum)^4 with variance 2 s^2, shared noise with 4 s^2; d/dtheta = 2 (4 m^3 + 12 m v)."""

    class Quartic:
        def reset(self, n, generator):
            return torch.zeros(n).double()

        def unroll(self, theta, state, steps):
            state = state + steps * theta[:, 0]
            return state, state**4

    class Last(Quartic):
        calls = 0

        def unroll(self, theta, state, steps):
            self.calls += 1
            state, losses = super().unroll(theta, state, steps)
            return state, losses * (self.calls % 2 == 0)

    theta, s, m = torch.tensor([0.3]).double(), 0.5, 0.6
    for kind, v in ((PES, 2 * s**2), (NoiseReuseES, 4 * s**2)):
        near(totals(kind, Last(), theta, s, 1, 2, 400_000), 2 * (4 * m**3 + 12 * m * v))


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILY)
def test_unbiased_as_sigma_vanishes_on_a_nonlinear_problem(kind):
    """Random data are part of the problem: the mean over problems is compared."""
    problem, theta = Tanh(), torch.tensor([0.4, -0.3, 0.2]).double()
    state = problem.reset(200_000, seeded(9))
    rows = theta.expand(200_000, -1).clone().requires_grad_()
    losses = sum(_pieces(problem, rows, state, 4, 12, kind is TruncatedES))
    exact = torch.autograd.grad(losses.sum(), rows)[0]
    found = totals(kind, problem, theta, 1e-3, 4, 12, 200_000)
    error = (found.var(0) / len(found) + exact.var(0) / len(exact)).sqrt()
    assert ((found.mean(0) - exact.mean(0)).abs() < 4 * error).all()


def _pieces(problem, theta, state, truncation, horizon, truncated):
    for _ in range(horizon // truncation):
        if truncated:
            state = {k: v.detach() for k, v in state.items()}
        state, losses = problem.unroll(theta, state, truncation)
        yield losses


# Identities.


def test_one_unroll_makes_them_all_the_same_bit_for_bit():
    theta = torch.tensor([0.4, -0.3, 0.2]).double()
    cases = (Tanh(), theta), (Influence(), torch.tensor([0.5])), (Toy(), theta[:2])
    for problem, theta in cases:
        found = []
        for kind in (PES, TruncatedES, FullES, NoiseReuseES):
            estimator = kind(problem.unroll, problem.reset, 0.1, 10, 6, 6, seeded())
            found.append(torch.stack([estimator.step(theta) for _ in range(4)]))
        if not isinstance(problem, Tanh):  # one carrier for all wants problems that do not differ
            one = TruncatedES(problem.unroll, problem.reset, 0.1, 10, 6, 6, seeded(), shared=True)
            found.append(torch.stack([one.step(theta) for _ in range(4)]))
        assert all(torch.equal(found[0], other) for other in found[1:])


def test_a_constant_in_all_losses_changes_nothing():
    problem, theta = Tanh(), torch.tensor([0.4, -0.3, 0.2]).double()

    def shifted(theta, state, steps):
        state, losses = problem.unroll(theta, state, steps)
        return state, losses + 64.0

    for kind in FAMILY:
        a = kind(problem.unroll, problem.reset, 0.1, 10, 2, 6, seeded())
        b = kind(shifted, problem.reset, 0.1, 10, 2, 6, seeded())
        for _ in range(5):
            assert torch.allclose(a.step(theta), b.step(theta), atol=1e-10)


def test_reused_noise_adds_up_to_full_es():
    problem, theta = Tanh(), torch.tensor([0.4, -0.3, 0.2]).double()
    reuse = NoiseReuseES(problem.unroll, problem.reset, 0.3, 20, 3, 10, seeded())
    full = FullES(problem.unroll, problem.reset, 0.3, 20, 10, 10, seeded())
    # 10 unrolls of 3 steps are 3 inner problems of 10
    total = sum(reuse.step(theta) for _ in range(10))
    assert torch.allclose(total, sum(full.step(theta) for _ in range(3)), atol=1e-11)


def test_accumulators_vanish_at_the_reset_and_pairs_mirror():
    problem, theta = Tanh(), torch.tensor([0.4, -0.3, 0.2]).double()
    pes = PES(problem.unroll, problem.reset, 0.3, 8, 2, 6, seeded())
    noise = 0
    for step in range(1, 7):
        pes.step(theta)
        noise = noise + pes.eps
        if step % 3 == 0:
            assert not pes.xi.any() and not pes.state["t"].any()
            assert torch.equal(pes.state["s"][:4], pes.state["s"][4:])
            noise = 0
        else:
            assert torch.equal(pes.xi, noise)
            assert torch.equal(pes.state["x"][:4], pes.state["x"][4:])
            assert (pes.state["s"][:4] != pes.state["s"][4:]).all()


def test_a_telescoped_loss_has_the_gradient_of_the_final_one():
    problem, theta = Influence(dtype=torch.float64), torch.tensor([0.5]).double()

    class Telescoped:
        def reset(self, n, generator):
            s = problem.reset(n)
            return s, (s[:, 0] - 1).square() / 2

        def unroll(self, theta, state, steps):
            s, before = state
            s, loss = problem.unroll(theta, s, steps)
            return (s, loss), loss - before

    exact = whole(problem, theta, 30)
    near(totals(PES, Telescoped(), theta, 0.1, 5, 30, 60_000), exact)


# The closed form of the variance.


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
        samples = totals(estimator, problem, theta, 0.7, 1, w, 200_000)
        gradient = slopes.sum((0, 1))
        near(samples, gradient)
        squares = (samples - gradient).square().sum(1)
        assert abs(squares.mean() - wanted) < 4 * squares.std() / len(squares) ** 0.5


def test_variance_special_cases():
    for w, size in itertools.product((1, 3, 20), (1, 8)):
        slope = torch.randn(size, generator=seeded(w), dtype=torch.float64)
        pes, full = variance(torch.eye(w)[..., None] * slope)
        square = (w * slope).square().sum()
        assert abs(pes / square - (size * (w + 1) / 2 + 1) / w) < 1e-9
        assert abs(full / square - (size + 1)) < 1e-9
    slow = 0.0
    w, size = 5, 3
    p = torch.randn(w, w, size, generator=seeded(1), dtype=torch.float64)
    q = [[sum(p[v, u] for u in range(max(v, x), w)) for x in range(w)] for v in range(w)]
    for v, x in itertools.product(range(w), range(w)):
        slow += size * q[v][x] @ q[v][x] + q[v][x] @ q[x][v]
    assert abs(variance(p)[0] - slow) < 1e-9
    with pytest.raises(ValueError, match="slopes"):
        variance(torch.ones(3, 4, 2))


# Slow twins.


def recorded(estimator):
    """Every noise that the estimator draws, in order."""
    drawn, draw = [], estimator._noise
    estimator._noise = lambda: drawn.append(draw()) or drawn[-1]
    return drawn


@pytest.mark.parametrize("horizon, truncation", [(6, 2), (7, 3), (10, 4), (5, 5), (9, 2)])
@pytest.mark.parametrize("starts", ["lockstep", "staggered"])
def test_pes_step_by_step(horizon, truncation, starts):
    """Particle by particle, step by step: only the noise used since the reset is accumulated."""
    problem, sigma, pairs = Tanh(), 0.3, 4
    theta = torch.tensor([0.4, -0.3, 0.2]).double()
    pes = PES(
        problem.unroll,
        problem.reset,
        sigma,
        2 * pairs,
        truncation,
        horizon,
        seeded(),
        starts=starts,
    )
    drawn, resets = recorded(pes), []
    problem_reset = pes.reset
    pes.reset = lambda n, g: resets.append(problem_reset(n, g)) or resets[-1]
    twin = None
    for _ in range(9):
        thetas = theta + 0.01 * len(drawn)
        found = pes.step(thetas)
        eps = drawn[-1][0]
        if twin is None:
            ages = [0] * pairs if starts == "lockstep" else _staggered(pairs, horizon, truncation)
            twin = [{"age": ages[j], "xi": torch.zeros(3).double(), "reset": 0,
                     "s": [_row(resets[0], j)] * 2} for j in range(pairs)]  # fmt: skip
            used = 1
        g = 0
        moments = _reset_moments([p["age"] for p in twin], horizon, truncation)
        for j, pair in enumerate(twin):
            pair["xi"] = pair["xi"] + eps[j]
            for k in range(truncation):
                losses = []
                for i, sign in enumerate((1, -1)):
                    state, loss = problem.unroll((thetas + sign * eps[j])[None], pair["s"][i], 1)
                    losses.append(loss)
                    pair["s"][i] = state
                g = g + pair["xi"] * (losses[0] - losses[1])
                pair["age"] += 1
                if pair["age"] == horizon:
                    fresh = resets[used + moments.index(k + 1)]
                    pair["age"], pair["s"] = 0, [_row(fresh, j)] * 2
                    pair["xi"] = eps[j] if k + 1 < truncation else 0 * eps[j]
        used += len(moments)
        assert torch.allclose(found, g / (2 * pairs * sigma**2), atol=1e-10)


def _row(state, j):
    return {k: v[j : j + 1] for k, v in state.items()}


def _staggered(pairs, horizon, truncation):
    unrolls = horizon // truncation
    parts = max(1, min(pairs, unrolls))
    return [j * parts // pairs * unrolls // parts * truncation for j in range(pairs)]


def _reset_moments(ages, horizon, truncation):
    """At which steps of the coming window somebody is reset."""
    return sorted({horizon - age for age in ages if horizon - age <= truncation})


def test_staggered_ends_are_spread():
    problem = Tanh()
    pes = PES(problem.unroll, problem.reset, 0.1, 8, 5, 20, seeded(), starts="staggered")
    theta = torch.zeros(3).double()
    seen = []
    for _ in range(8):
        pes.step(theta)
        seen.append(sum(age == 0 for age in pes.ages))
    assert seen == [1] * 8


@pytest.mark.parametrize("kind", FAMILY)
def test_runs_side_by_side_are_the_runs_alone(kind):
    """Two runs with their own theta and sigma, given the noise and problems of the batch."""
    problem = Tanh()
    theta = torch.randn(2, 3, generator=seeded(4), dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.4]).double()
    both = kind(problem.unroll, problem.reset, sigma, 6, 2, 6, seeded())
    drawn, resets, reset = recorded(both), [], both.reset
    both.reset = lambda n, g: resets.append(reset(n, g)) or resets[-1]
    found = torch.stack([both.step(theta) for _ in range(5)], 1)
    for r in range(2):
        noise, problems = iter([d[r : r + 1] for d in drawn]), iter(resets)
        part = lambda n, g, r=r: {k: v[3 * r : 3 * r + 3] for k, v in next(problems).items()}  # noqa: B023, E731
        alone = kind(problem.unroll, part, float(sigma[r]), 6, 2, 6, seeded())
        alone._noise = lambda: next(noise)  # noqa: B023
        for step in range(5):
            assert torch.allclose(alone.step(theta[r]), found[r, step], atol=1e-11)


def test_together_is_one_after_the_other():
    problem, theta = Tanh(), torch.tensor([0.4, -0.3, 0.2]).double()
    build = lambda kind, seed: kind(problem.unroll, problem.reset, 0.2, 6, 3, 9, seeded(seed))  # noqa: E731
    many = [build(kind, i) for i, kind in enumerate(FAMILY)]
    alone = [build(kind, i) for i, kind in enumerate(FAMILY)]
    for step in range(1, 8):
        found = together(many, [theta] * len(many))
        for kind, estimator, g in zip(FAMILY, alone, found, strict=True):
            assert (g is None) == (kind is FullES and step % 3 != 0)
            if g is not None:
                assert torch.allclose(g, estimator.step(theta), atol=1e-12)
    other = PES(Tanh().unroll, problem.reset, 0.2, 6, 3, 9)
    with pytest.raises(ValueError, match="unroll functions"):
        together([many[0], other], [theta, theta])
    other = PES(problem.unroll, problem.reset, 0.2, 6, 2, 9, seeded())
    with pytest.raises(ValueError, match="wanted the same"):
        together([PES(problem.unroll, problem.reset, 0.2, 6, 3, 9), other], [theta, theta])


def test_references_are_autograd():
    problem = Tanh()
    theta = torch.randn(2, 3, generator=seeded(1), dtype=torch.float64)
    exact = torch.stack([whole(problem, t, 12, n=1) for t in theta])
    for kind in (RTRL, TruncatedBackprop):
        one = [kind(problem.unroll, problem.reset, 12, 12, generator=seeded()) for _ in range(2)]
        assert torch.allclose(
            torch.stack([e.step(t) for e, t in zip(one, theta)]), exact, atol=1e-11
        )
    rtrl = RTRL(problem.unroll, problem.reset, 5, 12, generator=seeded())
    total = sum(rtrl.step(theta[0]) for _ in range(12))  # five problems of 12
    g = seeded()
    wanted = 0
    for _ in range(5):
        rows = theta[0].clone().requires_grad_()
        losses = problem.unroll(rows[None], problem.reset(1, g), 12)[1]
        wanted = wanted + torch.autograd.grad(losses.sum(), rows)[0]
    assert torch.allclose(total, wanted, atol=1e-11)
    mean = RTRL(problem.unroll, problem.reset, 4, 12, problems=6, generator=seeded())
    total = sum(mean.step(theta[0]) for _ in range(3))
    assert torch.allclose(total, whole(problem, theta[0], 12, n=6), atol=1e-11)


# Failures.


def test_a_nonfinite_loss_is_an_error_or_masked():
    problem, theta = Tanh(), torch.tensor([0.4, -0.3, 0.2]).double()

    def broken(theta, state, steps):
        state, losses = problem.unroll(theta, state, steps)
        bad = torch.arange(len(losses)) == 2
        return state, torch.where(bad, torch.nan, losses)

    with pytest.raises(ValueError, match="1 of 8 that are inf or NaN"):
        PES(broken, problem.reset, 0.1, 8, 2, 6, seeded()).step(theta)
    pes = PES(broken, problem.reset, 0.1, 8, 2, 6, seeded(), nonfinite="mask")
    drawn = recorded(pes)
    plain = PES(problem.unroll, problem.reset, 0.1, 8, 2, 6, seeded())
    with pytest.warns(RuntimeWarning, match="1 of 4 pairs"):
        g = pes.step(theta)
    plain.step(theta)
    keep = torch.tensor([0, 1, 3])
    d = plain.losses[0, 0, keep] - plain.losses[0, 1, keep]
    assert torch.allclose(g, d @ drawn[0][0, keep] / (6 * 0.1**2)) and pes.masked == 1
    every = PES(lambda *a: (a[1], a[0].sum(1) / 0), problem.reset, 0.1, 8, 2, 6, nonfinite="mask")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not every.step(theta).any() and every.masked == 4


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("when", range(5))
def test_an_interrupted_step_leaves_nothing_behind(kind, when):
    """Break at every call of unroll in turn: the step is made again with the same result."""
    problem, theta = Tanh(), torch.tensor([0.4, -0.3, 0.2]).double()
    fine = kind(problem.unroll, problem.reset, 0.2, 6, 3, 7, seeded())
    wanted = torch.stack([fine.step(theta) for _ in range(4)])
    calls = [0]

    def sometimes(theta, state, steps):
        calls[0] += 1
        if calls[0] == when + 1:
            raise KeyboardInterrupt
        return problem.unroll(theta, state, steps)

    broken = kind(sometimes, problem.reset, 0.2, 6, 3, 7, seeded())
    found, broke = [], 0
    while len(found) < 4:
        try:
            found.append(broken.step(theta))
        except KeyboardInterrupt:
            broke += 1
    assert broke == 1 and torch.equal(torch.stack(found), wanted)


def test_bad_input():
    problem, theta = Tanh(), torch.zeros(3).double()
    good = {"sigma": 0.1, "particles": 4, "truncation": 2, "horizon": 6}
    for change, word in (({"particles": 3}, "particles: got 3"), ({"particles": 0}, "particles"),
                         ({"particles": 2.5}, "particles"), ({"truncation": 7}, "truncation: got 7"),
                         ({"truncation": 0}, "truncation"), ({"sigma": 0.0}, "sigma"),
                         ({"sigma": float("nan")}, "sigma"), ({"starts": "now"}, "starts"),
                         ({"nonfinite": "sum"}, "nonfinite")):  # fmt: skip
        for kind in FAMILY:
            with pytest.raises(ValueError, match=word):
                kind(problem.unroll, problem.reset, **{**good, **change})
    for kind in (FullES, PESAnalytic):
        with pytest.raises(ValueError, match="starts"):
            kind(problem.unroll, problem.reset, **good, starts="staggered")
    with pytest.raises(ValueError, match="starts"):
        TruncatedES(problem.unroll, problem.reset, **good, starts="staggered", shared=True)
    for bad in (torch.tensor(1.0), torch.zeros(2, 2, 2), torch.zeros(3, dtype=torch.long)):
        with pytest.raises(ValueError, match="theta"):
            PES(problem.unroll, problem.reset, **good).step(bad)
    pes = PES(problem.unroll, problem.reset, **good)
    pes.step(theta)
    with pytest.raises(ValueError, match="as before"):
        pes.step(theta[:2])
    pes.step(theta)
    scalar = PES(problem.unroll, lambda n, g: torch.tensor(0.0), **good)
    with pytest.raises(ValueError, match="reset: got a leaf"):
        scalar.step(theta)
    for state, losses in ((torch.zeros(3), torch.zeros(4)), (torch.zeros(4), torch.zeros(4, 1))):
        wrong = PES(lambda *a, s=state, x=losses: (s, x), lambda n, g: torch.zeros(n), **good)
        with pytest.raises(ValueError, match="wanted"):
            wrong.step(theta)
    with pytest.raises(ValueError, match="sigma"):
        PES(problem.unroll, problem.reset, **{**good, "sigma": torch.ones(3)}).step(
            torch.zeros(2, 3)
        )
    for kind in (RTRL, TruncatedBackprop):
        with pytest.raises(ValueError, match="truncation"):
            kind(problem.unroll, problem.reset, 7, 6)
        with pytest.raises(ValueError, match="problems"):
            kind(problem.unroll, problem.reset, 2, 6, problems=0)
        with pytest.raises(ValueError, match="reset"):
            kind(problem.unroll, lambda n, g: torch.zeros(()), 2, 6).step(theta)


# Ranks.

RANKS = """
import sys, torch
import torch.distributed as dist
sys.path.insert(0, "tests/pes")
from test_pes import FAMILY, Tanh, seeded
from collage.pes import PES
dist.init_process_group("gloo")
theta, found = torch.tensor([0.4, -0.3, 0.2]).double(), {}
sent, send = [], dist.all_reduce
dist.all_reduce = lambda t, **k: sent.append(tuple(t.shape)) or send(t, **k)
for kind in FAMILY:
    for particles in (6, 10):
        problem = Tanh()
        estimator = kind(problem.unroll, problem.reset, 0.2, particles, 2, 5, seeded())
        found[kind.__name__, particles] = torch.stack([estimator.step(theta) for _ in range(6)])
assert {s[:2] for s in sent} == {(1, 2)} and max(s[2] for s in sent) == 5, "more than losses"
try:
    PES(Tanh().unroll, Tanh().reset, 0.2, 6, 2, 5, seeded(dist.get_rank())).step(theta)
except ValueError as error:
    found["error"] = str(error)
alone = PES(Tanh().unroll, Tanh().reset, 0.2, 6, 2, 5, seeded(dist.get_rank()), group=False)
alone.step(theta)
if dist.get_rank() == dist.get_world_size() - 1:
    torch.save(found, sys.argv[1])
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_a_population(world, tmp_path):
    """Two and three gloo processes (an uneven share) give the gradient of one."""
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world),
               "--master-port", str(random.randint(20_000, 40_000)), str(tmp_path / "ranks.py"),
               str(tmp_path / "found.pt")]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    theta = torch.tensor([0.4, -0.3, 0.2]).double()
    assert "differs between ranks" in found.pop("error")
    for (name, particles), gradients in found.items():
        kind = next(k for k in FAMILY if k.__name__ == name)
        problem = Tanh()
        estimator = kind(problem.unroll, problem.reset, 0.2, particles, 2, 5, seeded())
        wanted = torch.stack([estimator.step(theta) for _ in range(6)])
        assert torch.allclose(gradients, wanted, atol=1e-12), name


# A whole outer step as one program.


def plainly(theta, steps, seed=0):
    toy, theta = Toy(), theta.clone()
    pes = PES(toy.unroll, toy.reset, 0.3, 20, 10, 100, seeded(seed))
    adam = torch.optim.Adam([theta], 1e-2, (0.99, 0.999))
    for _ in range(steps):
        theta.grad = pes.step(theta)
        adam.step()
    return theta


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["plain", "compile"])
def test_outer_loop_is_pes_and_adam(mode):
    toy, theta = Toy(), torch.tensor([[-4.0, -4.0], [-3.0, -4.0]]).double()
    loop = OuterLoop(toy.unroll, toy.reset, theta, 0.3, 20, 10, 100, betas=(0.99, 0.999),
                     generator=seeded(), mode=mode)  # fmt: skip
    try:
        found = loop.run(3)
    except Exception as error:
        if mode == "compile" and "compiler" in str(error).lower():
            pytest.skip("no C++ compiler here")
        if mode == "compile" and os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2"):
            pytest.skip("torch's own compiler fails for a processor that is only pretended")
        raise
    assert torch.allclose(found, plainly(theta, 30), atol=1e-6)
    assert torch.equal(theta, torch.tensor([[-4.0, -4.0], [-3.0, -4.0]]).double())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_captured_graph_is_the_plain_loop():
    toy = Toy(dtype=torch.float32)
    theta = torch.tensor([[-4.0, -4.0], [-3.0, -4.0]], device="cuda")
    found = []
    for mode in ("plain", "graph"):
        g = torch.Generator("cuda").manual_seed(0)
        found.append(OuterLoop(toy.unroll, toy.reset, theta, 0.3, 20, 10, 100, generator=g,
                               mode=mode).run(3))  # fmt: skip
    assert torch.allclose(*found, atol=1e-4)


def test_outer_loop_refuses():
    toy, theta = Toy(), torch.full((1, 2), -4.0).double()
    good = {"theta": theta, "sigma": 0.3, "particles": 4, "truncation": 10, "horizon": 100}
    for change, word in (({"theta": theta[0]}, "theta"), ({"particles": 5}, "particles"),
                         ({"horizon": 95}, "horizon"), ({"horizon": 0}, "horizon"),
                         ({"sigma": -0.1}, "sigma"), ({"lr": -1}, "lr"),
                         ({"sigma": torch.ones(3)}, "sigma"), ({"particles": "4"}, "particles"), ({"mode": "fast"}, "mode"),
                         ({"mode": "graph"}, "CUDA")):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            OuterLoop(toy.unroll, toy.reset, **{**good, **change})
    loop = OuterLoop(lambda t, s, k: (s, t.sum(1) * torch.nan), toy.reset, **good)
    with pytest.raises(ValueError, match="inf or NaN"):
        loop.run()
    assert torch.equal(loop.theta, theta)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "name", ["toy", "influence", "schedule", "layers", "optimiser", "pole", "car"]
)
def test_every_problem_can_be_recorded(name):
    """As a graph and step by step: the same parameters after three inner problems."""
    g = runtime.generator(0)
    x, y = torch.randn(40, 6, generator=g).cuda(), torch.randint(3, (40,), generator=g).cuda()
    make = {"toy": lambda: Toy(dtype=torch.float32), "influence": Influence,
            "schedule": lambda: Schedule(x, y, hidden=4, batch=8),
            "layers": lambda: Schedule(x, y, hidden=4, batch=8, layers=True),
            "optimiser": lambda: LearnedOptimiser(x, y, hidden=4, batch=8, units=4),
            "pole": lambda: Control(CartPole()), "car": lambda: Control(MountainCar())}  # fmt: skip
    size = {"toy": 2, "influence": 1, "schedule": 2, "layers": 12}
    ends = []
    for mode in ("plain", "graph"):
        problem = make[name]()
        wide = size.get(name) or problem.size
        theta = torch.zeros(2, wide, device="cuda")
        loop = OuterLoop(problem.unroll, problem.reset, theta, sigma=0.1, particles=8, truncation=5,
                         horizon=20, generator=runtime.generator(1, "cuda"), mode=mode)  # fmt: skip
        ends.append(loop.run(3))
    assert torch.allclose(*ends, rtol=1e-3, atol=1e-5)


TRITON = """
import torch
from collage.pes import Toy, toy_steps
from collage.pes.fast.outer import outer_step
toy = Toy(dtype=torch.float32, horizon=15)
noise = torch.randn(7, 2, 6, 2, generator=torch.Generator().manual_seed(0))
theta, zero = torch.tensor([[-4.0, -4.0], [-2.0, -3.0]]), torch.zeros(2, 2)
*found, count = toy_steps(theta, zero, zero, 0, noise, truncation=5, horizon=15, betas=(0.9, 0.99))
betas = torch.tensor([0.9, 0.99])
kept = [theta, zero, zero, torch.ones(2)]
for s in range(7):
    if s % 3 == 0:
        xi, state = torch.zeros(2, 6, 2), toy.reset(24)
    *kept, xi, state = outer_step(*kept, xi, state, noise[s], betas, toy.unroll, 5, 0.3, 1e-2, 1e-8)
assert count == 7
for a, b in zip(found, kept):
    assert torch.allclose(a, b, rtol=2e-3, atol=2e-5), (a, b)
print("equal")
"""


# Older interpreters cannot loop over a number that is only known in the run.
@pytest.mark.skipif(not outer.triton or [int(n) for n in outer.triton.__version__.split(".")[:2]] < [3, 9],
                    reason="Triton is not installed, or older than 3.9 (pip install triton)")  # fmt: skip
def test_triton_kernel_in_the_interpreter():
    run = subprocess.run([sys.executable, "-c", TRITON], capture_output=True, text=True, check=False,
                         env={**os.environ, "TRITON_INTERPRET": "1"})  # fmt: skip
    assert run.stdout == "equal\n", run.stderr


# What a reviewer found.


def test_masks_leave_the_rest_unbiased():
    """A lost pair counts neither in PES+Analytic's two parts nor in the first pieces of full ES."""

    def slope(theta, state, steps):  # 3 theta a step, second particle lost from step 2 on
        state = state + steps
        lost = (torch.arange(len(theta)) == 1) & (state >= 2) & torch.tensor(len(theta) > 1)
        return state, torch.where(lost, torch.nan, 3 * steps * theta[:, 0])

    zeros = lambda n, g: torch.zeros(n).double()  # noqa: E731
    theta = torch.ones(1).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analytic = PESAnalytic(slope, zeros, 0.1, 4, 1, 3, seeded(), nonfinite="mask")
        assert [round(analytic.step(theta).item(), 9) for _ in range(3)] == [3, 3, 3]
        found = []
        for truncation in (1, 3):
            full = FullES(slope, zeros, 0.1, 8, truncation, 3, seeded(), nonfinite="mask")
            found.append(full.step(theta))
            assert full.masked == 1
        assert torch.allclose(*found)


def test_backpropagation_refuses_and_restores():
    problem, theta = Tanh(), torch.tensor([0.4, -0.3, 0.2]).double()
    for kind in (RTRL, TruncatedBackprop):
        broken = kind(lambda t, s, k: (s, t.sum(1) * torch.nan), problem.reset, 2, 6)
        with pytest.raises(ValueError, match="inf or NaN"):
            broken.step(theta)
        calls = [0]

        def sometimes(theta, state, steps):
            calls[0] += 1  # noqa: B023
            if calls[0] == 4:  # noqa: B023
                raise KeyboardInterrupt
            return problem.unroll(theta, state, steps)

        fine = kind(problem.unroll, problem.reset, 3, 7, seeded())
        wanted = torch.stack([fine.step(theta) for _ in range(4)])
        again, found = kind(sometimes, problem.reset, 3, 7, seeded()), []
        while len(found) < 4:
            try:
                found.append(again.step(theta))
            except KeyboardInterrupt:
                calls[0] = 10
        assert torch.equal(torch.stack(found), wanted)
        for losses in (lambda t: t[:, :1], lambda t: t.sum(), lambda t: t.new_zeros(7)):
            with pytest.raises(ValueError, match="losses: got"):
                kind(lambda t, s, k, f=losses: (s, f(t)), problem.reset, 2, 6).step(theta)
        for bad in (theta[None, None], theta[:0], torch.tensor(1.0), [1.0]):
            with pytest.raises(ValueError, match="theta: got"):
                kind(problem.unroll, problem.reset, 2, 6).step(bad)
    with pytest.raises(ValueError, match="depends on theta"):
        TruncatedBackprop(lambda t, s, k: (s, t.detach().sum(1)), problem.reset, 2, 6).step(theta)


def test_a_first_loss_may_come_before_theta_has_acted():
    """The loss before the update, as in tuning: its gradient is zero, and no error."""

    def late(theta, state, steps):
        total = 0
        for _ in range(steps):
            total = total + state.square()
            state = state / 2 + theta[:, 0]
        return state, total

    ones, theta = lambda n, g: torch.ones(n).double(), torch.tensor([0.3]).double()
    for kind in (RTRL, TruncatedBackprop):
        exact = kind(late, ones, 1, 3)
        assert exact.step(theta).item() == 0
    exact = RTRL(late, ones, 1, 3)
    total = sum(exact.step(theta) for _ in range(3))
    analytic = totals(PESAnalytic, _Named(late, ones), theta, 0.3, 1, 3, 50_000)
    near(analytic, total)


class _Named:
    def __init__(self, unroll, reset):
        self.unroll, self.reset = unroll, reset


def test_together_restores_everybody():
    problem, theta = Tanh(), torch.tensor([0.4, -0.3, 0.2]).double()
    calls = [0]

    def sometimes(theta, state, steps):
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return problem.unroll(theta, state, steps)

    shared = seeded()
    build = lambda unroll, g: [FullES(unroll, problem.reset, 0.2, 6, 2, 6, g),  # noqa: E731
                               PES(unroll, problem.reset, 0.2, 6, 2, 6, g)]  # fmt: skip
    wanted, found = [], []
    fine = build(problem.unroll, seeded())
    for _ in range(6):
        wanted += [g for g in together(fine, [theta] * 2) if g is not None]
    broken = build(sometimes, shared)
    for _ in range(7):
        before = shared.get_state()
        try:
            found += [g for g in together(broken, [theta] * 2) if g is not None]
        except KeyboardInterrupt:
            assert torch.equal(before, shared.get_state())
    assert torch.equal(torch.stack(found), torch.stack(wanted))
    with pytest.raises(ValueError, match="estimators"):
        together([], [])
    with pytest.raises(ValueError, match="estimators"):
        together([fine[0], fine[0]], [theta, theta])


def test_dtypes_follow_theta():
    problem = Tanh()
    for dtype in (torch.float32, torch.float64):
        theta = torch.tensor([0.4, -0.3, 0.2], dtype=dtype)
        for kind in (PES, FullES, TruncatedES, NoiseReuseES):
            g = kind(problem.unroll, problem.reset, 0.2, 6, 2, 6, seeded()).step(theta)
            assert g.dtype == dtype
    count = PES(lambda t, s, k: (s, (t > 0).sum(1)), lambda n, g: torch.zeros(n), 0.2, 6, 2, 6)
    assert count.step(torch.zeros(3)).dtype == torch.float32
    with pytest.raises(ValueError, match="as before"):
        count.step(torch.zeros(3).double())
    learned = torch.tensor(0.2, requires_grad=True)
    assert not PES(problem.unroll, problem.reset, learned, 6, 2, 6).step(theta).requires_grad


def test_more_bad_input():
    problem, theta = Tanh(), torch.zeros(3).double()
    good = {"sigma": 0.1, "particles": 4, "truncation": 2, "horizon": 6}
    for change, word in (({"sigma": "big"}, "sigma"), ({"sigma": float("inf")}, "sigma"),
                         ({"particles": None}, "particles"), ({"horizon": float("inf")}, "horizon"),
                         ({"generator": 5}, "generator")):  # fmt: skip
        for kind in FAMILY:
            with pytest.raises(ValueError, match=word):
                kind(problem.unroll, problem.reset, **{**good, **change})
    for bad in ([1.0], torch.zeros(0, 3).double(), torch.zeros(0).double()):
        with pytest.raises(ValueError, match="theta: got"):
            PES(problem.unroll, problem.reset, **good).step(bad)
    with pytest.raises(ValueError, match="theta: got inf or NaN"):
        PES(problem.unroll, problem.reset, **good).step(theta * torch.nan)
    with pytest.raises(ValueError, match="wanted a function"):
        PES(None, problem.reset, **good)
    with pytest.raises(ValueError, match="wanted a pair"):
        PES(lambda *a: a[1], problem.reset, **good).step(theta)
    with pytest.raises(ValueError, match="problems that differ"):
        TruncatedES(problem.unroll, problem.reset, **good, shared=True).step(theta)


def test_one_pair_of_one_run_may_be_changed_in_place():
    """The states of a pair lie apart in memory."""

    def inside(theta, state, steps):
        state.add_(theta[:, 0])
        return state, state.clone()

    for kind in (PES, NoiseReuseES, FullES):
        kind(inside, lambda n, g: torch.zeros(n), 0.1, 2, 1, 3).step(torch.ones(1))


def test_outer_loop_with_a_sigma_for_each_run_and_failures():
    toy, theta = Toy(), torch.tensor([[-4.0, -4.0], [-3.0, -4.0]]).double()
    sigma = torch.tensor([0.1, 0.4])
    loop = OuterLoop(toy.unroll, toy.reset, theta, sigma, 20, 10, 100, generator=seeded())
    pes, at = PES(toy.unroll, toy.reset, sigma, 20, 10, 100, seeded()), theta.clone()
    adam = torch.optim.Adam([at], 1e-2)
    for _ in range(20):
        at.grad = pes.step(at)
        adam.step()
    assert torch.allclose(loop.run(2), at, atol=1e-6)
    calls = [0]

    def sometimes(n, generator):
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return toy.reset(n, generator)

    whole = OuterLoop(toy.unroll, toy.reset, theta, 0.3, 20, 10, 100, generator=seeded())
    broken = OuterLoop(toy.unroll, sometimes, theta, 0.3, 20, 10, 100, generator=seeded())
    with pytest.raises(KeyboardInterrupt):
        broken.run(2)
    assert torch.equal(broken.theta, theta) and torch.equal(broken.run(2), whole.run(2))
