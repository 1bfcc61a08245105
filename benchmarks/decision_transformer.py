"""Training and evaluation against their peers: python -m benchmarks.decision_transformer [--rounds 2]

Step: a whole training step - batch, forward, backward, clipping, AdamW - at K = 20, B = 64, Hopper's
shapes. Peer: the model of transformers in a plain loop, with the batches put together one sample at
a time as in the authors' code, or with ours; the same compiled by torch.compile; and a port in JAX, ten updates
in one program. Ours as it is, and compiled. Before it is timed, weights are transplanted and
predictions, loss and batches are checked to be the same, and so are our compiled weights and JAX's after 8.
Batch: the assembly alone. Evaluation: 64 environments at once against one after the other.
Stack: 1, 8 and 32 models as one against a loop over single ones.
Writes results/decision_transformer/steps_cpu.json (or _gpu).
"""

import argparse
import importlib.metadata
import itertools
import logging
import os
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks import jax_peers
from benchmarks.jax_learners import dt_steps
from benchmarks.timing import alternate, at_size, clock, first_call, one_core, peak, show
from collage import runtime
from collage.common.environments import SwingUp
from collage.common.program import Program
from collage.common.train import clip_rows
from collage.decision_transformer import DecisionTransformer, Trajectories, fit, rollout
from collage.decision_transformer.core import Window
from collage.decision_transformer.fast.transformer import random_bits
from collage.decision_transformer.training import DECAY, _slope_of
from experiments.program import positive
from tools import provenance, transplant

S, A, K, B = 11, 3, 20, 64
CASES = ((48, 2, 0.0), (48, 2, 0.1), (128, 3, 0.0))  # width, layers, dropout
FORMATS = {"time / ours": "{:.2f}", "spread": "{:.2f}", "compiling (s)": "{:.0f}"}


def episodes(device, n=100, length=1000):
    g = runtime.generator(0, device)
    kind = {"generator": g, "device": device}
    return Trajectories(torch.randn(n * length, S, **kind), torch.randn(n * length, A, **kind).tanh(),
                        torch.rand(n * length, **kind), torch.full((n,), length))  # fmt: skip


def joined(parts):
    """Several `Trajectories` as one."""
    names = ("states", "actions", "rewards", "lengths", "terminated")
    return Trajectories(
        *(torch.cat(f) for f in zip(*([getattr(p, n) for n in names] for p in parts)))
    )


def one_by_one(data, generator, scale=1.0, first=None):
    """A batch as the authors put it together: sample by sample in numpy, returns summed anew."""
    cuts = [*data.starts.tolist(), len(data)]
    paths = one_by_one.paths.setdefault(id(data), [
        {k: getattr(data, k)[a:b].cpu().numpy() for k in ("states", "actions", "rewards")}
        for a, b in itertools.pairwise(cuts)])  # fmt: skip
    lengths = np.array([len(p["rewards"]) for p in paths])
    draw = np.random.default_rng(
        int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
    )
    chosen = draw.choice(len(paths), size=B, p=lengths / lengths.sum())
    at = [(i, int(draw.integers(lengths[i]))) for i in chosen] if first is None else first
    parts = {k: [] for k in ("states", "actions", "returns", "steps", "mask")}
    for i, start in at:
        path = paths[i]
        s = path["states"][start : start + K].reshape(1, -1, S)
        n = s.shape[1]
        to_go, total = np.zeros(len(path["rewards"]) - start), 0.0
        for t in range(len(to_go) - 1, -1, -1):
            total = to_go[t] = path["rewards"][start + t] + total
        pad = K - n
        parts["states"].append(np.concatenate([np.zeros((1, pad, S)), s], 1))
        parts["actions"].append(
            np.concatenate(
                [np.ones((1, pad, A)) * -10.0, path["actions"][start : start + K][None]], 1
            )
        )
        parts["returns"].append(
            np.concatenate([np.zeros((1, pad, 1)), to_go[:n].reshape(1, -1, 1)], 1) / scale
        )
        parts["steps"].append(
            np.concatenate([np.zeros((1, pad)), np.arange(start, start + n)[None]], 1)
        )
        parts["mask"].append(np.concatenate([np.zeros((1, pad)), np.ones((1, n))], 1))
    device = data.states.device
    kinds = {"steps": torch.long, "mask": torch.long}
    return {k: torch.from_numpy(np.concatenate(v)).to(device, kinds.get(k, torch.float32))
            for k, v in parts.items()}  # fmt: skip


