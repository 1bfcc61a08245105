"""Decision Transformer at full scale: two robots of MuJoCo, a key that pays later, a pole.

    python -m experiments.decision_transformer --preset hopper       # or halfcheetah
    python -m experiments.decision_transformer --preset key          # 1,000 and 10,000 trajectories
    python -m experiments.decision_transformer --preset swing
    python -m experiments.decision_transformer --preset graph        # ten graphs, and stitching
    torchrun --nproc-per-node 8 -m experiments.decision_transformer --preset hopper
    python -m experiments.decision_transformer --tiny                # seconds, for tests

The robots' data are collected here: a linear policy is trained by augmented random search (Mania et
al. 2018, arXiv 1803.07055), and an even share of all the episodes on the way is kept. A job is one
method and one seed. Jobs are dealt to the ranks; what a job finds depends on its setting alone. Long
fits are checkpointed and finished jobs kept: the same command started again goes on there.
"""

import dataclasses
import hashlib

import numpy as np
import torch

from collage import runtime
from collage.common import checkpoint
from collage.common.environments import Step, SwingUp
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


KEY = {"width": 32, "context": 24, "lr": 5e-3, "shares": (1.0, 0.0), "asked": (1.0, 0.0),
       "iql": ((0.7, 10.0), (0.7, 3.0)), "follow": 0.05}  # fmt: skip

PRESETS = {
    "hopper": Config("hopper", "robot", "Hopper-v5", alive=1.0),
    "halfcheetah": Config("halfcheetah", "robot", "HalfCheetah-v5", (0.02, 0.03, 16, 8),
                          interactions=4_000_000),
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
                            "far: shortest path (%)", "far: arrives (%)"), "{:.0f}")}  # fmt: skip


class Robots:
    """A number of gymnasium environments, as one with the batched interface of `collage`."""

    discrete = False

    def __init__(self, name, n):
        import gymnasium

        self.each = [gymnasium.make(name) for _ in range(n)]
        self.longest = self.each[0].spec.max_episode_steps
        self.observations = self.each[0].observation_space.shape[0]
        self.actions = self.each[0].action_space.shape[0]

    def reset(self, n, generator):
        seeds = torch.randint(2**31, (n,), generator=generator).tolist()
        self.going = [True] * n
        return torch.tensor(
            np.stack([e.reset(seed=s)[0] for e, s in zip(self.each, seeds)])
        ).float()

    def observe(self, state):
        return state

    def step(self, state, action):
        state, n = state.clone(), len(state)
        reward, out, late = torch.zeros(n), torch.zeros(n).bool(), torch.zeros(n).bool()
        for i, move in enumerate(action.clamp(-1, 1).double().numpy()):
            if self.going[i]:
                seen, r, out[i], late[i], _ = self.each[i].step(move)
                state[i], reward[i] = torch.from_numpy(seen).float(), float(r)
                self.going[i] = not bool(out[i] | late[i])
        return Step(state, reward, out, late)


