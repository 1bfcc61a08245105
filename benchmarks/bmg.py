"""Bootstrapped meta-steps against their peers: python -m benchmarks.bmg [--rounds 9] [--on cpu] [--out FOLDER]

One meta-step of the actor-critic in two colours, K = 1 and L = 7: eight rollouts of 8 walkers and 16
steps, their updates, and the gradient of the meta-parameters by the KL of policies over the states of
the first rollout after the update. Ours in one backward pass (`colour_step`), the same as compiled
programs, and by autograd through the update (`meta_gradient`), for 1, 8 and 64 lifetimes at once. So has
a port in JAX, one program with scans over steps. Two peers have one lifetime: TorchOpt, as the public
reproduction uses it, and a loop in ordinary PyTorch; both step their walkers in plain Python. From the same draws, weights and states all meta-gradients are checked equal before timing.
Horizon: time and memory of meta-gradients through more updates (MG), or with a longer bootstrap (BMG).
CPU time, one thread. Writes steps_cpu.json to FOLDER, results/bmg. On a GPU: plain meta-steps against
recorded ones (`MetaLoop`), with Adam; wall time; writes steps_gpu.json.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1"}  # said before the libraries load

import argparse
import functools
import gc
import itertools
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from benchmarks import jax_peers
from benchmarks.jax_learners import bmg_step
from benchmarks.timing import (
    alternate,
    at_size,
    clock,
    first_call,
    median,
    one_core,
    peak,
    quotient,
    show,
)
from collage import runtime
from collage.bmg import colour_step, meta_gradient
from collage.bmg.actors import TOP, ColourLearner
from collage.bmg.fast.colours import MetaLoop
from collage.bmg.fast.compiled import compiled_step
from collage.bmg.gridworlds import STEP_COST, TwoColours
from collage.common.populations import tree_map
from collage.page.records import texts
from experiments.program import positive, usable
from tools import provenance
from tools.peers import peer

HOME = Path(__file__).resolve().parent.parent / "results" / "bmg"
LIFETIMES, L, LR, NOT = (1, 8, 64), 7, 3e-3, "not run"
RATES = ("compiled", "tensors", "meta_gradient", "JAX", "TorchOpt", "plain loop", "plain", "graph")
FORMATS = {"float64": "{:.0e}", "float32": "{:.0e}", **{f"{name} (1/s)": "{:.1f}" for name in RATES},
           **{f"{name} / TorchOpt": "{:.2f}" for name in RATES}, "graph / plain": "{:.2f}",
           "compiling (s)": "{:.0f}", "JAX compiling (s)": "{:.0f}",
           "ms": "{:.1f}", "peak memory (MB)": "{:.1f}", "alike": "{:.3f}",
           "peak memory (GB)": "{:.2f}"}  # fmt: skip
HORIZONS, CHECKED, BEFORE = (1, 5, 20, 50), 8, 20
OURS = ("compiled", "tensors", "meta_gradient")
SINGLE = ("TorchOpt", "plain loop")
# On a GPU: our small setting, and the paper's with its single stream.
SETTINGS = {"2 x 32, 8 walkers": ("ways", {}),
            "2 x 256, 1 walker": ("places", {"walkers": 1, "widths": (256, 256), "lr": 0.1,
                                             "discount": 0.99})}  # fmt: skip
CROWDS = (1, 64, 256, 1024)


def begun(lifetimes, seed=0):
    """A learner, and lives that have some rewards to look back on."""
    learner = ColourLearner(TwoColours(see="ways"), lifetimes, runtime.generator(seed))
    life, w = learner.begin(), learner.start_meta()
    for k in range(BEFORE):
        with torch.no_grad():
            life = learner.update(life, w, k)
    return learner, life, w


def general(learner, life, w, steps):
    """What `colour_step` does, by autograd through the update."""
    seen = []

    def learn(life, eps):
        batch, moved = learner.rollout(life)
        if len(seen) < 2:
            seen.append(batch.seen)
        return learner.learn(moved, batch, eps)

    return meta_gradient(lambda life, w, k: learn(life, learner.bonus(w, life)), life, w, 1, steps,
                         ground_truth_step=lambda life, k: learn(life, None),
                         matching=lambda target, x: learner.matching(target, x, seen[1]))  # fmt: skip


# The peers: one lifetime


def walk(cells, action, draw, size, period):
    """A walker's step, as `TwoColours.step`."""
    now, me, *things = cells
    row, column = divmod(me, size)
    if action < 2:
        row = min(max(row + (1 if action else -1), 0), size - 1)
    else:
        column = min(max(column + (1 if action == 3 else -1), 0), size - 1)
    me, reward = row * size + column, STEP_COST
    if me in things:
        on = things.index(me)
        reward = 1.0 if on == now // period % 2 else -1.0
        low, high = sorted((me, things[1 - on]))
        draw += draw >= low
        things[on] = draw + (draw >= high)
    return [now + 1, me, *things], reward


