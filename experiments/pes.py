"""Outer training with every estimator of the family, tuned alike, at full scale.

    python -m experiments.pes --preset toy           # settings for the chapter's toy problem
    python -m experiments.pes --preset schedule      # settings for the chapter's digits schedule
    python -m experiments.pes --preset error         # the same on validation error
    python -m experiments.pes --preset layers        # a schedule for every layer: 12 parameters
    python -m experiments.pes --preset optimiser     # a learned optimiser
    python -m experiments.pes --preset mountain      # a car in a valley; cartpole likewise
    python -m experiments.pes --preset swimmer       # the paper's control task, in MuJoCo: an hour
    python -m experiments.pes --preset mnist10k      # the schedule on MNIST images, two CPU cores
    torchrun --nproc-per-node 8 -m experiments.pes --preset mnist    # the paper's setting, GPUs
    python -m experiments.pes --preset variance      # how much PES and full ES vary on the digits
    python -m experiments.pes --preset optimiser --sweep results/pes    # choose from a recorded sweep
    python -m experiments.pes --tiny                 # seconds, for tests

A job is one method with one noise scale and one outer learning rate, all seeds in one batch. Jobs
are dealt to the ranks; with `shard` all ranks share the population of each job instead. Either way
any number of ranks gives the same record. A job saves after each inner problem; the same command
started again goes on there. Each method's setting is chosen on some seeds, and reported on others; on
at least nine of them for agents, which succeed with some seeds and fail with others.
"""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import torch

from collage import data, runtime
from collage.common.environments import CartPole, MountainCar
from collage.common.graph import Captured
from collage.common.populations import tree_leaves, tree_map
from collage.pes import PES, FullES, NoiseReuseES, OuterLoop, TruncatedES
from collage.pes.fast.outer import Adam
from collage.pes.problems import Classifier, Control, Schedule, Toy, check_width
from experiments import program
from experiments.swimmer import Swimmer

KINDS = {"PES": PES, "truncated ES": TruncatedES, "reused noise": NoiseReuseES, "full ES": FullES}
FORMATS = dict.fromkeys(("at the start", "halfway", "at the end"), "{:.3f}")


@dataclasses.dataclass(frozen=True)
class Config:
    name: str
    task: str  # toy | schedule | error | layers | optimiser | control
    horizon: int = 200
    truncation: int = 10
    particles: int = 16
    unrolls: int = 200  # outer budget: so many unrolls of every particle
    methods: tuple = ("PES", "truncated ES", "reused noise", "full ES", "random search")
    sigmas: tuple = (0.1, 0.3, 1.0)
    rates: tuple = (0.02, 0.05, 0.1, 0.2, 0.5)  # of Adam
    seeds: int = 4
    dataset: str = "digits"  # digits | mnist_test | mnist; for control the environment
    train: int = 1000
    validation: int = 300
    hidden: int = 16
    batch: int = 32
    judges: int = 40  # inner problems on which theta is judged
    pairs: int = 0  # of particles, whose estimates are compared in place of outer training
    shard: bool = False
    full: float = 5.0  # times the rates for full ES, which makes far fewer updates


