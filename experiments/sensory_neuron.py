"""The swing-up at full scale: the 913-parameter agent trained from nothing, and by cloning.

    python -m experiments.sensory_neuron --preset es        # CMA-ES, then antithetic steps
    python -m experiments.sensory_neuron --preset clone     # students of an ordinary network, several seeds
    torchrun --nproc-per-node 8 -m experiments.sensory_neuron --preset es
    python -m experiments.sensory_neuron --tiny             # seconds, for tests

A job is one seed. The population of a search is shared out to the ranks, each knows all fitness, and
the search does not depend on their number; clones are dealt to the ranks. Searches are checkpointed
and finished jobs kept: the same command started again goes on there, bit for bit.
"""

import dataclasses
import functools
import math
import os

import torch

from collage import runtime
from collage.common import checkpoint
from collage.common.environments import SwingUp
from collage.common.populations import Shard
from collage.common.train import steps_from
from collage.sensory_neuron import Agent, Plain, Sensors, clone, play
from collage.sensory_neuron.fast.graphed import graphed_returns, rollout_kernel
from collage.sensory_neuron.fast.rollout import fused_returns
from collage.sensory_neuron.strategies import OpenES
from experiments import program
from experiments.cma import CMAES, restore, score, state_of


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a search: a strategy, and the starts of each generation."""

    method: str  # cma | openes
    generations: int
    population: int
    sigma: float
    hard: int  # starts from the hard task
    upright: int = 0  # within 0.5 rad of upright, moving at up to 1 m/s and rad/s
    savable: bool = False  # hard starts from which a cart can hardly be saved are left out
    lr: float = 0.005  # of openes


@dataclasses.dataclass(frozen=True)
class Config:
    name: str
    task: str  # search | clone
    stages: tuple = ()
    seeds: int = 1
    steps: int = 1000
    every: int = 100  # generations between two looks at the mean
    look: int = 500  # episodes of such a look
    episodes: int = 1000  # of the last test
    rounds: int = 16  # of a student
    updates: int = 300
    collected: int = 150
    length: int = 250
    batch: int = 16
    lr: float = 0.015


PRESETS = {
    # First learn to swing up at all; then sharpen, with smaller steps and more starts.
    "es": Config("es", "search", (
        Stage("cma", 6000, 128, 0.1, hard=8, upright=8),
        Stage("openes", 1000, 64, 0.03, hard=32, savable=True, lr=0.02),
        Stage("openes", 2000, 64, 0.02, hard=32, savable=True))),
    "clone": Config("clone", "clone", seeds=3),
    "tiny": Config("tiny", "search", (Stage("cma", 8, 8, 0.1, hard=2, upright=2),
                                      Stage("openes", 8, 8, 0.03, hard=2, savable=True)),
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


def starts(stage, generation, seed):
    """The starts of a generation (R, 4), the same for all of its members."""
    g, env = runtime.generator(runtime.seed_for(seed, "starts", generation)), SwingUp("hard")
    hard = env.reset(4 * stage.hard + 64 if stage.savable else stage.hard, g)
    if stage.savable:
        hard = hard[env.savable(hard)][: stage.hard]
    up = 2 * torch.rand(stage.upright, 4, generator=g) - 1
    return torch.cat([hard[:, :4], up * torch.tensor([1.5, 1.0, 0.5, 1.0])])


def place():
    """Where episodes run: this rank's GPU, or the CPU. What ranks exchange stays on the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


@functools.cache
def captured(members, episodes, steps, device):
    """`graphed_returns` for populations and starts of one size: a generation needs no new graph."""
    shapes = (members, Agent().weights.shape[1]), (episodes, 5)
    weights, first = (torch.zeros(shape, device=device) for shape in shapes)
    return graphed_returns(weights, first, steps, math.gcd(steps, 25))