one_by_one.paths = {}


def gathered(data, generator):
    w = data.sample(B, K, generator)
    return {"states": w.states, "actions": w.actions, "returns": w.returns[..., None],
            "steps": w.steps, "mask": w.mask.long()}  # fmt: skip


def theirs_loss(model, b):
    out = model(states=b["states"], actions=b["actions"], rewards=None, returns_to_go=b["returns"],
                timesteps=b["steps"], attention_mask=b["mask"]).action_preds  # fmt: skip
    here = b["mask"].flatten() > 0
    return ((out - b["actions"]).flatten(0, 1)[here]).square().mean()


def their_loop(model, data, assemble):
    adam = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=1e-4, fused=True)
    g = runtime.generator(1, data.states.device)

    def step():
        loss = theirs_loss(model, assemble(data, g))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        adam.step()

    return step


def check(ours, model, data):
    """The same predictions, loss and batches, to rounding; raises where they differ."""
    model.eval()
    first = [(3, 0), (7, 990), (9, 500)]
    theirs = one_by_one(data, runtime.generator(2), first=first)
    window = data.windows(torch.tensor([i * 1000 + t for i, t in first]).to(data.states.device), K)
    for row in range(3):
        here = theirs["mask"][row] > 0
        for name, mine in (("states", window.states), ("actions", window.actions),
                           ("returns", window.returns[..., None]), ("steps", window.steps)):  # fmt: skip
            assert torch.allclose(theirs[name][row][here].float(),
                                  mine[row][window.mask[row]].float(), atol=1e-3), name  # fmt: skip
    mine, other = ours.loss(window)[0], theirs_loss(model, theirs)
    assert torch.allclose(mine, other, atol=1e-5), (mine, other)
    model.train()


def our_program(model, data):
    """A step of a single model as `fit` makes it when compiled, from the same draws."""

    def window(numbers):
        fields = data.windows(data.first(numbers[0]), K)
        return Window._make(field.unflatten(0, (1, B)) for field in fields)

    g = runtime.generator(runtime.seed_for(model.seed, "windows"))
    size = model.noise_size(window([torch.zeros(B, dtype=torch.float64)]))
    program = Program(_slope_of(model, window))
    adam = torch.optim.AdamW([model.weights], 1e-4, weight_decay=DECAY, fused=True)

    def step():
        noise = random_bits(size, [g], model.weights.device)
        numbers = torch.rand(B, generator=g, dtype=torch.float64)
        _, slope = program(model.weights.detach(), noise, numbers)
        model.weights.grad = clip_rows(slope, 0.25)
        adam.step()

    return step


def check_compiled(data, steps=8):
    """Our fit, our compiled step and JAX's from the same weights and draws, or the run ends."""
    made = [DecisionTransformer(S, A, width=48, layers=2, context=K, dropout=0.0) for _ in range(3)]
    fit(made[0], data, steps, batch=B)
    step = our_program(made[1], data)
    for _ in range(steps):
        step()
    others = {"ours (compiled)": made[1].weights[0].detach()}
    if jax_peers.usable(anywhere=True):
        g = runtime.generator(runtime.seed_for(made[2].seed, "windows"))
        first = [data.first(torch.rand(B, generator=g, dtype=torch.float64)) for _ in range(steps)]
        rates = torch.full((steps,), 1e-4)  # a fit so short has no warm-up
        others["JAX"] = dt_steps(made[2], data, 1)[1](torch.stack(first).int(), rates)
    for name, weights in others.items():
        gap = (weights - made[0].weights[0].detach()).abs()
        print(f"weights after {steps} steps, ours and {name}: differ by {gap.max():.1e} at most, "
              f"{gap.mean():.1e} on average", flush=True)  # fmt: skip
        if gap.mean() > 1e-6 or gap.max() > 1e-4:
            raise SystemExit(f"{name} trains otherwise; no record is written")