PRESETS = {
    "toy": Config("toy", "toy", 100, 10, 100, 1000, tuple(KINDS), (0.1, 0.3, 1.0),
                  (0.01, 0.03, 0.1, 0.3, 1.0, 3.0), judges=1),
    "schedule": Config("schedule_digits", "schedule"),
    "error": Config("error_digits", "error"),
    "layers": Config("layers_digits", "layers", unrolls=1000, hidden=10, batch=16, judges=10,
                     sigmas=(0.1, 0.3), rates=(0.02, 0.05, 0.1, 0.3)),
    "optimiser": Config("optimiser_digits", "optimiser", hidden=8, batch=16, particles=10, judges=16,
                        methods=tuple(KINDS), sigmas=(0.02, 0.05, 0.1),
                        rates=(0.003, 0.01, 0.03, 0.1)),
    "cartpole": Config("control_cartpole", "control", 500, 50, 40, 100, tuple(KINDS), (0.3, 1.0),
                       (0.03, 0.1, 0.3, 1.0), 12, "cart-pole"),
    "mountain": Config("control_mountain_car", "control", 200, 20, 20, 100, tuple(KINDS),
                       (0.3, 1.0, 2.0), (0.1, 0.3, 1.0, 2.0), 12, "mountain car"),
    "swimmer": Config("control_swimmer", "control", 1000, 100, 10, 600, tuple(KINDS), (0.1, 0.3),
                      (0.03, 0.1, 0.3), 3, "swimmer", judges=1, full=1.0),
    "mnist10k": Config("schedule_mnist10k", "schedule", horizon=500, particles=20, unrolls=500,
                       methods=tuple(KINDS), sigmas=(0.3,), rates=(0.05, 0.2), seeds=2,
                       dataset="mnist_test", train=8000, validation=2000, hidden=32, batch=50,
                       judges=10),
    "variance": Config("variance_digits", "schedule", particles=2, pairs=1200),
    "mnist": Config("schedule_mnist", "schedule", 5000, 10, 1000, 5000, tuple(KINDS), (0.1,), (0.01,),
                    2, "mnist", 50_000, 10_000, 100, 100, 10, True),
    "tiny": Config("tiny", "schedule", 6, 2, 6, 12, ("PES", "full ES", "random search"), (0.3,), (0.1,),
                   2, hidden=4, batch=8, judges=4, shard=True),
}  # fmt: skip


