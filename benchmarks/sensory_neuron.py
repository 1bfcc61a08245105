"""Rollouts and search of the swing-up agents against their peers:
python -m benchmarks.sensory_neuron [--rounds 2] [--out FOLDER]

Rollouts: episodes of the agent with 913 parameters, for one set of weights and for generations of 64
and 256 (the paper's). Ours in PyTorch (`play`) and compiled by numba (`fused_returns`); a lean JAX port with
folded weights, in the faster of two layouts; EvoJAX's own simulation, task and policy; and one
episode at a time in PyTorch, as the authors ran it. Returns are checked equal before timing. Nobody
leaves the track in the first table, so that all do equal work; the second is training as it is: hard
starts, a trained agent and its perturbed copies, where ours drops episodes that have ended.
Search: a generation of CMA-ES in 913 dimensions, ours, pycma's and fcmaes's (Eigen). Accuracy: the rational tanh.
CPU time, one thread. Writes rollouts_cpu.json to FOLDER, results/sensory_neuron.
On a GPU, instead: `play`, the same steps as a CUDA graph, our compiled loop on all CPU threads, and
the JAX port where it finds the GPU; rollouts_gpu.json.
"""

import os

# One thread for everybody: said before the libraries load.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
               "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_FLAGS":
               "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}  # fmt: skip

import argparse
import functools
import importlib
import json
import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.timing import alternate, at_size, clock, median, one_core, peak, show
from collage import runtime
from collage.common.environments import SwingUp
from collage.page.records import texts
from collage.sensory_neuron import Agent, play
from collage.sensory_neuron.core import positions
from collage.sensory_neuron.fast.graphed import graphed_returns, rollout_kernel
from collage.sensory_neuron.fast.inputs import rules
from collage.sensory_neuron.fast.rollout import accelerations, fast_tanh, fused_returns, rollouts
from experiments.cma import CMAES
from experiments.program import positive, usable
from tools import provenance
from tools.peers import peer

if not torch.cuda.is_available():
    os.environ["JAX_PLATFORMS"] = "cpu"

HOME = Path(__file__).resolve().parent.parent / "results" / "sensory_neuron"
WORKS = {"1,000 episodes, one agent": (1, 1000), "64 members x 4 episodes": (64, 4),
         "256 members x 16 episodes": (256, 16)}  # fmt: skip
STEPS, D, POPULATION, NOT = 1000, 913, 256, "not run"
RULES = [float(number) for number in rules()]
PROGRAMS = ("fused", "eager", "lean JAX", "EvoJAX", "one by one")
FORMATS = {**{f"{name} (s)": "{:.3f}" for name in PROGRAMS},
           **{f"{name} / fused": "{:.1f}" for name in PROGRAMS}, "mean length": "{:.0f}",
           **{f"{name}, compiling (s)": "{:.2f}" for name in PROGRAMS},
           "fused": "{:.3f}", "exact": "{:.3f}", "difference": "{:.1g}", "spread of returns": "{:.1f}",
           "largest, 200 steps": "{:.1g}", "largest error": "{:.2g}", "at": "{:.2f}",
           "ms a generation": "{:.0f}", "/ ours": "{:.2f}", "seconds": "{:.3f}",
           "/ CUDA graph": "{:.1f}", "steps a second": "{:.2g}"}  # fmt: skip


# One episode at a time


class Single(nn.Module):
    """The agent as one writes it down for a single episode: a batch of sensors and nothing else."""

    def __init__(self, flat):
        super().__init__()
        t = {name: w[0] for name, w in Agent().tensors(flat[None]).items()}
        self.cell, self.head = nn.LSTMCell(2, 8), nn.Linear(16, 1)
        self.query, self.key = (nn.Linear(8, 32, bias=False) for _ in range(2))
        self.load_state_dict({"cell.weight_ih": t["lstm.weight_ih"],
                              "cell.weight_hh": t["lstm.weight_hh"],
                              "cell.bias_ih": t["lstm.bias_ih"][:, 0],
                              "cell.bias_hh": t["lstm.bias_hh"][:, 0],
                              "query.weight": t["query.weight"], "key.weight": t["key.weight"],
                              "head.weight": t["head.weight"],
                              "head.bias": t["head.bias"][:, 0]})  # fmt: skip
        self.places = positions(16, 8)

    def forward(self, reading, action, memory):
        x = torch.tensor(reading)[:, None]
        memory = self.cell(torch.cat([x, torch.full_like(x, action)], 1), memory)
        score = torch.tanh(self.query(self.places) @ self.key(memory[0]).T)
        return torch.tanh(self.head(torch.tanh(score @ x)[:, 0])).item(), memory