def compiled(ours, peer, data, count):
    """{who: a function that gives one that makes `count` steps}, of what has to be compiled first."""

    def times(step):
        return lambda: [step() for _ in range(count)]

    made = {
        "collage, compiled": lambda: times(our_program(ours, data)),
        "transformers, torch.compile, our batches":
            lambda: times(their_loop(torch.compile(peer), data, gathered)),
    }  # fmt: skip
    if jax_peers.usable(anywhere=True):
        made["JAX, ten steps in one program"] = lambda: dt_steps(ours, data, count)[0]
    return made


def compare_steps(rounds, threads, device):
    from transformers import DecisionTransformerModel

    runtime.threads(threads)
    if threads > 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count()))
    data, rows = episodes(device), []
    timer = clock if threads == 1 else time.perf_counter
    # A fit on a GPU begins with capturing its step, which is to count as it does in a short run.
    many, few = (400, 20) if device.type == "cuda" else (10, 10)
    compilers = device.type == "cpu" and threads == 1  # compiled once, and timed on one thread
    for width, layers, dropout in CASES:
        ours = DecisionTransformer(S, A, width=width, layers=layers, context=K, dropout=dropout)
        ours.to(device)
        candidates, compiling = {"collage": lambda ours=ours: fit(ours, data, many, batch=B)}, {}
        for attention in ("sdpa", "eager"):
            peer = DecisionTransformerModel(transplant.config(ours, attention)).to(device)
            transplant.to_transformers(ours, peer)
            check(ours, peer, data)
            for name, assemble in (("its batches", one_by_one), ("our batches", gathered)):
                if attention == "eager" and assemble is gathered:
                    continue
                step = their_loop(peer, data, assemble)
                candidates[f"transformers, {attention}, {name}"] = lambda step=step: [
                    step() for _ in range(few)
                ]
        if compilers:
            for name, make in compiled(ours, peer, data, few).items():
                candidates[name], compiling[name] = first_call(make)
        times = alternate(candidates, rounds, 1, 1, timer)
        times |= {"collage": tuple(t * few / many for t in times["collage"])}
        what = f"step, d = {width}, {layers} layers, dropout {dropout:g}"
        rows += ratios(what, times, threads, compiling)
    return rows


def compare_batches(rounds, device):
    runtime.threads(1)
    data, g = episodes(device), runtime.generator(3, device)
    times = alternate({"collage": lambda: [data.sample(B, K, g) for _ in range(20)],
                       "one sample at a time": lambda: [one_by_one(data, g) for _ in range(20)]},
                      rounds, 1, 1)  # fmt: skip
    return ratios("batch of 64 x 20", times)


