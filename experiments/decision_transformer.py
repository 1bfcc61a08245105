"""Decision Transformer at full scale: two robots of MuJoCo, a key that pays later, a pole.

    python -m experiments.decision_transformer --preset hopper       # or halfcheetah
    python -m experiments.decision_transformer --preset hopper_levels   # or halfcheetah_, walker_levels
    python -m experiments.decision_transformer --preset hopper_levels --levels medium "medium late"
    python -m experiments.decision_transformer --preset key          # 1,000 and 10,000 trajectories
    python -m experiments.decision_transformer --preset swing
    python -m experiments.decision_transformer --preset graph        # ten graphs, and stitching
    torchrun --nproc-per-node 8 -m experiments.decision_transformer --preset hopper
    python -m experiments.decision_transformer --tiny                # seconds, for tests

The robots' data are collected here: a linear policy is trained by augmented random search (Mania et
al. 2018, arXiv 1803.07055), and an even share of all the episodes on the way is kept. `levels` are the
paper's task: its model size, and data of a soft actor-critic, medium, replay and expert, with the
reward as it comes or all of it at the end; targets and shares are chosen on some episodes and judged
on others; --levels asks for some of them. A job is one method and one seed. Jobs are dealt to the
ranks; what a job finds depends on its setting alone. Long fits are checkpointed and finished jobs kept:
the same command started again goes on there.
"""

import dataclasses
import functools
import hashlib
import sys

import torch

from collage import runtime
from collage.common import checkpoint
from collage.common.environments import SwingUp
from collage.decision_transformer import (
    DecisionTransformer,
    ImplicitQ,
    Trajectories,
    collect,
    fit,
    rollout,
)
from collage.decision_transformer.worlds import KeyToDoor, Walks
from experiments import program
from experiments.robots import Robots, career, data_of, late, search


@dataclasses.dataclass(frozen=True)
class Config:
    name: str
    task: str  # robot | key | swing | graph
    env: str = ""
    search: tuple = (0.01, 0.025, 8, 4)  # random search: rate, noise, directions, kept directions
    alive: float = 0.0  # reward for not falling, which the search does not count
    interactions: int = 2_000_000  # of the search with the environment
    kept: int = 300_000  # about so many of them are the data
    sizes: tuple = ()  # numbers of trajectories
    seeds: int = 3
    width: int = 64
    layers: int = 2
    context: int = 20
    steps: int = 4000
    lr: float = 1e-3
    shares: tuple = (1.0, 0.25, 0.1)  # of the steps, for %BC
    clone_steps: int = 10_000
    iql: tuple = ((0.7, 3.0), (0.9, 3.0))  # expectile, temperature
    iql_steps: int = 10_000
    follow: float = 0.005  # of the slow copies of IQL: 1 / follow updates for a step back in time
    asked: tuple = (0.25, 0.5, 0.75, 1.0, 1.25)  # targets, as shares of the best return in the data
    episodes: int = 10
    heads: int = 2
    levels: tuple = ()  # of data: medium | replay | expert, and "late" for a reward at the end


LEVELS = {"levels": ("medium", "medium late", "replay", "expert"), "width": 128, "layers": 3, "heads": 1,
          "steps": 10_000, "lr": 5e-4, "clone_steps": 20_000, "iql_steps": 20_000,
          "interactions": 300_000, "kept": 200_000}  # fmt: skip
KEY = {"width": 32, "context": 24, "lr": 5e-3, "shares": (1.0, 0.0), "asked": (1.0, 0.0),
       "iql": ((0.7, 10.0), (0.7, 3.0)), "follow": 0.05}  # fmt: skip

