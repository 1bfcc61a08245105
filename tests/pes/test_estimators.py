"""The estimators as objects: what they are unbiased for, resets, batches, failures, bad input, ranks."""

import os
import random
import subprocess
import sys

import pytest
import torch

from collage.pes import PES, FullES, NoiseReuseES, PESAnalytic, TruncatedES, together
from collage.pes.exact import RTRL, TruncatedBackprop
from collage.pes.problems import Influence, Toy
from tests.pes.helpers import (
    FAMILY,
    THETA,
    Interrupted,
    Tanh,
    assert_mean,
    build,
    check_interrupted,
    functions,
    seeded,
    totals,
    whole,
    zeros,
)

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
        assert_mean(totals(kind, *args, 30_000), exact)
    for shared in (False, True):
        assert_mean(totals(TruncatedES, *args, 30_000, shared=shared), cut)
    for reference, wanted in ((RTRL, exact), (TruncatedBackprop, cut)):
        estimator = reference(problem, truncation=truncation, horizon=30)
        total = sum(estimator.step(theta) for _ in range(30 // truncation))
        assert abs(total.item() - wanted) < 1e-4


def test_analytic_is_exact_in_expectation_on_a_linear_quadratic_problem():
    g = seeded(5)
    matrix = 0.4 * torch.randn(3, 3, generator=g).double()
    drive = torch.randn(3, 2, generator=g).double()

    def unroll(theta, state, steps):
        losses = 0
        for _ in range(steps):
            state = state @ matrix + theta @ drive.T
            losses = losses + state.square().sum(1)
        return state, losses

    problem = functions(unroll, lambda n, generator: torch.ones(n, 3).double())
    theta = torch.tensor([0.3, -0.2]).double()
    exact = whole(problem, theta, 12)
    analytic = totals(PESAnalytic, problem, theta, 0.5, 3, 12, 50_000)
    plain = totals(PES, problem, theta, 0.5, 3, 12, 50_000)
    assert_mean(analytic, exact)
    assert_mean(plain, exact)
    assert analytic.var(0).sum() < plain.var(0).sum()


def test_smoothing_by_independent_noise_is_what_pes_is_unbiased_for():
    """L = (theta_1 + theta_2)^4 at 0.3 each: independent noise of variance s^2 gives
    E (sum)^4 with variance 2 s^2, shared noise with 4 s^2; d/dtheta = 2 (4 m^3 + 12 m v)."""

    def unroll(theta, state, steps):  # the loss after the second of two unrolls
        state = state + torch.cat([theta, torch.ones_like(theta)], 1)
        return state, state[:, 0] ** 4 * (state[:, 1] == 2)

    problem = functions(unroll, lambda n, generator: torch.zeros(n, 2).double())
    theta, s, m = torch.tensor([0.3]).double(), 0.5, 0.6
    for kind, v in ((PES, 2 * s**2), (NoiseReuseES, 4 * s**2)):
        assert_mean(totals(kind, problem, theta, s, 1, 2, 400_000), 2 * (4 * m**3 + 12 * m * v))


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILY)
def test_unbiased_as_sigma_vanishes_on_a_nonlinear_problem(kind):
    """Random data are part of the problem: the mean over problems is compared."""
    problem = Tanh()
    state = problem.reset(100_000, seeded(9))
    rows = THETA.expand(100_000, -1).clone().requires_grad_()
    losses = 0
    for _ in range(3):
        if kind is TruncatedES:
            state = {name: t.detach() for name, t in state.items()}
        state, added = problem.unroll(rows, state, 4)
        losses = losses + added
    exact = torch.autograd.grad(losses.sum(), rows)[0]
    estimates = totals(kind, problem, THETA, 1e-3, 4, 12, 100_000)
    error = (estimates.var(0) / len(estimates) + exact.var(0) / len(exact)).sqrt()
    assert ((estimates.mean(0) - exact.mean(0)).abs() < 4 * error).all()


def test_a_telescoped_loss_has_the_gradient_of_the_final_one():
    problem, theta = Influence(dtype=torch.float64), torch.tensor([0.5]).double()

    def reset(n, generator):
        s = problem.reset(n)
        return s, (s[:, 0] - 1).square() / 2

    def unroll(theta, state, steps):
        s, loss = problem.unroll(theta, state[0], steps)
        return (s, loss), loss - state[1]

    exact = whole(problem, theta, 30)
    assert_mean(totals(PES, functions(unroll, reset), theta, 0.1, 5, 30, 60_000), exact)


# Identities.


def test_one_unroll_makes_them_all_the_same():
    cases = (Tanh(), THETA), (Influence(), torch.tensor([0.5])), (Toy(), THETA[:2])
    for problem, theta in cases:
        gradients = []
        for kind in (PES, TruncatedES, FullES, NoiseReuseES):
            estimator = build(kind, problem, 0.1, 10, 6, 6, seeded())
            gradients.append(torch.stack([estimator.step(theta) for _ in range(4)]))
        if not isinstance(problem, Tanh):  # one carrier for all wants problems that do not differ
            one = build(TruncatedES, problem, 0.1, 10, 6, 6, seeded(), shared=True)
            gradients.append(torch.stack([one.step(theta) for _ in range(4)]))
        assert all(torch.allclose(gradients[0], other, rtol=1e-6) for other in gradients[1:])


def test_a_constant_in_all_losses_changes_nothing():
    problem = Tanh()

    def shifted(theta, state, steps):
        state, losses = problem.unroll(theta, state, steps)
        return state, losses + 64.0

    for kind in FAMILY:
        a = build(kind, problem, 0.1, 10, 2, 6, seeded())
        b = build(kind, functions(shifted, problem.reset), 0.1, 10, 2, 6, seeded())
        for _ in range(5):
            assert torch.allclose(a.step(THETA), b.step(THETA), atol=1e-10)


def test_reused_noise_adds_up_to_full_es():
    reuse = build(NoiseReuseES, Tanh(), 0.3, 20, 3, 10, seeded())
    full = build(FullES, Tanh(), 0.3, 20, 10, 10, seeded())
    total = sum(reuse.step(THETA) for _ in range(10))  # 10 unrolls of 3 steps are 3 problems of 10
    assert torch.allclose(total, sum(full.step(THETA) for _ in range(3)), atol=1e-11)


def test_accumulators_vanish_at_the_reset_and_pairs_mirror():
    pes = build(PES, Tanh(), 0.3, 8, 2, 6, seeded())
    noise = 0
    for step in range(1, 7):
        pes.step(THETA)
        noise, state = noise + pes.carried.eps, pes.carried.state
        if step % 3 == 0:
            assert not pes.carried.xi.any() and not state["t"].any()
            assert state["s"].shape[1] == 1  # the same for both of a pair
            noise = 0
        else:
            assert torch.equal(pes.carried.xi, noise)
            assert torch.equal(state["x"][:, 0], state["x"][:, 1])
            assert (state["s"][:, 0] != state["s"][:, 1]).all()


# Against slow twins.


class Recorded(Tanh):
    """`Tanh` that keeps the problems it has drawn."""

    def __init__(self):
        self.drawn = []

    def reset(self, n, generator):
        self.drawn.append(super().reset(n, generator))
        return self.drawn[-1]


@pytest.mark.parametrize("horizon, truncation", [(6, 2), (7, 3), (10, 4), (5, 5), (9, 2)])
def test_pes_step_by_step(horizon, truncation):
    """Particle by particle, step by step: only the noise used since the reset is accumulated."""
    problem, sigma, pairs = Recorded(), 0.3, 4
    pes = build(PES, problem, sigma, 2 * pairs, truncation, horizon, seeded())
    age, resets, states, xi = 0, 0, None, torch.zeros(pairs, 3).double()
    for step in range(9):
        theta = THETA + 0.01 * step
        gradient = pes.step(theta)
        eps = pes.carried.eps[0]
        if states is None:
            states, resets = _pairs(problem.drawn[0], pairs), 1
        g, xi = 0, xi + eps
        for k in range(truncation):
            for j in range(pairs):
                losses = []
                for i, sign in enumerate((1, -1)):
                    particle = (theta + sign * eps[j])[None]
                    states[j][i], loss = problem.unroll(particle, states[j][i], 1)
                    losses.append(loss)
                g = g + xi[j] * (losses[0] - losses[1])
            age += 1
            if age == horizon:
                states, age, resets = _pairs(problem.drawn[resets], pairs), 0, resets + 1
                xi = eps if k + 1 < truncation else 0 * eps
        assert torch.allclose(gradient, g / (2 * pairs * sigma**2), atol=1e-10)


def _pairs(state, pairs):
    """For each pair its problem, twice."""
    return [[{name: t[j : j + 1] for name, t in state.items()}] * 2 for j in range(pairs)]


@pytest.mark.parametrize("kind", FAMILY)
def test_runs_side_by_side_are_the_runs_alone(kind):
    """Two runs with their own theta and sigma, given the noise and problems of the batch."""
    theta = torch.randn(2, 3, generator=seeded(4), dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.4]).double()
    problem = Recorded()
    both = build(kind, problem, sigma, 6, 2, 6, seeded())
    noises, draw = [], both._noise
    both._noise = lambda c: noises.append(draw(c)) or noises[-1]
    gradients = torch.stack([both.step(theta) for _ in range(5)], 1)
    for r in range(2):
        noise, problems = iter([eps[r : r + 1] for eps in noises]), iter(problem.drawn)

        def part(n, generator, r=r, problems=problems):
            return {name: t[3 * r : 3 * r + 3] for name, t in next(problems).items()}

        alone = build(kind, functions(problem.unroll, part), float(sigma[r]), 6, 2, 6, seeded())
        alone._noise = lambda c, noise=noise: next(noise)
        for step in range(5):
            assert torch.allclose(alone.step(theta[r]), gradients[r, step], atol=1e-11)


