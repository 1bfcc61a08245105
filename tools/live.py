"""Write what the live figures read (assets/live/*.json): python -m tools.live [convex_hull ...]"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from collage import data, runtime
from collage.common.environments import SwingUp
from collage.convex_hull import gaussian_inside_probability
from collage.decision_transformer import DecisionTransformer, collect, fit
from collage.decision_transformer.worlds import Walks
from collage.nbeats import NBeats
from collage.sensory_neuron import Plain, trained

LIVE = Path(__file__).resolve().parent.parent / "assets" / "live"


def convex_hull() -> dict[str, Any]:
    """The exact shares of new Gaussian points inside, for d = 2 ... 12."""
    return {"inside": {str(n): [round(gaussian_inside_probability(n, d), 6) for d in range(2, 13)]
                       for n in (10, 20, 50, 200)}}  # fmt: skip


def sensory_neuron() -> dict[str, Any]:
    """The evolved agent, and an ordinary network that learned from the controller by hand."""
    env, g, states = SwingUp("hard"), runtime.generator(0), []
    state = env.reset(400, g)
    for _ in range(400):
        states.append(state)
        push = env.expert(state) + 0.2 * torch.randn(len(state), 1, generator=g)
        step = env.step(state, push)
        state = step.state[~step.terminated]
    seen = torch.cat(states)
    network = Plain([5, 64, 64, 1])
    network.fit(env.observe(seen), env.expert(seen), 4000, g)
    weights = torch.cat([p.flatten() for p in network.params])
    return {"agent": digits(trained().weights.detach().flatten()), "ordinary": digits(weights)}


def digits(values: torch.Tensor) -> list[float]:
    """Numbers as short as float32 can be told apart by eye: six digits."""
    return [float(f"{v:.6g}") for v in values.tolist()]


def decision_transformer() -> dict[str, Any]:
    """A small model trained on random walks over the graph of the figure."""
    edges = torch.zeros(11, 11).long()
    for node, ways in WAYS.items():
        edges[node, ways] = 1
    edges[0, 0] = 1  # nobody leaves the goal
    world, g = Walks(edges, 0), runtime.generator(0)
    episodes = collect(world, world.wander, 1000, g)
    width, layers, heads = 24, 2, 2
    model = DecisionTransformer(11, 11, width=width, layers=layers, heads=heads, context=3,
                                longest=10, discrete=True, dropout=0.0)  # fmt: skip
    fit(model.units(torch.zeros(11), torch.ones(11), 10.0), episodes, 1500, lr=3e-3)
    weights = (model.weights.detach().flatten() / UNIT).round().int().tolist()
    return {
        "width": width,
        "layers": layers,
        "heads": heads,
        "scale": 10,
        "unit": UNIT,
        "weights": weights,
    }


WAYS = {1: [0, 3, 5], 2: [0, 4, 8], 3: [1, 5, 4], 4: [2, 6, 3], 5: [3, 7, 6],
        6: [4, 8, 9], 7: [5, 9, 8], 8: [6, 10, 7], 9: [7, 10], 10: [8, 9]}  # fmt: skip
UNIT = 1e-4


def nbeats() -> dict[str, Any]:
    """A small interpretable network for two monthly series, trained on all but their last two years."""
    kept = {"co2": data.series("co2_monthly"), "sea": data.series("elnino")}
    lookback, horizon, stacks, layers, blocks = 48, 24, [("trend", 24), ("seasonality", 48)], 2, 2
    model = NBeats(lookback, horizon, stacks=stacks, layers=layers, blocks=blocks)
    past = [s[:-horizon] for s in kept.values()]
    model.fit(past, 4000, batch=64)
    sizes = {
        "lookback": lookback,
        "horizon": horizon,
        "stacks": stacks,
        "layers": layers,
        "blocks": blocks,
    }
    last = {name: digits(s[-lookback - horizon :]) for name, s in kept.items()}
    return {**sizes, "series": last, "weights": digits(model.ensemble.weights.detach().flatten())}


FILES: dict[str, Callable[[], dict[str, Any]]] = {
    "convex_hull": convex_hull,
    "decision_transformer": decision_transformer,
    "nbeats": nbeats,
    "sensory_neuron": sensory_neuron,
}


def write(name: str) -> None:
    path = LIVE / f"{name}.json"
    path.write_text(json.dumps(FILES[name](), separators=(",", ":")) + "\n")
    print(f"{path.relative_to(LIVE.parent.parent)}: {path.stat().st_size:,} bytes")


def main(names: list[str]) -> int:
    """Exit code 2 for a figure that reads no file."""
    for name in names or FILES:
        if name not in FILES:
            print(f"NAME: got {name!r}, wanted one of {', '.join(FILES)}", file=sys.stderr)
            return 2
        write(name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
