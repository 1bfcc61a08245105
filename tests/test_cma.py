"""Evolution strategies: CMA-ES by closed forms and the tutorial; what all strategies share; ranks."""

import math
import os
import subprocess
import sys

import pytest
import torch

from collage.common import checkpoint
from collage.common.populations import Shard
from collage.sensory_neuron.strategies import OpenES
from experiments.cma import CMAES, restore, score, state_of
from tests.sensory_neuron.test_strategies import opened, rosenbrock, seeded


def double(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def cma(d=5, population=12, seed=0, sigma=0.5, **options):
    return CMAES(torch.full((d,), 0.3).double(), sigma, population, seeded(seed), **options)


def ellipsoid(d=8, condition=1e4):
    """The fitness of a rotated ellipsoid around 1."""
    turn = torch.linalg.qr(double(d, d, seed=7))[0]
    axes = condition ** (torch.arange(d).double() / (d - 1))
    return lambda x: -(((x - 1) @ turn).square() * axes).sum(1)


def moved(search):
    return {k: v.clone() for k, v in state_of(search).items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# Covariance-matrix adaptation.


@pytest.mark.parametrize("d, P", [(913, 256), (8, 10), (2, 5), (1, 4), (20, 400)])
def test_constants_in_closed_form(d, P):
    """Table 1 of the tutorial, written out; numbers for the paper's swing-up."""
    search = CMAES(torch.zeros(d).double(), 0.1, P, seeded())
    raw = [math.log((P + 1) / 2) - math.log(i) for i in range(1, P // 2 + 1)]
    w = [r / sum(raw) for r in raw]
    mu = sum(raw) ** 2 / sum(r * r for r in raw)
    assert search.weights.tolist() == pytest.approx(w, rel=1e-10)
    c_s = (mu + 2) / (d + mu + 5)
    c_1 = 2 / ((d + 1.3) ** 2 + mu)
    c_mu = min(1 - c_1, 2 * (mu - 2 + 1 / mu) / ((d + 2) ** 2 + 2 * mu / 2))
    expected = {
        "mu": mu,
        "c_s": c_s,
        "d_s": 1 + 2 * max(0, math.sqrt((mu - 1) / (d + 1)) - 1) + c_s,
        "c_c": (4 + mu / d) / (d + 4 + 2 * mu / d),
        "c_1": c_1,
        "c_mu": c_mu,
        "expected": math.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d**2)),
        "gap": max(1, math.floor(1 / (10 * d * (c_1 + c_mu)))),
    }
    assert {k: getattr(search, k) for k in expected} == pytest.approx(expected, rel=1e-12)
    if d == 913:
        assert mu == pytest.approx(66.857796, rel=1e-7) and len(w) == 128
        actual = [search.c_s, search.d_s, search.c_c, search.c_1, search.c_mu, search.expected]
        numbers = [0.06991649, 1.069916, 0.004441198, 2.392312e-06, 0.0001549585, 30.20762]
        assert actual == pytest.approx(numbers, rel=1e-6)


def test_the_expected_length_of_a_normal_vector():
    """The tutorial's series against the quotient of gamma functions."""
    for d in (3, 10, 913):
        exact = math.sqrt(2) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
        assert CMAES(torch.zeros(d), 1.0, 8, seeded()).expected == pytest.approx(exact, rel=1e-3)


def test_constants_of_pycma():
    """Hansen's own package, set to positive weights. It differs from the tutorial of 2016 in two places:
    c_s has a 3 where that has a 5, and c_mu a quarter that came later."""
    pycma = pytest.importorskip("cma")
    from cma.sigma_adaptation import CMAAdaptSigmaCSA

    for d, P in ((913, 256), (8, 10)):
        es = pycma.CMAEvolutionStrategy(
            d * [0.0], 0.1, {"popsize": P, "CMA_active": False, "verbose": -9,
                             "AdaptSigma": CMAAdaptSigmaCSA})  # fmt: skip
        search = CMAES(torch.zeros(d).double(), 0.1, P, seeded())
        w = es.sp.weights
        assert search.weights.tolist() == pytest.approx(list(w)[: w.mu], rel=1e-12)
        es.adapt_sigma.initialize(es)
        assert search.c_s == pytest.approx((search.mu + 2) / (d + search.mu + 5), rel=1e-12)
        actual = [search.mu, (search.mu + 2) / (d + search.mu + 3), search.c_c, search.c_1]
        theirs = [w.mueff, es.adapt_sigma.cs, es.sp.cc, es.sp.c1]
        assert actual == pytest.approx(theirs, rel=1e-12)
        quarter = 2 * 0.25 / ((d + 2) ** 2 + search.mu)
        assert search.c_mu + quarter == pytest.approx(es.sp.cmu, rel=1e-12)


def tutorial(search, z, fitness, state):
    """One generation as in figure 6 of the tutorial, with loops, and C^{-1/2} from C itself."""
    m, s, C, p_s, p_c, g = state
    P, d = z.shape
    values, B = torch.linalg.eigh(C)
    root = B @ torch.diag(values.sqrt()) @ B.T
    y = [search.B @ (search.D * z[k]) for k in range(P)]
    order = sorted(range(P), key=lambda k: -float(fitness[k]))[: P // 2]
    step = sum(float(w) * y[k] for w, k in zip(search.weights, order))
    m, mu = m + s * step, search.mu
    p_s = (1 - search.c_s) * p_s + math.sqrt(search.c_s * (2 - search.c_s) * mu) * (
        torch.linalg.solve(root, step)
    )
    length = float(p_s.norm())
    fair = math.sqrt(1 - (1 - search.c_s) ** (2 * (g + 1)))
    h = 1.0 if length / fair < (1.4 + 2 / (d + 1)) * search.expected else 0.0
    p_c = (1 - search.c_c) * p_c + h * math.sqrt(search.c_c * (2 - search.c_c) * mu) * step
    delta = (1 - h) * search.c_c * (2 - search.c_c)
    C = (1 + search.c_1 * delta - search.c_1 - search.c_mu) * C + search.c_1 * p_c.outer(p_c)
    for w, k in zip(search.weights, order):
        C = C + search.c_mu * float(w) * y[k].outer(y[k])
    s = s * math.exp(search.c_s / search.d_s * (length / search.expected - 1))
    return (m, s, C, p_s, p_c, g + 1), h


@pytest.mark.parametrize("d, P, sigma", [(5, 12, 0.5), (3, 9, 1e-3), (1, 4, 0.5)])
def test_generations_of_the_tutorial(d, P, sigma):
    """Mean, step size, covariance and paths, 40 generations; from a tiny step size the path is long,
    and the covariance waits."""
    search = cma(d, P, sigma=sigma, gap=1)
    fitness = rosenbrock if d > 1 else lambda x: -(x[:, 0] - 1).square()
    state = (search.mean, sigma, search.C, search.path_s, search.path_c, 0)
    waited = []
    for _ in range(40):
        asked = search.ask()
        assert torch.allclose(asked[1], state[0] + state[1] * (search.B @ (search.D * search.z[1])))
        actual = fitness(asked)
        state, h = tutorial(search, search.z, actual, state)
        waited.append(h == 0)
        search.tell(actual)
        for mine, expected in zip((search.mean, search.sigma, search.C, search.path_s, search.path_c),
                                state):  # fmt: skip
            expected = torch.as_tensor(expected, dtype=torch.float64)
            assert torch.allclose(
                mine, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
            )
        assert search.generations == state[5]
    assert not all(waited) and (any(waited) or sigma > 0.1)


def test_the_covariance_forgets_at_the_rate_of_its_constants():
    """In float64 to its last bits: (1 - c_1 - c_mu), and no rounding to float32 on the way."""
    search = cma(gap=1)
    search.ask()
    state = (search.mean, 0.5, search.C, search.path_s, search.path_c, 0)
    fitness = rosenbrock(search.asked)
    state, _ = tutorial(search, search.z, fitness, state)
    search.tell(fitness)
    assert torch.allclose(search.path_c, state[4], rtol=1e-13, atol=1e-14)
    assert torch.allclose(search.C, state[2], rtol=1e-13, atol=1e-14)


def test_it_samples_what_it_says():
    """The population has the mean and the covariance sigma^2 C, to the error of so many draws."""
    search = cma(4, 40_000, gap=1)
    search.tell(ellipsoid(4, 30)(search.ask()))
    search.tell(ellipsoid(4, 30)(search.ask()))
    C = search.sigma**2 * (search.C + search.C.T) / 2
    x = search.ask() - search.mean
    wide = C.diag().sqrt()
    assert bool((x.mean(0).abs() < 5 * wide / 200).all())
    assert bool(((x.T @ x / 40_000 - C).abs() < 5 * 1.5 * wide.outer(wide) / 200).all())
    assert C.diag().max() / C.diag().min() > 1.2  # something was learned


def test_a_rotated_ellipsoid():
    """Condition 10^4: to 1e-8 of the optimum, and C becomes the inverse of the curvature."""
    d, fitness = 8, ellipsoid()
    search = CMAES(torch.zeros(d).double(), 0.5, 12, seeded())
    first = -fitness(search.mean[None]).item()
    for generation in range(600):  # noqa: B007
        search.tell(fitness(search.ask()))
        if -fitness(search.mean[None]).item() < 1e-16:
            break
    assert generation < 599 < first and (search.mean - 1).abs().max() < 1e-8
    turn = torch.linalg.qr(double(d, d, seed=7))[0]
    inside = (
        turn.T
        @ search.C
        @ turn
        * (1e4 ** (torch.arange(d).double() / (d - 1)))
        .sqrt()
        .outer((1e4 ** (torch.arange(d).double() / (d - 1))).sqrt())
    )
    values = torch.linalg.eigvalsh(inside)
    assert values.max() / values.min() < 30  # it was 10^4 with the identity
    isotropic = cma(d, 12, gap=10**6)  # never decomposed: the directions are not learned
    isotropic.mean.zero_()
    for _ in range(generation):
        isotropic.tell(fitness(isotropic.ask()))
    assert -fitness(isotropic.mean[None]).item() > 1e-8


def test_rosenbrock():
    """A bent valley, from its other end."""
    search = CMAES(-0.5 * torch.ones(5).double(), 0.3, 12, seeded(1))
    for _ in range(500):
        search.tell(rosenbrock(search.ask()))
    assert (search.mean - 1).abs().max() < 1e-8 and -rosenbrock(search.mean[None]).item() < 1e-14


def test_the_covariance_stays_one():
    """Symmetric and positive definite, its decomposition its own, over 300 generations."""
    search, fitness = cma(6, 10), ellipsoid(6, 1e6)
    for _ in range(300):
        search.tell(fitness(search.ask()))
        C = search.C
        assert torch.allclose(C, C.T, rtol=0, atol=1e-12 * float(C.abs().max()))
        assert torch.linalg.eigvalsh((C + C.T) / 2).min() > 0
        assert torch.allclose(search.B.T @ search.B, torch.eye(6).double(), atol=1e-12)
        assert search.gap == 1  # so the decomposition is that of now
        again = search.B @ search.D.square().diag() @ search.B.T
        assert torch.allclose(again, C, rtol=0, atol=1e-12 * float(C.abs().max()))


def test_decompositions_are_rare():
    """With a gap of 4: after generations 4, 8, 12; in between B and D stay, C moves."""
    search = cma(gap=4)
    for generation in range(1, 13):
        before = search.B, search.D, search.C
        search.tell(rosenbrock(search.ask()))
        assert torch.equal(before[0], search.B) == torch.equal(before[1], search.D)
        assert torch.equal(before[0], search.B) == (generation % 4 != 0)
        assert int(search.decomposed) == generation // 4 * 4 and not torch.equal(
            before[2], search.C
        )
    assert CMAES(torch.zeros(300), 0.1, 8, seeded()).gap > 5
    assert CMAES(torch.zeros(300), 0.1, 8, seeded(), gap=2).gap == 2


# Both.


@pytest.mark.parametrize("make", [cma, opened])
def test_only_the_order_of_fitness_counts(make):
    """Any increasing function of it: the same run, bit for bit; a decreasing one: another."""
    runs = []
    for change in (lambda f: f, lambda f: f.sign() * f.abs().sqrt() + 1e4, torch.atan,
                   lambda f: 2.0**-40 * f, lambda f: -f):  # fmt: skip
        search = make()
        for _ in range(12):
            search.tell(change(-(search.ask() - 1).square().sum(1)))
        runs.append(moved(search))
    assert all(same(runs[0], run) for run in runs[1:4])
    assert not torch.equal(runs[0]["mean"], runs[4]["mean"])


@pytest.mark.parametrize("make", [cma, opened, lambda **k: cma(gap=5, **k)])
def test_a_run_goes_on_after_a_checkpoint(make, tmp_path):
    """Through a file: bit for bit the run that was not interrupted, and the saved state stays."""
    whole, first = make(), make()
    for search, steps in ((whole, 23), (first, 8)):
        for _ in range(steps):
            search.tell(rosenbrock(search.ask()))
    kept = state_of(first)
    copied = {k: v.clone() for k, v in kept.items()}
    checkpoint.save(tmp_path / "run.npz", kept, {"setting": None, "done": 8})
    first.tell(rosenbrock(first.ask()))
    assert same(kept, copied)  # what went on did not write into it
    arrays, done = checkpoint.resume(tmp_path / "run.npz", None)
    assert done == 8
    resumed = make(seed=5)
    assert restore(resumed, arrays) is resumed and resumed.generations == 8
    for _ in range(15):
        resumed.tell(rosenbrock(resumed.ask()))
    assert same(state_of(resumed), state_of(whole))
    raw, _ = checkpoint.load(tmp_path / "run.npz")
    again = restore(make(seed=6), {k: torch.from_numpy(v) for k, v in raw.items()})
    assert torch.equal(again.ask(), restore(make(), copied).ask())


@pytest.mark.parametrize("make", [cma, opened])
def test_what_a_seed_decides(make):
    """Its own generator alone: the same seed is the same run, and the caller's mean is not touched."""
    runs = []
    for seed in (0, 0, 1):
        search = make(seed=seed)
        for _ in range(3):
            search.tell(rosenbrock(search.ask()))
        runs.append(search.mean)
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    mean = torch.zeros(5)
    for kind in (CMAES, OpenES):
        search = kind(mean, 0.1, 8, seeded())
        assert search.ask().dtype == torch.float32 and search.ask().shape == (8, 5)
        search.tell(search.ask().sum(1))
        assert not mean.any() and search.mean.any() and search.mean.dtype == torch.float32


@pytest.mark.parametrize("make", [cma, opened])
def test_a_bad_fitness_changes_nothing(make):
    """NaN, inf, another shape, or none asked for: an error, and the run goes on as if it had not been."""
    fine, tried = make(), make()
    for _ in range(4):
        with pytest.raises(ValueError, match="before a population was asked for"):
            tried.tell(torch.zeros(12))
        good = rosenbrock(tried.ask())
        before = moved(tried)
        nan, infinite = good.clone(), good.clone()
        nan[3], infinite[0] = math.nan, math.inf
        for bad in (nan, infinite, good[:-1], good[:, None], good[:0], torch.cat([good, good])):
            with pytest.raises(ValueError, match="fitness: got"):
                tried.tell(bad)
            assert same(before, moved(tried))
        tried.tell(good)
        fine.tell(rosenbrock(fine.ask()))
    assert same(state_of(fine), state_of(tried))
    with pytest.raises(ValueError, match="before a population was asked for"):
        tried.tell(good)


def test_bad_settings():
    zero, g = torch.zeros(3), seeded()
    for kind in (CMAES, OpenES):
        for bad in (torch.zeros(2, 3), torch.zeros(0), torch.tensor(1.0), zero * math.nan):
            with pytest.raises(ValueError, match="mean"):
                kind(bad, 0.1, 8, g)
        for bad in (0, -1.0, math.inf, math.nan, "big"):
            with pytest.raises(ValueError, match="sigma"):
                kind(zero, bad, 8, g)
        for bad in (0, 1, -8, 8.5):
            with pytest.raises(ValueError, match="population"):
                kind(zero, 0.1, bad, g)
    with pytest.raises(ValueError, match="population"):
        CMAES(zero, 0.1, 3, g)
    for odd in (3, 9):
        with pytest.raises(ValueError, match="wanted an even number"):
            OpenES(zero, 0.1, odd, g)
    with pytest.raises(ValueError, match="gap"):
        CMAES(zero, 0.1, 8, g, gap=0)
    with pytest.raises(ValueError, match="lr"):
        OpenES(zero, 0.1, 8, g, lr=0.0)


@pytest.mark.parametrize("make", [cma, opened])
def test_a_state_of_another_run_is_refused(make):
    search = make()
    before = moved(search)
    with pytest.raises(ValueError, match="state: got"):
        restore(search, state_of(make(d=4)))
    assert same(before, moved(search))


# Ranks.

RANKS = """
import sys, torch
import torch.distributed as dist
from collage.common.populations import Shard
from experiments.cma import score, state_of
from tests.sensory_neuron.test_strategies import opened, rosenbrock
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + folder + "/meet", rank=rank, world_size=2)
rows, search = [], opened(population=6)
def fitness(x):
    rows.append(len(x))
    return rosenbrock(x)
odd = score(fitness, opened(population=14).ask()[:7], Shard())
assert rows == [3 + rank], rows
for _ in range(5):
    search.tell(score(fitness, search.ask(), Shard()))
assert rows[1:] == [3] * 5, rows
torch.save({"odd": odd, **state_of(search)}, folder + f"/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_share_a_population(tmp_path):
    """Two gloo processes, each with its own rows only, find what one finds, bit for bit."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    runs = [subprocess.Popen([sys.executable, "-c", RANKS, str(rank), str(tmp_path)], env=env,
                             stderr=subprocess.PIPE, text=True) for rank in range(2)]  # fmt: skip
    try:
        errors = [run.communicate(timeout=120)[1] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], errors
    search, alone = opened(population=6), Shard(False)
    for _ in range(5):
        search.tell(score(rosenbrock, search.ask(), alone))
    expected = {"odd": rosenbrock(opened(population=14).ask()[:7]), **state_of(search)}
    for rank in range(2):
        actual = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.allclose(actual.pop("odd"), expected["odd"], rtol=1e-14)
        assert same(actual, {k: v for k, v in expected.items() if k != "odd"})