def test_together_is_one_after_the_other():
    problem = Tanh()
    batch = [build(kind, problem, 0.2, 6, 3, 9, seeded(i)) for i, kind in enumerate(FAMILY)]
    alone = [build(kind, problem, 0.2, 6, 3, 9, seeded(i)) for i, kind in enumerate(FAMILY)]
    for step in range(1, 8):
        gradients = together(batch, [THETA] * len(batch))
        for kind, estimator, g in zip(FAMILY, alone, gradients, strict=True):
            assert (g is None) == (kind is FullES and step % 3 != 0)
            if g is not None:
                assert torch.allclose(g, estimator.step(THETA), atol=1e-12)
    other = build(PES, Tanh(), 0.2, 6, 3, 9)
    with pytest.raises(ValueError, match="unroll functions"):
        together([batch[0], other], [THETA, THETA])
    with pytest.raises(ValueError, match="truncations and horizons"):
        together([batch[0], build(PES, problem, 0.2, 6, 2, 9)], [THETA, THETA])
    for none_or_twice in ([], [batch[0], batch[0]]):
        with pytest.raises(ValueError, match="estimators"):
            together(none_or_twice, [THETA] * len(none_or_twice))


# Failures.


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("at", range(1, 6))
def test_an_interrupted_step_leaves_nothing_behind(kind, at):
    """Break at every call of unroll in turn."""
    check_interrupted(lambda problem, g: build(kind, problem, 0.2, 6, 3, 7, g), at)