class LayerSchedule(Schedule):
    """`Schedule` with a rate, decay and momentum for each of the four tensors of the network.

    theta (n, 12): rates, then decays, then momenta sigmoid(theta), each for the weights and biases of
    the first layer, then of the second.
    """

    def __init__(self, x, y, **settings):
        super().__init__(x, y, **settings)
        d, h, c = self.sizes
        counts = torch.tensor(3 * [d * h, h, h * c, c], device=x.device)
        self.entry = torch.arange(12, device=x.device).repeat_interleave(counts)  # (3 W,)

    def rates(self, theta):
        check_width(theta, 12)
        rate, power, momentum = theta[:, self.entry].split(len(self.entry) // 3, 1)
        return rate.exp(), power.exp(), momentum.sigmoid()


class ErrorSchedule(Schedule):
    """`Schedule` for an objective without a gradient: steps times the share of validation samples that
    are wrong after the unroll. validation: samples and answers like x, y."""

    def __init__(self, x, y, *, validation, **settings):
        super().__init__(x, y, **settings)
        self.validation = validation

    def unroll(self, theta, state, steps):
        (w, *rest), _ = super().unroll(theta, state, steps)
        return (w, *rest), steps * self.error(w, *self.validation)

    def error(self, w, x, y):
        """Share of wrong answers (n,) on x (S, D), y (S,)."""
        first, bias, second, shift = self.layers(w)
        h = torch.baddbmm(bias, x.expand(len(w), -1, -1), first).relu()
        return (torch.baddbmm(shift, h, second).argmax(-1) != y).to(w.dtype).mean(1)


class LearnedOptimiser(Classifier):
    """A small network in place of the update rule of a classifier, the same for every weight.

    w <- w - 0.01 d e^(m / 10),    (d, m) = network_theta(g, three momenta, w, t)

    Inputs are divided by their root mean square over the weights, the time t / T apart; `units`
    hidden tanh units. theta (n, P), see `size`. The momenta are (n, 3, W). The loss is the training
    loss summed over steps, clamped at 10. settings: as in `Classifier`.

    Source: the architecture follows Metz et al. 2019 (arXiv 1810.10180), made small.
    """

    decays = (0.5, 0.9, 0.99)

    def __init__(self, x, y, *, units=8, **settings):
        super().__init__(x, y, **settings)
        self.units = units
        self.decay = torch.tensor(self.decays, dtype=x.dtype, device=x.device)[:, None]
        self.shapes = [(5, units), (1, units), (1, units), (units, 2), (1, 2)]
        self.size = sum(a * b for a, b in self.shapes)

    def start(self, runs, generator):
        """Parameters (runs, P) of networks that hardly move the weights yet."""
        scales = [1 / math.sqrt(5), 0, 0.1, 0.1 / math.sqrt(self.units), 0]
        like = {"device": generator.device, "dtype": self.x.dtype}
        return torch.cat(
            [
                scale * torch.randn(runs, a * b, generator=generator, **like)
                for scale, (a, b) in zip(scales, self.shapes)
            ],
            1,
        )

    def reset(self, n, generator):
        w, offset, t = self.initial(n, generator)
        return w, offset, t, w.new_zeros(n, len(self.decays), w.shape[1])

    def unroll(self, theta, state, steps):
        check_width(theta, self.size)
        parts = theta.split([a * b for a, b in self.shapes], 1)
        inner, bias, clock, outer, end = (p.view(-1, *s) for p, s in zip(parts, self.shapes))

        def rule(w, v, t, g):
            v = torch.lerp(g.unsqueeze(1), v, self.decay)
            inputs = torch.cat([g.unsqueeze(1), v, w.unsqueeze(1)], 1)
            inputs = inputs * (inputs.square().mean(2, True) + 1e-10).rsqrt()
            constant = bias + clock * (t / self.horizon).view(-1, 1, 1).to(w.dtype)
            h = torch.baddbmm(constant, inputs.mT, inner).tanh()
            d, m = torch.baddbmm(end, h, outer).unbind(2)
            return w - 0.01 * d * torch.exp(0.1 * m), v

        return self.train(rule, state, steps)


class Recorded:
    """A problem whose unrolls are CUDA graphs on a GPU, one for each kind of them."""

    def __init__(self, problem):
        self.problem, self.reset, self.graphs = problem, problem.reset, {}

    def unroll(self, theta, state, steps):
        if not theta.is_cuda:
            return self.problem.unroll(theta, state, steps)

        given, shape = [theta, *tree_leaves(state)], tree_map(lambda t: None, state)

        def flat(theta, *parts):
            left = iter(parts)
            return self.problem.unroll(theta, tree_map(lambda _: next(left), shape), steps)

        kind = steps, *((t.shape, t.dtype) for t in given)
        if kind not in self.graphs:
            self.graphs[kind] = Captured(flat)
        return tree_map(torch.clone, self.graphs[kind](*given))  # the next replay writes over it


def problem(config, device, seeds=None):
    """The inner problem, and where theta starts (seeds, P)."""
    seeds = seeds or config.seeds
    if config.task == "toy":
        return Toy(), torch.tensor([[-4.0, -4.0]] * seeds, device=device).double()
    if config.task == "control":
        worlds = {"cart-pole": CartPole, "mountain car": MountainCar, "swimmer": Swimmer}
        inner = Control(worlds[config.dataset]())
        return inner, torch.zeros(seeds, inner.size, device=device)
    if config.dataset == "digits":
        x, y = data.digits()
    else:
        split = "test" if config.dataset == "mnist_test" else "train"
        x, y = data.load("mnist", split)
        x = x.flatten(1)
    order = torch.randperm(len(x), generator=runtime.generator(0))[
        : config.train + config.validation
    ]
    x, y = x[order].float().to(device), y[order].to(device)
    x = x / x.max()
    validation = x[config.train :], y[config.train :]
    setting = {"horizon": config.horizon, "hidden": config.hidden, "batch": config.batch}
    x, y = x[: config.train], y[: config.train]
    if config.task == "optimiser":
        inner = LearnedOptimiser(x, y, units=4, **setting)
        return inner, inner.start(seeds, runtime.generator(7, device))
    if config.task == "error":
        setting["validation"] = validation
    kind = {"layers": LayerSchedule, "error": ErrorSchedule}.get(config.task, Schedule)
    inner = kind(x, y, **setting)
    start = torch.tensor([0.003, 30.0], device=device).log()  # the paper's
    if config.task == "layers":
        start = torch.cat([start, start.new_tensor([2.2])]).repeat_interleave(4)  # sigmoid = 0.9
    return inner, start.repeat(seeds, 1)


def judge(config, inner, theta):
    """The loss a step (R,), over new inner problems that are the same for everybody."""
    runs, total = len(theta), 0
    state = inner.reset(runs * config.judges, runtime.generator(99, theta.device))
    rows = theta.repeat_interleave(config.judges, 0)
    for _ in range(config.horizon // config.truncation):
        state, losses = inner.unroll(rows, state, config.truncation)
        total = total + losses
    return (total / config.horizon).view(runs, -1).mean(1)


def betas_of(config):
    return (0.99, 0.999) if config.task == "toy" else (0.9, 0.99)


def advance(config, setting, inner, progress, g):
    """One inner problem's worth of outer steps."""
    if setting["method"] == "random search":
        return search(config, inner, progress, g)
    theta = progress["theta"]
    adam = torch.optim.Adam([theta], setting["rate"], betas_of(config))
    if "step" in progress:
        adam.state[theta] = {k: progress[k] for k in ("step", "exp_avg", "exp_avg_sq")}
    group = None if config.shard else False
    estimator = KINDS[setting["method"]](
        inner, sigma=setting["sigma"], particles=config.particles, truncation=config.truncation,
        horizon=config.horizon, generator=g, group=group)  # fmt: skip
    for _ in range(1 if setting["method"] == "full ES" else config.horizon // config.truncation):
        theta.grad = estimator.step(theta) / config.horizon
        adam.step()
    return {"theta": theta, **adam.state[theta]}


class Loop:
    """`advance` for PES as one CUDA graph: the same steps from the same draws."""

    def __init__(self, config, setting, inner, theta, g):
        self.inner, self.generator, self.T = inner, g, config.horizon
        self.steps, self.betas = config.horizon // config.truncation, betas_of(config)
        self.particles = len(theta) * (config.particles // 2)
        # Its gradient is not divided by T, which Adam feels in epsilon alone.
        self.loop = OuterLoop(inner, theta, sigma=setting["sigma"], particles=config.particles,
                              truncation=config.truncation, horizon=self.T, lr=setting["rate"],
                              betas=self.betas, eps=1e-8 * self.T, generator=g, mode="graph")  # fmt: skip

    def __call__(self, progress):
        done, theta = float(progress.get("step", 0)), progress["theta"]
        if done:
            self.loop.adam = Adam(theta, self.T * progress["exp_avg"],
                                  self.T**2 * progress["exp_avg_sq"],
                                  theta.new_tensor([b**done for b in self.betas]))  # fmt: skip
        theta = self.loop.run()
        # As `PES.step` does at the end of a problem: the next one begins from the same draws.
        self.inner.reset(self.particles, self.generator)
        return {"theta": theta, "step": torch.tensor(done + self.steps),
                "exp_avg": self.loop.adam.mean / self.T,
                "exp_avg_sq": self.loop.adam.square / self.T**2}  # fmt: skip


def progressing(config, setting, inner, theta, g):
    """The function progress -> progress of a job, one inner problem after the other."""
    alone = not (config.shard and torch.distributed.is_initialized())
    short = (
        config.horizon <= 1000
    )  # of a longer one the graph would have hundreds of thousands of nodes
    if theta.is_cuda and setting["method"] == "PES" and alone and short:
        return Loop(config, setting, inner.problem, theta, g)
    return lambda progress: advance(config, setting, inner, progress, g)


def search(config, inner, progress, g):
    """As many random settings as there are particles, each tried once; the best so far is progress."""
    runs, size = progress["theta"].shape
    draw = torch.rand(runs, config.particles, size, generator=g, device=g.device)
    low, high = draw.new_tensor([[-7.0, -2.0, -1.0], [0.0, 4.0, 4.0]])  # rates, decays, momenta
    low, high = (t[: min(size, 3)].repeat_interleave(size // min(size, 3)) for t in (low, high))
    tried = low + (high - low) * draw
    state = inner.reset(runs * config.particles, g)
    total = 0
    for _ in range(config.horizon // config.truncation):
        state, losses = inner.unroll(tried.flatten(0, 1), state, config.truncation)
        total = total + losses
    total = total.view(runs, -1)
    best = progress.get("best", torch.full((runs,), torch.inf, device=draw.device))
    lowest, at = total.min(1)
    theta = torch.where((lowest < best)[:, None], tried[torch.arange(runs), at], progress["theta"])
    return {"theta": theta, "best": torch.minimum(lowest, best)}


def others(config):
    """How many seeds the chosen settings are judged on."""
    return max(config.seeds, 9) if config.task == "control" else config.seeds


def run_job(config, setting, folder, device, writer=True):
    """The curve of one method at one setting: judged before and after every inner problem."""
    job = program.Job(config, setting, folder)
    if job.found is not None:
        return job.found
    inner, start = problem(config, device, others(config) if setting.get("fresh") else None)
    inner = Recorded(inner)
    method = 1 + list(KINDS).index(setting["method"]) if setting["method"] in KINDS else 0
    g = runtime.generator(method + 100 * setting.get("fresh", False), device)
    progress, curve = {"theta": start.clone()}, [judge(config, inner, start).tolist()]
    arrays, meta = job.resume()
    if arrays:
        g.set_state(torch.from_numpy(arrays.pop("random")))
        progress = {k: torch.from_numpy(v).to(device) for k, v in arrays.items()}
        progress |= {"step": progress["step"].cpu()} if "step" in progress else {}
        curve = meta["curve"]
    problems = config.unrolls * config.truncation // config.horizon
    further = progressing(config, setting, inner, progress["theta"], g)
    while len(curve) <= problems:
        progress = further(progress)
        curve.append(judge(config, inner, progress["theta"]).tolist())
        if writer:
            job.save({**progress, "random": g.get_state()}, {"curve": curve})
    result = {**setting, "curve": curve, "theta": progress["theta"].tolist()}
    return job.finish(result) if writer else result


def settings(config):
    for method in config.methods:
        if method == "random search":
            yield {"method": method, "sigma": None, "rate": None}
            continue
        scale = config.full if method == "full ES" else 1
        for sigma, rate in itertools.product(config.sigmas, config.rates):
            yield {"method": method, "sigma": sigma, "rate": scale * rate}


def chosen(config, results):
    """For each method the setting with the best second half of the curve."""

    def level(result):
        curve = torch.tensor(result["curve"]).nan_to_num(1e9)
        return curve[len(curve) // 2 :].mean().item()

    best = [min((r for r in results if r["method"] == m), key=level) for m in config.methods]
    return [{k: r[k] for k in ("method", "sigma", "rate")} for r in best]


def table(config, results, tested):
    """What the chosen settings reach with seeds of their own."""
    rows, sign = [], -1 if config.task == "control" else 1
    for result in tested:
        curve = sign * torch.tensor(result["curve"])
        tried = [r for r in results if r["method"] == result["method"]]
        rows.append({"method": result["method"], "σ": result["sigma"] or "-",
                     "outer rate": result["rate"] or "-", "settings tried": len(tried),
                     "at the start": curve[0].mean().item(),
                     "halfway": program.mean(curve[len(curve) // 2]),
                     "at the end": program.mean(curve[-1])})  # fmt: skip
    return rows


def variance(config, device):
    """How often the variance of full ES that of PES is: one pair's estimate for one inner problem."""
    inner, start = problem(config, device)
    windows, rows = config.horizon // config.truncation, []
    for name, theta in (("start", start[0]), ("good", start.new_tensor([-1.8, 0.5]))):
        squares = {}
        for kind in (PES, FullES):
            found = []
            for seed in range(config.seeds):
                estimator = kind(inner, sigma=0.1, particles=2, truncation=config.truncation,
                                 horizon=config.horizon, generator=runtime.generator(seed, device))  # fmt: skip
                many = theta.expand(config.pairs, -1)
                g = sum(estimator.step(many) for _ in range(1 if kind is FullES else windows))
                found.append((g - g.mean(0)).square().sum(1))
            squares[kind] = torch.cat(found)
        pes, full = squares.values()
        ratio = pes.mean() / full.mean()
        error = sum((t.std() / t.mean()).square() / len(t) for t in (pes, full)).sqrt()
        rows.append({"θ": name, "PES over full ES": {
            "mean": ratio.item(), "spread": (ratio * error).item(), "n": len(pes)}})  # fmt: skip
    return rows


def summary(result, ends=False):
    """What a record keeps of a job: its setting, its curve as mean and s.d. over seeds; ends: where each ended."""
    curve = torch.tensor(result["curve"])
    setting = {k: result[k] for k in ("method", "sigma", "rate")}
    setting |= {"ends": [round(v, 5) for v in curve[-1].tolist()]} if ends else {}
    return {**setting, "mean": [round(v, 5) for v in curve.mean(1).tolist()],
            "sd": [round(v, 5) for v in curve.std(1).tolist()]}  # fmt: skip


def recorded(config, folder):
    """(the runs of the record of this name, the commit that made them); their curve is the mean over seeds.

    Raises ValueError where the record is of another config.
    """
    content = json.loads((folder / f"{config.name}.json").read_text())
    mine = json.loads(json.dumps(dataclasses.asdict(config)))
    if other := [k for k, v in content["config"].items() if mine.get(k) != v]:
        raise ValueError(
            f"sweep: got a record with another {', '.join(other)}, wanted that of {config.name}"
        )
    made = content["numbers"].get("sweep of", content["commit"])
    return content["numbers"]["runs"], made


def main(argv=None):
    config, args = program.arguments(
        __doc__, "pes", PRESETS, "schedule", argv,
        lambda parser: parser.add_argument("--sweep", type=Path, help="a folder of records: choose from "
                                           "the sweep there, and test that on other seeds"))  # fmt: skip
    with runtime.ranks() as (rank, world, device):
        folder = args.runs / config.name
        if config.pairs:
            return keep_variance(config, args, device) if rank == 0 else None
        # A sharded population is every rank's job.
        share = (0, 1) if config.shard else (rank, world)
        writer, jobs = rank == 0 or not config.shard, list(settings(config))
        if args.sweep:
            runs, made = recorded(config, args.sweep)
            results = [{**r, "curve": [[v] for v in r["mean"]]} for r in runs]
        else:
            for setting in program.deal(jobs, *share):
                run_job(config, setting, folder, device, writer)
            if world > 1:
                torch.distributed.barrier()  # every setting is there to choose from
            results = [run_job(config, s, folder, device, writer=False) for s in jobs]
            runs, made = [summary(r) for r in results], None
        fresh = [{**s, "fresh": True} for s in chosen(config, results)]
        for setting in program.deal(fresh, *share, "test"):
            run_job(config, setting, folder, device, writer)
        if world > 1:
            torch.distributed.barrier()
    if rank:
        return
    tested = [run_job(config, s, folder, device) for s in fresh]
    measured = {"toy": "Loss", "control": "Reward", "error": "Share of wrong validation samples",
            "schedule": "Training loss", "layers": "Training loss",
            "optimiser": "Training loss"}[config.task]  # fmt: skip
    name = {"toy": "the toy problem", "mnist_test": "the MNIST test images",
            "mnist": "MNIST"}.get("toy" if config.task == "toy" else config.dataset, config.dataset)  # fmt: skip
    network = "" if config.task in ("toy", "control") else f"{config.hidden} hidden units, "
    judges = "" if config.task == "toy" else f"judged on {config.judges} new inner problems; "
    note = (f"{measured} per step of {name} after {config.unrolls:,} unrolls of {config.truncation} "
            f"steps (T = {config.horizon}, {config.particles} particles); {network}{judges}for each "
            f"method the setting that was best on {config.seeds} seeds, mean ± s.d. over {others(config)} "
            "others." + (f" The sweep was recorded at {made[:7]}." if made else ""))  # fmt: skip
    sweeps = {m: sum(s["method"] == m for s in jobs) for m in config.methods}
    if "random search" in sweeps:  # each of its particles is a setting
        sweeps["random search"] = (
            config.unrolls * config.truncation // config.horizon * config.particles
        )
    split = {"chosen on": f"{config.seeds} seeds", "judged on": f"{others(config)} others"}
    numbers = {"table": table(config, results, tested), "formats": FORMATS, "runs": runs,
               "judged": [summary(t, ends=True) for t in tested], "sweeps": sweeps, "split": split}  # fmt: skip
    if made:
        numbers["sweep of"] = made
    program.keep(config, args.out, numbers, note, tried=jobs, chosen=fresh)


def keep_variance(config, args, device):
    """The record of `variance`: nothing is chosen in it."""
    note = (f"Variance of one pair's estimate for one inner problem of the digits' schedule (T = "
            f"{config.horizon}, unrolls of {config.truncation}, σ = 0.1), summed over its unrolls, over "
            f"that of full ES; {config.seeds} x {config.pairs:,} pairs each, ± the standard error. start: the "
            "paper's; good: a rate of about 0.17 that decays slowly.")  # fmt: skip
    numbers = {"table": variance(config, device), "formats": {"PES over full ES": "{:.1f}"}}
    program.keep(config, args.out, numbers, note)


if __name__ == "__main__":
    program.run(main)
