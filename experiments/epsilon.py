"""Two colours by Q(lambda), whose epsilon is learned with no gradient through any update.

    python -m experiments.epsilon             # a table for each lifetime, 2,000 steps between two flips
    python -m experiments.epsilon --tiny      # seconds, for tests

A learner walks an eps-greedy policy of its table Q and changes Q by Watkins' Q(lambda). Epsilon is in
no update: it only decides where the learner goes. So there is nothing to differentiate, and a plain
meta-gradient is zero. A bootstrap is not: let learning go on for L steps, and ask that the policy of
before, pi, would have done what the table of after finds best, a~, in the states that were met:

    mu(w) = - mean log pi(a~ | s; eps(w)),   pi(a | s) = 1 - 3/4 eps for the best a of before, else eps / 4

Every method is tuned on lifetimes of its own and judged on others, with as many settings. A job is one
setting of one method; a finished one is kept, and any number of ranks gives the same record.
"""

import dataclasses
import functools
import time

import torch

from collage import runtime
from collage.bmg.actors import entropy_bonus, start_meta
from collage.bmg.gridworlds import ExactColours, TwoColours, rewards_of
from experiments import program
from experiments.bmg import STARTS, grid, profile

SPAN = 8  # steps whose mean reward is one of the ten that are known
TRACE, DISCOUNT = 0.9, 0.9
FORMATS = dict.fromkeys(("reward", "begun too low", "too high", "epsilon after a flip",
                         "epsilon before it"), "{:.3f}")  # fmt: skip
STEPS, RATES = (0.4, 0.6, 0.8, 1.0), (1e-3, 3e-3, 1e-2)
METHODS = {
    "fixed epsilon": grid(eps=(0.04, 0.06, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3), step=STEPS),
    "by a rule of the recent reward": grid(
        high=(0.4, 0.5, 0.7), low=(0.01, 0.03, 0.08), level=(0.0,), step=STEPS
    ),
    "BMG, no context": grid(L=(8, 16, 32), lr=RATES, step=STEPS, context=(False,)),
    "BMG": grid(L=(8, 16, 32), lr=RATES, step=STEPS, context=(True,)),
}


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "epsilon"
    tries: int = 99  # settings of each method, at the most
    period: int = 2000  # steps between two flips
    phases: int = 10
    tune: int = 16  # lifetimes to choose a setting on
    test: int = 64  # and to judge it on


PRESETS = {
    "epsilon": Config(),
    "tiny": Config("tiny", tries=2, period=128, phases=3, tune=2, test=4),
}


@functools.cache
def tables():
    """(7, 4, N) the next row after a draw and an action, (4, N) what was fetched; rows of ExactColours(3)."""
    exact, env = ExactColours(3), TwoColours(3)
    state = torch.nn.functional.pad(exact.cells, (1, 0))
    after = torch.empty(env.size**2 - 2, 4, len(state), dtype=torch.long)
    for draw in range(len(after)):
        for action in range(4):
            end, _ = env.go(state, *(torch.full_like(state[:, 0], v) for v in (action, draw)))
            after[draw, action] = exact.row[env.number(end[:, 1:])]
    return after, exact.fetched


class Learner:
    """S tables Q (S, N, 4), each with a walker of its own and its traces."""

    def __init__(self, lifetimes, step, g):
        self.after, self.fetched = tables()
        self.lives, self.step, self.g = torch.arange(lifetimes), step, g
        shape = lifetimes, self.fetched.shape[1], 4
        self.Q = 1e-3 * torch.randn(
            shape, generator=g
        )  # no two alike: nothing is best by its number
        self.traces = torch.zeros(shape)
        self.row = torch.randint(shape[1], (lifetimes,), generator=g)

    def walk(self, eps, sign, count):
        """So many steps: rewards and the rows where they began, (count, S) each."""
        S = len(self.lives)
        chances = torch.rand(count, S, generator=self.g)
        others = torch.randint(4, (count, S), generator=self.g)
        draws = torch.randint(len(self.after), (count, S), generator=self.g)
        rewards, rows = [], []
        for chance, other, draw in zip(chances, others, draws, strict=True):
            rows.append(self.row)
            q = self.Q[self.lives, self.row]
            best = q.argmax(1)
            action = torch.where(chance < eps, other, best)
            reward = rewards_of(sign * self.fetched[action, self.row]).float()
            place = self.lives, self.row, action
            ahead = self.after[draw, action, self.row]
            gap = reward + DISCOUNT * self.Q[self.lives, ahead].amax(1) - self.Q[place]
            # Watkins: what came before a step that was not the best has no part in what follows.
            self.traces *= (TRACE * DISCOUNT * (action == best))[:, None, None]
            self.traces[place] = 1.0
            self.Q.addcmul_(self.traces, gap[:, None, None], value=self.step)
            self.row = ahead
            rewards.append(reward)
        return torch.stack(rewards), torch.stack(rows)


def changed_mind(before, after, rows, lives):
    """The share (S,) of the rows (n, S) in which the best action of two tables (S, N, 4) differs."""
    return (before.argmax(-1)[lives, rows] != after.argmax(-1)[lives, rows]).float().mean(0)


def matching(eps, share):
    """mu (S,): minus the mean log chance of the action that is best afterwards.

    It is least where 3/4 eps is the share of states in which learning changed its mind.

    >>> eps = torch.tensor([0.2], requires_grad=True)
    >>> matching(eps, torch.tensor([0.15])).backward()
    >>> abs(eps.grad.item()) < 1e-4
    True
    """
    eps = eps + 1e-6  # an epsilon may vanish in rounding; its logarithm may not
    return -(1 - share) * (1 - 0.75 * eps).log() - share * (eps / 4).log()


