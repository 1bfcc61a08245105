"""Two colours and few-shot sine waves at full scale: what meta-gradients and bootstraps reach.

    python -m experiments.bmg --preset colours      # 400 updates between two flips
    python -m experiments.bmg --preset context      # the same, and with the recent rewards as context
    python -m experiments.bmg --preset long         # 1,000
    python -m experiments.bmg --preset exact        # without chance: tables, exact gradients
    python -m experiments.bmg --preset exact_still  # the same, and nothing is learned of the bonus
    python -m experiments.bmg --preset waves        # MAML and Reptile against BMG, equal meta-steps
    python -m experiments.bmg --preset waves_time   # the same in equal time
    torchrun --nproc-per-node 8 -m experiments.bmg --preset paper     # networks of 256, 100,000 steps
    python -m experiments.bmg --tiny                # seconds, for tests

Every method, the fixed bonuses too, is tuned on lifetimes of its own and judged on others; in one
record all have the same number of settings. A job is
one setting of one method; jobs are dealt to the ranks, and what a job finds depends on its setting
alone: any number of ranks gives the same record. A finished job is kept.
"""

import dataclasses
import functools
import itertools
import math
import time

import torch

from collage import runtime
from collage.bmg import colour_step, meta_gradient
from collage.bmg.actors import ColourLearner, ExactLearner, start_meta
from collage.bmg.fast.colours import MetaLoop
from collage.bmg.gridworlds import ExactColours, TwoColours
from collage.bmg.waves import Adapter, sinusoids
from collage.common.populations import tree_leaves
from experiments import program

RATES = (1e-4, 3e-4, 1e-3, 3e-3)  # of Adam, for each update that a meta-step takes
FASTER = (1e-3, 3e-3, 1e-2, 3e-2)  # without context one number learns, not a network
BONUS = (0.1, 0.2, 0.3)
STARTS = (
    -1.5,
    1.5,
)  # half of the lifetimes begin with too small a bonus, half with too large a one
BINS = 16
FORMATS = {**dict.fromkeys(("reward", "begun too low", "too high", "bonus after a flip",
                            "bonus before it"), "{:.3f}"),
           **{f"error after {k}": "{:.3f}" for k in (1, 5, 10)}, "CPU (s)": "{:.0f}", "meta-steps": "{:,.0f}"}  # fmt: skip


def grid(**axes):
    """All combinations, as dicts."""
    return tuple(
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    )