@pytest.mark.parametrize("function, at", [("unroll", 2), ("reset", 1), ("reset", 3)])
def test_together_restores_everybody(function, at):
    """Two estimators that share a generator; without one, none is left behind."""
    fine, broken = Tanh(), Interrupted(at, function)
    g, shared = seeded(), seeded()
    wanted = [build(kind, fine, 0.2, 6, 2, 6, g) for kind in (FullES, PES)]
    again = [build(kind, broken, 0.2, 6, 2, 6, shared) for kind in (FullES, PES)]
    gradients = []
    for _ in range(7):
        before = shared.get_state()
        try:
            gradients += together(again, [THETA] * 2)
        except KeyboardInterrupt:
            assert torch.equal(before, shared.get_state())
    for g in gradients[::2], gradients[1::2]:
        assert len(g) == 6
    expected = [g for _ in range(6) for g in together(wanted, [THETA] * 2)]
    for g, e in zip(gradients, expected, strict=True):
        assert (g is None and e is None) or torch.equal(g, e)
    unseeded = build(PES, Interrupted(1), 0.2, 6, 2, 6)
    with pytest.raises(KeyboardInterrupt):
        unseeded.step(THETA)
    assert unseeded.generator is None and unseeded.carried is None


@pytest.mark.parametrize("kind", FAMILY)
def test_a_loss_that_is_not_finite_is_refused(kind):
    problem = Tanh()

    def broken(theta, state, steps):
        state, losses = problem.unroll(theta, state, steps)
        bad = (torch.arange(len(losses)) == 2) & (state["t"] == 4)  # in the second unroll
        return state, torch.where(bad, torch.nan, losses)

    estimator = build(kind, functions(broken, problem.reset), 0.1, 8, 2, 6, seeded())
    with pytest.raises(ValueError, match="1 of 8 that are inf or NaN"):
        for _ in range(2):
            estimator.step(THETA)
    before = estimator.carried
    with pytest.raises(ValueError, match="theta: got inf or NaN"):
        build(PES, problem, 0.1, 8, 2, 6).step(THETA * torch.nan)
    with pytest.raises(ValueError, match="1 of 8 that are inf or NaN"):
        estimator.step(THETA)
    assert estimator.carried is before


# Bad input.