PRESETS = {
    "hopper": Config("hopper", "robot", "Hopper-v5", alive=1.0),
    "halfcheetah": Config("halfcheetah", "robot", "HalfCheetah-v5", (0.02, 0.03, 16, 8),
                          interactions=4_000_000),
    "hopper_levels": Config("hopper_levels", "robot", "Hopper-v5", **LEVELS),
    "halfcheetah_levels": Config("halfcheetah_levels", "robot", "HalfCheetah-v5", **LEVELS),
    "walker_levels": Config("walker_levels", "robot", "Walker2d-v5", **LEVELS),
    "key": Config("key", "key", sizes=(1000, 10_000), seeds=3, steps=800, clone_steps=800,
                  iql_steps=1600, episodes=500, **KEY),
    "swing": Config("swing", "swing", sizes=(600,), seeds=5, width=48, context=2, steps=1500, lr=3e-3,
                    shares=(1.0, 0.4, 0.25, 0.1), clone_steps=1500, iql_steps=3000,
                    iql=((0.7, 3.0), (0.9, 3.0), (0.9, 1.0)),
                    asked=tuple(x / 700 for x in range(100, 801, 100)), episodes=16),
    "graph": Config("graph", "graph", sizes=(1000,), seeds=10, width=48, context=2, steps=800,
                    lr=3e-3, iql=((0.9, 10.0),), iql_steps=1500, follow=0.05),
    "tiny": Config("tiny", "key", sizes=(200,), seeds=2, steps=6, clone_steps=6, iql_steps=6,
                   episodes=20, **KEY),
}  # fmt: skip


SHORT = (1, 4)  # shorter contexts, for the robots
FORMATS = {"trajectories": "{:,}", "wins (%), likeliest": "{:.1f}", "wins (%), drawn": "{:.1f}",
           **dict.fromkeys(("asked for", "return", "sd of an episode", "shortest path (%)", "arrives (%)",
                            "far: shortest path (%)", "far: arrives (%)", "of the expert (%)"),
                           "{:.0f}")}  # fmt: skip


def robot_data(config, level, folder):
    """(`Trajectories` of a robot, returns of random moves, the medium and the expert actor), kept in a file.

    level: medium | replay | expert, of a soft actor-critic; else an even share of a random search."""
    said = [getattr(config, k) for k in ("env", "search", "alive", "interactions", "kept")]
    said = str([*said, level] if level else said)
    path = folder / f"data-{hashlib.sha256(said.encode()).hexdigest()[:12]}.npz"
    if not path.exists():
        say, marks = functools.partial(print, flush=True), ()
        if level:
            past = career(config.env, config.interactions, folder / "career.npz", progress=say)
            found, marks = data_of(config.env, past, level, config.kept)
        else:
            found = search(config, say)
        fields = ("states", "actions", "rewards", "lengths", "terminated")
        checkpoint.save(path, {k: getattr(found, k) for k in fields},
                        {"env": config.env, "marks": marks})  # fmt: skip
    arrays, meta = checkpoint.load(path)
    return Trajectories(*(torch.from_numpy(a) for a in arrays.values())), meta.get("marks")


def recorded(config, setting, folder):
    """The environment and the data of a job."""
    if config.task == "robot":
        level, _, pay = (setting["size"] or "").partition(" ")
        data, _ = robot_data(config, level, folder)
        robots = Robots(config.env, config.episodes * len(config.asked), late=bool(pay))
        return robots, late(data) if pay else data
    g = runtime.generator(1000 + setting["seed"])
    if config.task == "key":
        env = KeyToDoor()
        return env, collect(env, env.wander, setting["size"], g)
    env = SwingUp(longest=800, hold=5)
    skill = torch.rand(setting["size"], 1, generator=g)
    return env, collect(env, mixed(env, skill), setting["size"], g)


def mixed(env, skill):
    """A behaviour between the expert's and noise, the same mixture (n, 1) for all of an episode."""

    def act(state, generator):
        noise = 2 * torch.rand(len(skill), 1, generator=generator) - 1
        return skill * env.expert(state) + (1 - skill) * noise

    return act


def moved(data, device):
    """The same trajectories on a device."""
    fields = (data.states, data.actions, data.rewards, data.lengths, data.terminated)
    return Trajectories(*(t.to(device) for t in fields))