COLOURS = {
    "fixed bonus": grid(eps=(0.0, 0.05, 0.08, 0.1, 0.12, 0.13, 0.14, 0.16, 0.18, 0.2, 0.25, 0.3)),
    "MG, no context": grid(K=(1, 3, 7), lr=(3e-4, *FASTER[:3]), context=(False,)),
    "MG, K = 1, no context, outer bonus": grid(K=(1,), lr=FASTER, bonus=BONUS, context=(False,)),
    "BMG, K = 1, no context": grid(K=(1,), L=(3, 7, 10), lr=FASTER, context=(False,)),
    "MG, K = 1, outer bonus": grid(K=(1,), lr=RATES, bonus=BONUS),
    "BMG, K = 1": grid(K=(1,), L=(3, 7, 10), lr=RATES),
}
UNTOLD = tuple(m for m in COLOURS if "no context" in m or m == "fixed bonus")
EXACT_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)
EXACT = {
    "fixed bonus": grid(eps=tuple(round(i / 50, 2) for i in range(2, 26))),
    "MG": grid(K=(1, 3, 7, 15), lr=EXACT_RATES),
    "MG, K = 1, outer bonus": grid(K=(1,), lr=EXACT_RATES, bonus=(0.1, 0.2, 0.3, 0.4)),
    "MG, K = 7, outer bonus": grid(K=(7,), lr=EXACT_RATES, bonus=(0.1, 0.2, 0.3, 0.4)),
    "MG, K = 15, outer bonus": grid(K=(15,), lr=EXACT_RATES, bonus=(0.1, 0.2, 0.3, 0.4)),
    "BMG, K = 1": grid(K=(1,), L=(3, 5, 10, 20), lr=EXACT_RATES),
    "BMG, K = 7": grid(K=(7,), L=(3, 5, 10, 20), lr=EXACT_RATES),
}  # fmt: skip
STILL = {  # the bonus stays where it was drawn: what is earned without learning it
    "MG, rate 0": grid(K=(15,), lr=(0.0,)),
    "BMG, K = 1, rate 0": grid(K=(1,), L=(5,), lr=(0.0,)),
}
STEPS = {"lr": (3e-3, 1e-2, 3e-2, 0.1), "inner": (0.003, 0.01, 0.03, 0.1)}
WAVES = {
    "MAML, K = 1": grid(K=(1,), **STEPS),
    "MAML, K = 5": grid(K=(5,), **STEPS),
    "Reptile, 6 steps": grid(K=(1,), L=(5,), reptile=(True,), **STEPS),
    "BMG, K = 1, L = 5": grid(K=(1,), L=(5,), **STEPS),
}


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "colours"
    kind: str = "colours"  # "exact" or "waves"
    methods: tuple = tuple(COLOURS)
    tries: int = 99  # settings of each method, at the most
    period: int = 400  # updates between two flips
    phases: int = 10
    tune: int = 8  # lifetimes (or runs) to choose a setting on
    test: int = 16  # and to judge it on
    learner: tuple = (("see", "ways"),)
    meta_steps: int = 1000  # of waves
    seconds: float = 0.0  # of processor time in place of meta-steps


PAPER = (("see", "places"), ("walkers", 1), ("widths", (256, 256)), ("lr", 0.1), ("discount", 0.99),
         ("top", 1.0))  # fmt: skip
PRESETS = {
    "colours": Config(methods=UNTOLD),
    "context": Config("colours_context"),
    "long": Config("colours_long", methods=tuple(COLOURS), period=1000),
    "paper": Config("colours_paper", methods=tuple(COLOURS), period=6250, phases=64, tune=16, test=64,
                    learner=PAPER),
    "exact": Config("exact", "exact", tuple(EXACT), period=100, test=24),
    "exact_still": Config("exact_still", "exact", tuple(STILL), period=100, test=24),
    "waves": Config("waves", "waves", tuple(WAVES), tune=1, test=5),
    "waves_time": Config("waves_time", "waves", tuple(WAVES), tune=1, test=5, seconds=8.0),
    "tiny": Config("tiny", methods=("fixed bonus", "MG, no context", "BMG, K = 1"), tries=2, period=30,
                   phases=3, tune=2, test=2),
}  # fmt: skip


def tries(config, method):
    return {"colours": COLOURS, "exact": EXACT | STILL, "waves": WAVES}[config.kind][method][
        : config.tries
    ]


def learner_of(config, lifetimes, seed, device, **more):
    settings = dict(config.learner)
    env = TwoColours(period=16 * config.period, see=settings.pop("see"))
    return ColourLearner(env, lifetimes, runtime.generator(seed, device), **settings, **more)