def compare_evaluation(rounds, device):
    """64 episodes of 60 decisions, on a GPU of 20; a pole never falls off: all are of one length."""
    runtime.threads(1)
    longest = 20 if device.type == "cuda" else 60
    env = SwingUp(longest=longest)
    model = DecisionTransformer(5, 1, width=48, layers=2, context=K, longest=longest).to(device)
    start = env.reset(64, runtime.generator(4)).to(device)
    targets, g = torch.linspace(0, 50, 64).to(device), runtime.generator(5, device)

    def together():
        return rollout(model, env, targets, g, start=start).data

    few = 8  # so many of the 64 are timed where each waits for the one before

    def alone():
        return joined(rollout(model, env, targets[i : i + 1], g, start=start[i : i + 1]).data
                      for i in range(few))  # fmt: skip

    from transformers import DecisionTransformerModel

    peer = DecisionTransformerModel(transplant.config(model)).to(device).eval()
    transplant.to_transformers(model, peer)

    def theirs(window, generator):
        out = peer(states=window.states, actions=window.actions, rewards=None,
                   returns_to_go=window.returns[..., None], timesteps=window.steps,
                   attention_mask=window.mask.long())  # fmt: skip
        return out.action_preds[:, -1]

    def peers():
        return joined(rollout(theirs, env, targets[i : i + 1], g, context=K,
                              start=start[i : i + 1]).data for i in range(few))  # fmt: skip

    def peer_together():
        return rollout(theirs, env, targets, g, context=K, start=start).data

    actions = together().actions
    for other in (alone, peers, peer_together):
        found = other().actions
        assert torch.allclose(actions[: len(found)], found, atol=1e-3)
    times = alternate({"collage": together, "collage, one after the other": alone,
                       "transformers, one after the other": peers,
                       "transformers, on all 64 windows at once": peer_together},
                      1 if device.type == "cuda" else max(2, rounds // 2), 1, 0)  # fmt: skip
    times |= {name: tuple(64 / few * t for t in each) for name, each in times.items()
              if "one after" in name}  # fmt: skip
    return ratios("evaluation of 64 environments", times)


def compare_stacks(rounds, device, scaling):
    runtime.threads(1)
    rows, g = [], runtime.generator(6, device)
    kind = {"generator": g, "device": device}
    data = Trajectories(torch.randn(5000, 5, **kind), torch.randn(5000, 1, **kind),
                        torch.rand(5000, **kind), torch.full((50,), 100))  # fmt: skip
    shape = {"width": 32, "layers": 2, "context": 2, "longest": 100, "dropout": 0.0}
    for members in (1, 8, 32):
        stack = DecisionTransformer(5, 1, members=members, **shape).to(device)
        singles = [DecisionTransformer(5, 1, seed=i, **shape).to(device) for i in range(members)]
        a = fit(stack, data, 5)
        b = torch.cat([fit(m, data, 5) for m in singles], 1)
        assert torch.allclose(a, b, atol=1e-4)
        steps, often = (100, (1, 1, 0)) if device.type == "cuda" else (10, (rounds, 1, 1))
        made = {"collage": lambda s=stack, n=steps: fit(s, data, n),
                "a loop": lambda s=singles, n=steps: [fit(m, data, n) for m in s]}  # fmt: skip
        times = alternate(made, *often)
        rows += ratios(f"{members} model{'s' * (members > 1)}, d = 32, K = 2", times)
        scaling += [at_size("training step", "models", members, name, t / steps, peak(made[name]))
                    for name, (t, _) in times.items()]  # fmt: skip
    return rows


def ratios(what, times, threads=1, compiling=None):
    """A row for each program: its time as a multiple of ours, of the faster form of it."""
    best = min(median for name, (median, _) in times.items() if name.startswith("collage"))
    return [{"what": what, "threads": threads, "who": name, "time / ours": median / best,
             "spread": spread / best, "compiling (s)": (compiling or {}).get(name, "-")}
            for name, (median, spread) in times.items()]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--rounds", type=positive, default=2)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    device = runtime.device()
    scaling = []
    one_core()
    rows = compare_batches(args.rounds, device) + compare_evaluation(args.rounds, device)
    rows += compare_stacks(args.rounds, device, scaling)
    if device.type == "cpu":
        check_compiled(episodes(device))
    for threads in (1,) if device.type == "cuda" else (1, 2):
        rows += compare_steps(args.rounds, threads, device)
    show(rows, FORMATS)
    kind = "gpu" if device.type == "cuda" else "cpu"
    note = ("CPU time on one thread, wall time on two, as a multiple of collage's; the median of "
            "alternating rounds, and half the range from the 16th to the 84th percentile. Step: batch, "
            "forward, backward, clipping and AdamW at Hopper's shapes, K = 20, B = 64. Ours is the faster "
            "of its two forms; compiling is wall time of the first call, ten steps in it. One after the "
            "other: eight of the 64 environments, eight times over.")  # fmt: skip
    if device.type == "cuda":
        note = note.replace("CPU time on one thread, wall time on two,", "Wall time on a GPU")
        note += " Ours in fits of 400 steps, stacks in fits of 100, the capture of their graphs included."
    made = provenance.record({"table": rows, "formats": FORMATS, "scaling": scaling}, config={"rounds": args.rounds, "K": K, "B": B}, seeds=[0],
                          repeats=args.rounds,
                          peers={"transformers": importlib.metadata.version("transformers")},
                          note=note)  # fmt: skip
    place = Path(__file__).resolve().parent.parent / "results" / "decision_transformer"
    provenance.write_record(place / f"steps_{kind}.json", made)


if __name__ == "__main__":
    main()