def tick(state, action, m=math):
    """One step of the swing-up by the functions of m: those of `SwingUp`, by its own constants."""
    x, v, a, r = state
    _, wave, force, dt, *motion = RULES
    dv, dr = accelerations.py_func(v, r, m.sin(a), m.cos(a), force * action, motion)
    x, v, a, r = x + dt * v, v + dt * dv, a + dt * r, r + dt * dr
    return (x, v, a, r), 0.5 * (m.cos(a) + 1) * m.cos(wave * x)


@torch.inference_mode()
def one_episode(flat, start, steps=STEPS):
    """(return, length) of one episode."""
    agent, state = Single(flat), tuple(start[:4].tolist())
    action, total, memory = 0.0, 0.0, (torch.zeros(5, 8), torch.zeros(5, 8))
    length = 0
    while length < steps and abs(state[0]) <= SwingUp.track:
        x, v, a, r = state
        action, memory = agent([x, v, math.cos(a), math.sin(a), r], action, memory)
        state, reward = tick(state, action)
        state, total, length = tuple(map(float, state)), total + float(reward), length + 1
    return total, length


# JAX


@functools.cache
def lean():
    """{layout: function(folded, starts, steps) -> returns (E, B)}: jitted, the batch axis last."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_cpu_enable_async_dispatch", False)  # one thread, as everybody

    physics = functools.partial(tick, m=jnp)

    def lstm(heard, cell):
        first, keep, out, new = jnp.split(jnp.tanh(heard), 4)
        cell = 0.5 * (keep + 1) * cell + 0.5 * (first + 1) * new
        return 0.5 * (out + 1) * jnp.tanh(cell), cell

    def by_lanes(weights, x, hidden, cell, action):
        """Every lane has weights of its own: (..., L) against hidden (8, 5, L)."""
        gates, queries, head, bias = weights
        heard = (gates[:, 9] * action + gates[:, 10])[:, None] + gates[:, 8][:, None] * x
        heard = heard + sum(gates[:, k][:, None] * hidden[k] for k in range(8))
        hidden, cell = lstm(heard, cell)
        score = sum(queries[:, k][:, None] * hidden[k] for k in range(8))
        code = jnp.tanh((jnp.tanh(score) * x).sum(1))
        return hidden, cell, jnp.tanh((head[0] * code).sum(0) + bias[0, 0])

    def by_products(weights, x, hidden, cell, action):
        """One member, vmapped: matrix products with all its sensors and episodes, hidden (8, 5, B)."""
        gates, queries, head, bias = weights
        rest = [x, jnp.broadcast_to(action, x.shape), jnp.ones_like(x)]
        heard = jnp.concatenate([hidden, jnp.stack(rest)])
        hidden, cell = lstm(jnp.tensordot(gates, heard, 1), cell)
        code = jnp.tanh((jnp.tanh(jnp.tensordot(queries, hidden, 1)) * x).sum(1))
        return hidden, cell, jnp.tanh((head @ code + bias)[0])

    def episodes(act, weights, starts, steps):
        def step(carry, _):
            state, hidden, cell, action, total, going = carry
            x = jnp.stack([*state[:2], jnp.cos(state[2]), jnp.sin(state[2]), state[3]])
            hidden, cell, action = act(weights, x, hidden, cell, action)
            state, reward = physics(state, action)
            total, going = total + reward * going, going * (jnp.abs(state[0]) <= SwingUp.track)
            return (state, hidden, cell, action, total, going), None

        zero, none = jnp.zeros(starts.shape[1]), jnp.zeros((8, 5, starts.shape[1]))
        first = (tuple(starts), none, none, zero, zero, zero + 1)
        return jax.lax.scan(step, first, None, steps)[0][4]

    @functools.partial(jax.jit, static_argnums=2)
    def lanes(folded, starts, steps):
        E, B = len(folded[0]), starts.shape[1]
        weights = [jnp.moveaxis(jnp.repeat(t, B, 0), 0, -1) for t in folded]
        return episodes(by_lanes, weights, jnp.tile(starts, (1, E)), steps).reshape(E, B)

    @functools.partial(jax.jit, static_argnums=2)
    def products(folded, starts, steps):
        E, B = len(folded[0]), starts.shape[1]
        few = min(8, E)  # members at a time: what they remember fits into the nearer caches
        one = jax.vmap(lambda weights: episodes(by_products, weights, starts, steps))
        parts = [t.reshape(E // few, few, *t.shape[1:]) for t in folded]
        return jax.lax.map(one, parts).reshape(E, B)

    def given(function):
        def run(weights, starts, steps=STEPS):
            f = Agent().fold(weights)
            folded = [jax.numpy.asarray(t.numpy()) for t in (f.gates, f.queries, *f.head)]
            return np.asarray(function(folded, starts[:, :4].T.contiguous().numpy(), steps))

        return run

    return {"lanes": given(lanes), "products": given(products)}


def evojax_weights(weights):
    """(E, 913) in the order of flax's leaves (E, 945): the biases of queries and keys are zero there,
    and the two of torch's LSTM are one."""
    t = Agent().tensors(weights)
    none = weights.new_zeros(len(weights), 32)
    leaves = [none, t["query.weight"].mT, none, t["key.weight"].mT, t["head.bias"], t["head.weight"].mT]  # fmt: skip
    order = (1, 2, 0, 3)  # f, g, i, o of torch's i, f, g, o
    bias = (t["lstm.bias_ih"] + t["lstm.bias_hh"]).chunk(4, 1)
    hidden, seen = t["lstm.weight_hh"].chunk(4, 1), t["lstm.weight_ih"].chunk(4, 1)
    for gate in order:
        leaves += [bias[gate], hidden[gate].mT]
    leaves += [seen[gate].mT for gate in order]
    return torch.cat([leaf.flatten(1) for leaf in leaves], 1)