class Single:
    """What both peers share: the walkers of one lifetime, its recent rewards and its loss."""

    def __init__(self, learner, life, s):
        self.learner, self.env = learner, learner.env
        self.sights = self.env.tables(torch.device("cpu")).sights.to(life.recent)
        self.cells = life.cells.view(learner.S, learner.B, 4)[s].tolist()
        self.recent = life.recent[s].tolist()

    def look(self):
        count = self.env.size**2
        return self.sights[[(a * count + b) * count + c for _, a, b, c in self.cells]]

    def context(self):
        return 5 * torch.tensor(self.recent, dtype=self.sights.dtype)

    @torch.no_grad()
    def rollout(self, policy, chance):
        """(seen (T, B, D), actions (T, B), rewards (T, B), last (B, D)); chance: (T, B, 4), (T, B)."""
        seen, actions, rewards = [], [], []
        for noise, draws in zip(chance[0], chance[1].tolist(), strict=True):
            seen.append(self.look())
            actions.append((policy(seen[-1]) + noise).argmax(-1))
            steps = zip(self.cells, actions[-1].tolist(), draws, strict=True)
            moved = [walk(*step, self.env.size, self.env.period) for step in steps]
            self.cells = [cells for cells, _ in moved]
            rewards.append([reward for _, reward in moved])
        rewards = torch.tensor(rewards, dtype=self.sights.dtype)
        self.recent = [*self.recent[1:], rewards.mean().item()]
        return torch.stack(seen), torch.stack(actions), rewards, self.look()

    def loss(self, policy, value, batch, eps):
        seen, actions, rewards, last = batch
        with torch.no_grad():
            ahead, returns = value(last)[:, 0], []
            for reward in reversed(rewards):
                ahead = reward + self.learner.discount * ahead
                returns.append(ahead)
            returns = torch.stack(returns[::-1])
        wrong = returns - value(seen)[..., 0]
        log = policy(seen).log_softmax(-1)
        chosen = log.gather(-1, actions[..., None])[..., 0]
        loss = (
            self.learner.value_weight * wrong.square().mean() / 2 - (wrong.detach() * chosen).mean()
        )
        return loss if eps is None else loss + eps * (log.exp() * log).sum(-1).mean()


def divergence(target, logits):
    """Mean KL of policies, the target first."""
    p, q = target.detach().log_softmax(-1), logits.log_softmax(-1)
    return functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()