def search(config, progress=print):
    """`Trajectories` of a linear policy on its way to walking: augmented random search, V2-t.

    Every episode of the search is equally likely to be kept, the clumsy first ones and the last.
    """
    import gymnasium

    env, g = gymnasium.make(config.env), np.random.default_rng(0)
    S, A = env.observation_space.shape[0], env.action_space.shape[0]
    rate, noise, directions, best = config.search
    theta, count, mean, square = np.zeros((A, S)), 0, np.zeros(S), np.ones(S)
    kept, done, rounds = [], 0, 0

    def episode(theta, scale):
        seen, moves, rewards = [env.reset(seed=int(g.integers(2**31)))[0]], [], []
        while True:
            moves.append(np.clip(theta @ ((seen[-1] - mean) * scale), -1, 1))
            state, r, out, late, _ = env.step(moves[-1])
            rewards.append(r)
            if out or late:
                return np.array(seen), np.array(moves), np.array(rewards), out
            seen.append(state)

    while done < config.interactions:
        scale = 1 / np.maximum(np.sqrt(square / max(count, 1)), 1e-6) if count else np.ones(S)
        delta = g.standard_normal((directions, A, S))
        worth, seen = np.zeros((directions, 2)), []
        for i in range(directions):
            for j, sign in enumerate((1, -1)):
                states, moves, rewards, out = episode(theta + sign * noise * delta[i], scale)
                worth[i, j] = (rewards - config.alive).sum()
                done += len(rewards)
                seen.append(states)
                if g.random() < config.kept / config.interactions:
                    kept.append((states, moves, rewards, out))
        for states in seen:  # running mean and sum of squared deviations
            n, away = len(states), states.mean(0) - mean
            square = square * (count > 0) + ((states - states.mean(0)) ** 2).sum(0)
            square = square + away**2 * count * n / (count + n)
            mean, count = mean + away * n / (count + n), count + n
        top = np.argsort(-worth.max(1))[:best]
        lean = (worth[top, 0] - worth[top, 1])[:, None, None] * delta[top]
        theta = theta + rate / (best * (worth[top].std() + 1e-9)) * lean.sum(0)
        rounds += 1
        if rounds % 20 == 0:
            progress(f"search: {done:,} steps, returns {worth.mean():.0f} without the bonus")
    states, moves, rewards = (torch.tensor(np.concatenate(x)).float() for x in list(zip(*kept))[:3])
    lengths = torch.tensor([len(k[2]) for k in kept])
    return Trajectories(states, moves, rewards, lengths, torch.tensor([bool(k[3]) for k in kept]))


def recorded(config, setting, folder):
    """The environment and the data of a job."""
    if config.task == "robot":
        said = str([getattr(config, k) for k in ("env", "search", "alive", "interactions", "kept")])
        path = folder / f"data-{hashlib.sha256(said.encode()).hexdigest()[:12]}.npz"
        if not path.exists():
            found = search(config, lambda text: print(text, flush=True))
            fields = ("states", "actions", "rewards", "lengths", "terminated")
            checkpoint.save(path, {k: getattr(found, k) for k in fields}, {"env": config.env})
        arrays, _ = checkpoint.load(path)
        data = Trajectories(*(torch.from_numpy(a) for a in arrays.values()))
        return Robots(config.env, max(config.episodes * len(config.asked), 1)), data
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
                          discount=1.0 if config.task == "key" else 0.99,
                          follow=config.follow, **common)  # fmt: skip
        steps, lr, batch = config.iql_steps if kind == "IQL" else config.clone_steps, 1e-3, 256
        batch = 64 if config.task == "key" else batch
        span = float(data.totals.max() - data.totals.min())
        scale = 1.0 if config.task == "key" else span / env.longest  # rewards of about one
    else:
        model = DecisionTransformer(
            env.observations, env.actions, width=config.width, layers=config.layers, heads=2,
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
    job = program.Job(config, setting, folder)
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
    for name, sample in (("likeliest", False), ("drawn", True))[: 1 + env.discrete]:
        targets = torch.tensor(asked).repeat_interleave(each)
        g = runtime.generator(7 + setting["seed"])
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
    for size in config.sizes or (0,):
        for seed in range(config.seeds):
            here = {"size": size, "seed": seed}
            found.append({**here, "method": "DT"})
            found += [{**here, "method": "DT", "plain": 1}] if config.task == "key" else []
            if config.task == "robot":
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


NOTES = {
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
    config, args = program.arguments(__doc__, "decision_transformer", PRESETS, "key", argv)
    jobs, folder = settings(config), args.runs / config.name
    with runtime.ranks() as (rank, world, device):
        runtime.threads(1)
        if config.task == "robot" and rank == 0:
            recorded(config, jobs[0], folder)  # once, for all
        if world > 1:
            torch.distributed.barrier()
        for setting in program.deal(jobs, rank, world):
            run_job(config, setting, folder, device)
    if rank == 0:
        results = [run_job(config, s, folder, device) for s in jobs]
        words = {**results[0]["data"], **dataclasses.asdict(config),
                 "sizes": " and ".join(f"{n:,}" for n in config.sizes)}  # fmt: skip
        program.keep(config, args.out, {"table": table(config, results), "formats": FORMATS, "runs": results},
                     NOTES[config.task].format(**words), gpu=device.type == "cuda")  # fmt: skip


if __name__ == "__main__":
    program.run(main)