def evojax(members, starts, steps=STEPS):
    """function(weights) -> mean returns (E,): EvoJAX's manager, task and policy, from our starts."""
    import jax
    import jax.numpy as jnp
    from evojax import SimManager
    from evojax.policy import PermutationInvariantPolicy
    from evojax.task import cartpole

    quiet = logging.getLogger("quiet")
    quiet.setLevel(logging.ERROR)
    task = cartpole.CartPoleSwingUp(steps, harder=True)
    policy = PermutationInvariantPolicy(1, 16, logger=quiet)
    manager = SimManager(len(starts), 1, members, 1, policy, task, task, logger=quiet)
    state = jnp.tile(starts[:, :4].numpy(), (members, 1))

    def reset(keys):
        return task.reset(keys).replace(state=state, obs=jax.vmap(cartpole.get_obs)(state))

    manager._train_reset_fn = reset
    return lambda weights: np.asarray(
        manager.eval_params(jnp.asarray(evojax_weights(weights).numpy()), False)[0]
    )


# What is compared


def quiet(members, episodes, g):
    """Weights and starts with which nobody leaves the track: hands almost still, poles that hang."""
    weights = 0.3 * torch.randn(members, D, generator=g)
    weights[:, -17:] *= 1e-3
    down = torch.tensor([0, 0, math.pi, 0, 0])
    return weights, down + 0.25 * (SwingUp("simple").reset(episodes, g) - down)


def quiet_work(members, episodes, g):
    weights, starts = quiet(members, episodes, g)
    assert bool((fused_returns(weights, starts)[1] == STEPS).all())
    return weights, starts


def trained_work(members, episodes, g, flat):
    weights = flat + 0.02 * torch.randn(members, D, generator=g) * (members > 1)
    return weights, SwingUp("hard").reset(episodes, g)


def trained(place):
    return torch.tensor(json.loads(place.read_text())["numbers"]["weights"])


def close(name, mine, theirs, tolerance):
    wrong = float(np.abs(np.asarray(mine) - np.asarray(theirs)).max())
    assert wrong < tolerance, f"{name}: returns are {wrong:.2g} apart"


