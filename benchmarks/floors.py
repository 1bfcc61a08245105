"""How near our kernels come to what the processor can do: python -m benchmarks.floors [--rounds 3]

The floor of a kernel is what cannot be left out: the multiplications of its matrix products (two
operations each), or the parts that the method is made of: gradients, Hessian products, looks at the
data. Products are held against the rate of one large matrix product in float32, on the same thread and
in the same rounds. Everything else that a kernel does - activations, draws, gathers, the optimiser,
tests - counts as distance from the floor. Writes results/book/floors.json.
"""

import argparse
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.ridge_rider import functional, problem
from benchmarks.timing import alternate, median, quotient, show
from collage import data, runtime
from collage.common.curvature import hvp, lanczos
from collage.common.environments import SwingUp
from collage.convex_hull import membership
from collage.convex_hull.fast.prices import BLOCK
from collage.decision_transformer import DecisionTransformer, Trajectories, fit
from collage.nbeats import Ensemble, Member
from collage.nbeats.fast.gradient import Gradient
from collage.sam import SAM
from collage.sensory_neuron.fast.rollout import fused_returns
from experiments.program import positive
from tools import provenance

SIZE = 1024  # of the large matrix product
D = 913  # weights of a sensory neuron
FORMATS = {"reached (%)": "{:.0f}"}


def counted(function):
    """Operations of the matrix products that a call makes."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def forecasters(g):
    """(work, operations, a call): the gradient of six interpretable networks of the paper's size."""
    shape = {"stacks": [("trend", 256), ("seasonality", 2048)]}
    ensemble = Ensemble([Member(24, "mape", i) for i in range(6)], 6, **shape)
    x, y = torch.rand(6, 1024, 24, generator=g) + 1, torch.rand(6, 1024, 6, generator=g) + 1
    batch = x, torch.ones_like(x, dtype=torch.bool), y, torch.ones_like(y, dtype=torch.bool)
    gradient = Gradient(ensemble.networks, ensemble.weights, 1024)
    return "38 · gradients of six networks, 1,024 windows", counted(lambda: gradient(*batch)), (
        lambda: gradient(*batch))  # fmt: skip


def transformer(g):
    """Ten training steps at the paper's Gym size, 128 units and 3 layers, 64 windows of 20 steps."""
    n, long = 20_000, {"generator": g}
    episodes = Trajectories(torch.randn(n, 11, **long), torch.rand(n, 3, **long) * 2 - 1,
                            torch.rand(n, **long), torch.full((20,), 1000))  # fmt: skip
    model = DecisionTransformer(11, 3, width=128, layers=3, context=20, dropout=0.0)

    def train():
        return fit(model, episodes, 10, batch=64)

    return "34 · ten training steps, 64 windows", counted(train), train


def neurons(g):
    """A thousand episodes of one agent: gates, scores and sums of five sensors, 1,000 steps."""
    weights = 0.01 * torch.randn(1, D, generator=g)
    starts = SwingUp("simple").reset(1000, g)
    steps = int(fused_returns(weights, starts)[1].sum())
    operations = 2 * (5 * (32 * 11 + 16 * 8 + 16) + 16)
    return (
        "33 · 1,000 episodes, compiled",
        steps * operations,
        lambda: fused_returns(weights, starts),
    )


def against_products(rounds):
    """Rows: operations a second in matrix products, as a share of what one large product reaches."""
    g = runtime.generator(0)
    works = [make(g) for make in (neurons, transformer, forecasters)]
    a = torch.randn(SIZE, SIZE, generator=g)
    calls = {"peak": lambda: a @ a} | {name: call for name, _, call in works}
    times = alternate(calls, rounds, 1, 1)
    peak = 2 * SIZE**3 / times["peak"][0]
    for name, operations, _ in works:
        time, spread = times[name]
        share = 100 * operations / time / peak
        yield {"work": name, "floor": "its matrix products, at the rate of a large one",
               "reached (%)": median(share, share * spread / time, rounds)}  # fmt: skip


def against_parts(rounds):
    """Rows: a step of SAM, a Lanczos run and hull decisions against the parts they cannot do without."""
    x, y = data.digits()
    x, y, g = (x[:64] / 16).float(), y[:64], runtime.generator(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    optimizer = SAM(net.parameters(), "SGD", rho=0.05, lr=1e-3, momentum=0.9, fused=True)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        return loss

    module, inputs, labels = problem(4810, torch.device("cpu"))
    loss, params = functional(module, inputs, labels)
    product, made = hvp(loss, params), []
    size = sum(p.numel() for p in params)
    v = torch.randn(size, generator=g)

    def noted(rows):
        made.append(1)
        return product(rows)

    def search():
        made.clear()
        return lanczos(noted, size, 4, "SA", tol=2e-6, steps=600, generator=runtime.generator(1))

    points, queries = (torch.randn(n, 20, generator=g).double() for n in (100_000, 500))
    x32, w32 = points.float(), queries.T.float().contiguous()

    def prices():  # of all points in all directions, once, in pieces that stay in the cache
        return [(piece @ w32).view(-1, BLOCK, len(queries)).amax(1) for piece in x32.split(1024)]

    passes = membership(points, queries).passes
    calls = {"gradient": closure, "SAM": lambda: optimizer.step(closure),
             "product": lambda: product(v), "Lanczos": search, "prices": prices,
             "decisions": lambda: membership(points, queries)}  # fmt: skip
    times = alternate(calls, rounds, 5, 1)
    yield {"work": "36 · SAM's step, 64-256-10, batch 64", "floor": "two gradients",
           "reached (%)": quotient(times["gradient"], times["SAM"], 200, rounds)}  # fmt: skip
    yield {"work": f"40 · four ridges, {size:,} parameters", "floor": f"its {len(made)} Hessian products",
           "reached (%)": quotient(times["product"], times["Lanczos"], 100 * len(made), rounds)}  # fmt: skip
    yield {"work": "39 · 500 decisions, 100,000 points, d = 20",
           "floor": f"{passes:.2f} looks at all points",
           "reached (%)": quotient(times["prices"], times["decisions"], 100 * passes, rounds)}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--rounds", type=positive, default=3)
    args = parser.parse_args()
    runtime.threads(1)
    rows = sorted([*against_products(args.rounds), *against_parts(max(5, args.rounds))],
                  key=lambda row: row["work"])  # fmt: skip
    show(rows, FORMATS)
    note = ("Share of the floor that each kernel reaches on one CPU thread, medians of alternating rounds "
            "± half the range from the 16th to the 84th percentile. Matrix products count two operations "
            "for each multiplication and are held against one product of 1,024 x 1,024 matrices in "
            "float32; activations, random numbers, gathers, optimisers and checks count as distance.")  # fmt: skip
    made = provenance.record({"table": rows, "formats": FORMATS}, config={"rounds": args.rounds, "size": SIZE}, seeds=[0],
                          repeats=args.rounds, note=note, gpu=False)  # fmt: skip
    provenance.write_record(Path(__file__).parent.parent / "results" / "book" / "floors.json", made)


if __name__ == "__main__":
    main()
