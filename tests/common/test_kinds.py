"""Faults that users of such code report, each whole kind in every room: what may not happen silently."""

import copy
import io
import math
import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from collage import runtime
from collage.common import checkpoint
from collage.common.checks import as_tensor, check_positive
from collage.common.curvature import hvp, lanczos
from collage.common.networks import Stack
from collage.convex_hull import membership, nearest, verify
from collage.decision_transformer import Trajectories, returns_to_go
from collage.nbeats import Ensemble as Forecasters
from collage.nbeats import Member
from collage.nbeats.classical import arima, ets, naive, theta
from collage.nbeats.measures import mase, smape
from collage.pes import PES, OuterLoop
from collage.pes.problems import Toy
from collage.ridge_rider import ride, ridges, saddle
from collage.sam import SAM, Ensemble, Flat
from collage.sensory_neuron import Plain
from collage.sensory_neuron.strategies import OpenES
from experiments.cma import CMAES, restore
from experiments.decision_transformer import moments

ROOT = Path(__file__).parents[2]
BOTH = pytest.mark.parametrize("fused", [False, True], ids=["tensors", "fused"])
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64], ids=["float32", "float64"]
)
BASES = {"SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
         "Adam": {"lr": 0.01, "weight_decay": 0.1}, "AdamW": {"lr": 0.01, "weight_decay": 0.1},
         "RMSprop": {"lr": 0.01, "momentum": 0.9}, "Adagrad": {"lr": 0.1, "weight_decay": 0.1},
         "Rprop": {"lr": 0.01}, "ASGD": {"lr": 0.1}}  # fmt: skip


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def net(dtype=torch.float64):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 6), torch.nn.Linear(6, 1)]
    return torch.nn.Sequential(*layers).to(dtype)


X, Y = (
    torch.randn(16, 4, generator=seeded()).double(),
    torch.randn(16, 1, generator=seeded(1)).double(),
)


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def closure(model, opt, skip=False, sign=1):
    def run():
        opt.zero_grad()
        out = X.to(model[0].weight.dtype)
        for i, layer in enumerate(model):
            out = out if skip and i == 2 else layer(out)
        loss = sign * (out - Y.to(out.dtype)).square().mean()
        loss.backward()
        return loss

    return run


# Parameters that are frozen, shared, without gradient, or frozen later.


@DTYPES
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("when", [0, 5])
def test_a_frozen_parameter_stays(base, when, dtype):
    """Under the flat buffer it decayed by 0.42 in 20 steps."""
    ends = []
    for fused in (False, True):
        model = net(dtype)
        opt = SAM(model.parameters(), base, rho=0.1, fused=fused, **BASES[base])
        for t in range(12):
            if t == when:
                model[2].weight.requires_grad_(False)
                kept = model[2].weight.clone()
            opt.step(closure(model, opt))
        assert torch.equal(model[2].weight, kept)
        ends.append(weights(model))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


def test_a_parameter_without_gradient_in_some_steps():
    ends = []
    for fused in (False, True):
        model = net()
        opt = SAM(model.parameters(), "SGD", fused=fused, **BASES["SGD"])
        for t in range(12):
            kept = model[2].weight.clone()
            opt.step(closure(model, opt, skip=t % 3 == 1))
            assert (t % 3 == 1) == torch.equal(model[2].weight, kept)
        ends.append(weights(model))
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)
    model = net()
    opt = SAM(model.parameters(), "Adam", fused=True, lr=0.1)
    opt.step(closure(model, opt, skip=True))  # Adam would count fewer steps for it
    kept = weights(model)
    with pytest.raises(ValueError, match="earlier step"):
        opt.step(closure(model, opt))
    assert torch.equal(weights(model), kept)


def test_chunks_that_reach_different_parameters():
    ends = []
    for fused in (False, True):
        model = net()
        opt = SAM(model.parameters(), "SGD", fused=fused, **BASES["SGD"])
        for _ in range(4):
            opt.step([closure(model, opt), closure(model, opt, skip=True)])
        ends.append(weights(model))
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


