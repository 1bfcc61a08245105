"""The swing-up at full scale: the 913-parameter agent trained from nothing, and by cloning.

    python -m experiments.sensory_neuron --preset es        # CMA-ES, tens of thousands of episodes a second
    python -m experiments.sensory_neuron --preset openes
    python -m experiments.sensory_neuron --preset clone     # students of an ordinary network, several seeds
    torchrun --nproc-per-node 8 -m experiments.sensory_neuron --preset es
    python -m experiments.sensory_neuron --tiny             # seconds, for tests

A job is one seed. The population of a search is shared out to the ranks, each knows all fitness, and
the search does not depend on their number; clones are dealt to the ranks. Searches are checkpointed
and finished jobs kept: the same command started again goes on there, bit for bit.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import math
import time
from pathlib import Path

import torch

from collage import runtime
from collage.environments import SwingUp
from collage.evolution import Shard
from collage.sensory_neuron import Agent, Plain, Sensors, clone, fused_returns, play
from collage.strategies import CMAES, OpenES, score

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Config:
    name: str
    task: str  # cma | openes | clone
    seeds: int = 1
    population: int = 128
    generations: int = 20_000
    sigma: float = 0.1
    lr: float = 0.03  # of openes, and of a student
    hard: int = 8  # starts of a generation from the hard task; and from the others:
    hanging: int = 0  # within 0.2 of hanging still
    upright: int = 8  # within 0.5 rad of upright, moving at up to 1 m/s and rad/s
    steps: int = 1000
    every: int = 100  # generations between two looks at the mean
    look: int = 500  # episodes of such a look
    episodes: int = 1000  # of the last test
    rounds: int = 12  # of a student
    updates: int = 150
    collected: int = 150


PRESETS = {
    "es": Config("es", "cma"),
    "openes": Config("openes", "openes"),
    "clone": Config("clone", "clone", seeds=3, lr=0.015),
    "tiny": Config("tiny", "cma", population=8, generations=12, hard=2, upright=2,
                   steps=60, every=4, look=8, episodes=8),
}  # fmt: skip


TESTS = {
    "5 sensors": {},
    "shuffled": {"shuffle": "episode"},
    "10 sensors, each twice": {"shuffle": "episode", "copies": 2},
    "5 + 5 of noise": {"shuffle": "episode", "noise": 5},
    "5 + 10 of noise": {"shuffle": "episode", "noise": 10},
    **{f"new order every {t} steps": {"shuffle": t} for t in (500, 200, 100, 50, 25)},
}


def starts(config, generation, seed):
    """The starts of a generation (R, 4), the same for all of its members."""
    g = runtime.generator(runtime.seed_for(seed, "starts", generation))
    wide = {"hard": (SwingUp.track, 10.0, math.pi / 2, 10.0), "upright": (1.5, 1.0, 0.5, 1.0)}
    counts = {name: getattr(config, name) for name in ("hard", "hanging", "upright")}
    parts = []
    for name, n in counts.items():
        if name == "hanging":
            draw = 0.2 * torch.randn(n, 4, generator=g)
        else:
            draw = (2 * torch.rand(n, 4, generator=g) - 1) * torch.tensor(wide[name])
        parts.append(draw + torch.tensor([0, 0, 0.0 if name == "upright" else math.pi, 0]))
    return torch.cat(parts)


def fitness(weights, first, steps):
    """Mean returns (E,) of agents from the same starts."""
    return fused_returns(weights, first, steps)[0].mean(1)


def look(weights, episodes, seed, steps=1000):
    """Returns of agents (E, 913) in the hard task: mean, and the share above 600, (E,) each."""
    g = runtime.generator(runtime.seed_for(seed, "look"))
    found, _ = fused_returns(weights, SwingUp("hard").reset(episodes, g), steps)
    return found.mean(1).tolist(), (found > 600).float().mean(1).tolist()


def search(config, setting, path, writer):
    """Weights found by evolution, and how well the mean of the search did on the way."""
    seed, shard = setting["seed"], Shard()
    mean, g = torch.zeros(Agent().weights.shape[1]), runtime.generator(seed)
    kind = {"sigma": config.sigma, "population": config.population, "generator": g}
    method = (
        CMAES(mean, gap=20, **kind) if config.task == "cma" else OpenES(mean, lr=config.lr, **kind)
    )
    said = {"config": dataclasses.asdict(config), "setting": setting}
    kept, done = runtime.resume(path, said)
    curve, best = kept.pop("curve", torch.zeros(0, 4)), kept.pop("best", torch.zeros(914))
    if kept:
        method.restore(kept)
    begin = time.perf_counter()
    for generation in runtime.steps_from(done, config.generations, writer):
        worth = functools.partial(
            fitness, first=starts(config, generation, seed), steps=config.steps
        )
        method.tell(score(worth, method.ask(), shard))
        if (generation + 1) % config.every == 0:
            (mean,), (share,) = look(method.mean[None], config.look, seed, config.steps)
            row = torch.tensor([[generation + 1, mean, share, float(method.sigma)]])
            curve = torch.cat([curve, row])
            if mean > best[0] or generation + 1 == config.every:
                best = torch.cat([torch.tensor([mean]), method.mean])
            if writer:
                state = {**method.state(), "curve": curve, "best": best}
                runtime.save(path, state, {"setting": said, "done": generation + 1})
                spent = time.perf_counter() - begin
                print(f"generation {generation + 1}: {mean:.0f}, above 600: {share:.0%}, sigma "
                      f"{float(method.sigma):.3f}, {spent:.0f} s", flush=True)  # fmt: skip
    return best[None, 1:], {"curve": curve.tolist()}


def teacher():
    """An ordinary network, cloned from the controller by hand: it needs its sensors in order."""
    env, g = SwingUp("hard"), runtime.generator(11)
    state = env.reset(400, g)
    seen, wanted = [], []
    for _ in range(400):
        action = env.expert(state)
        seen.append(env.observe(state)), wanted.append(action)
        push = action + 0.2 * torch.randn(action.shape, generator=g)
        step = env.step(state, push)
        state = step.state[~step.terminated]
    net = Plain([5, 64, 64, 1], seed=1)
    net.fit(torch.cat(seen), torch.cat(wanted), 3000, g)
    return net


def student(config, setting):
    """Weights of an agent that has learned from `teacher`."""
    env, net, agent = SwingUp("hard"), teacher(), Agent(seed=setting["seed"])
    g = runtime.generator(runtime.seed_for(setting["seed"], "student"))

    def begin(n, generator):
        state = env.reset(3 * n, generator)
        return state[env.savable(state)][:n]

    losses = clone(agent, net, env, begin, g, rounds=config.rounds, updates=config.updates,
                   episodes=config.collected, lr=config.lr, progress=True)  # fmt: skip
    return agent.weights.detach(), {"curve": losses[:: config.every, 0].tolist()}


def run_job(config, setting, folder, writer=True):
    said = json.dumps({"config": dataclasses.asdict(config), "setting": setting}, sort_keys=True)
    key = hashlib.sha256(said.encode()).hexdigest()[:16]
    result = folder / f"{key}.json"
    if result.exists():
        return json.loads(result.read_text())
    if config.task == "clone":
        weights, found = student(config, setting)
    else:
        weights, found = search(config, setting, folder / f"{key}.npz", writer)
    env, tests = SwingUp("hard", longest=config.steps), {}
    for name, settings in TESTS.items():
        g = runtime.generator(runtime.seed_for("test"))
        run = play(Agent(), env, env.reset(config.episodes, g), weights=weights, generator=g,
                   sensors=Sensors(**settings) if settings else None)  # fmt: skip
        tests[name] = [run.returns.mean().item(), run.returns.std().item()]
    found = json.loads(
        json.dumps({**setting, **found, "tests": tests, "weights": weights[0].tolist()})
    )
    if writer:
        runtime.write(result, json.dumps(found))
        (folder / f"{key}.npz").unlink(missing_ok=True)
    return found


def table(results):
    """Mean ± standard deviation over the episodes of all seeds, for each thing done to the sensors."""
    rows = []
    for name in TESTS:
        means, sds = torch.tensor([r["tests"][name] for r in results]).unbind(1)
        row = {"sensors": name, "return": f"{means.mean():.0f} ± {sds.mean():.0f}"}
        if len(results) > 1:
            row["means of the seeds"] = ", ".join(f"{m:.0f}" for m in means)
        rows.append(row)
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="es")
    parser.add_argument("--tiny", action="store_true", help="the smallest preset, in seconds")
    place = ROOT / "runs" / "sensory_neuron"
    parser.add_argument("--runs", type=Path, default=place, help="checkpoints")
    place = ROOT / "results" / "sensory_neuron"
    parser.add_argument("--out", type=Path, default=place, help="the record")
    args = parser.parse_args(argv)
    config = PRESETS["tiny" if args.tiny else args.preset]
    folder, jobs = args.runs / config.name, [{"seed": s} for s in range(config.seeds)]
    with runtime.ranks() as (rank, world, _):
        mine = jobs[rank::world] if config.task == "clone" else jobs
        for i, setting in enumerate(mine):
            print(f"rank {rank}: job {i + 1} of {len(mine)}, {setting}", flush=True)
            run_job(config, setting, folder, writer=rank == 0 or config.task == "clone")
    if rank == 0:
        results = [run_job(config, s, folder) for s in jobs]
        note = (f"Hard swing-up, {config.steps} steps, the exact network; mean ± standard deviation of "
                f"{config.episodes} episodes a seed. ")  # fmt: skip
        note += ("Students of a cloned ordinary network, by DAgger." if config.task == "clone" else
                 f"{config.generations:,} generations of {config.population} agents and "
                 f"{config.hard + config.hanging + config.upright} episodes, weights "
                 "from zero; the mean of the search that did best in a look every "
                 f"{config.every} generations at {config.look} other episodes.")  # fmt: skip
        made = runtime.record(
            {"table": table(results), "weights": results[0]["weights"], "runs": results},
            config=dataclasses.asdict(config), seeds=list(range(config.seeds)), repeats=1, note=note)  # fmt: skip
        runtime.write_record(args.out / f"{config.name}.json", made)
        for row in made["numbers"]["table"]:
            print(row)


if __name__ == "__main__":
    main()
