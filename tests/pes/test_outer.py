"""The outer loop as one program, held equal to PES with torch's Adam."""

import os

import pytest
import torch

from collage import runtime
from collage.common.environments import CartPole, MountainCar
from collage.pes import PES, OuterLoop
from collage.pes.problems import Control, Influence, Schedule, Toy
from experiments.pes import LayerSchedule, LearnedOptimiser
from tests.pes.helpers import build, functions, seeded

TOY = Toy()
STARTS = torch.tensor([[-4.0, -4.0], [-3.0, -4.0]]).double()
SETTING = {"particles": 20, "truncation": 10, "horizon": 100}


def plainly(sigma, steps):
    theta = STARTS.clone()
    pes, adam = build(PES, TOY, sigma, *SETTING.values(), seeded()), torch.optim.Adam([theta], 1e-2)
    for _ in range(steps):
        theta.grad = pes.step(theta)
        adam.step()
    return theta


@pytest.mark.parametrize("mode, sigma", [
    ("plain", 0.3),
    ("plain", torch.tensor([0.1, 0.4])),
    pytest.param("compile", 0.3, marks=pytest.mark.slow),
])  # fmt: skip
def test_outer_loop_is_pes_and_adam(mode, sigma):
    start = STARTS.clone()
    loop = OuterLoop(TOY, start, sigma=sigma, **SETTING, generator=seeded(), mode=mode)
    try:
        theta = loop.run(2)
    except Exception as error:
        if mode == "compile" and "compiler" in str(error).lower():
            pytest.skip("no C++ compiler here")
        if mode == "compile" and os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2"):
            pytest.skip("torch's own compiler fails for a processor that is only pretended")
        raise
    assert torch.allclose(theta, plainly(sigma, 20), atol=1e-6)
    assert torch.equal(start, STARTS)


def test_a_loop_goes_on_where_it_stopped():
    once = OuterLoop(TOY, STARTS, sigma=0.3, **SETTING, generator=seeded())
    parts = OuterLoop(TOY, STARTS, sigma=0.3, **SETTING, generator=seeded())
    parts.run(1)
    assert torch.equal(once.run(3), parts.run(2))


def test_a_run_that_fails_changes_nothing():
    resets = []

    def second_fails(n, generator):
        resets.append(n)
        if len(resets) == 2:
            raise KeyboardInterrupt
        return TOY.reset(n, generator)

    problem = functions(TOY.unroll, second_fails)
    fine = OuterLoop(TOY, STARTS, sigma=0.3, **SETTING, generator=seeded())
    broken = OuterLoop(problem, STARTS, sigma=0.3, **SETTING, generator=seeded())
    with pytest.raises(KeyboardInterrupt):
        broken.run(2)
    assert torch.equal(broken.adam.theta, STARTS) and not broken.adam.mean.any()
    assert torch.equal(broken.run(2), fine.run(2))
    nan = functions(lambda t, s, k: (s, t.sum(1) * torch.nan), TOY.reset)
    loop = OuterLoop(nan, STARTS, sigma=0.3, **SETTING)
    with pytest.raises(ValueError, match="inf or NaN"):
        loop.run()
    assert torch.equal(loop.adam.theta, STARTS)


def test_bad_input():
    good = {"theta": STARTS, "sigma": 0.3, **SETTING}
    for change, word in (({"theta": STARTS[0]}, "theta"), ({"theta": [1.0]}, "theta"),
                         ({"theta": STARTS.half()}, "theta"), ({"particles": 5}, "particles"),
                         ({"particles": "4"}, "particles"), ({"horizon": 95}, "horizon"),
                         ({"horizon": 0}, "horizon"), ({"sigma": -0.1}, "sigma"),
                         ({"sigma": torch.ones(3)}, "sigma"), ({"lr": -1}, "lr"),
                         ({"generator": 5}, "generator"), ({"mode": "fast"}, "mode"),
                         ({"mode": "graph"}, "CUDA"), ({"problem": None}, "problem")):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            OuterLoop(**{"problem": TOY, **good, **change})


@pytest.mark.cuda
@pytest.mark.parametrize(
    "name", ["toy", "influence", "schedule", "layers", "optimiser", "pole", "car"]
)
def test_every_problem_can_be_recorded(name):
    """As a graph and step by step: the same parameters after three inner problems."""
    g = runtime.generator(0)
    x, y = torch.randn(40, 6, generator=g).cuda(), torch.randint(3, (40,), generator=g).cuda()
    make = {"toy": lambda: Toy(dtype=torch.float32), "influence": Influence,
            "schedule": lambda: Schedule(x, y, hidden=4, batch=8),
            "layers": lambda: LayerSchedule(x, y, hidden=4, batch=8),
            "optimiser": lambda: LearnedOptimiser(x, y, hidden=4, batch=8, units=4),
            "pole": lambda: Control(CartPole()), "car": lambda: Control(MountainCar())}  # fmt: skip
    size = {"toy": 2, "influence": 1, "schedule": 2, "layers": 12}
    ends = []
    for mode in ("plain", "graph"):
        problem = make[name]()
        theta = torch.zeros(2, size.get(name) or problem.size, device="cuda")
        loop = OuterLoop(problem, theta, sigma=0.1, particles=8, truncation=5, horizon=20,
                         generator=runtime.generator(1, "cuda"), mode=mode)  # fmt: skip
        ends.append(loop.run(3))
    assert torch.allclose(*ends, rtol=1e-3, atol=1e-5)


@pytest.mark.cuda
def test_a_recorded_run_that_fails_changes_nothing():
    """After the recording, too: theta, the moments and the generator are as they were."""
    loops = [
        OuterLoop(Toy(dtype=torch.float32), STARTS.float().cuda(), sigma=0.3, **SETTING,
                  generator=runtime.generator(0, "cuda"), mode="graph") for _ in range(2)
    ]  # fmt: skip
    for loop in loops:
        loop.run(3)
    theta = loops[0].adam.theta
    theta[0, 0], kept = torch.nan, theta[0, 0].clone()
    with pytest.raises(ValueError, match="inf or NaN"):
        loops[0].run(2)
    theta[0, 0] = kept
    assert torch.equal(loops[0].run(2), loops[1].run(2))