def live(config, setting, lifetimes, seed, device):
    """Rewards and bonuses (updates, S) of lifetimes with one setting."""
    total, rewards, bonuses = config.period * config.phases, [], []
    learner = learner_of(config, lifetimes, seed, device, context=setting.get("context", True))
    life = learner.begin()
    if "eps" in setting:
        eps = life.recent.new_full((lifetimes,), setting["eps"])
        for _ in range(total):
            life = learner.update(life, eps, 0)
            rewards.append(life.recent[:, -1])
        return torch.stack(rewards), eps.expand(total, -1)
    K, L, bonus = setting["K"], setting.get("L"), setting.get("bonus", 0.0)
    w, updates = learner.start_meta(), K if L is None else K + L - 1
    starts = torch.tensor(STARTS, device=device).repeat_interleave(-(-lifetimes // 2))[:lifetimes]
    w[-1] = w[-1] + starts[:, None, None]
    rate = setting["lr"] * updates
    if device.type == "cuda" and K == 1:
        loop = MetaLoop(learner, life, w, L, rate, bonus)
        for _ in range(0, total, updates):
            bonuses += [learner.bonus(loop.w, loop.life).detach()] * updates
            loop.run(1)
            rewards += loop.life.recent[:, -updates:].T.clone()
        return torch.stack(rewards)[:total].cpu(), torch.stack(bonuses)[:total].cpu()
    w = [t.requires_grad_() for t in w]
    adam = torch.optim.Adam(w, lr=rate)

    def update(life, w, k):
        after = learner.update(life, w, k)
        rewards.append(after.recent[:, -1].detach())
        return after

    for _ in range(0, total, updates):
        with torch.no_grad():
            bonuses += [learner.bonus(w, life)] * updates
        if K == 1:
            meta = colour_step(learner, life, w, L, bonus)
            rewards += meta.onward.recent[:, -updates:].T
        elif L is None:
            meta = meta_gradient(
                update, life, w, K, objective=functools.partial(learner.objective, bonus=bonus)
            )
        else:
            meta = meta_gradient(update, life, w, K, L, matching=learner.matching,
                                  ground_truth_step=learner.ground_truth_step)  # fmt: skip
        for leaf, slope in zip(w, tree_leaves(meta.gradient), strict=True):
            leaf.grad = slope
        adam.step()
        life = meta.onward
    return torch.stack(rewards)[:total], torch.stack(bonuses)[:total]


@functools.cache
def arrangements():
    return ExactColours(3)


def live_exactly(config, setting, lifetimes, seed):
    """Rewards and bonuses (updates, S), from policies and first bonuses that are drawn."""
    learner, g = ExactLearner(arrangements(), config.period, context=False), runtime.generator(seed)
    x, w = learner.begin(lifetimes), [t.double() for t in start_meta(lifetimes, g)]
    first = 0.02 + 0.46 * torch.rand(lifetimes, generator=g).double()
    shift = (2 * first).logit() - (2 * learner.bonus(w, x)).logit()
    w[-1] = w[-1] + shift[:, None, None]
    x = x._replace(theta=0.3 * torch.randn(x.theta.shape, generator=g).double())
    if "eps" in setting:
        w = torch.full((lifetimes,), float(setting["eps"])).double()
    K, L, total = setting.get("K", 1), setting.get("L"), config.period * config.phases
    stride, rewards, bonuses = K if L is None else K + L - 1, [], []
    how = ({"objective": functools.partial(learner.objective, bonus=setting.get("bonus", 0.0))} if L is None
           else {"ground_truth_step": learner.ground_truth_step, "matching": learner.matching})  # fmt: skip
    adam = None if "eps" in setting else torch.optim.Adam(
        [t.requires_grad_() for t in w], lr=setting["lr"] * stride)  # fmt: skip

    def update(x, w, k):
        after = learner.update(x, w, k)
        rewards.append(after.recent[:, -1].detach())
        return after

    while len(rewards) < total:
        with torch.no_grad():
            bonuses += [learner.bonus(w, x)] * stride
        if adam is None:
            x = update(x, w, 0)
            continue
        meta = meta_gradient(update, x, w, K, L, **how)
        for leaf, slope in zip(w, meta.gradient, strict=True):
            leaf.grad = slope
        adam.step()
        x = meta.onward
    return torch.stack(rewards)[:total], torch.stack(bonuses)[:total]


def profile(config, values):
    """Means over lifetimes and phases after the second, in BINS parts of a phase."""
    cut = values.view(config.phases, config.period, -1)[min(2, config.phases - 1) :]
    ends = [i * config.period // BINS for i in range(BINS + 1)]
    return [round(cut[:, a:b].mean().item(), 5) for a, b in itertools.pairwise(ends)]


def colours(config, setting, test, device):
    count = config.test if test else config.tune
    seed = runtime.seed_for("lives", test)
    rewards, bonuses = (live(config, setting, count, seed, device) if config.kind == "colours" else
                        live_exactly(config, setting, count, seed))  # fmt: skip
    later = rewards.view(config.phases, config.period, -1)[1:]
    return {"score": round(later.mean().item(), 5),
            "lifetimes": [round(v, 5) for v in later.mean((0, 1)).tolist()],
            "last quarter": [round(v, 5) for v in later[:, -config.period // 4 :].mean((0, 1)).tolist()],
            "reward": profile(config, rewards), "eps": profile(config, bonuses)}  # fmt: skip


def waves(config, setting, test, device):
    """Errors of new waves after some steps, for several runs."""
    errors, steps = [], []
    for run in range(config.test if test else config.tune):
        g = runtime.generator(runtime.seed_for("run", test, run), device)
        adapter = Adapter(lr=setting["inner"])
        w = [t.requires_grad_() for t in adapter.start(g)]
        adam = torch.optim.Adam(w, lr=setting["lr"])
        begin, count = time.process_time(), 0
        while (count < config.meta_steps if not config.seconds else
               time.process_time() - begin < config.seconds):  # fmt: skip
            adapter.tasks = sinusoids(25, 10, g)
            for leaf, slope in zip(w, slope_of_start(adapter, w, setting), strict=True):
                leaf.grad = slope
            adam.step()
            count += 1
        judged = runtime.generator(runtime.seed_for("waves", test), device)
        adapter.tasks = sinusoids(400, 10, judged, 50)
        errors.append(after(adapter, w))
        steps.append(count)
    last = [e[10] for e in errors]
    return {"score": -sum(last) / len(last), "errors": errors, "meta-steps": steps}


def slope_of_start(adapter, w, setting):
    """By MAML, by BMG, or by Reptile: the mean way from the end of K + L steps back to the start."""
    K, L = setting["K"], setting.get("L")

    def update(params, w, k):  # the bootstrap goes on with all that is known
        return adapter.update(params, w, k) if k < K else adapter.ground_truth_step(params, k)

    if L is None:
        return meta_gradient(update, adapter.begin(w), w, K, objective=adapter.objective).gradient
    if "reptile" not in setting:
        return meta_gradient(update, adapter.begin(w), w, K, L,
                             ground_truth_step=adapter.ground_truth_step).gradient  # fmt: skip
    with torch.no_grad():
        params = adapter.begin(w)
        for k in range(K + L):
            params = update(params, w, k)
        return [a - p.mean(0, keepdim=True) for a, p in zip(w, params, strict=True)]


@torch.no_grad()
def after(adapter, w, steps=(1, 5, 10)):
    """{steps: mean error on the queries}."""
    errors, params = {}, adapter.begin(w)
    for k in range(max(steps)):
        params = adapter.update(params, w, k)
        if k + 1 in steps:
            value = adapter.objective(params).mean().item()
            errors[k + 1] = round(value, 5) if math.isfinite(value) else 1e9  # JSON has no NaN
    return errors


def run_job(config, method, setting, test, folder, device):
    job = program.Job(config, {"method": method, **setting, "test": test}, folder)
    if job.found is not None:
        return job.found
    begin = time.process_time()
    result = (waves if config.kind == "waves" else colours)(config, setting, test, device)
    result = {"method": method, "setting": setting, **result}
    if config.name != "tiny":  # a record that two machines can compare
        result["seconds"] = round(time.process_time() - begin, 1)
    return job.finish(result)


def best(config, method, folder, device):
    """The setting with the highest score in the lifetimes for tuning."""
    result = [run_job(config, method, s, False, folder, device) for s in tries(config, method)]
    return max(result, key=lambda f: f["score"])["setting"]


def mean(values):
    return program.mean(values, standard_error=True)


def row(config, result):
    chosen = ", ".join(
        f"{k} {v:g}"
        for k, v in result["setting"].items()
        if (k != "K" or result["method"].startswith("MG, no") or result["method"] == "MG")
        and k not in ("context", "reptile")
    )
    if config.kind == "waves":
        errors = result["errors"]
        return {"method": result["method"], "chosen": chosen,
                **{f"error after {k}": mean([e[k] for e in _ints(errors)]) for k in (1, 5, 10)},
                "meta-steps": mean(result["meta-steps"]), "CPU (s)": result["seconds"] / len(errors)}  # fmt: skip
    half, lives = len(result["lifetimes"]) // 2, result["lifetimes"]
    shown = {"reward": mean(lives)}
    if "fixed" not in result["method"]:
        shown |= {"begun too low": mean(lives[:half]), "too high": mean(lives[half:])}
    return {"method": result["method"], "chosen": chosen, "reward": "-", "begun too low": "-", "too high": "-",
            **shown, "bonus after a flip": result["eps"][1], "bonus before it": result["eps"][-1]}  # fmt: skip


def _ints(errors):
    """JSON makes words of the numbers of steps."""
    return [{int(k): v for k, v in e.items()} for e in errors]


def main(argv=None):
    config, args = program.arguments(__doc__, "bmg", PRESETS, "colours", argv)
    folder = args.runs / config.name
    with runtime.ranks() as (rank, world, device):
        tuning = [(m, s, False) for m in config.methods for s in tries(config, m)]
        for stage in ("tuning", "test"):
            jobs = tuning if stage == "tuning" else [
                (m, best(config, m, folder, device), True) for m in config.methods]  # fmt: skip
            for job in program.deal(jobs, rank, world, stage, lambda job: f"{job[0]} {job[1]}"):
                run_job(config, *job, folder, device)
            if world > 1:
                torch.distributed.barrier()
    if rank:
        return
    tuned = [run_job(config, *job, folder, device) for job in tuning]
    tested = [run_job(config, m, best(config, m, folder, device), True, folder, device)
              for m in config.methods]  # fmt: skip
    if config.kind == "waves":
        length = (f"{config.seconds:g} s of processor time" if config.seconds else
                  f"{config.meta_steps:,} meta-steps")  # fmt: skip
        note = (f"Sine waves, 10 points; {length} of 25 tasks each; mean squared error on 400 new waves after "
                "1, 5 and 10 steps, mean ± standard error over runs. Meta rate and inner rate are chosen from "
                f"{len(tries(config, config.methods[0]))} settings of each method on another run.")  # fmt: skip
    else:
        exactly = " without chance" if config.kind == "exact" else ""
        begun = ("each begun with a policy and a bonus drawn at random" if exactly else "of which half begin "
                 "with a learned bonus that is too low, half with one that is too high")  # fmt: skip
        note = (f"Two colours{exactly}, a flip after each {config.period:,} updates, {config.phases} phases; "
                f"reward per step after the first flip, mean ± standard error over lifetimes, {begun}; the "
                f"setting is chosen on {config.tune} other lifetimes. lr is for each update that a meta-step "
                "takes.")  # fmt: skip
    numbers = {
        "table": [row(config, f) for f in tested],
        "formats": FORMATS,
        "tested": tested,
        "tuned": tuned,
        "sweeps": {m: len(tries(config, m)) for m in config.methods},
        "split": {
            "chosen on": f"{config.tune} lifetimes or runs",
            "judged on": f"{config.test} others",
        },
    }
    program.keep(config, args.out, numbers, note, [runtime.seed_for("lives", t) for t in (False, True)],
                 gpu=device.type == "cuda", tried=[{"method": m, **s} for m, s, _ in tuning],
                 chosen=[{"method": f["method"], **f["setting"]} for f in tested])  # fmt: skip


if __name__ == "__main__":
    program.run(main)