def test_a_checkpoint_with_a_frozen_parameter_moves_between_the_paths():
    for frozen in (0, 2):
        for first, second in ((False, True), (True, False)):
            ends = []
            for resumes in (False, True):
                model = net()
                list(model.parameters())[frozen].requires_grad_(False)
                opt = SAM(model.parameters(), "SGD", fused=first, **BASES["SGD"])
                for t in range(6):
                    if resumes and t == 3:
                        kept = opt.state_dict()
                        opt = SAM(model.parameters(), "SGD", fused=second, lr=1.0)
                        opt.load_state_dict(kept)
                    opt.step(closure(model, opt))
                ends.append(weights(model))
            torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


@BOTH
def test_hooks_see_a_frozen_parameter_as_it_is(fused):
    model = net()
    model[2].weight.requires_grad_(False)
    kept, seen = model[2].weight.clone(), []
    opt = SAM(model.named_parameters(), "SGD", fused=fused, **BASES["SGD"])
    opt.register_step_pre_hook(lambda *a: seen.append(model[2].weight.clone()))
    opt.register_step_post_hook(lambda *a: seen.append(model[2].weight.clone()))
    for _ in range(2):
        opt.step(closure(model, opt))
    assert len(seen) == 4 and all(torch.equal(s, kept) for s in seen)
    opt.register_step_post_hook(lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        opt.step(closure(model, opt))
    opt.base.step = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        opt.step(closure(model, opt))
    assert torch.equal(model[2].weight, kept)


@pytest.mark.parametrize("base", ["Adam", "Adagrad", "ASGD", "SGD", "RMSprop"])
def test_a_thawed_parameter_after_a_checkpoint(base):
    """Its steps are counted as torch counts them, or a fused path says that it cannot."""
    for first, second in ((False, True), (True, False), (False, False), (True, True)):
        ends = []
        for through in (False, True):
            model = net()
            model[2].weight.requires_grad_(False)
            opt = SAM(model.parameters(), base, fused=first and through, **BASES[base])
            for _ in range(3):
                opt.step(closure(model, opt))
            if through:
                kept = opt.state_dict()
                opt = SAM(model.parameters(), base, fused=second, lr=1.0)
                opt.load_state_dict(kept)
            model[2].weight.requires_grad_(True)
            if through and second and base not in ("SGD", "RMSprop"):
                with pytest.raises(ValueError, match="earlier step"):
                    opt.step(closure(model, opt))
                break
            for _ in range(3):
                opt.step(closure(model, opt))
            ends.append(weights(model))
        else:
            torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


@BOTH
def test_a_parameter_is_given_once(fused):
    p = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"twice|share"):
        SAM([p, p], "SGD", lr=0.1, fused=fused)
    with pytest.raises(ValueError, match="share memory"):
        Flat([p, torch.nn.Parameter(p.data)])
    with pytest.raises(ValueError, match="twice"):
        Stack([torch.ones(2, 3)] * 2)


def test_a_flat_buffer_notices_that_its_parameters_left():
    for leave in (lambda m: m.float(), lambda m: setattr(m[0].weight, "data", m[0].weight.data.clone()),
                  lambda m: SAM(m.parameters(), "SGD", lr=0.1, fused=True)):  # fmt: skip
        model = net()
        opt = SAM(model.parameters(), "SGD", lr=0.1, fused=True)
        leave(model)
        with pytest.raises(RuntimeError, match="moved, cast or replaced"):
            opt.step(closure(model, opt))