def returns(weights, first, steps):
    """Returns (E, B) of agents from the same starts: compiled for the CPU, or one kernel on a GPU, where
    Triton is; else a CUDA graph."""
    device = place()
    if device.type == "cpu":
        return fused_returns(weights, first, steps)[0]
    weights, first = weights.to(device), first.to(device)
    if kernel := rollout_kernel():
        return kernel(weights, first, steps)[0].cpu()
    first = torch.nn.functional.pad(first[:, :4], (0, 1))  # at time 0
    return captured(len(weights), len(first), steps, device)(weights, first).cpu()


def fitness(weights, first, steps):
    """Mean returns (E,) of agents from the same starts."""
    return returns(weights, first, steps).mean(1)


def look(weights, episodes, seed, steps=1000):
    """Returns of agents (E, 913) in the hard task: mean, and the share above 600, (E,) each."""
    g = runtime.generator(runtime.seed_for(seed, "look"))
    found = returns(weights, SwingUp("hard").reset(episodes, g), steps)
    return found.mean(1).tolist(), (found > 600).float().mean(1).tolist()


def looked(config, method, setting, generation, curve):
    """The curve (n, 4) with one row more: generation, mean return, share above 600, sigma."""
    (value,), (share,) = look(method.mean[None], config.look, setting["seed"], config.steps)
    return torch.cat([curve, torch.tensor([[generation, value, share, float(method.sigma)]])])


def search(config, setting, folder, key, writer):
    """Weights found by evolution, stage after stage, and how well the mean did on the way."""
    weights, curve = torch.zeros(Agent().weights.shape[1]), []
    for i in range(len(config.stages)):
        weights, rows = search_stage(config, setting, i, weights, folder / f"{key}-{i}.npz", writer)
        curve.append(rows.tolist())
    return weights[None], {"curve": curve}


def search_stage(config, setting, i, mean, path, writer):
    """The mean that did best in the looks of one stage, and these looks: rows of generation, mean
    return, share above 600, sigma."""
    stage, seed, shard = config.stages[i], setting["seed"], Shard()
    g = runtime.generator(seed + 1000 * i)
    before = sum(t.generations for t in config.stages[:i])
    kind = {"sigma": stage.sigma, "population": stage.population, "generator": g}
    method = (CMAES(mean, gap=20, **kind) if stage.method == "cma" else
              OpenES(mean, lr=stage.lr, **kind))  # fmt: skip
    run = {**setting, "steps": config.steps, "every": config.every, "look": config.look,
            "stages": [dataclasses.asdict(t) for t in config.stages[: i + 1]]}  # fmt: skip
    del run["stages"][i]["generations"]  # a longer stage goes on from a shorter one
    saved, done = checkpoint.resume(path, run)
    curve, best = saved.pop("curve", torch.zeros(0, 4)), saved.pop("best", mean)
    if saved:
        restore(method, saved)
    shard.check_same(g)  # a rank that sees other files would go another way
    for generation in steps_from(done, stage.generations, writer):
        worth = functools.partial(
            fitness, first=starts(stage, before + generation, seed), steps=config.steps
        )
        if generation == 0:  # what the stage begins with may stay the best
            curve = looked(config, method, setting, 0, curve)
        method.tell(score(worth, method.ask(), shard))
        if (generation + 1) % config.every:
            continue
        curve = looked(config, method, setting, generation + 1, curve)
        if curve[-1, 1] > curve[:-1, 1].max():
            best = method.mean
        if writer:
            checkpoint.save(path, {**state_of(method), "curve": curve, "best": best},
                         {"setting": run, "done": generation + 1})  # fmt: skip
            _, value, share, sigma = curve[-1].tolist()
            print(f"{stage.method}, generation {generation + 1}: {value:.0f}, above 600: {share:.0%}, "
                  f"sigma {sigma:.3f}", flush=True)  # fmt: skip
    return best, curve


def teacher():
    """An ordinary network, cloned from the controller by hand: it needs its sensors in order."""
    env, g = SwingUp("hard"), runtime.generator(11)
    state = env.reset(400, g)
    readings, actions = [], []
    for _ in range(400):
        action = env.expert(state)
        readings.append(env.observe(state))
        actions.append(action)
        push = action + 0.2 * torch.randn(action.shape, generator=g)
        step = env.step(state, push)
        state = step.state[~step.terminated]
    net = Plain([5, 64, 64, 1], seed=1)
    net.fit(torch.cat(readings), torch.cat(actions), 3000, g)
    return net


