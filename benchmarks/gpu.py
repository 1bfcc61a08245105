"""One piece of work on a GPU against its floor: python -m benchmarks.gpu NAME [--tiny] [--out DIR]

The floor is what cannot be left out: bytes that must be read and written once, operations of the matrix
products, and one launch for each step that waits for the one before it. What a byte, an operation and a
launch cost is measured on the same GPU in the same run. Answers are compared first. `make gpu` runs all
of them; each writes <DIR>/<name>.json.
"""

import argparse
import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bmg, jax_peers, pes, ridge_rider, sam
from benchmarks.convex_hull import verify
from benchmarks.decision_transformer import episodes
from benchmarks.sensory_neuron import lean, quiet
from benchmarks.timing import alternate, median, show
from benchmarks.toy_kernel import triton
from collage import runtime
from collage.common.curvature import hvp, lanczos
from collage.common.environments import SwingUp
from collage.common.graph import Captured
from collage.convex_hull import membership
from collage.decision_transformer import DecisionTransformer, fit
from collage.nbeats import Ensemble, Member
from collage.nbeats.fast.gradient import Gradient
from collage.sensory_neuron import Agent, play
from collage.sensory_neuron.fast.graphed import graphed_returns, rollout_kernel
from experiments.program import positive, usable
from tools import provenance
from tools.peers import peer

ROOT = Path(__file__).resolve().parent.parent
CUDA = torch.device("cuda")
FORMATS = {"seconds": "{:.3g}", "goal (s)": "{:.3g}", "floor (s)": "{:.2g}", "reached (%)": "{:.0f}",
           "bytes": "{:.2g}", "operations": "{:.2g}", "launches": "{:,.0f}"}  # fmt: skip


class Work(NamedTuple):
    """What is timed, and the least that it must do."""

    what: str
    programs: dict[str, Callable[[], object]]  # ours first
    goal: float | None  # seconds that ours should take
    bytes: float
    operations: float
    launches: int
    peers: dict[str, str] | None = None  # {name: version}


def agree(what: str, a: torch.Tensor, b: torch.Tensor, tolerance: float) -> None:
    gap = (a - b).abs().max().item()
    if not gap <= tolerance:
        raise SystemExit(f"{what}: two programs differ by {gap:.1e}; nothing was timed")