def test_who_trains_refuses_frozen_weights():
    model = Forecasters([Member(8)], 2, layers=2)
    model.weights.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        model.fit([torch.arange(20.0)], 2, batch=4)
    nets = Stack([torch.ones(2, 1)])
    nets.params[0].requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        nets.step(lambda params: params[0].sum(1))
    nets = Stack([torch.ones(2, 1), torch.ones(2, 1)])
    with pytest.raises(ValueError, match=r"params\[1\]"):
        nets.step(lambda params: params[0].sum(1))


# Flags of a base optimiser that change what a gradient means.


@DTYPES
@BOTH
@pytest.mark.parametrize("base", ["SGD", "Adam", "RMSprop"])
def test_maximising_is_minimising_the_negative(base, fused, dtype):
    ends = []
    for sign in (1, -1):
        model = net(dtype)
        opt = SAM(model.parameters(), base, rho=0.3, lr=0.01, fused=fused, maximize=sign < 0)
        for _ in range(8):
            opt.step(closure(model, opt, sign=sign))
        ends.append(weights(model))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)


@BOTH
def test_flags_and_bases_that_cannot_be_meant(fused):
    def build(base="SGD", **how):
        p = torch.nn.Parameter(torch.ones(3, 2))
        return SAM([p], base, **{"lr": 0.1, "fused": fused, **how})

    with pytest.raises(ValueError, match="differentiable"):
        build(differentiable=True)
    for base in ("SparseAdam", "LBFGS", type("Mine", (torch.optim.LBFGS,), {})):
        with pytest.raises(ValueError, match="base_optimizer"):
            build(base)
    with pytest.raises(ValueError, match="Invalid learning rate"):
        build(lr=-1.0)
    if fused:
        with pytest.raises(ValueError, match="Adafactor"):
            build("Adafactor")
    else:
        with pytest.raises(ValueError, match="capturable"):
            build("Adam", capturable=True)


# Values that are not finite never become weights.