def sequential(params):
    """An ordinary network with given weights (in, out) and (1, out)."""
    layers = []
    for weight, bias in zip(params[::2], params[1::2], strict=True):
        layer = nn.utils.skip_init(nn.Linear, *weight.shape, dtype=weight.dtype)
        layer.weight.data.copy_(weight.T)
        layer.bias.data.copy_(bias[0])
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def with_torchopt(torchopt, learner, life, w, s):
    """function(chance) -> gradient of w: a meta-step of lifetime s, which then goes on."""
    world, meta = Single(learner, life, s), sequential([t[s] for t in w])
    model = nn.ModuleDict({"actor": sequential([t[s] for t in life.actor]),
                           "critic": sequential([t[s] for t in life.critic])})  # fmt: skip
    optimiser = torchopt.MetaSGD(model, lr=learner.lr)

    def bonus():
        return TOP * meta(world.context()).sigmoid()[0]

    def update(chance, eps):
        batch = world.rollout(model["actor"], chance())
        optimiser.step(world.loss(model["actor"], model["critic"], batch, eps))
        return batch[0]

    def step(chance):
        update(chance, bonus())
        student = torchopt.extract_state_dict(model)
        # The bootstrap needs no graph back to here; the student's is kept by its state.
        torchopt.recover_state_dict(model, torchopt.extract_state_dict(model, by="deepcopy"))
        seen = []
        for _ in range(L - 1):
            with torch.no_grad():
                eps = bonus()
            seen.append(update(chance, eps))
            torchopt.stop_gradient(model)
        onward, world_then = torchopt.extract_state_dict(model), (world.cells, world.recent)
        update(chance, None)
        with torch.no_grad():
            target = model["actor"](seen[0])
        torchopt.recover_state_dict(model, student)
        loss = divergence(target, model["actor"](seen[0]))
        gradient = torch.autograd.grad(loss, list(meta.parameters()))
        torchopt.recover_state_dict(model, onward)
        world.cells, world.recent = world_then
        return [g.T if g.dim() == 2 else g for g in gradient]

    return step


def network(params, x):
    for i in range(0, len(params), 2):
        x = (x.relu() if i else x) @ params[i] + params[i + 1]
    return x


def by_hand(learner, life, w, s):
    """As `with_torchopt`, with lists of tensors and `torch.autograd.grad`."""
    world, w = Single(learner, life, s), [t[s].clone().requires_grad_() for t in w]
    x, n = [t[s].clone() for t in life.actor + life.critic], len(life.actor)

    def bonus():
        return TOP * network(w, world.context()).sigmoid()[0, 0]

    def update(x, chance, eps, graph=False):
        x = [p.detach().requires_grad_() for p in x]
        batch = world.rollout(functools.partial(network, x[:n]), chance())
        loss = world.loss(functools.partial(network, x[:n]), functools.partial(network, x[n:]),
                          batch, eps)  # fmt: skip
        slopes = torch.autograd.grad(loss, x, create_graph=graph)
        with torch.set_grad_enabled(graph):
            return [p - learner.lr * g for p, g in zip(x, slopes, strict=True)], batch[0]

    def step(chance):
        nonlocal x
        student, _ = update(x, chance, bonus(), graph=True)
        x, seen = student, []
        for _ in range(L - 1):
            with torch.no_grad():
                eps = bonus()
            x, where = update(x, chance, eps)
            seen.append(where)
        world_then = world.cells, world.recent
        target, _ = update(x, chance, None)
        world.cells, world.recent = world_then
        with torch.no_grad():
            goal = network(target[:n], seen[0])
        return torch.autograd.grad(divergence(goal, network(student[:n], seen[0])), w)

    return step


def programs(found):
    """{name: function(learner, life, w, s)} of the peers that are there."""
    made = {"plain loop": by_hand}
    if "torchopt" in found:
        made["TorchOpt"] = functools.partial(with_torchopt, found["torchopt"][0])
    return made


def programs_of_all(learner, life, w):
    """{name: function(life, tape) -> meta-gradient of all lifetimes}: ours compiled, and JAX's."""
    run = compiled_step(learner, L)
    made = {"compiled": lambda life, tape: run(life, w).gradient}
    if jax_peers.usable(anywhere=True):
        _, given = bmg_step(learner, life, w, L)

        def by_jax(life, tape):  # it goes on by itself
            noise, draws = (torch.stack(t) for t in zip(*tape, strict=True))
            return given(noise, draws.view(noise.shape[:-1]))

        made["JAX"] = by_jax
    return made


# Checks