def check(found):
    """Lively random agents from hard starts: everybody's returns are ours, or an error is raised."""
    g = runtime.generator(1)
    weights, starts = 0.3 * torch.randn(8, D, generator=g), SwingUp("hard").reset(32, g)
    for steps, tolerance in ((200, 2e-3), (STEPS, 2e-2)):
        exact = play(Agent(), SwingUp("hard"), starts, weights=weights, steps=steps).returns
        # Floats that differ in the last place part ways in time: means alone stay together.
        seen = (lambda t: t) if steps == 200 else (lambda t: np.asarray(t).mean(1))
        close("fused", seen(exact), seen(fused_returns(weights, starts, steps)[0]), tolerance)
        for layout, function in (lean() if "jax" in found else {}).items():
            close(f"JAX, {layout}", seen(exact), seen(function(weights, starts, steps)), tolerance)
        if "evojax" in found:
            close("EvoJAX", exact.mean(1), evojax(8, starts, steps)(weights), tolerance)
    single = [one_episode(w, starts[i], 200)[0] for i, w in enumerate(weights[:4])]
    exact = play(Agent(), SwingUp("hard"), starts, weights=weights, steps=200).returns
    close("one by one", exact[range(4), range(4)], single, 2e-3)
    if "evojax" in found:
        check_physics(starts)


def check_physics(starts):
    import jax
    from evojax.task import cartpole

    push = torch.linspace(-1.5, 1.5, len(starts))[:, None]
    after = SwingUp("hard").step(starts, push)
    state = jax.vmap(cartpole.update_state)(push.numpy(), starts[:, :4].numpy())
    close("EvoJAX, one step", after.state[:, :4], state, 1e-5)
    close("EvoJAX, one reward", after.reward, jax.vmap(cartpole.get_reward)(state), 1e-5)


def took(function):
    """(seconds, value) of a call; compilers may be children."""
    begin = sum(os.times()[:4])
    value = function()
    return sum(os.times()[:4]) - begin, value


def candidates(found, weights, starts):
    """{program: function}, {program: (seconds, returns) of its first call}, and JAX's best layout."""
    made = {"fused": lambda: fused_returns(weights, starts)[0],
            "eager": lambda: play(Agent(), SwingUp("hard"), starts, weights=weights).returns}  # fmt: skip
    layout = NOT
    if "jax" in found:
        runs = {n: functools.partial(f, weights, starts) for n, f in lean().items()}
        compiled = {n: took(f) for n, f in runs.items()}
        layout = min(runs, key=lambda n: took(runs[n])[0])
        made["lean JAX"] = runs[layout]
    if "evojax" in found:
        made["EvoJAX"] = functools.partial(evojax(len(weights), starts), weights)
    first = {n: compiled[layout] if n == "lean JAX" else took(f) for n, f in made.items()}
    return made, first, layout


def check_work(first, rough):
    """Members have the same mean returns everywhere; rough: with trained agents, all of them together.

    What is lively from hard starts is chaotic: single returns part ways by rounding.
    """
    means = {
        n: np.asarray(v) if np.ndim(v) == 1 else np.asarray(v).mean(1)
        for n, (_, v) in first.items()
    }
    for name, mean in means.items():
        apart = mean - means["fused"]
        assert np.abs(apart.mean() if rough else apart).max() < (3 if rough else 1e-3), (
            name,
            apart,
        )