def test_stacks_estimators_and_strategies_refuse_it_whole():
    nets = Stack([torch.ones(3, 1)])
    with pytest.raises(ValueError, match=r"networks \[1\]"):
        nets.step(lambda params: params[0].sum(1) * torch.tensor([1.0, math.nan, 1.0]))
    assert bool((nets.flat == 1).all() and (nets.velocity == 0).all())
    huge = types.SimpleNamespace(
        reset=lambda n, g: torch.zeros(n), unroll=lambda t, s, k: (s, 3e38 * t[:, 0].sign())
    )
    es = PES(huge, sigma=0.1, particles=8, truncation=1, horizon=4)
    with pytest.raises(ValueError, match="estimate"):
        es.step(torch.full((1,), 1e-3))
    toy = Toy()
    steep = types.SimpleNamespace(
        reset=toy.reset,
        unroll=lambda t, s, k: (toy.unroll(t, s, k)[0], 1e200 * toy.unroll(t, s, k)[1]),
    )
    setting = {"sigma": 0.3, "particles": 10, "truncation": 10, "horizon": 100}
    loop = OuterLoop(steep, torch.zeros(1, 2).double(), **setting)
    with pytest.raises(ValueError, match="moments"):
        loop.run()
    assert bool((loop.adam.theta == 0).all() and (loop.adam.square == 0).all())
    for kind, sigma in ((CMAES, 1e38), (OpenES, 1e-30)):
        search = kind(torch.zeros(3), sigma, 8, seeded())
        search.ask()
        with pytest.raises(ValueError, match="inf or NaN"):
            for _ in range(50):
                search.tell(torch.arange(8.0))
                search.ask()
        assert bool(search.mean.isfinite().all())
    with pytest.raises(ValueError, match="state"):
        restore(CMAES(torch.zeros(3), 1.0, 8, seeded()), {"mean": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"slope|thetas"):
        saddle(lambda t: torch.where(t[0] > 0.5, t[0].sqrt(), (0 * t[0]).sqrt()) + t[1] ** 2,
               torch.tensor([[0.6, 0.5]]), steps=50)  # fmt: skip


def test_cloning_a_teacher_is_all_or_nothing():
    student = Plain([3, 4, 1])
    before = [p.clone() for p in student.params]
    for actions in (torch.full((9, 1), math.nan), torch.zeros(5, 1), torch.zeros(9, 0)):
        with pytest.raises(ValueError, match="actions"):
            student.fit(torch.ones(9, 3), actions, 3, seeded())
    with pytest.raises(ValueError, match="weights"):
        student.fit(torch.ones(9, 3), torch.full((9, 1), 1e30), 3, seeded(), lr=1e38)
    assert all(map(torch.equal, student.params, before))
    assert not any(p.requires_grad or p.grad is not None for p in student.params)


def test_fitness_is_ranked_in_its_own_precision():
    ends = []
    for fitness in (torch.arange(8.0), 1000 + 1e-9 * torch.arange(8, dtype=torch.float64),
                    1e39 * torch.arange(8, dtype=torch.float64), 2**60 + torch.arange(8)):  # fmt: skip
        search = CMAES(torch.zeros(3), 0.5, 8, seeded())
        search.ask()
        search.tell(fitness)
        ends.append(search.mean)
    assert all(torch.equal(ends[0], end) for end in ends)


# Units and offsets.


@pytest.mark.parametrize("unit", [1, 1e3, 1e6, 1e9], ids=["s", "ms", "us", "ns"])
def test_hulls_of_places_with_time_stamps(unit):
    """A query 12.7 degrees away was inside, with certificates that passed."""
    g = seeded()
    place = torch.rand(300, 2, generator=g, dtype=torch.float64) * torch.tensor([10.0, 20.0])
    time = (1.7e9 + 86400 * torch.rand(300, 1, generator=g, dtype=torch.float64)) * unit
    x = torch.cat([place, time], 1)
    z = x.mean(0) + torch.tensor(
        [[0, 0, 0], [12.7, 0, 0], [0, 0, 86400 * unit]], dtype=torch.float64
    )
    for tol in (1e-9, 0.0):
        found = membership(x, z, tol)
        assert found.inside.tolist() == [True, False, False]
        assert 7 < found.margin[1] < 9  # degrees
        verify(found, x, z, max(tol, 1e-12))
        try:
            assert nearest(x, z, tol).distance[1] >= 7
        except ArithmeticError as error:  # beside a column of 1e13
            assert unit > 1 and "query 1" in str(error)


def test_an_affine_map_of_columns_changes_no_answer():
    g = seeded(3)
    for _ in range(10):
        d, n = (
            int(torch.randint(1, 7, (1,), generator=g)),
            int(torch.randint(1, 99, (1,), generator=g)),
        )
        x, z = (torch.randn(k, d, generator=g, dtype=torch.float64) for k in (n, 30))
        unit = 10 ** (torch.rand(d, generator=g, dtype=torch.float64) * 36 - 18)
        offset = 1e3 * unit * torch.randn(d, generator=g, dtype=torch.float64)
        plain, moved = (
            membership(x, 0.7 * z),
            membership(x * unit + offset, 0.7 * z * unit + offset),
        )
        assert torch.equal(plain.inside, moved.inside) and torch.equal(plain.entry, moved.entry)
        verify(moved, x * unit + offset, 0.7 * z * unit + offset)


def test_hulls_of_extreme_numbers():
    g = seeded()
    x = torch.randn(200, 3, generator=g, dtype=torch.float64)
    z = torch.stack([x.mean(0), torch.full((3,), 5.0, dtype=torch.float64)])
    margin = membership(x, z).margin[1]
    for unit in (1e-300, 1e-155, 1e155, 1e300):
        found = membership(x * unit, z * unit)
        assert found.inside.tolist() == [True, False]
        assert found.margin[1] / unit == pytest.approx(margin.item())
        assert nearest(x * unit, z * unit).distance[1] / unit > margin * (1 - 1e-9)
    narrow = 1e9 + 1e-3 * x
    assert membership(narrow, 1e9 + 1e-3 * z).inside.tolist() == [True, False]
    still = torch.cat([1e9 * x, torch.full((200, 1), 0.1, dtype=torch.float64)], 1)
    at = torch.stack([still.mean(0), still.mean(0)])
    at[:, 3] = torch.tensor([0.1, 0.2], dtype=torch.float64)
    found = membership(still, at)
    assert found.inside.tolist() == [True, False] and found.margin[1].item() == pytest.approx(0.1)
    stamps = torch.tensor([[10], [20]]) + 17 * 10**17
    assert membership(stamps, torch.tensor([[15], [40]]) + 17 * 10**17).inside.tolist() == [
        True,
        False,
    ]
    assert nearest(stamps, torch.tensor([[40]]) + 17 * 10**17).point.item() == 17e17 + 20
    ends = torch.tensor([[-(2**63)], [2**63 - 1]])
    assert membership(ends, torch.tensor([[0], [5]])).inside.all()
    tiny = torch.tensor([[0.0], [1e-310], [1e-309]], dtype=torch.float64)
    assert membership(tiny[:2], tiny[2:]).margin > 0
    with pytest.raises(ArithmeticError, match="1e100"):
        membership(1e-200 * x, 1e200 * z)


@DTYPES
def test_moments_of_columns_far_from_zero(dtype):
    n = 100_000
    states = torch.stack(
        [torch.full((n,), 1.7e9), torch.full((n,), 123.456), torch.arange(n) % 2 * 1e-3], 1
    )
    mean, std = moments(states.to(dtype))
    assert torch.allclose(moments(torch.eye(5).to(dtype))[1], torch.eye(5).to(dtype).std(0, False))
    assert mean[:2].tolist() == states.to(dtype)[0, :2].tolist() and std[:2].tolist() == [1, 1]
    assert mean[2].item() == pytest.approx(5e-4) and std[2].item() == pytest.approx(5e-4)


def test_returns_do_not_feel_other_episodes():
    rewards = torch.tensor([0.005, 1e17, 0.005])
    ends = torch.tensor([True, True, True])
    assert torch.equal(returns_to_go(rewards, ends), rewards)


@pytest.mark.parametrize("method", [arima, ets, theta])
def test_forecasts_in_any_unit(method):
    """The same series times 1e-9 gave -5, 42, -104 in place of 111, 103, 90."""
    g = seeded(2)
    x = 3 * torch.randn(40, generator=g, dtype=torch.float64) + torch.arange(40).double()
    plain = method(x, 3)
    for unit in (1e-12, 1e-9, 1e6, 1e12):
        torch.testing.assert_close(method(x * unit, 3) / unit, plain, rtol=1e-6, atol=1e-6)
    for offset in (-1e3, 1e3):
        torch.testing.assert_close(method(x + offset, 3) - offset, plain, rtol=1e-6, atol=1e-6)


def test_forecasts_of_series_of_very_different_sizes():
    x = 1 + 0.1 * torch.rand(24, generator=seeded(4), dtype=torch.float64)
    x[:12] *= 1e9
    assert 0.9 < ets(x, 1, 4).item() < 1.3
    assert (
        theta(5e307 * torch.rand(12, generator=seeded(), dtype=torch.float64), 2).isfinite().all()
    )


def test_measures_are_reported_in_float64():
    y, f = torch.tensor([[1e37]]), torch.tensor([[3e37]])
    assert smape(y, f).item() == pytest.approx(100)
    assert mase(y.half().nan_to_num(posinf=1), f.half().nan_to_num(posinf=2),
                [torch.tensor([1e6, 3e6])]).item() == pytest.approx(5e-7)  # fmt: skip


@DTYPES
def test_lanczos_in_any_unit(dtype):
    g = seeded()
    B = torch.randn(300, 300, generator=g, dtype=dtype)
    B = (B + B.T) / 60
    top = torch.linalg.eigvalsh(B.double()).flip(0)[:3]
    for unit in (1e-36, 1e-24, 1e22, 1e36):
        for block in (1, 2):
            found = lanczos(lambda v, A=B * unit: v @ A, 300, 3, dtype=dtype, block=block)
            assert found.converged.all()
            torch.testing.assert_close(found.values.double() / unit, top, rtol=1e-3, atol=1e-4)
    steep = torch.tensor([1e-30, 1e15, 5e14], dtype=dtype)
    found = lanczos(lambda v: steep * v, 3, 2, start=torch.eye(3, dtype=dtype)[0])
    torch.testing.assert_close(found.values, steep[1:])
    found = lanczos(lambda v: v @ B, 300, 1, start=torch.full((300,), 1e-30, dtype=dtype))
    assert found.values[0].item() == pytest.approx(top[0].item(), rel=1e-3)
    rides = ridges(
        lambda t: 1e30 * (t[0] ** 2 - t[1] ** 2 - 2 * t[2] ** 2), torch.zeros(3, dtype=dtype)
    )
    torch.testing.assert_close(rides.values / 1e30, torch.tensor([-4.0, -2.0], dtype=dtype))


@DTYPES
@pytest.mark.parametrize("n", [20, 60])
def test_lanczos_sees_repeated_eigenvalues_of_small_operators(n, dtype):
    ring = sum(torch.roll(torch.eye(n, dtype=dtype), s, 0) for s in (1, -1))
    wanted = torch.linalg.eigvalsh(ring).flip(0)
    for k in (2, 3, 4, 6):
        found = lanczos(lambda v: ring @ v, n, k, dtype=dtype)
        assert found.converged.all()
        torch.testing.assert_close(found.values, wanted[:k], rtol=1e-4, atol=1e-4)


# Who looks at a network leaves it as it was.


def test_no_side_effects_leaves_a_network_as_it_was():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(),
                                torch.nn.Linear(4, 1))  # fmt: skip
    x = torch.randn(8, 3)
    kept, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    names = [name for name, _ in model.named_parameters()]

    def loss(params):
        given = dict(zip(names, params, strict=True))
        return torch.func.functional_call(model, given, (x,)).square().mean()

    product = hvp(loss, model.parameters())
    product(torch.ones(sum(p.numel() for p in model.parameters())))
    flat = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    del model[2]
    sizes = [p.numel() for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    plain = lambda t: loss([c.view_as(p) for c, p in zip(t.split(sizes), model.parameters())])  # noqa: E731
    ridges(plain, flat, 2)
    ride(plain, flat, torch.ones(1, len(flat)), most=2)
    kept = {k.replace("3.", "2."): v for k, v in kept.items()}
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_the_second_pass_of_an_ensemble_teaches_no_statistics():
    norm = torch.nn.BatchNorm1d(2)
    nets = Ensemble([torch.ones(2, 3)], rho=0.1)
    x = torch.randn(8, 2, generator=seeded())
    nets.step(lambda params: (params[0].sum() + norm(x).sum() * params[0].sum(1)).expand(2))
    assert norm.num_batches_tracked == 1


# Copies and pickles.


def copies(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return [
        copy.deepcopy(thing),
        pickle.loads(pickle.dumps(thing)),
        torch.load(file, weights_only=False),
    ]


@BOTH
@pytest.mark.parametrize("base", ["SGD", "AdamW"])
def test_a_copied_optimiser_goes_on(fused, base):
    model = net()
    opt = SAM(model.parameters(), base, rho=0.1, fused=fused, **BASES[base])
    torch.optim.lr_scheduler.StepLR(opt, 5)  # puts a closure into the object
    for _ in range(3):
        opt.step(closure(model, opt))
    pairs = [(model, opt), *copies((model, opt))]
    for theirs, other in pairs:
        for _ in range(3):
            other.step(closure(theirs, other))
    assert all(torch.equal(weights(m), weights(model)) for m, _ in pairs)
    closure(model, opt)()
    opt.ascend()
    with pytest.raises(RuntimeError, match="perturbed"):
        copy.deepcopy(opt)
    opt.restore()


def test_copied_stacks_and_loops_go_on():
    nets = Ensemble([torch.ones(2, 3), torch.ones(2, 2)], rho=0.1)
    loss = lambda params: params[0].square().sum(1) + params[1].pow(4).sum(1)  # noqa: E731
    toy = Toy()
    setting = {"sigma": 0.3, "particles": 10, "truncation": 10, "horizon": 100}
    loop = OuterLoop(toy, torch.zeros(1, 2).double(), **setting)
    nets.step(loss), loop.run()
    stacks, loops = [nets, *copies(nets)], [loop, *copies(loop)]
    for other in stacks:
        for _ in range(3):
            other.step(loss)
    assert all(torch.equal(other.flat, nets.flat) for other in stacks)
    ends = [other.run(2) for other in loops]
    assert all(torch.equal(end, ends[0]) for end in ends)


@BOTH
def test_a_closure_returns_the_loss_alone(fused):
    model = net()
    opt = SAM(model.parameters(), "SGD", lr=0.1, fused=fused)
    before = weights(model)
    for result in ((1.0, 2.0), {}, torch.ones(3), None):
        with pytest.raises(ValueError, match="closure: returned"):
            opt.step(lambda result=result: (closure(model, opt)(), result)[1])
        assert torch.equal(weights(model), before)
    with pytest.raises(ValueError, match="losses: returned tuple"):
        Stack([torch.ones(2, 1)]).step(lambda params: (params[0].sum(1), 0))
    with pytest.raises(ValueError, match="loss: returned tuple"):
        hvp(lambda t: (t.sum(), 0), torch.ones(2))


# Kinds of numbers.


def test_a_dtype_is_supported_or_refused_by_name():
    half = torch.bfloat16
    for call in (lambda: ridges(lambda t: -t.square().sum(), torch.ones(3, dtype=half)),
                 lambda: ride(lambda t: -t.square().sum(), torch.ones(3, dtype=half), torch.eye(3)),
                 lambda: saddle(lambda t: t.prod(), torch.ones(1, 2, dtype=half)),
                 lambda: lanczos(lambda v: v, 3, dtype=half),
                 lambda: lanczos(lambda v: v, 3, start=torch.ones(3, dtype=torch.int64)),
                 lambda: hvp(lambda t: t.sum(), torch.ones(3, dtype=torch.int64)),
                 lambda: CMAES(torch.zeros(3, dtype=half), 1.0, 8, seeded()),
                 lambda: OpenES(torch.zeros(3, dtype=torch.int64), 1.0, 8, seeded()),
                 lambda: returns_to_go(torch.ones(3, dtype=half), torch.ones(3).bool()),
                 lambda: PES(Toy(), sigma=0.1, particles=8, truncation=1, horizon=4).step(
                     torch.ones(2, dtype=half))):  # fmt: skip
        with pytest.raises(ValueError, match=r"torch\.float32, torch\.float64"):
            call()
    assert checkpoint.digest(torch.ones(3, dtype=half)) != checkpoint.digest(
        torch.zeros(3, dtype=half)
    )
    assert check_positive("x", 1e40) == 1e40 and check_positive("x", 1e-50) == 1e-50


def test_apple_gpus_by_name_only(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert runtime.device().type in ("cpu", "cuda") and runtime.device("mps").type == "mps"


# What numpy.asarray takes.


def test_arrays_of_any_kind():
    pandas = pytest.importorskip("pandas")
    x = np.array([1.0, 3.0, 2.0])
    kinds = [x, x[::-1][::-1], x.astype(">f8"), x.astype(object), x.astype(np.longdouble),
             pandas.Series(x, index=["a", "b", "c"]), pandas.Series(x, index=[7, 8, 9]), list(x)]  # fmt: skip
    for kind in kinds:
        assert naive([kind], 2).tolist() == [[2.0, 2.0]]
        assert smape(kind, kind).item() == 0
        assert membership(np.asarray(x)[:, None], [[2.0]]).inside.item()
        assert as_tensor("x", kind).tolist() == [1.0, 3.0, 2.0]
    frame = pandas.DataFrame({"a": x, "b": x})
    with pytest.raises(ValueError, match="for c in df"):
        naive(frame, 2)
    assert membership(frame, frame).inside.all()
    Trajectories(frame, x[:, None], x, [3])
    with pytest.raises(ValueError, match="masked"):
        as_tensor("x", np.ma.array(x, mask=[0, 1, 0]))
    odd = [["a", "b"], ["1", "2"], np.array(["2020-01-01"], "datetime64[D]"), np.array([1 + 2j]).astype("c32"),
           b"123", np.array(["1", 2], object)]  # fmt: skip
    for kind in odd:
        with pytest.raises(ValueError, match="no array"):
            as_tensor("x", kind)


def test_panels_on_which_a_loss_is_zero_whatever_is_forecast():
    still = [torch.full((30,), 5.3), torch.full((25,), 2.0)]
    wave = [torch.arange(32.0) % 4]
    for series, kind, how in ((still, "mase", {}), (wave, "mase", {"period": 4}),
                              ([torch.zeros(30)], "mape", {})):  # fmt: skip
        model = Forecasters([Member(8, kind)], 2, layers=2)
        before = model.weights.detach().clone()
        with pytest.raises(ValueError, match="undefined"):
            model.fit(series, 2, batch=4, **how)
        assert torch.equal(model.weights, before)
    Forecasters([Member(8, "smape")], 2, layers=2).fit(still, 2, batch=4)
    for value in (1e-300, 1e300):
        with pytest.raises(ValueError, match="range"):
            Forecasters([Member(8)], 2, layers=2).fit([value * torch.arange(9.0).double()], 1)


# Command lines.


@pytest.mark.slow
@pytest.mark.parametrize("words", [
    ["-m", "experiments.sam", "--tiny", "--runs", "FILE"],
    ["-m", "experiments.nbeats", "--tiny", "--out", "x.json"],
    ["-m", "experiments.bmg", "--tiny", "--runs", ""],
    ["-m", "experiments.sam", "--tiny", "--seed", "3"],
    ["-m", "experiments.sam", "--tiny", "--seeds", "0"],
    ["-m", "experiments.sam", "--preset", "mnist10k"],
    ["-m", "benchmarks.sam", "--rounds", "0"],
    ["-m", "tools.chapters", "doesnotexist"],
    ["-m", "tools.audit", "--jobs", "0"],
    ["-m", "tools.tally", "beg", "x"],
    ["tools/report.py"],
])  # fmt: skip
def test_a_command_line_that_cannot_be_meant(words, tmp_path):
    (tmp_path / "file").write_text("")
    words = [str(tmp_path / "file") if w == "FILE" else w for w in words]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path),
           "XDG_CACHE_HOME": str(tmp_path), "COLLAGE_DATA": str(tmp_path / "nothing"), "http_proxy": "x"}  # fmt: skip
    if words[0] != "-m":
        words[0] = str(ROOT / words[0])
    found = subprocess.run([sys.executable, *words], cwd=tmp_path if words[0] != "-m" else ROOT, env=env,
                           capture_output=True, text=True, check=False, timeout=120)  # fmt: skip
    assert found.returncode == 2, found.stderr
    assert "Traceback" not in found.stderr and found.stderr.strip()
    assert not list(tmp_path.glob("*.json")) and not (ROOT / "x.json").exists()
