"""Launches, waits and copies of a step of what is worth a GPU: `python -m tests.gpu.launches`.

Counted on the pretended GPU and written to results/gpu/launches.json, which `test_launches` holds: a
launch is an operation that is no view, a lower bound of the kernels of a real GPU. Needs no GPU.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.pretend_cuda import install, installed

if not installed():
    install()

import torch

from collage import convex_hull, nbeats, pes, ridge_rider, sam
from collage.bmg.fast.colours import MetaLoop, colour_step
from collage.bmg.gridworlds import ExactColours
from collage.common.curvature import hvp, lanczos
from collage.common.environments import SwingUp
from collage.convex_hull.fast.pool import Pool
from collage.convex_hull.fast.prices import Prices
from collage.convex_hull.frame import Cloud
from collage.nbeats.panels import Windows
from collage.pes.problems import Toy
from collage.sensory_neuron import Agent, play
from collage.sensory_neuron.fast.graphed import graphed_returns
from tests.bmg.valley import NoisyValley
from tests.gpu import works
from tests.pretend_cuda.graphs import NODES
from tests.pretend_cuda.watch import WATCH
from tools.provenance import record, write_record

PATH = Path(__file__).parents[2] / "results" / "gpu" / "launches.json"
CUDA = torch.device("cuda")
Counts = dict[str, float]
WORKS: dict[str, Callable[[], Counts]] = {}
FEWEST: dict[str, tuple[float, str]] = {}  # kernels that one could need, and why these


def work(name: str, fewest: float, why: str) -> Callable:
    """A step that is counted. fewest: a product of matrices takes along what is done entry by entry."""
    FEWEST[name] = fewest, why
    return lambda counted: WORKS.setdefault(name, counted)


def count(step: Callable[[], object], per: float = 1) -> Counts:
    """Of a step, or of `per` of them: launches outside graphs and in their replays, waits, copies.

    It has run twice before: as it is, and to be recorded.
    """
    NODES.clear()
    step(), step()
    nodes = sum(NODES)
    WATCH.clear()
    step()
    return {"launches": WATCH.launches / per, "in graphs": nodes * WATCH.replays / max(1, len(NODES)) / per,
            "waits": WATCH.waits.total() / per, "copies": WATCH.copies / per}  # fmt: skip


def per_step(train: Callable[[int], object], few: int = 4, more: int = 4) -> Counts:
    """The same of a loop that records by itself: what so many more steps add."""
    found = []
    for steps in (few, few + more):
        NODES.clear()
        WATCH.clear()
        train(steps)
        found.append((WATCH.launches - sum(NODES), sum(NODES), WATCH.waits.total(), WATCH.copies))
    (a, _, b, c), (d, nodes, e, f) = found
    return {"launches": (d - a) / more, "in graphs": float(nodes), "waits": (e - b) / more,
            "copies": (f - c) / more}  # fmt: skip


@work(
    "SAM, 4 tensors",
    15,
    "two passes of 3 forward and 3 back, norm, climb, step; torch's own passes are 14 each",
)
def sam_plain() -> Counts:
    return count(sam_step())


@work("SAM on a flat buffer, 4 tensors", 15, "the same; SAM itself takes 11")
def sam_fused() -> Counts:
    return count(sam_step(fused=True))


@work("SAM captured, 4 tensors", 15, "the same; 28 of them are torch's passes")
def sam_captured() -> Counts:
    return count(sam_step(fused=True, captured=True))


def sam_step(captured: bool = False, **settings: bool) -> Callable[[], object]:
    model, opt, closure = works.sam_of("cuda", torch.float32, **settings)
    run = opt.capture(closure) if captured else lambda: opt.step(closure)
    return lambda: (run(), model)


@work("SAM of an ensemble, one layer", 4, "a pass is one, twice; norm; step")
def sam_ensemble() -> Counts:
    nets = sam.Ensemble([works.normal(3, 4, 2).cuda()], rho=0.1, lr=0.1)
    return count(lambda: nets.step(lambda params: params[0].sin().square().sum((1, 2))))


TOY = {"sigma": 0.3, "particles": 20, "truncation": 10, "horizon": 40}


@work(
    "PES, toy, an outer step",
    1,
    "one kernel, with the particles in registers (`benchmarks.toy_kernel`)",
)
def pes_plain() -> Counts:
    rule = pes.PES(Toy(dtype=torch.float32), **TOY, generator=works.dice("cuda"))
    theta = torch.zeros(2, 2, device="cuda")
    return count(lambda: rule.step(theta))


@work(
    "PES, toy, an outer step of the loop",
    1,
    "the same; the loop takes any problem, and torch starts each operation of the toy by itself",
)
def pes_loop() -> Counts:
    return outer_loop("plain")


@work("PES, toy, an outer step of the captured loop", 1, "the same")
def pes_captured() -> Counts:
    return outer_loop("graph")


def outer_loop(mode: str) -> Counts:
    loop = pes.OuterLoop(Toy(dtype=torch.float32), torch.zeros(2, 2, device="cuda"), **TOY,
                         generator=works.dice("cuda"), mode=mode)  # fmt: skip
    return count(lambda: loop.run(5), per=5 * 4)


@work(
    "N-BEATS, a training step of 2 members",
    97,
    "93 products; draw, loss, norm, Adam. Entries are kernels of their own beside cuBLAS's: rectifier, its slope, sums of biases",
)
def forecasters() -> Counts:
    members = [nbeats.Member(8, "smape", 0), nbeats.Member(12, "mase", 1)]
    stacks = [("trend", 8), ("seasonality", 8)]
    made = nbeats.Ensemble(members, 4, stacks=stacks, device="cuda")
    series = works.panel("cuda")
    return per_step(lambda steps: made.fit(series, steps, batch=8))


@work(
    "Decision Transformer, an offline step",
    67,
    "46 products, 16 normalisations and softmaxes, a draw, and windows, loss, norm, Adam. Entries and sums of biases are autograd's kernels",
)
def offline_one() -> Counts:
    return per_step(lambda steps: works.offline("cuda", "dt", steps, 1))


@work(
    "Decision Transformer, an offline step of 8 members",
    74,
    "the same, and a draw for each member, from its own generator",
)
def offline_eight() -> Counts:
    return per_step(lambda steps: works.offline("cuda", "dt", steps, 8))


@work(
    "Implicit Q, an offline step of 2 members",
    50,
    "41 products, 3 losses, 2 draws, windows, norm, Adam, the slow copy. Entries as above",
)
def offline_values() -> Counts:
    return per_step(lambda steps: works.offline("cuda", "iql", steps))


@work(
    "windows drawn from recorded episodes",
    2,
    "numbers, and one gather; here a kernel for each field",
)
def sampled() -> Counts:
    data, g = works.recorded("cuda"), works.dice("cuda")
    return count(lambda: data.sample(6, 4, g))


@work(
    "windows drawn with weights",
    4,
    "numbers, sums of weights, a search, one gather; the weights are checked each time",
)
def sampled_weighted() -> Counts:
    data, g = works.recorded("cuda"), works.dice("cuda")
    weights = data.balanced()
    return count(lambda: data.sample(6, 4, g, weights))


@work(
    "BMG, a meta-step of two colours, L = 3",
    175,
    "152 products, 16 steps of rollouts, a kernel an update; entries are kernels of their own",
)
def meta_plain() -> Counts:
    learner, life, w = works.colours("cuda")
    return count(lambda: colour_step(learner, life, w, 3))


@work("BMG, a captured meta-step of two colours, L = 3", 175, "the same")
def meta_captured() -> Counts:
    loop = MetaLoop(*works.colours("cuda"), 3)
    return count(loop.run)


@work(
    "swing-up, a step of the captured rollout",
    0.025,
    "all 40 steps in one kernel: `sensory_neuron.fast.kernel`, which a GPU with Triton takes",
)
def graphed() -> Counts:
    weights = Agent(members=2).weights.detach().cuda()
    return count(graphed_returns(weights, torch.zeros(3, 5, device="cuda"), 40, inner=20), 40)


@work(
    "swing-up, a step of play",
    3,
    "gates and cells, scores and code, action and cart; the world and the sensors may be any",
)
def played() -> Counts:
    agent, env = Agent(members=2).cuda(), SwingUp()
    return count(lambda: play(agent, env, torch.zeros(3, 5, device="cuda"), steps=20), 20)


@work("swing-up, the expert's force", 1, "entry by entry")
def expert() -> Counts:
    env, state = SwingUp(), torch.zeros(3, 5, device="cuda")
    return count(lambda: env.expert(state))


def clouds() -> tuple[torch.Tensor, torch.Tensor]:
    return works.normal(800, 5).double().cuda(), works.normal(60, 5, seed=1).double().cuda()


@work(
    "hulls, a pivot of all queries",
    5,
    "prices, the best, direction, ratio test, the inverse's update; queries are in different phases, each with its own masks",
)
def pivot() -> Counts:
    points, queries = clouds()
    cloud = Cloud(points)
    pool = Pool(Prices(cloud, [cloud.n]), cloud.place(queries)[0], [cloud.n])
    pool._serve()
    return count(pool._step)


@work("hulls, a served block", 5, "as a pivot; the blocks it serves are chosen by the host")
def serve() -> Counts:
    points, queries = clouds()
    cloud = Cloud(points)
    pool = Pool(Prices(cloud, [cloud.n]), cloud.place(queries)[0], [cloud.n])
    WATCH.clear()
    pool._serve()
    return {"launches": float(WATCH.launches), "in graphs": 0.0, "waits": float(WATCH.waits.total()),
            "copies": float(WATCH.copies)}  # fmt: skip


@work(
    "hulls, 60 memberships with entries",
    220,
    "as 36 pivots and 8 served blocks, which is what they need",
)
def entries() -> Counts:
    return count(lambda: convex_hull.membership(*clouds()))


@work(
    "Lanczos, a product",
    7,
    "2 of the product, 4 that keep the basis orthogonal, a norm; the host asks whether it has converged",
)
def product() -> Counts:
    A, calls = works.normal(150, 150).cuda(), [0]
    times = hvp(lambda t: t @ (A + A.T) @ t / 4, torch.zeros(150, device="cuda"))

    def counted(v: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return times(v)

    lanczos(counted, 150, 3, "SA", generator=works.dice("cuda"))
    return count(lambda: lanczos(times, 150, 3, "SA", generator=works.dice("cuda")), calls[0])


@work(
    "a ride of two ridges, a round",
    11,
    "8 products of loss, slope and Hessian, eigenvectors, choice, step; the host asks whether a ridge ends",
)
def ride() -> Counts:
    # Where no two eigenvalues are alike: at a symmetric saddle rounding decides what is a ridge.
    loss = works.tanh_loss("cuda", torch.float64)
    start = works.normal(loss.size, seed=2).double().cuda() / 2
    along = ridge_rider.ridges(loss, start).vectors[:2]
    return per_step(lambda n: ridge_rider.ride(loss, start, along, step=0.01, most=n), 1, 2)


@work("N-BEATS, windows of 100 series", 1, "one copy")
def windows() -> Counts:
    series = works.panel("cpu", 100)
    return count(lambda: Windows(series, 8, 4, CUDA))


@work(
    "two colours, the exact gradient",
    5,
    "policy, chances, two systems, slopes; the system's solver asks whether it could",
)
def colours_exact() -> Counts:
    world, theta = ExactColours(2), torch.zeros(2, len(ExactColours(2).start), 4, device="cuda")
    return count(lambda: world.slopes(theta, 1))


@work("valley, a noisy slope", 2, "noise, and the slope")
def slope() -> Counts:
    valley, x = NoisyValley([1.0, 0.1], 0.5), torch.ones(2, 2, device="cuda")
    return count(lambda: valley.slope(x, 0))


def main() -> None:
    rows: list[dict[str, object]] = []
    for name, counted in WORKS.items():
        fewest, why = FEWEST[name]
        rows.append({"step": name, **counted(), "fewest": fewest, "of these": why})
        print(rows[-1], flush=True)
    rows += json.loads(subprocess.run([sys.executable, "-m", "tests.gpu.compiled"], check=True,
                                      capture_output=True, text=True).stdout)  # fmt: skip
    note = ("What a step starts on a GPU, and where the host waits for it: counted on a pretended GPU, "
            "none was used. A launch is an operation that is no view, the least number of kernels; those "
            "in graphs are started together. Copies between host and device are among the waits. "
            "Of a compiled step it is what torch's compiler wrote for a GPU, kernel by kernel. "
            "A test fails where a step starts a tenth more. Fewest: the kernels that one could do with, where "
            "a product of matrices takes along what is done entry by entry; estimated, not built.")  # fmt: skip
    formats = dict.fromkeys(list(rows[0])[1:-1], "{:,.4g}")
    write_record(PATH, record({"table": rows, "formats": formats}, config={"device": "pretended"},
                              seeds=[0], repeats=1, note=note, gpu=False))  # fmt: skip


if __name__ == "__main__":
    main()