def rollout_tables(found, make, rounds, scaling):
    """Tables: ratios to ours, fused, and seconds; compiling. What a size costs goes to `scaling`, if wanted."""
    ratios, seconds, compiling = [], [], []
    for what, (members, episodes) in WORKS.items():
        weights, starts = make(members, episodes, runtime.generator(members))
        made, first, layout = candidates(found, weights, starts)
        check_work(first, make is not quiet_work)
        lengths = fused_returns(weights, starts)[1]
        here = max(2, rounds // 2) if members * episodes > 1000 else rounds
        i, j = divmod(int(lengths.argmax()), episodes)  # a long one: little of it is the beginning
        steps = one_episode(weights[i], starts[j])[1]
        made["one by one"] = functools.partial(one_episode, weights[i], starts[j])
        times = alternate(made, here, 1, 0, time.process_time)
        scale = float(lengths.sum()) / steps
        times["one by one"] = tuple(scale * t for t in times["one by one"])
        base = times["fused"][0]
        row, plain = {"work": what, "fused (s)": base}, {"work": what}
        for name in PROGRAMS:
            middle, spread = times.get(name, (None, None))
            plain[f"{name} (s)"] = median(middle, spread, here) if middle else NOT
            row[f"{name} / fused"] = median(middle / base, spread / base, here) if middle else NOT
        if scaling is not None:
            scaling += [at_size("1,000 steps", "episodes", members * episodes, name, t,
                                None if "JAX" in name else peak(made[name]))
                        for name, (t, _) in times.items()]  # fmt: skip
        row.pop("fused / fused")
        row["mean length"] = float(lengths.float().mean())
        compiling.append({"work": what, "JAX's layout": layout, **{
            f"{n}, compiling (s)": first[n][0] - times[n][0] if n in first else NOT
            for n in ("lean JAX", "EvoJAX")}})  # fmt: skip
        ratios.append(row), seconds.append(plain)
        print(*texts([row], FORMATS), flush=True)
    return ratios, seconds, compiling


def compiling_ours():
    """Seconds for the compiler."""
    fused_returns(torch.zeros(1, D), torch.zeros(1, 4), 1)
    return took(rollouts.recompile)[0]


# On a GPU


def on_gpu(rounds, found, device="cuda"):
    """A table: seconds of wall time, and what the eager loop takes of each."""
    rows, threads = [], os.cpu_count()
    for members, episodes in ((256, 16), (4096, 16)):
        weights, starts = quiet(members, episodes, runtime.generator(members))
        w, s = weights.to(device), starts.to(device)

        def fused(weights=weights, starts=starts):
            runtime.threads(threads)
            value = fused_returns(weights, starts)[0]
            runtime.threads(1)
            return value

        made = {"CUDA graph": graphed_returns(w, s), f"compiled, {threads} CPU threads": fused,
                "eager": lambda w=w, s=s: play(Agent(), SwingUp("hard"), s, weights=w).returns}  # fmt: skip
        if kernel := rollout_kernel():
            made["Triton kernel"] = lambda w=w, s=s, kernel=kernel: kernel(w, s)[0]
        if "jax" in found and found["jax"][0].default_backend() == "gpu":
            made["lean JAX, on the GPU"] = functools.partial(lean()["lanes"], weights, starts)
        means = {}
        for name, function in list(made.items()):
            try:
                value = function()
            except Exception as error:  # a peer that does not get along with this GPU
                if "JAX" not in name:
                    raise
                print(f"not run: {name} ({type(error).__name__}: {error})"[:300])
                del made[name]
                continue
            value = value.cpu() if isinstance(value, torch.Tensor) else value
            means[name] = np.asarray(value).mean(1)
        for name, mean in means.items():
            close(name, means["eager"], mean, 1e-2)
        times = alternate(made, rounds, 1, 0, clock)
        base = times["CUDA graph"][0]
        for name, (middle, spread) in times.items():
            steps = members * episodes * STEPS / middle
            rows.append({"work": f"{members:,} members x {episodes} episodes", "program": name,
                         "seconds": median(middle, spread, rounds),
                         "/ CUDA graph": middle / base, "steps a second": steps})  # fmt: skip
            print(*texts(rows[-1:], FORMATS), flush=True)
    return rows


# Accuracy


def exactness(works):
    """Fused against exact `play`: mean returns, and the mean difference with its standard error."""
    rows = []
    for name, (weights, starts) in works.items():
        fused = fused_returns(weights, starts)[0].double()
        exact = play(Agent(), SwingUp("hard"), starts, weights=weights).returns.double()
        apart = (fused - exact).flatten()
        short = fused_returns(weights, starts, 200)[0]
        near = play(Agent(), SwingUp("hard"), starts, weights=weights, steps=200).returns
        rows.append({"agents": name, "episodes": len(apart), "fused": float(fused.mean()),
                     "exact": float(exact.mean()), "difference": {
                         "mean": float(apart.mean()), "n": len(apart),
                         "spread": float(apart.std() / len(apart) ** 0.5)},
                     "spread of returns": float(exact.std()),
                     "largest, 200 steps": float((short - near).abs().max())})  # fmt: skip
    return rows


def tanh_error():
    """The largest error of the compiled loop's tanh."""
    rows, x = [], np.linspace(-12, 12, 2_000_001)
    for kind in (np.float64, np.float32):
        points = x.astype(kind)
        wrong = np.abs([fast_tanh(p) for p in points] - np.tanh(points.astype(float)))
        rows.append({"arithmetic": kind.__name__, "largest error": float(wrong.max()),
                     "at": float(x[wrong.argmax()])})  # fmt: skip
    return rows


# Search


def check_search(cma, fcmaes):
    """From the same population and fitness, ours and pycma have the same new mean; fcmaes, whose
    population cannot be given, comes down a sphere as we do."""
    if fcmaes:
        ours, theirs = (
            CMAES(
                torch.zeros(D, dtype=torch.float64), 0.1, POPULATION, runtime.generator(0), gap=20
            ),
            eigen(update_gap=20),
        )
        for _ in range(40):
            x, y = ours.ask(), torch.from_numpy(theirs.ask().copy())
            mine, its = (-(points - 1).square().sum(1) for points in (x, y))
            ours.tell(mine)
            theirs.tell(-its.numpy())
        close("fcmaes, on a sphere", mine.mean() / D, its.mean() / D, 0.05)
    if not cma:
        return
    ours = CMAES(torch.zeros(D, dtype=torch.float64), 0.1, POPULATION, runtime.generator(0))
    theirs = pycma(cma)
    asked = torch.from_numpy(np.stack(theirs.ask()))
    ours.ask()
    ours.z = ours.y = asked / 0.1
    fitness = fitnesses(1)[0]
    ours.tell(torch.from_numpy(fitness))
    theirs.tell(list(asked.numpy()), list(-fitness))
    close("pycma, the mean", ours.mean, theirs.mean, 1e-9)


def fitnesses(generations):
    return np.random.default_rng(0).standard_normal((generations, POPULATION))


def pycma(cma):
    options = {"popsize": POPULATION, "verbose": -9, "seed": 1}
    return cma.CMAEvolutionStrategy(D * [0.0], 0.1, options)


def eigen(**settings):
    """fcmaes' active CMA-ES, in C++ with Eigen."""
    generator = np.random.Generator(np.random.PCG64(1))
    return importlib.import_module("fcmaes.cmaescpp").ACMA_C(D, None, np.zeros(D), 0.1, POPULATION, max_evaluations=10**9,
                                  accuracy=1e-12, rg=generator, **settings)  # fmt: skip


def search(cma, fcmaes, generations):
    """Seconds a generation of asking and telling; decompositions of C are shared out."""

    def ours(count, **settings):
        dtype = settings.pop("dtype", torch.float64)
        s = CMAES(torch.zeros(D, dtype=dtype), 0.1, POPULATION, runtime.generator(0), **settings)
        values, begin = torch.from_numpy(fitnesses(count)), time.process_time()
        for fitness in values:
            s.ask()
            s.tell(fitness)
        return time.process_time() - begin, s.gap

    def theirs(count):
        es = pycma(cma)
        begin = time.process_time()
        for fitness in -fitnesses(count):
            es.tell(es.ask(), list(fitness))
        return time.process_time() - begin, round(es.sm.lazy_update_gap, 2)

    def with_eigen(count, gap):
        es = eigen(update_gap=gap)
        begin = time.process_time()
        for fitness in -fitnesses(count):
            es.ask()
            es.tell(fitness)
        return time.process_time() - begin, gap

    programs = {"ours": (ours, generations),
                "ours, gap 50": (functools.partial(ours, gap=50), 100),
                "ours, float32": (functools.partial(ours, dtype=torch.float32), generations),
                "ours, float32, gap 50": (functools.partial(ours, gap=50, dtype=torch.float32), 100)}  # fmt: skip
    programs |= {"pycma": (theirs, generations)} if cma else {}
    if fcmaes:
        programs |= {"fcmaes": (functools.partial(with_eigen, gap=1), generations),
                     "fcmaes, gap 50": (functools.partial(with_eigen, gap=50), 100)}  # fmt: skip
    rows, spent = [], {name: [] for name in programs}
    for _ in range(2):
        for name, (function, count) in programs.items():
            seconds, gap = function(count)
            spent[name].append((seconds / count, gap))
    base = np.mean([t for t, _ in spent["ours"]])
    for name, runs in spent.items():
        times = np.array([t for t, _ in runs])
        rows.append({"program": name, "ms a generation": float(1e3 * times.mean()),
                     "/ ours": {"mean": float(times.mean() / base),
                                "spread": float(np.ptp(times) / 2 / base), "n": len(times)},
                     "gap": runs[0][1], "generations": 2 * programs[name][1]})  # fmt: skip
    absent = [name for name, there in (("pycma", cma), ("fcmaes", fcmaes)) if not there]
    return rows + [{**dict.fromkeys(rows[0], NOT), "program": name} for name in absent]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--rounds", type=positive, default=2)
    parser.add_argument("--out", type=usable, default=HOME)
    args = parser.parse_args()
    runtime.threads(1)
    one_core()
    found = {name: peer(name) for name in ("jax", "evojax", "cma", "fcmaes")}
    found = {name: there for name, there in found.items() if there}
    versions = {name: version for name, (_, version) in found.items()}
    cma, fcmaes = (found.get(name, [None])[0] for name in ("cma", "fcmaes"))
    if torch.cuda.is_available():
        rows = on_gpu(args.rounds, found)
        show(rows, FORMATS)
        note = ("Wall time of 1,000 steps of agents with 913 parameters, nobody leaving the track; the "
                "median of alternating rounds, and half the range from the 16th to the 84th percentile. "
                "The graph holds 25 steps. Mean returns of each member checked equal first.")  # fmt: skip
        made = provenance.record({"table": rows, "formats": FORMATS}, config={"rounds": args.rounds, "steps": STEPS},
                              seeds=[0], repeats=args.rounds, note=note,
                              peers={n: v for n, v in versions.items() if n == "jax"})  # fmt: skip
        provenance.write_record(args.out / "rollouts_gpu.json", made)
        return
    numbers = {"compiling fused (s)": round(compiling_ours(), 2), "scaling": []}
    check(found)
    numbers["rollouts"], numbers["seconds"], numbers["compiling"] = rollout_tables(
        found, quiet_work, args.rounds, numbers["scaling"]
    )
    lively = runtime.generator(2)
    works = {"random": (0.3 * torch.randn(64, D, generator=lively), SwingUp("hard").reset(64, lively))}  # fmt: skip
    agent = HOME / "es.json"
    if agent.exists():
        make = functools.partial(trained_work, flat=trained(agent))
        numbers["training"], numbers["training, seconds"], _ = rollout_tables(
            found, make, args.rounds, None
        )
        works["trained"] = make(1, 1000, lively)
        works["trained, perturbed"] = make(64, 16, lively)
    else:
        print("not run: the training workload (results/sensory_neuron/es.json is not there)")
    numbers["exactness"], numbers["tanh"] = exactness(works), tanh_error()
    check_search(cma, fcmaes)
    numbers["search"] = search(cma, fcmaes, 10)
    for name, table in numbers.items():
        if name != "scaling":
            print(f"\n{name}")
            show(table, FORMATS) if isinstance(table, list) else print(table)
    note = ("CPU time on one thread; the median of alternating rounds, and half the range from the "
            "16th to the 84th percentile; compiling apart. One by one: one episode, scaled up by "
            "steps. EvoJAX's network has biases for queries and keys (zero here) and one bias in its "
            "LSTM, 945 parameters; its physics, rewards and returns are ours. It goes on with "
            "episodes that are over, from a new start, and keeps all observations, as the lean port "
            "goes on without keeping any. Search: pycma with its defaults, which learn from the worse "
            "half too, as fcmaes does; fcmaes decomposes each generation or each 50th, as ours does.")  # fmt: skip
    trained_rows = [
        {**row, "work": f"{row['work']}, trained"} for row in numbers.get("training", [])
    ]
    numbers = {"table": numbers["rollouts"] + trained_rows, "formats": FORMATS, **numbers}
    config = {"rounds": args.rounds, "steps": STEPS, "population": POPULATION,
              "works": {name: list(shape) for name, shape in WORKS.items()}}  # fmt: skip
    made = provenance.record(numbers, config=config, seeds=[0], repeats=args.rounds, peers=versions,
                          note=note)  # fmt: skip
    provenance.write_record(args.out / "rollouts_cpu.json", made)


if __name__ == "__main__":
    main()