def apart(mine, theirs):
    """Relative distances (S,) of lists of tensors (S, ...)."""
    a, b = (torch.cat([t.flatten(1).double() for t in side], 1) for side in (mine, theirs))
    return (a - b).norm(dim=1) / b.norm(dim=1)


def floats(state, dtype):
    return tree_map(lambda t: t.to(dtype) if t.is_floating_point() else t, state)


def check(found):
    """Two meta-steps of 8 lifetimes by every program are ours in tensors, or an error is raised."""
    errors, rows = {}, []
    for dtype, limit in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        learner, life, w = begun(CHECKED)
        life, w = floats(life, dtype), floats(w, dtype)
        singles = {
            name: [make(learner, life, w, s) for s in range(CHECKED)]
            for name, make in programs(found).items()
        }
        whole = programs_of_all(learner, life, w) if dtype == torch.float32 else {}
        for _ in range(2):
            state = learner.generator.get_state()
            tape = [learner.draw_noise(life.recent) for _ in range(L + 1)]
            after = learner.generator.get_state()
            learner.generator.set_state(state)
            wanted = colour_step(learner, life, w, L)
            assert torch.equal(learner.generator.get_state(), after), "other draws"
            learner.generator.set_state(state)
            gradients = {"meta_gradient": general(learner, life, w, L).gradient}
            for name, steps in singles.items():
                parts = [step(taped(tape, s)) for s, step in enumerate(steps)]
                gradients[name] = [
                    torch.stack(t).view_as(g)
                    for t, g in zip(zip(*parts, strict=True), w, strict=True)
                ]
            for name, step in whole.items():
                learner.generator.set_state(state)
                gradients[name] = step(life, tape)
            learner.generator.set_state(after)
            for name, gradient in gradients.items():
                wrong = apart(gradient, wanted.gradient).max().item()
                assert wrong < limit, (
                    f"{name}, {dtype}: meta-gradients are {wrong:.2g} of ours apart"
                )
                key = str(dtype).removeprefix("torch.")
                row = errors.setdefault(name, {})
                row[key] = max(row.get(key, 0.0), wrong)
            life = wanted.onward
    for name, row in errors.items():
        rows.append(
            {"program": name, **{kind: row.get(kind, "-") for kind in ("float64", "float32")}}
        )
    return rows


def taped(tape, s):
    """The draws of lifetime s, one rollout after the other."""
    rolls = iter(tape)

    def chance():
        noise, draws = next(rolls)
        return noise[:, s], draws.view(noise.shape[:3])[:, s]

    return chance


# What is measured


def lived(step, learner, life, w):
    """A function that makes one meta-step and goes on from there."""

    def run():
        nonlocal life
        life = step(learner, life, w, L).onward

    return run


def as_program(learner, life, w):
    """The same from compiled programs."""
    run = compiled_step(learner, L)
    return lived(lambda _, life, w, L: run(life, w), learner, life, w)


def steps_on_cpu(found, rounds):
    """Tables: meta-steps of lifetimes a second as ratios to TorchOpt, and as they are; seconds by size."""
    ratios, rates, scaling = [], [], []
    for lifetimes in LIFETIMES:
        steps = {"tensors": colour_step, "meta_gradient": general}
        made = {name: lived(step, *begun(lifetimes)) for name, step in steps.items()}
        made["compiled"], seconds = first_call(lambda n=lifetimes: as_program(*begun(n)))
        compiling = {"compiling (s)": seconds, "JAX compiling (s)": NOT}
        if jax_peers.usable(anywhere=True):
            made["JAX"], seconds = first_call(lambda n=lifetimes: bmg_step(*begun(n), L)[0])
            compiling["JAX compiling (s)"] = seconds
        learner, life, w = begun(1)

        def chance(learner=learner, like=life.recent):
            noise, draws = learner.draw_noise(like)
            return noise[:, 0], draws

        for name, make in programs(found).items():
            made[name] = functools.partial(make(learner, life, w, 0), chance)
        times = alternate(made, rounds, 1, 2, time.process_time)
        lives = {name: 1 if name in SINGLE else lifetimes for name in times}
        speed = {name: (lives[name] / t, lives[name] * s / t**2) for name, (t, s) in times.items()}
        rate, ratio = {"lifetimes": lifetimes}, {"lifetimes": lifetimes}
        # Who has one lifetime makes several one after the other.
        scaling += [at_size("a meta-step", "lifetimes", lifetimes, name, lifetimes / rate, peak(made[name]))
                    for name, (rate, _) in speed.items()]  # fmt: skip
        base = speed.get("TorchOpt")
        ratio["TorchOpt (1/s)"] = median(*base, rounds) if base else NOT
        for name in (*OURS, "JAX", *reversed(SINGLE)):
            rate[f"{name} (1/s)"] = median(*speed[name], rounds) if name in speed else NOT
            if name != "TorchOpt":
                over = quotient(speed[name], base, n=rounds) if base else NOT
                ratio[f"{name} / TorchOpt"] = over
        ratios.append(ratio), rates.append(rate | compiling)
        print(*texts([ratio], FORMATS), flush=True)
    return ratios, rates, scaling