def test_bad_settings():
    good = {"sigma": 0.1, "particles": 4, "truncation": 2, "horizon": 6}
    for change, word in (({"particles": 3}, "particles: got 3"), ({"particles": 0}, "particles"),
                         ({"particles": 2.5}, "particles"), ({"particles": None}, "particles"),
                         ({"truncation": 7}, "truncation: got 7"), ({"truncation": 0}, "truncation"),
                         ({"horizon": float("inf")}, "horizon"), ({"sigma": 0.0}, "sigma"),
                         ({"sigma": float("nan")}, "sigma"), ({"sigma": "big"}, "sigma"),
                         ({"sigma": float("inf")}, "sigma"), ({"generator": 5}, "generator")):  # fmt: skip
        for kind in FAMILY:
            with pytest.raises(ValueError, match=word):
                kind(Tanh(), **{**good, **change})
    for problem in (None, functions(None), functions(Tanh().unroll, 3)):
        with pytest.raises(ValueError, match="problem: got"):
            PES(problem, **good)
    with pytest.raises(ValueError, match="sigma"):
        PES(Tanh(), **{**good, "sigma": torch.ones(3)}).step(torch.zeros(2, 3))


def test_bad_thetas():
    integers, half = torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.bfloat16)
    for bad in (torch.tensor(1.0), torch.zeros(2, 2, 2), torch.zeros(0, 3), torch.zeros(0), integers,
                half, [1.0]):  # fmt: skip
        with pytest.raises(ValueError, match="theta"):
            build(PES, Tanh(), 0.1, 4, 2, 6).step(bad)
    pes = build(PES, Tanh(), 0.1, 4, 2, 6)
    pes.step(THETA)
    for other in (THETA[:2], THETA.float(), THETA[None]):
        with pytest.raises(ValueError, match="as before"):
            pes.step(other)
    pes.step(THETA)


def test_bad_problems():
    def refused(word, unroll, reset=zeros, **options):
        kind = TruncatedES if options else PES
        with pytest.raises(ValueError, match=word):
            build(kind, functions(unroll, reset), 0.1, 4, 2, 6, **options).step(THETA)

    refused("reset: got a leaf", Tanh().unroll, lambda n, g: torch.tensor(0.0))
    refused("problems that differ", Tanh().unroll, Tanh().reset, shared=True)
    refused("unroll: got", lambda theta, state, steps: state)
    refused("state: got a leaf", lambda theta, state, steps: (state[1:], state))
    for losses in (torch.zeros(4, 1), torch.zeros(3), None):
        refused("losses: got", lambda theta, state, steps, x=losses: (state, x))


def test_dtypes_follow_theta():
    for dtype in (torch.float32, torch.float64):
        for kind in (PES, FullES, TruncatedES, NoiseReuseES):
            g = build(kind, Tanh(), 0.2, 6, 2, 6, seeded()).step(THETA.to(dtype))
            assert g.dtype == dtype
    count = build(PES, functions(lambda t, s, k: (s, (t > 0).sum(1))), 0.2, 6, 2, 6)
    assert count.step(torch.zeros(3)).dtype == torch.float32
    learned = torch.tensor(0.2, requires_grad=True)
    assert not build(PES, Tanh(), learned, 6, 2, 6).step(THETA).requires_grad


# Ranks.

RANKS = """
import sys, torch
import torch.distributed as dist
from collage.pes import PES
from tests.pes.helpers import FAMILY, THETA, Tanh, build, seeded
dist.init_process_group("gloo")
gradients, sent, send = {}, [], dist.all_reduce
dist.all_reduce = lambda t, **k: sent.append(tuple(t.shape)) or send(t, **k)
for kind in FAMILY:
    for particles in (6, 10):
        estimator = build(kind, Tanh(), 0.2, particles, 2, 5, seeded())
        gradients[kind.__name__, particles] = torch.stack([estimator.step(THETA) for _ in range(6)])
assert {s[:2] for s in sent} == {(1, 2)} and max(s[2] for s in sent) == 5, "more than losses"
other = seeded(dist.get_rank())
try:
    build(PES, Tanh(), 0.2, 6, 2, 5, other).step(THETA)
except ValueError as error:
    gradients["error"] = str(error)
build(PES, Tanh(), 0.2, 6, 2, 5, other, group=False).step(THETA)
if dist.get_rank() == dist.get_world_size() - 1:
    torch.save(gradients, sys.argv[1])
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_a_population(world, tmp_path):
    """Two and three gloo processes (an uneven share) give the gradient of one."""
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world),
               "--master-port", str(random.randint(20_000, 40_000)), str(tmp_path / "ranks.py"),
               str(tmp_path / "gradients.pt")]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    gradients = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert "differs between ranks" in gradients.pop("error")
    for (name, particles), shared in gradients.items():
        kind = next(k for k in FAMILY if k.__name__ == name)
        estimator = build(kind, Tanh(), 0.2, particles, 2, 5, seeded())
        alone = torch.stack([estimator.step(THETA) for _ in range(6)])
        assert torch.allclose(shared, alone, atol=1e-12), name