def student(config, setting):
    """Weights of an agent that has learned from `teacher`."""
    env, net, agent = SwingUp("hard"), teacher(), Agent(seed=setting["seed"])
    g = runtime.generator(runtime.seed_for(setting["seed"], "student"))

    def begin(n, generator):
        state = env.reset(3 * n, generator)
        return state[env.savable(state)][:n]

    losses = clone(agent, net, env, begin, g, rounds=config.rounds, updates=config.updates,
                   episodes=config.collected, length=config.length, batch=config.batch,
                   lr=config.lr, progress=True)  # fmt: skip
    return agent.weights.detach(), {"curve": losses[:: config.every, 0].tolist()}


def run_job(config, setting, folder, writer=True):
    job = program.Job(config, setting, folder)
    if job.found is not None:
        return job.found
    if config.task == "clone":
        weights, result = student(config, setting)
    else:
        weights, result = search(config, setting, folder, job.key, writer)
    if not writer:
        return None
    env, tests = SwingUp("hard", longest=config.steps), {}
    for name, settings in TESTS.items():
        g = runtime.generator(runtime.seed_for("test"))
        run = play(Agent(), env, env.reset(config.episodes, g), weights=weights, generator=g,
                   sensors=Sensors(**settings) if settings else None)  # fmt: skip
        tests[name] = [run.returns.mean().item(), run.returns.std().item()]
    return job.finish({**setting, **result, "tests": tests, "weights": weights[0].tolist()})


def table(config, results):
    """Means over seeds, ± the standard deviation of a seed's episodes, for each thing done to the sensors."""
    rows = []
    for name in TESTS:
        means, sds = torch.tensor([r["tests"][name] for r in results]).unbind(1)
        episodes = config.episodes * len(results)
        row = {"sensors": name, "return": {"mean": means.mean().item(), "spread": sds.mean().item(),
                                           "n": episodes}}  # fmt: skip
        if len(results) > 1:
            row["means of the seeds"] = means.tolist()
        rows.append(row)
    return rows


def main(argv=None):
    config, args = program.arguments(__doc__, "sensory_neuron", PRESETS, "es", argv)
    folder, jobs = args.runs / config.name, [{"seed": s} for s in range(config.seeds)]
    with runtime.ranks("cpu") as (rank, world, _):
        # A search is every rank's job: each scores a share of its population.
        for setting in program.deal(jobs, *((rank, world) if config.task == "clone" else (0, 1))):
            run_job(config, setting, folder, writer=rank == 0 or config.task == "clone")
    if rank == 0:
        for part in folder.glob("*.npz"):  # no other rank reads them any more
            part.unlink()
        results = [run_job(config, s, folder) for s in jobs]
        note = (f"Hard swing-up, {config.steps} steps, the exact network; mean ± standard deviation of "
                f"{config.episodes} episodes a seed. ")  # fmt: skip
        if config.task == "clone":
            note += "Students of a cloned ordinary network, by DAgger."
        else:
            note += "Weights from zero; " + "; then ".join(
                f"{t.generations:,} generations of {t.population} agents and {t.hard + t.upright} "
                f"starts ({t.method})" for t in config.stages)  # fmt: skip
            note += (f". Kept is what did best in a look every {config.every} generations at "
                     f"{config.look} other episodes.")  # fmt: skip
        formats = {"return": "{:.0f}", "means of the seeds": ", ".join(["{:.0f}"] * config.seeds)}
        numbers = {"table": table(config, results), "formats": formats,
                   "weights": results[0]["weights"], "runs": results}  # fmt: skip
        searched = config.task == "search" and place().type == "cuda"
        program.keep(config, args.out, numbers, note, gpu=searched)


if __name__ == "__main__":
    program.run(main)