def counted(function: Callable[[], object]) -> float:
    """Operations of the matrix products of a call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def sensory_neuron(tiny: bool) -> Work:
    """A generation: every agent of a population in its episodes."""
    members, count, steps = (3, 2, 50) if tiny else (256, 16, 1000)
    weights, starts = quiet(members, count, runtime.generator(0))
    w, s = weights.to(CUDA), starts.to(CUDA)
    programs: dict[str, Callable[[], torch.Tensor]] = {"CUDA graph": graphed_returns(w, s, steps)}
    if kernel := rollout_kernel():
        programs = {"Triton kernel": lambda: kernel(w, s, steps)[0], **programs}
    peers = {}
    if version := jax_peers.usable(anywhere=tiny):
        port, peers = lean()["lanes"], {"jax": version}
        programs["JAX, scanned"] = lambda: torch.tensor(port(weights, starts, steps))
    expected = play(Agent(), SwingUp("hard", longest=steps), s, weights=w).returns.mean(1).cpu()
    for name, program in programs.items():
        agree(f"swing-up, {name}", program().mean(1).cpu(), expected, 1e-2)
    products = 2 * (5 * (32 * 11 + 16 * 8 + 16) + 16)
    return Work(f"33 · {members} agents x {count} episodes x {steps:,} steps",
                programs, 0.020, 4.0 * (w.numel() + s.numel() + members * count),
                float(members * count * steps * products), 1, peers)  # fmt: skip


def nbeats(tiny: bool) -> Work:
    """Members of Tourism's shape, trained together: 24 windows back, 6 ahead; series are made up."""
    members, width, steps, series = (2, 16, 4, 4) if tiny else (120, 512, 500, 366)
    g = runtime.generator(0)
    panel = [torch.rand(300, generator=g).add(1).to(CUDA) for _ in range(series)]
    stacks = [("trend", width // 2), ("seasonality", width)]

    def make() -> Ensemble:
        return Ensemble(
            [Member(24, "mape", i) for i in range(members)], 6, stacks=stacks, device=CUDA
        )

    ensemble, batch = make(), 1024 if not tiny else 8

    def train(compiled: bool, steps: int = steps) -> torch.Tensor:
        return make().fit(panel, steps, batch=batch, compiled=compiled)

    agree("forecasters, compiled", train(False, 3), train(True, 3), 1e-3)
    x = torch.rand(members, batch, 24, device=CUDA, generator=runtime.generator(1, CUDA)) + 1
    y, known = x[..., :6], torch.ones_like(x, dtype=torch.bool)
    gradient = Gradient(ensemble.networks, ensemble.weights, batch)
    operations = counted(lambda: gradient(x, known, y, known[..., :6]))
    return Work(f"38 · {members} forecasters, {steps} steps of {batch:,} windows", {"ours": lambda: train(False), "ours, compiled": lambda: train(True)}, None,
                28.0 * steps * ensemble.weights.numel(), steps * operations, steps)  # fmt: skip


def convex_hull(tiny: bool) -> Work:
    """Is each query in the hull? Decisions alone."""
    m, n, d = (20, 500, 4) if tiny else (10_000, 1_000_000, 20)
    kind = {"generator": runtime.generator(0, CUDA), "device": CUDA, "dtype": torch.float64}
    x, z = torch.randn(n, d, **kind), torch.randn(m, d, **kind)
    found = membership(x, z)
    verify(membership(x, z[:20]), x, z[:20])
    return Work(f"39 · {m:,} decisions, {n:,} points, d = {d}", {"ours": lambda: membership(x, z)}, 0.1,
                8.0 * (n + m) * d, 2 * found.passes * n * m * d, d)  # fmt: skip


def pes_toy(tiny: bool) -> Work:
    """Outer steps of the toy, 30 runs at once."""
    runs, steps = (2, 40) if tiny else (30, 20_000)
    graph = functools.partial(pes.ours_looped, runs, steps, 0, "graph", CUDA)
    few = (
        pes.ours_looped(runs, 20, 0, "graph", CUDA)[1],
        pes.ours_looped(runs, 20, 0, "plain", CUDA)[1],
    )
    agree("toy", *few, 1e-4)
    programs = {"CUDA graph": lambda: graph()[1]}
    if triton is not None:
        programs["Triton kernel"] = lambda: pes.ours_triton(runs, steps, 0)[1]
    peers = {}
    if jax_peers.usable(anywhere=tiny) and (found := peer("evosax")):
        programs["evosax, scanned"] = lambda: pes.evosax(runs, steps, 0, True)[1]
        peers = {"evosax": found[1]}
    return Work(f"35 · {steps:,} outer steps of {runs} runs", programs, 1.0, 400.0 * runs * steps, 0.0,
                steps, peers)  # fmt: skip


def sam_step(tiny: bool) -> Work:
    """A step whose network is so small that launches are all there is."""
    name = "5 x 64 MLP, batch 32"
    model, x, y = sam.networks(torch.device("cpu"))[name]
    model, x, y = model.to(CUDA), x.to(CUDA), y.to(CUDA)
    few = 3 if tiny else 20
    ways, _ = sam.steppers(model, x, y)
    sam.check_equal(ways, few)
    reached = ways["ours"][0]().cpu()
    ways, peers = sam.steppers(model, x, y)
    programs = {way: step for way, (_, step) in ways.items()}
    if version := jax_peers.usable(anywhere=tiny):
        port = functools.partial(jax_peers.sam_step, model, x, y, sam.RHO, **sam.SETTINGS)
        step, weights = port()
        for _ in range(few):
            step()
        agree("SAM, JAX", weights(), reached, 1e-5)
        programs["JAX, jitted"], peers = port()[0], {**peers, "jax": version}
    order = ["ours, graph", *(way for way in programs if way != "ours, graph")]
    loss = copy.deepcopy(model)
    operations = counted(lambda: torch.nn.functional.cross_entropy(loss(x), y).backward())
    size = sum(p.numel() for p in model.parameters())
    return Work(f"36 · a step of SAM, {name}", {way: programs[way] for way in order}, None,
                40.0 * size, 2 * operations, 24, peers)  # fmt: skip


def ridges(tiny: bool) -> Work:
    """The four lowest eigenpairs of a Hessian of a million parameters."""
    size = 1210 if tiny else 999_985
    net, x, y = ridge_rider.problem(size, CUDA)
    loss, params = ridge_rider.functional(net, x, y)
    product, made = hvp(loss, params), []

    def noted(rows: torch.Tensor) -> torch.Tensor:
        made.append(1)
        return product(rows)

    def search() -> torch.Tensor:
        made.clear()
        return lanczos(noted, size, 4, "SA", tol=2e-6, steps=600, device=CUDA,
                       generator=runtime.generator(1, CUDA)).values  # fmt: skip

    exact = ridge_rider.truth(copy.deepcopy(net).double(), x, y)
    agree("ridges", search().double() / exact, torch.ones_like(exact), 1e-3)
    v = torch.randn(size, device=CUDA, generator=runtime.generator(2, CUDA))
    n = len(made)
    return Work(f"40 · four ridges, {size:,} parameters", {"ours": search}, None,
                4.0 * size * n * n / 2, n * counted(lambda: product(v)), 6 * n)  # fmt: skip


def lifetimes(tiny: bool) -> Work:
    """Meta-steps of two colours, so many lifetimes at once, as one graph."""
    many = 4 if tiny else 1024
    see, settings = bmg.SETTINGS["2 x 32, 8 walkers"]
    loops = bmg.loops(see, settings, many, ("plain", "graph", "compiled"))
    for name, loop in loops.items():
        loop.run(2)
        near = bmg.alike(loops["plain"], loop).double().mean().item()
        if near <= 0.95:
            raise SystemExit(f"lifetimes, {name}: {near:.0%} of them alike; nothing was timed")
    size = sum(
        p[0].numel() for net in (loops["graph"].life.actor, loops["graph"].life.critic) for p in net
    )
    steps = 2 if tiny else 20
    updates = steps * (bmg.L + 2)
    return Work(f"37 · {steps} meta-steps of {many:,} lifetimes",
                {"CUDA graph": lambda: loops["graph"].run(steps),
                 "compiled, in a CUDA graph": lambda: loops["compiled"].run(steps)}, None, updates * 16.0 * size * many, 0.0,
                updates * 16)  # fmt: skip


def transformers(tiny: bool) -> Work:
    """Training steps of decision transformers stacked: 64 windows of 20 steps each."""
    members, steps = (2, 3) if tiny else (8, 200)
    shape = {"width": 16 if tiny else 128, "layers": 1 if tiny else 3, "context": 4 if tiny else 20}
    data = episodes(CUDA, 4 if tiny else 100, 50 if tiny else 1000)
    kind = data.states.shape[1], data.actions.shape[1]

    def made(**kwargs: int) -> DecisionTransformer:
        return DecisionTransformer(*kind, longest=1000, dropout=0.0, **shape, **kwargs).to(CUDA)

    stack, single = made(members=members), made(seed=0)
    agree("transformers", fit(stack, data, 3)[:, :1], fit(single, data, 3), 1e-4)
    both = (fit(made(members=members), data, 3, compiled=way) for way in (False, True))
    agree("transformers, compiled", *both, 1e-4)
    operations = counted(lambda: fit(made(members=members), data, 1))
    size = sum(p.numel() for p in stack.parameters())
    return Work(f"34 · {steps} training steps of {members} transformers",
                {"ours, stacked": lambda: fit(stack, data, steps),
                 "ours, stacked and compiled": lambda: fit(stack, data, steps, compiled=True)}, None, 28.0 * size * steps,
                float(operations * steps), steps)  # fmt: skip


WORKS = {"sensory_neuron": sensory_neuron, "nbeats": nbeats, "convex_hull": convex_hull, "pes": pes_toy,
         "sam": sam_step, "ridge_rider": ridges, "bmg": lifetimes,
         "decision_transformer": transformers}  # fmt: skip


def rates(tiny: bool) -> dict[str, float]:
    """Bytes a second of a copy, operations a second of a product, seconds a launch in a graph."""
    size, long, nodes = (64, 1 << 12, 20) if tiny else (8192, 1 << 28, 1000)
    a, line = torch.ones(size, size, device=CUDA), torch.ones(long, device=CUDA)
    other = torch.empty_like(line)

    def chain(x: torch.Tensor) -> tuple[torch.Tensor]:
        for _ in range(nodes):
            x = x + 1
        return (x,)

    graph, one = Captured(chain), torch.zeros(1, device=CUDA)
    calls = {
        "copy": lambda: other.copy_(line),
        "product": lambda: a @ a,
        "graph": lambda: graph(one),
    }
    times = alternate(calls, 5, 1, 2)
    return {"bytes": 8 * long / times["copy"][0], "operations": 2 * size**3 / times["product"][0],
            "launches": nodes / times["graph"][0]}  # fmt: skip


def rows(work: Work, rate: dict[str, float], rounds: int) -> list[dict[str, object]]:
    """A row for each program: seconds, and what the floor takes of them."""
    least = {name: getattr(work, name) for name in rate}
    floor = max(least[name] / rate[name] for name in rate)
    table: list[dict[str, object]] = []
    for name, call in work.programs.items():
        try:
            seconds, spread = alternate({name: call}, rounds, 1, 1)[name]
        except Exception as error:  # a peer that does not get along with this GPU
            if not table:
                raise
            print(f"not run: {name} ({type(error).__name__}: {error})"[:300])
            continue
        mine: dict[str, object] = {"work": work.what, "program": name}
        mine |= {"seconds": median(seconds, spread, rounds), "goal (s)": "-", "floor (s)": floor}
        if work.goal is not None and not table:
            mine["goal (s)"] = work.goal
        table.append(mine | {"reached (%)": 100 * floor / seconds} | least)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("name", choices=WORKS)
    parser.add_argument("--tiny", action="store_true", help="sizes that take seconds")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--out", type=usable, default=ROOT / "results" / "gpu")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA here")
    runtime.threads(1)
    rate = rates(args.tiny)
    work = WORKS[args.name](args.tiny)
    if args.tiny:
        work = work._replace(goal=None)
    table = rows(work, rate, args.rounds)
    show(table, FORMATS)
    note = ("Seconds are medians of rounds ± half the range from the 16th to the 84th percentile. The floor "
            "is the longest of three: bytes at the rate of a copy, operations of matrix products at the "
            "rate of a large float32 product, and launches that wait for each other, at the rate of a "
            "graph's.")  # fmt: skip
    made = provenance.record({"table": table, "formats": FORMATS, "rates": rate}, seeds=[0], note=note,
                             config={"name": args.name, "tiny": args.tiny, "rounds": args.rounds},
                             repeats=args.rounds, peers=work.peers or {})  # fmt: skip
    provenance.write_record(args.out / f"{args.name}.json", made)


if __name__ == "__main__":
    main()