def horizon(rounds):
    """Seconds and peak memory of a meta-gradient of 8 lifetimes, by how far it looks."""
    learner, life, w = begun(8)
    made = {("MG", far, "-"): functools.partial(meta_gradient, learner.update, life, w, far,
                                                objective=learner.objective) for far in HORIZONS}  # fmt: skip
    made |= {("BMG", 1, far): functools.partial(general, learner, life, w, far) for far in HORIZONS}
    times = alternate(made, rounds, 1, 1, time.process_time)
    return [{"method": name, "K": K, "L": far, "ms": median(1e3 * t, 1e3 * s, rounds),
             "peak memory (MB)": allocated(made[name, K, far]) / 1e6}
            for (name, K, far), (t, s) in times.items()]  # fmt: skip


def allocated(function):
    """The most bytes of tensors that are allocated at a time during a call, above those before it."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds, profile_memory=True) as seen:
        function()
    events = seen.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in changes))


# On a GPU


def loops(see, settings, lifetimes, names=("plain", "graph")):
    """{program: MetaLoop}, with the same draws before them; "compiled" is a graph of compiled programs."""
    made = {}
    for name in names:
        learner = ColourLearner(TwoColours(see=see), lifetimes, runtime.generator(0, "cuda"),
                                **settings)  # fmt: skip
        made[name] = MetaLoop(learner, learner.begin(), learner.start_meta(), L, LR,
                              graph=name != "plain", compiled=name == "compiled")  # fmt: skip
    return made


def alike(one, other):
    """(S,): whether two loops have brought a lifetime to the same place."""
    nets = [[*loop.life.actor, *loop.life.critic] for loop in (one, other)]
    same = (one.life.cells == other.life.cells).view(one.learner.S, -1).all(1)
    return same & (apart(*nets) < 1e-4) & (apart(one.w, other.w) < 1e-4)


def steps_on_gpu(rounds):
    """Meta-steps of lifetimes a second, plain and recorded; memory; how near both are after two."""
    rows = []
    for (what, (see, settings)), lifetimes in itertools.product(SETTINGS.items(), CROWDS):
        made = loops(see, settings, lifetimes)
        for loop in made.values():
            loop.run(2)
        near = float(alike(*made.values()).double().mean())
        # A walker at the edge of two actions may take the other one by rounding: few may.
        assert near > 0.95, f"{what}, {lifetimes} lifetimes: {near:.0%} of them alike"
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        times = {}
        counts = {"plain": max(2, rounds // 2), "graph": rounds}
        for name, inner in (("plain", 2), ("graph", 20)):
            run = functools.partial(made[name].run, inner)
            middle, spread = alternate({name: run}, counts[name], 1, 1, clock)[name]
            times[name] = lifetimes * inner / middle, lifetimes * inner * spread / middle**2
        assert all(bool(t.isfinite().all()) for loop in made.values() for t in loop.w)
        rows.append({"networks": what, "lifetimes": lifetimes,
                     **{f"{n} (1/s)": median(*times[n], count) for n, count in counts.items()},
                     "graph / plain": quotient(times["graph"], times["plain"]),
                     "alike": near,
                     "peak memory (GB)": torch.cuda.max_memory_reserved() / 1e9})  # fmt: skip
        print(*texts(rows[-1:], FORMATS), flush=True)
        del made, loop, run
        gc.collect()  # a graph holds its memory, and a loop its graph
    return rows


def on_cpu(args):
    found = {"torchopt": peer("torchopt")}
    found = found if found["torchopt"] else {}
    numbers = {"check": check(found)}
    show(numbers["check"], FORMATS)
    numbers["table"], numbers["rates"], scaling = steps_on_cpu(found, args.rounds)
    numbers["horizon"] = horizon(max(3, args.rounds // 3))
    for name, table in numbers.items():
        print(f"\n{name}")
        show(table, FORMATS)
    note = ("CPU time on one thread; medians of alternating rounds, and half the range from the 16th "
            "to the 84th percentile. Rates: meta-steps of single lifetimes a second, without the "
            "optimiser of the meta-parameters. The peers have one lifetime, so several would run one "
            "after the other: they are timed at one in every row. TorchOpt: MetaSGD on ordinary "
            "modules, states extracted and recovered, the bootstrap cut off from the student. JAX: a port, "
            "one program for all lifetimes. Compiling: wall time of the first meta-step. Check: "
            "the largest relative distance of a lifetime's meta-gradient from that of the batched "
            "tensors, over two steps of 8 lifetimes. Horizon: 8 lifetimes in tensors by "
            "meta_gradient; the most bytes allocated at a time by a call, its own profile.")  # fmt: skip
    config = {"rounds": args.rounds, "lifetimes": list(LIFETIMES), "K": 1, "L": L, "walkers": 8,
              "steps": 16, "widths": [32, 32], "see": "ways", "size": 5, "updates before": BEFORE,
              "horizons": list(HORIZONS)}  # fmt: skip
    versions = {name: version for name, (_, version) in found.items()}
    if version := jax_peers.usable(anywhere=True):
        versions["jax"] = version
    numbers |= {"formats": FORMATS, "scaling": scaling}
    made = provenance.record(numbers, config=config, seeds=[0], repeats=args.rounds, peers=versions,
                          note=note, gpu=False)  # fmt: skip
    provenance.write_record(args.out / "steps_cpu.json", made)


def on_gpu(args):
    numbers = {"table": steps_on_gpu(args.rounds), "formats": FORMATS}
    show(numbers["table"], FORMATS)
    note = ("Wall time; medians of rounds of 2 plain and 20 recorded meta-steps, and half the range "
            "from the 16th to the 84th percentile. Rates: meta-steps of single lifetimes a second, "
            "with Adam. Alike: the share of lifetimes that are in the same cells, with the same "
            "weights and meta-parameters to 1e-4, after two meta-steps of both. Peak memory: what "
            "torch's allocator holds for both together.")  # fmt: skip
    config = {"rounds": args.rounds, "lifetimes": list(CROWDS), "K": 1, "L": L, "steps": 16, "lr": LR,
              "settings": {name: {"see": see, **settings, **({"widths": list(settings["widths"])}
                           if "widths" in settings else {})}
                           for name, (see, settings) in SETTINGS.items()}}  # fmt: skip
    made = provenance.record(numbers, config=config, seeds=[0], repeats=args.rounds, note=note)
    provenance.write_record(args.out / "steps_gpu.json", made)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--rounds", type=positive, default=9)
    parser.add_argument("--on", choices=("cpu", "gpu"), help="only this part")
    parser.add_argument("--out", type=usable, default=HOME)
    args = parser.parse_args()
    runtime.threads(1)
    one_core()
    if args.on != "gpu":
        on_cpu(args)
    if args.on != "cpu" and torch.cuda.is_available():
        on_gpu(args)


if __name__ == "__main__":
    main()