def moments(states):
    """Mean and standard deviation (S,) of states (N, S), for `DecisionTransformer.units`.

    Summed in float64; what does not vary has the deviation 1, and so comes out as zero.
    """
    first, dtype, states = states[0], states.dtype, states.double()
    mean = states.mean(0)
    size = (states - mean).abs().amax(0).clamp(min=1e-300)  # its square may vanish
    spread = size * ((states - mean) / size).square().mean(0).sqrt()
    constant = (states == states[0]).all(0)
    mean, spread = torch.where(constant, first.double(), mean).to(dtype), spread.to(dtype)
    return mean, spread.masked_fill(constant | (spread == 0), 1)


def trained(config, setting, env, data, state, device):
    """The model of a job, fitted on a device, and brought back to act."""
    kind, seed = setting["method"], setting["seed"]
    paid_late = config.task == "robot" and env.late
    at_end = config.task == "key" or paid_late  # the reward comes then
    common = {"discrete": env.discrete, "seed": seed}
    part, weights = data, None
    if config.task == "key" and kind in ("DT", "IQL") and not setting.get("plain"):
        weights = data.balanced(2)
    if kind == "BC":
        part = data.best(setting["share"]) if setting["share"] else data.pick(data.totals > 0)
    if kind == "IQL" or (kind == "BC" and config.task == "robot"):
        context = config.context if config.task == "key" and setting.get("memory") != 0 else 1
        expectile, temperature = setting.get("iql", (0.7, 0.0))
        model = ImplicitQ(env.observations, env.actions, context=context, width=128,
                          expectile=expectile, temperature=temperature,
                          discount=1.0 if at_end else 0.99,
                          follow=0.05 if paid_late else config.follow, **common)  # fmt: skip
        steps, lr, batch = config.iql_steps if kind == "IQL" else config.clone_steps, 1e-3, 256
        batch = 64 if config.task == "key" else batch
        span = float(data.totals.max() - data.totals.min())
        paid = 1 if at_end else env.longest  # so many times
        scale = 1.0 if config.task == "key" else span / paid  # rewards of about one
    else:
        model = DecisionTransformer(
            env.observations, env.actions, width=config.width, layers=config.layers, heads=config.heads,
            context=setting.get("context", config.context), longest=env.longest, dropout=0.1 if config.task == "robot" else 0.0,
            conditioned=kind == "DT", **common)  # fmt: skip
        steps, lr = config.steps if kind == "DT" else config.clone_steps, config.lr
        batch = max(64, 256 // model.context) if config.task == "robot" else 64
        scale = 1.0 if config.task == "key" else float(data.totals.abs().max()) / 3
    if not env.discrete:
        model.units(*moments(part.states), scale)
    elif kind == "IQL":
        model.units(torch.zeros(env.observations), torch.ones(env.observations), scale)
    fit(model.to(device), moved(part, device), steps, batch=batch, lr=lr, anneal=True, clip=1.0,
        weights=weights, whole=config.task == "key" and kind != "IQL",
        checkpoint=state)  # fmt: skip
    return model.to("cpu")  # the worlds are there


def run_job(config, setting, folder, device):
    # Its level is in its setting: a record of other levels, too, finds it again.
    job = program.Job(dataclasses.replace(config, levels=()), setting, folder)
    if job.found is not None:
        return job.found
    if config.task == "graph":
        return job.finish({**setting, **graph_job(config, setting, device)})
    env, data = recorded(config, setting, folder)
    model = trained(config, setting, env, data, job.state, device)
    best = 1.0 if config.task == "key" else (
        700.0 if config.task == "swing" else float(data.totals.max()))  # fmt: skip
    asked = [best * a for a in config.asked] if setting["method"] == "DT" else [0.0]
    each = config.episodes * (1 if setting["method"] == "DT" or config.task != "robot" else 2)
    found = {"asked": asked, "data": {"steps": len(data), "episodes": len(data.lengths),
             "mean": data.totals.mean().item(), "best": data.totals.max().item()}}  # fmt: skip
    ways = [("likeliest", False, 7)] + [("drawn", True, 7)] * env.discrete
    ways += [("judged", False, 1007)] * bool(config.levels)
    for name, sample, seed in ways:
        targets = torch.tensor(asked).repeat_interleave(each)
        g = runtime.generator(seed + setting["seed"])
        totals = rollout(model, env, targets, g, sample=sample).data.totals.view(len(asked), -1)
        found[name] = {"mean": totals.mean(1).tolist(), "sd": totals.std(1).tolist()}
    return job.finish({**setting, **found})


def graph_job(config, setting, device):
    """Shares of shortest paths and of arrivals on one graph, from all nodes and from far ones."""
    seed = setting["seed"]
    env = Walks.random(20, 0.15, runtime.generator(2000 + seed), farthest=6)
    walks = collect(env, env.wander, setting["size"], runtime.generator(3000 + seed))
    distance, nodes = env.distances(), torch.arange(1, 20)
    away = torch.zeros(len(walks.lengths)).index_add_(
        0, walks.episode, (walks.states @ distance.float() > 3).float())  # fmt: skip
    cut = walks.pick((away == 0) | (walks.totals <= -20))
    optimum, far, found = -distance[1:].float(), distance[1:] > 3, {}
    # Random moves while far from the goal, perfect ones after.
    luck = torch.ones(20)
    for d in range(4, 7):
        for node in (distance == d).nonzero()[:, 0].tolist():
            near = env.edges[node].nonzero()[:, 0]
            luck[node] = (luck[near] * (distance[near] == d - 1)).mean()
    found["chance while far"] = {"far": luck[1:][far].mean().item()}
    shape = {"width": config.width, "layers": config.layers, "heads": 2, "context": config.context,
             "longest": env.longest, "discrete": True, "dropout": 0.0, "seed": seed}  # fmt: skip
    for name, data in (("DT", walks), ("BC", walks), ("10% BC", walks.best(0.1)), ("IQL", walks),
                       ("DT, walks removed", cut), ("IQL, walks removed", cut)):  # fmt: skip
        if name[:3] == "IQL":
            ((expectile, temperature),) = config.iql
            model = ImplicitQ(20, 20, width=128, discrete=True, expectile=expectile, seed=seed,
                              temperature=temperature, discount=1.0, follow=config.follow)  # fmt: skip
            steps, lr = config.iql_steps, 2e-3
        else:
            model = DecisionTransformer(20, 20, conditioned=name[:2] == "DT", **shape)
            steps, lr = config.steps, config.lr
        model.units(torch.zeros(20), torch.ones(20), 10.0)
        fit(model.to(device), moved(data, device), steps, lr=lr, anneal=True, clip=1.0)
        model.to("cpu")
        total = rollout(model, env, optimum, runtime.generator(7), start=env.at(nodes)).data.totals
        hit, there = (total == optimum).float(), (total > -20).float()
        found[name] = {"all": hit.mean().item(), "far": hit[far].mean().item(),
                       "arrives": there.mean().item(), "far arrives": there[far].mean().item()}  # fmt: skip
    return {"method": "graph", "found": found, "data": {
        "steps": len(walks), "episodes": len(walks.lengths), "mean": walks.totals.mean().item(),
        "best": walks.totals.max().item()}}  # fmt: skip


def graph_table(results):
    rows = []
    for name in results[0]["found"]:
        row = {"method": name}
        for key, title in (("all", "shortest path (%)"), ("arrives", "arrives (%)"),
                           ("far", "far: shortest path (%)"), ("far arrives", "far: arrives (%)")):  # fmt: skip
            if key not in results[0]["found"][name]:
                row[title] = "-"
                continue
            values = [100 * r["found"][name][key] for r in results]
            row[title] = program.mean(values, standard_error=True)
        rows.append(row)
    return rows


def settings(config):
    if config.task == "graph":
        return [{"size": config.sizes[0], "seed": s} for s in range(config.seeds)]
    found = []
    for size in config.levels or config.sizes or (0,):
        for seed in range(config.seeds):
            here = {"size": size, "seed": seed}
            found.append({**here, "method": "DT"})
            found += [{**here, "method": "DT", "plain": 1}] if config.task == "key" else []
            if config.task == "robot" and not config.levels:
                found += [{**here, "method": "DT", "context": k} for k in SHORT]
            found += [{**here, "method": "BC", "share": s} for s in config.shares]
            found += [{**here, "method": "IQL", "iql": i} for i in config.iql]
            if config.task == "key":
                found += [{**here, "method": "IQL", "iql": i, "memory": 0} for i in config.iql[:1]]
    return found


def label(setting):
    if setting["method"] == "BC":
        share = setting["share"]
        return "BC" if share == 1 else "winners' BC" if not share else f"{share:.0%} BC"
    if setting["method"] == "IQL":
        text = f"IQL {setting['iql'][0]:g}, {setting['iql'][1]:g}"
        return text + (", no memory" if setting.get("memory") == 0 else "")
    if "context" in setting:
        return f"DT, K = {setting['context']}"
    return "DT, plain draw" if setting.get("plain") else "DT"


def table(config, results):
    """For each method and target the mean over seeds and the standard deviation of the seeds' means."""
    if config.task == "graph":
        return graph_table(results)
    rows, kinds = [], dict.fromkeys((r["size"], label(r)) for r in results)
    for size, name in kinds:
        group = [r for r in results if (r["size"], label(r)) == (size, name)]
        data = group[0]["data"]
        for i, asked in enumerate(group[0]["asked"]):
            row = {"trajectories": data["episodes"], "method": name,
                   "asked for": asked if name[:2] == "DT" else "-"}  # fmt: skip
            for how in ("likeliest", "drawn"):
                if how not in group[0]:
                    continue
                unit = 100.0 if config.task == "key" else 1.0
                means = program.mean([unit * r[how]["mean"][i] for r in group])
                row["wins (%), " + how if config.task == "key" else "return"] = means
            if config.task != "key":
                inside = torch.tensor([r["likeliest"]["sd"][i] for r in group]).mean()
                row["sd of an episode"] = inside.item()
            rows.append(row)
    return rows


def levels_table(config, results, marks):
    """For each level and method what was best on the first episodes, and what it earned on others.

    marks: {level: returns of (random moves, medium, expert)}.
    """
    rows = []
    for size in config.levels:
        here = [r for r in results if r["size"] == size]
        low, medium, high = marks[size]
        for actor, value in (("the medium actor", medium), ("the expert", high)):
            rows.append({"data": size, "method": actor, "chosen": "-", "return": value,
                         "of the expert (%)": 100 * (value - low) / (high - low)})  # fmt: skip
        for family in ("DT", "BC", "% BC", "IQL"):
            tried = {}  # what was chosen -> the first episodes' return, and the others', for each seed
            for r in here:
                name = label(r)
                if (family == "BC") != (name == "BC") or family.split()[-1] not in name:
                    continue
                for asked, first, other in zip(r["asked"], r["likeliest"]["mean"], r["judged"]["mean"],
                                               strict=True):  # fmt: skip
                    what = f"asked for {asked:,.0f}" if family == "DT" else name
                    tried.setdefault(what, []).append((first, other))
            best = max(tried, key=lambda what: sum(first for first, _ in tried[what]))
            judged = [other for _, other in tried[best]]
            rows.append({"data": size, "method": family, "chosen": best, "return": program.mean(judged),
                         "of the expert (%)": program.mean(
                             [100 * (v - low) / (high - low) for v in judged])})  # fmt: skip
    return rows


NOTES = {
    "levels": "{env}. Data of a soft actor-critic that lived {interactions:,} steps: medium, {kept:,} steps of "
    "the first actor to earn a third of the best; replay, all that was lived through until then; expert, "
    "half by the best actor and half by the medium one, both with their noise; late: the reward comes with the "
    "last step. The transformer has {layers} layers, {width} units and {context} steps of context, and {steps:,} "
    "updates; BC and IQL see one state. Targets, shares and IQL's settings are chosen on {episodes} episodes a "
    "target and seed, twice as many without a target, the returns are of as many others: mean ± standard "
    "deviation over {seeds} training seeds. 0 % are random moves, 100 % the best actor, both actors without "
    "their noise; a third is counted from the first to the second.",
    "robot": "{env}. Data: {kept:,} steps or so of {interactions:,} steps of augmented random search with "
    "linear policies, mean return {mean:.0f}, best {best:.0f}. Mean ± standard deviation over "
    "{seeds} training seeds, all on the same data; {episodes} episodes a target and seed, twice as many "
    "without one. BC and IQL (expectile, temperature) see one state, the transformer {context} steps "
    "unless K is given.",
    "key": "Rooms of 4 x 4, 8 steps each. Trajectories of random moves. Mean ± standard deviation over "
    "{seeds} seeds, each with data of its own; {episodes} episodes. The transformers and IQL (expectile, "
    "temperature) see the whole episode, IQL 'no memory' one observation. DT and IQL draw half of their batches "
    "from the winners, but for 'plain draw'; winners' BC clones those only.",
    "graph": "Graphs of 20 nodes, the farthest six steps from the goal; {sizes} random walks each. Greedy "
    "walks from all nodes, asked for the shortest distance. Mean ± standard error over {seeds} graphs. "
    "'Far' nodes are more than three steps away; 'walks removed': without the walks that visit a far node "
    "and arrive. 'Chance while far': random moves from far nodes, perfect ones after.",
    "swing": "Pole to be swung up, 160 decisions; {sizes} episodes of controllers between expert and noise. "
    "Mean ± standard deviation over {seeds} seeds, each with data of its own; {episodes} episodes.",
}


def main(argv=None):
    config, args = program.arguments(
        __doc__, "decision_transformer", PRESETS, "key", argv,
        lambda parser: parser.add_argument("--levels", nargs="+", metavar="LEVEL",
                                           help="only these, of a preset with levels"))  # fmt: skip
    if args.levels:
        if unknown := set(args.levels) - set(config.levels):
            wanted = ", ".join(map(repr, config.levels)) or "no levels with this preset"
            print(f"--levels: got {unknown.pop()!r}, wanted {wanted}", file=sys.stderr)
            sys.exit(2)
        config = dataclasses.replace(config, levels=tuple(args.levels))
    jobs, folder = settings(config), args.runs / config.name
    longest_first = sorted(jobs, key=lambda job: job.get("method") != "DT")
    with runtime.ranks() as (rank, world, device):
        runtime.threads(1)
        if config.task == "robot" and rank == 0:  # once, for all
            marks = {size: robot_data(config, size.split()[0], folder)[1] for size in config.levels}
            _ = config.levels or recorded(config, jobs[0], folder)
        if world > 1:
            torch.distributed.barrier()
        for setting in program.deal(longest_first, rank, world):
            run_job(config, setting, folder, device)
    if rank == 0:
        results = [run_job(config, s, folder, device) for s in jobs]
        words = {**results[0]["data"], **dataclasses.asdict(config),
                 "sizes": " and ".join(f"{n:,}" for n in config.sizes)}  # fmt: skip
        rows = levels_table(config, results, marks) if config.levels else table(config, results)
        note = NOTES["levels" if config.levels else config.task].format(**words)
        program.keep(config, args.out, {"table": rows, "formats": FORMATS, "runs": results}, note,
                     gpu=device.type == "cuda")  # fmt: skip


if __name__ == "__main__":
    program.run(main)