def chosen(setting, w, recent):
    """Epsilon (S,): fixed, by a rule of the mean recent reward, or of the networks w."""
    if "eps" in setting:
        return recent.new_full((len(recent),), setting["eps"])
    if "level" in setting:
        return torch.where(recent.mean(1) < setting["level"], setting["high"], setting["low"])
    return entropy_bonus(w, recent, setting["context"])


def live(config, setting, lifetimes, seed):
    """Rewards and epsilons (steps, S) of lifetimes with one setting."""
    g = runtime.generator(seed)
    learner, total = Learner(lifetimes, setting["step"], g), config.period * config.phases
    recent, w = torch.zeros(lifetimes, 10), start_meta(lifetimes, g)
    starts = torch.tensor(STARTS).repeat_interleave(-(-lifetimes // 2))[:lifetimes]
    w[-1] = w[-1] + starts[:, None, None]
    w = [t.requires_grad_() for t in w]
    adam = torch.optim.Adam(w, lr=setting.get("lr", 0.0))
    rewards, epsilons = [], []
    spans = setting.get("L", SPAN) // SPAN
    for begin in range(0, total, spans * SPAN):
        before, known, rows = learner.Q.clone(), recent, []
        for span in range(spans):
            sign = 1 - 2 * ((begin + span * SPAN) // config.period % 2)
            eps = chosen(setting, w, recent).detach()
            earned, met = learner.walk(eps, sign, SPAN)
            recent = torch.cat([recent[:, 1:], earned.mean(0)[:, None]], 1)
            rewards.append(earned)
            rows.append(met)
            epsilons.append(eps.expand(SPAN, -1))
        if "L" not in setting:
            continue
        share = changed_mind(before, learner.Q, torch.cat(rows), learner.lives)
        adam.zero_grad()
        matching(chosen(setting, w, known), share).sum().backward()
        adam.step()
    return torch.cat(rewards)[:total], torch.cat(epsilons)[:total]


def judge(config, method, setting, test, folder):
    job = program.Job(config, {"method": method, **setting, "test": test}, folder)
    if job.found is not None:
        return job.found
    begin, count = time.process_time(), config.test if test else config.tune
    rewards, eps = live(config, setting, count, runtime.seed_for("lives", test))
    later = rewards.view(config.phases, config.period, -1)[1:]
    found = {"method": method, "setting": setting, "score": round(later.mean().item(), 5),
             "lifetimes": [round(v, 5) for v in later.mean((0, 1)).tolist()],
             "reward": profile(config, rewards), "eps": profile(config, eps)}  # fmt: skip
    if config.name != "tiny":
        found["seconds"] = round(time.process_time() - begin, 1)
    return job.finish(found)


def row(found):
    lives = found["lifetimes"]
    half = len(lives) // 2
    mean = functools.partial(program.mean, standard_error=True)
    learned = "BMG" in found["method"]
    return {"method": found["method"],
            "chosen": ", ".join(f"{k} {v:g}" for k, v in found["setting"].items() if k != "context"),
            "reward": mean(lives), "begun too low": mean(lives[:half]) if learned else "-",
            "too high": mean(lives[half:]) if learned else "-",
            "epsilon after a flip": found["eps"][1], "epsilon before it": found["eps"][-1]}  # fmt: skip


def main(argv=None):
    config, args = program.arguments(__doc__, "bmg", PRESETS, "epsilon", argv)
    folder = args.runs / config.name
    tries = {method: settings[: config.tries] for method, settings in METHODS.items()}
    tuning = [(method, s, False) for method in tries for s in tries[method]]

    def best(method):
        found = [judge(config, method, s, False, folder) for s in tries[method]]
        return max(found, key=lambda f: f["score"])["setting"]

    with runtime.ranks("cpu") as (rank, world, _):
        for stage in ("tuning", "test"):
            jobs = tuning if stage == "tuning" else [(m, best(m), True) for m in tries]
            for job in program.deal(jobs, rank, world, stage, lambda job: f"{job[0]} {job[1]}"):
                judge(config, *job, folder)
            if world > 1:
                torch.distributed.barrier()
    if rank:
        return
    tested = [judge(config, m, best(m), True, folder) for m in tries]
    note = (f"Two colours on a 3 x 3 grid, a flip after each {config.period:,} steps, {config.phases} phases; "
            f"Watkins' Q(lambda), lambda = {TRACE}, discount {DISCOUNT}, a table of 66 x 4. Reward per step after "
            "the first flip, mean ± standard error over lifetimes, of which half begin with an epsilon that is "
            "too low, half with one that is too high. Settings (of Q's step, too) are chosen on "
            f"{config.tune} other lifetimes; L is a multiple of the {SPAN} steps after which rewards are known. A plain meta-gradient of epsilon is zero.")  # fmt: skip
    numbers = {"table": [row(f) for f in tested], "formats": FORMATS, "tested": tested,
               "tuned": [judge(config, *job, folder) for job in tuning],
               "sweeps": {method: len(settings) for method, settings in tries.items()},
               "split": {"chosen on": f"{config.tune} lifetimes", "judged on": f"{config.test} others"}}  # fmt: skip
    program.keep(config, args.out, numbers, note, [runtime.seed_for("lives", t) for t in (False, True)],
                 gpu=False, tried=[{"method": m, **s} for m, s, _ in tuning],
                 chosen=[{"method": f["method"], **f["setting"]} for f in tested])  # fmt: skip


if __name__ == "__main__":
    program.run(main)
