"""Sensors in any order: slow twins, invariances, closed loops, the compiled loop, cloning, patches."""

import itertools
import json
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from collage.common.environments import SwingUp
from collage.sensory_neuron import (
    Agent,
    AttentionNeuron,
    Memory,
    PatchNeuron,
    Plain,
    RacingAgent,
    Sensors,
    clone,
    cloning,
    fused_returns,
    patches,
    play,
    positions,
    trained,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def shaken(agent, seed=99, shake=0.5):
    """With weights large enough for differences to show."""
    with torch.no_grad():
        agent.weights.add_(shake * torch.randn(agent.weights.shape, generator=seeded(seed)))
    return agent


def hard(n, seed=1, dtype=torch.float64):
    return SwingUp("hard", dtype=dtype).reset(n, seeded(seed))


def calm(n, seed=2, dtype=torch.float64):
    return SwingUp(dtype=dtype).reset(n, seeded(seed))


class Twin:
    """One agent, one episode: an LSTM cell and linear layers of torch, in the order of its modules."""

    def __init__(self, flat, actions=1, codes=16, widths=(), bias=False, scaled=False):
        H, d, sizes = 8, 32, [codes, *widths, actions]
        make = nn.utils.skip_init
        self.lstm = make(nn.LSTMCell, 1 + actions, H)
        self.query, self.key = (make(nn.Linear, H, d, bias=bias) for _ in "qk")
        self.head = [make(nn.Linear, a, b) for a, b in itertools.pairwise(sizes)]
        every = nn.ModuleList([self.lstm, self.query, self.key, *self.head]).to(flat.dtype)
        assert sum(p.numel() for p in every.parameters()) == len(flat)
        nn.utils.vector_to_parameters(flat, every.parameters())
        self.Q = torch.tensor(table(codes, H), dtype=flat.dtype)
        self.scale = 1 / math.sqrt(32) if scaled else 1.0
        self.state, self.action = None, flat.new_zeros(actions)

    def __call__(self, readings):
        x = readings[:, None]
        heard = torch.cat([x, self.action.expand(len(x), -1)], 1)
        self.state = self.lstm(heard, self.state)
        scores = self.scale * self.query(self.Q) @ self.key(self.state[0]).T
        code = out = (scores.tanh() @ x)[:, 0].tanh()
        for layer in self.head:
            out = layer(out).tanh()
        self.action = out
        return out, code


def table(rows, dim):
    return [[(math.cos if j % 2 else math.sin)(i / 10000 ** (2 * (j // 2) / dim))
             for j in range(dim)] for i in range(rows)]  # fmt: skip


class Expert:
    """The controller by hand, as a policy that reads what an agent reads, in the usual order."""

    members, env = 1, SwingUp()

    def begin(self, episodes, sensors, members=None):
        return None

    def fold(self, weights=None):
        return None

    def act(self, readings, memory, folded=None):
        r = readings if readings.dim() == 3 else readings[None]
        x, v, cos, sin, rate = r.unbind(1)
        state = torch.stack([x, v, torch.atan2(sin, cos), rate, 0 * x], -1)
        return self.env.expert(state.flatten(0, 1)).view(len(r), 1, -1), None, None


# The network, step by step.


def test_positions():
    """Against a loop; the first row is 0, 1, 0, 1, whatever the width."""
    for rows, dim in ((16, 8), (7, 6), (1024, 8), (1, 3)):
        found = positions(rows, dim)
        assert found.dtype == torch.float32
        assert torch.allclose(found, torch.tensor(table(rows, dim)), atol=1e-6)
        assert found[0].tolist() == [j % 2 for j in range(dim)]
    exact = positions(40, 8, torch.zeros(1, dtype=torch.float64))
    assert torch.allclose(exact, torch.tensor(table(40, 8), dtype=torch.float64), atol=1e-14)


def test_parameter_counts():
    """The paper's three, and another shape by hand."""
    assert Agent().weights.shape == (1, 913)
    assert Agent.ant(members=2).weights.shape == (2, 2504)
    assert sum(p.numel() for p in RacingAgent().parameters()) == 7212
    A, M, H, d, W = 3, 5, 6, 7, 4
    lstm, attention = 4 * H * (1 + A + H + 2), 2 * d * (H + 1)
    head = W * (M + 1) + A * (W + 1)
    agent = Agent(A, codes=M, hidden=H, message=d, widths=(W,), bias=True)
    assert agent.weights.numel() == lstm + attention + head
    assert AttentionNeuron(A, hidden=H, message=d).weights.numel() == lstm + 2 * d * H


@pytest.mark.parametrize("kind, sensors, shake, shape", [
    (Agent, 5, 0.5, {}), (Agent, 1, 0.5, {}),
    (Agent.ant, 28, 0.1, {"actions": 8, "codes": 32, "widths": (32,), "bias": True, "scaled": True})])  # fmt: skip
def test_slow_twin(kind, sensors, shake, shape):
    """Episode by episode through torch's own modules, 20 steps, two members, float64."""
    agent = shaken(kind(members=2), shake=shake).double()
    readings = 2 * normal(20, 2, sensors, 3)
    twins = [[Twin(w.detach(), **shape) for _ in range(3)] for w in agent.weights]
    memory = agent.begin(3, sensors)
    for x in readings:
        action, code, memory = agent.act(x, memory)
        for e, row in enumerate(twins):
            for b, twin in enumerate(row):
                wanted, seen = twin(x[e, :, b])
                assert torch.allclose(action[e, :, b], wanted, rtol=0, atol=1e-12)
                assert torch.allclose(code[e, :, b], seen, rtol=0, atol=1e-12)
                hidden, cell = (t[e, :, :, b].T for t in memory[:2])
                assert torch.allclose(hidden, twin.state[0], rtol=0, atol=1e-12)
                assert torch.allclose(cell, twin.state[1], rtol=0, atol=1e-12)
    assert torch.equal(memory.action, action) and action.std() > 0.1


def test_bias_and_scale_reach_the_code():
    """Without the scale, or with other biases, the ant's code is another: the twin could tell."""
    agent = shaken(Agent.ant()).double()
    x, memory = normal(28, 3), agent.begin(3, 28)
    code = agent(x, memory)[0]
    other = Agent(8, codes=32, widths=(32,), bias=True).double()
    other.load_state_dict(agent.state_dict())
    assert (other(x, memory)[0] - code).abs().max() > 1e-2
    for name in ("query.bias", "key.bias"):
        other = Agent.ant().double()
        other.load_state_dict(agent.state_dict())
        with torch.no_grad():
            other.tensors()[name].zero_()
        assert (other(x, memory)[0] - code).abs().max() > 1e-2


def test_weights_start_like_torch_modules():
    """Uniform within 1 / sqrt(inputs); within 1 / sqrt(units) for all of the LSTM."""
    t = Agent.ant(members=30).tensors()
    bounds = {"lstm": 8, "query": 8, "key": 8, "head0": 32, "head1": 32}
    for name, w in t.items():
        bound = bounds[name.split(".")[0]] ** -0.5
        assert 0.95 * bound < w.abs().max() <= bound
        assert abs(w.var() / (bound**2 / 3) - 1) < 0.3 and abs(w.mean()) < 0.15 * bound


def test_members_follow_from_their_own_seeds():
    both = Agent(members=2, seed=4)
    for i in range(2):
        assert torch.equal(both.weights[i], Agent(seed=4 + i).weights[0])
    assert not torch.equal(both.weights[0], both.weights[1])


# Invariances of the code.


def warmed(agent, sensors, episodes=4, steps=6):
    """In the middle of an episode."""
    memory = agent.begin(episodes, sensors)
    for x in normal(steps, sensors, episodes, seed=3):
        _, _, memory = agent.act(x, memory)
    return memory


def permuted(memory, order):
    return Memory(memory.hidden[:, :, order], memory.cell[:, :, order], memory.action)


@pytest.mark.parametrize("kind, sensors", [(Agent, 5), (Agent.ant, 28)])
def test_the_code_does_not_know_the_order(kind, sensors):
    """Sensors change places with their memories: the same code, in the middle of an episode too.

    Without their memories, or with softmax scores over another axis, it would not be."""
    agent = shaken(kind(members=2)).double()
    memory, x = warmed(agent, sensors), normal(sensors, 4, seed=5)
    action, code, after = agent.act(x, memory)
    for seed in range(5):
        order = torch.randperm(sensors, generator=seeded(seed))
        other, seen, moved = agent.act(x[order], permuted(memory, order))
        assert torch.allclose(seen, code, rtol=0, atol=1e-13)
        assert torch.allclose(other, action, rtol=0, atol=1e-13)
        assert torch.allclose(moved.hidden, after.hidden[:, :, order], rtol=0, atol=1e-13)
        lost = agent(x[order], memory)[0]
        assert bool(((lost - code).abs().amax(1) > 1e-4).all())
    single = shaken(kind())
    memory, x = single.begin(4, sensors), x.float()
    assert (single(x.flip(0), memory)[0] - single(x, memory)[0]).abs().max() < 2e-6


def test_a_sensor_that_reads_zero_adds_nothing():
    """Wherever it stands, and whatever it remembers."""
    agent = shaken(Agent.ant(members=2)).double()
    memory, x = warmed(agent, 6), normal(6, 4, seed=5)
    code = agent(x, memory)[0]
    for at in (0, 3, 6):
        states = [normal(2, 8, 1, 4, seed=7), normal(2, 8, 1, 4, seed=8)]
        wider = Memory(*(torch.cat([t[:, :, :at], s, t[:, :, at:]], 2)
                         for t, s in zip(memory[:2], states)), memory.action)  # fmt: skip
        silent = torch.cat([x[:at], torch.zeros(1, 4), x[at:]])
        found = agent(silent, wider)[0]
        assert torch.allclose(found, code, rtol=0, atol=1e-15)
        loud = torch.cat([x[:at], torch.ones(1, 4), x[at:]])
        assert (agent(loud, wider)[0] - code).abs().max() > 1e-2


def test_no_sensor_takes_weight_from_another():
    """Scores are no softmax: two of each double the sum, tanh(2 artanh m)."""
    agent = shaken(Agent()).double()
    memory, x = warmed(agent, 5), 0.3 * normal(5, 4, seed=5)
    code = agent(x, memory)[0]
    twice = Memory(*(torch.cat([t, t], 2) for t in memory[:2]), memory.action)
    found = agent(torch.cat([x, x]), twice)[0]
    assert torch.allclose(found, (2 * code.atanh()).tanh(), rtol=0, atol=1e-12)
    parts = [agent(x[i : i + 1], Memory(memory.hidden[:, :, i : i + 1], memory.cell[:, :, i : i + 1],
                                        memory.action))[0].atanh() for i in range(5)]  # fmt: skip
    assert torch.allclose(code, sum(parts).tanh(), rtol=0, atol=1e-12)


# Whole sequences.


@pytest.mark.parametrize("kind, sensors", [(Agent, 5), (Agent.ant, 28)])
@pytest.mark.parametrize("dtype, close", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_sequences_are_step_by_step(kind, sensors, dtype, close):
    """Codes, actions, and the gradients of both, for each member."""
    agent = shaken(kind(members=2), shake=0.1).to(dtype)
    B, T, A = 3, 12, agent.actions
    readings, before = normal(B, T, sensors, dtype=dtype), normal(B, T, A, seed=1, dtype=dtype)
    memory, codes, actions = agent.begin(B, sensors), [], []
    for t in range(T):
        action, code, memory = agent.act(
            readings[:, t].T, memory._replace(action=before[:, t].T.expand(2, -1, -1))
        )
        codes.append(code), actions.append(action)
    codes, actions = (torch.stack(v, 1).permute(0, 3, 1, 2) for v in (codes, actions))
    for i in range(2):
        seq, along = agent.sequence(readings, before, i), agent.actions_along(readings, before, i)
        assert seq.shape == (B, T, agent.codes) and along.shape == (B, T, A)
        assert torch.allclose(seq, codes[i], rtol=0, atol=close)
        assert torch.allclose(along, actions[i], rtol=0, atol=close)
        slope = normal(*along.shape, seed=2, dtype=dtype)
        fast, slow = (torch.autograd.grad((out * slope).sum(), agent.weights, retain_graph=True)[0]
                      for out in (along, actions[i]))  # fmt: skip
        assert slow[i].norm() > 0.1 and not fast[1 - i].any()
        assert torch.allclose(fast, slow, rtol=0, atol=10 * close * slow.abs().max())


# What is done to the sensors.


def test_an_order_is_kept_for_an_episode():
    """All readings are there; each episode has an order of its own; no order is likelier."""
    sensors, B = Sensors(shuffle="episode"), 6000
    assert sensors.begin(5, B, seeded()) == 5
    names = torch.arange(5.0)[:, None].expand(5, B)
    first = sensors(names, 0)
    assert torch.equal(first.sort(0).values, names)
    for t in range(1, 40):
        assert torch.equal(sensors(names, t), first)
    seen = torch.stack([(first == i).float().mean(1) for i in range(5)])
    assert (seen - 0.2).abs().max() < 5 * (0.16 / B) ** 0.5
    sensors.begin(5, B, seeded(1))
    assert not torch.equal(sensors(names, 0), first)


def test_an_order_is_drawn_anew_every_so_many_steps():
    for every in (1, 7):
        sensors, B = Sensors(shuffle=every), 60
        sensors.begin(5, B, seeded())
        names = torch.arange(5.0)[:, None].expand(2, 5, B)
        drawn = sensors.order.clone()
        seen = [sensors(names, t) for t in range(30)]
        assert torch.equal(seen[0][0], drawn.float())  # the first order is that of the beginning
        assert all(torch.equal(s.sort(1).values, names) and torch.equal(s[0], s[1]) for s in seen)
        changes = [t for t in range(1, 30) if not torch.equal(seen[t], seen[t - 1])]
        assert changes == list(range(every, 30, every))
    plain = Sensors()
    assert plain.begin(5, B, seeded()) == 5 and torch.equal(plain(names, 3), names)


def test_noise_sensors():
    """N(0, spread^2), new at each step, the same for a population, beside readings as they were."""
    sensors, B = Sensors(noise=4, spread=0.3), 2000
    assert sensors.begin(5, B, seeded()) == 9
    x = normal(2, 5, B)
    seen = torch.stack([sensors(x, t) for t in range(10)])
    assert torch.equal(seen[:, :, :5], x.expand(10, -1, -1, -1))
    assert torch.equal(seen[:, 0, 5:], seen[:, 1, 5:]) and seen.dtype == torch.float64
    draws = seen[:, 0, 5:].reshape(40, B) / 0.3
    n = draws.numel()
    assert abs(draws.mean()) < 4 * n**-0.5 and abs(draws.square().mean() - 1) < 4 * (2 / n) ** 0.5
    assert abs(draws.pow(4).mean() - 3) < 4 * (96 / n) ** 0.5
    across = draws @ draws.T / B  # no two rows, of other steps or sensors, know each other
    assert (across - across.diag().diag()).abs().max() < 5 * B**-0.5


def test_copies_and_dropped_sensors():
    """Copies follow the readings; of the dropped ones, as many as asked for are gone all along."""
    x = normal(5, 300)
    sensors = Sensors(copies=2)
    assert sensors.begin(5, 300, seeded()) == 10
    assert torch.equal(sensors(x, 0), torch.cat([x, x]))
    names = torch.arange(5.0)[:, None].expand(5, 300)
    for shuffle in (None, "episode", 4):
        sensors = Sensors(copies=2, dropped=3, shuffle=shuffle)
        assert sensors.begin(5, 300, seeded()) == 7
        seen = [sensors(names, t) for t in range(10)]
        first = seen[0].sort(0).values
        assert all(torch.equal(s.sort(0).values, first) for s in seen)  # the same ones are left
        counts = torch.stack([(first == i).sum(0) for i in range(5)])
        assert bool((counts.sum(0) == 7).all()) and counts.max() == 2 and counts.min() == 0
        # Each is left with chance 7 / 10.
        assert (counts.double().mean(1) - 1.4).abs().max() < 5 * (0.5 / 300) ** 0.5
        rising = torch.equal((order := sensors.order).sort(0).values, order)
        assert rising == (shuffle is None)
    sensors.keep(torch.tensor([3, 5]))
    assert torch.equal(sensors(names[:, [3, 5]], 1), seen[-1][:, [3, 5]])


def test_copies_of_all_is_the_doubled_sum_in_play():
    """Copies reach the agent: its first code is tanh(2 artanh) of the usual one."""
    agent, starts = shaken(Agent()).double(), calm(6)
    one = play(agent, SwingUp(), starts, steps=1, trace=True)
    two = play(agent, SwingUp(), starts, steps=1, trace=True, sensors=Sensors(copies=2),
               generator=seeded())  # fmt: skip
    assert torch.allclose(two.codes, (2 * one.codes.atanh()).tanh(), rtol=0, atol=1e-9)
    assert (two.codes - one.codes).abs().max() > 1e-2


def test_sensors_in_play_are_reshuffled_at_the_right_steps():
    """The readings of a trace, matched with what the environment shows; a memory stays in place."""
    agent, env, starts = shaken(Agent()).double(), SwingUp(), calm(30)
    run = play(agent, env, starts, steps=13, trace=True, sensors=Sensors(shuffle=4),
               generator=seeded())  # fmt: skip
    assert run.lengths.min() == 13
    seen = torch.stack([env.observe(s[0]).T for s in run.states[:-1]])
    places = (run.readings[:, 0, :, None] == seen[:, None]).float().argmax(2)  # (T, N, B)
    assert torch.equal(run.readings[:, 0], seen.gather(1, places))
    changes = [t for t in range(1, 13) if not torch.equal(places[t], places[t - 1])]
    assert changes == [4, 8, 12]
    before = torch.cat([torch.zeros_like(run.actions[:1]), run.actions[:-1]])
    whole = [t[:, 0].permute(2, 0, 1) for t in (run.readings, before, run.actions)]
    assert torch.allclose(agent.actions_along(*whole[:2]), whole[2], rtol=0, atol=1e-12)


# Episodes.


def slow_play(flat, start, steps):
    """One episode, one step at a time."""
    env, twin, state, total = SwingUp(), Twin(flat), start[None], 0.0
    for length in range(1, steps + 1):  # noqa: B007
        action, _ = twin(env.observe(state)[0])
        state, reward, over, out = env.step(state, action[None])
        total += reward.item()
        if over or out:
            break
    return total, length


def test_play_is_one_episode_after_another():
    """A population's returns and lengths, against its members one by one in torch's modules."""
    weights = shaken(Agent(members=3)).double().weights.detach()
    starts = torch.cat([hard(4), calm(2)])
    run = play(Agent(), SwingUp(), starts, weights=weights, steps=60)
    for e, b in ((e, b) for e in range(3) for b in range(6)):
        total, length = slow_play(weights[e], starts[b], 60)
        assert run.lengths[e, b] == length and abs(run.returns[e, b].item() - total) < 1e-8
    assert 1 <= run.lengths.min() < 60 == run.lengths.max()


def test_a_population_is_its_members():
    """As weights, and as the members of one stack; each member's own returns and lengths."""
    agent, starts = shaken(Agent(members=4)).double(), hard(50)
    together = play(agent, SwingUp(), starts, steps=80)
    given = play(Agent(), SwingUp(), starts, weights=agent.weights.detach(), steps=80)
    assert torch.equal(together.returns, given.returns)
    assert not torch.allclose(together.returns[0], together.returns[1], atol=1e-2)
    for i in range(4):
        alone = play(
            Agent(), SwingUp(), starts, weights=agent.weights[i : i + 1].detach(), steps=80
        )
        assert torch.equal(alone.lengths[0], together.lengths[i])
        assert torch.allclose(alone.returns[0], together.returns[i], rtol=0, atol=1e-8)


@pytest.mark.parametrize("sensors", [None, "episode"])
@pytest.mark.parametrize("kind", [lambda: shaken(Agent(members=2)).double(),
                                  lambda: Expert()])  # fmt: skip
def test_leaving_out_what_has_ended_changes_nothing(kind, sensors):
    """A trace keeps all episodes to the end; without one they are taken out."""
    policy, starts = kind(), hard(120)
    settings = lambda: ({} if sensors is None else  # noqa: E731
                        {"sensors": Sensors(shuffle=sensors), "generator": seeded()})  # fmt: skip
    kept = play(policy, SwingUp(), starts, steps=130, trace=True, **settings())
    seen = []
    act = policy.act
    policy.act = lambda r, *rest: seen.append(r.shape[-1]) or act(r, *rest)
    left = play(policy, SwingUp(), starts, steps=130, **settings())
    assert seen[0] == 120 > seen[30] > seen[-1]  # some have gone
    assert torch.equal(kept.lengths, left.lengths) and left.lengths.unique().numel() > 10
    assert torch.allclose(kept.returns, left.returns, rtol=0, atol=1e-6)
    assert left.states is None and left.readings is None


def test_a_trace_tells_what_happened():
    """States follow from actions, rewards add up, what has ended stands still."""
    agent, env, starts = shaken(Agent(members=2)).double(), SwingUp("hard"), hard(40)
    run = play(agent, env, starts, steps=90, trace=True)
    T, E, B = 90, 2, 40
    assert run.states.shape == (T + 1, E, B, 5) and run.readings.shape == (T, E, 5, B)
    assert run.actions.shape == (T, E, 1, B) and run.codes.shape == (T, E, 16, B)
    assert torch.equal(run.states[0], starts.expand(E, -1, -1))
    total, lengths = torch.zeros(E, B).double(), torch.zeros(E, B).long()
    for t in range(T):
        going = run.states[:, :, :, 0].abs().le(2.4)[: t + 1].all(0)
        step = env.step(run.states[t].flatten(0, 1), run.actions[t].mT.flatten(0, 1))
        new = torch.where(going[..., None], step.state.view(E, B, 5), run.states[t])
        assert torch.equal(run.states[t + 1], new)
        total += step.reward.view(E, B) * going
        lengths += going
    assert torch.allclose(total, run.returns, rtol=0, atol=1e-10)
    assert torch.equal(lengths, run.lengths) and lengths.min() < T


def test_episodes_end_in_time():
    agent = Agent(members=2)
    starts = 0.01 * calm(3, dtype=torch.float32)
    assert play(agent, SwingUp(longest=30), starts).lengths.unique().tolist() == [30]
    assert play(agent, SwingUp(longest=30), starts, steps=99).lengths.unique().tolist() == [30]
    assert play(agent, SwingUp(), starts, steps=7).lengths.unique().tolist() == [7]
    late = starts + torch.tensor([0.0, 0, 0, 0, 20])
    assert play(agent, SwingUp(longest=30), late).lengths.unique().tolist() == [10]
    held = play(agent, SwingUp(longest=30, hold=4), starts)
    assert held.lengths.unique().tolist() == [8]


def test_noise_is_added_on_the_way():
    """The environment gets the noise, of the right size; the agent remembers what it meant to do."""
    agent, env, starts = Agent().double(), SwingUp(), calm(200)
    with torch.no_grad():
        agent.weights.mul_(0.5)
    run = play(agent, env, starts, steps=10, trace=True, noise=0.2, generator=seeded())
    again = play(agent, env, starts, steps=10, noise=0.2, generator=seeded())
    assert torch.allclose(again.returns, run.returns, rtol=0, atol=1e-9)
    before = torch.cat([torch.zeros_like(run.actions[:1]), run.actions[:-1]])
    whole = [t[:, 0].permute(2, 0, 1) for t in (run.readings, before, run.actions)]
    assert torch.allclose(agent.actions_along(*whole[:2]), whole[2], rtol=0, atol=1e-12)
    # The force that was felt follows from the change of the velocity; |action| < 0.4 is not clipped.
    calm_step = torch.stack([env.step(s[0], a[0].T).state[:, 1]
                             for s, a in zip(run.states, run.actions)])  # fmt: skip
    below = 4 - 1.5 * run.states[:-1, 0, :, 2].cos().square()
    felt = (run.states[1:, 0, :, 1] - calm_step) / 0.01 * below / 40
    felt = felt[run.actions[:, 0, 0].abs() < 0.2]
    n = felt.numel()
    assert n > 500 and abs(felt.mean()) < 0.8 * n**-0.5
    assert abs(felt.std() / 0.2 - 1) < 4 * (2 * n) ** -0.5


def test_whole_episodes_do_not_know_the_order():
    """Closed loops over 100 steps: the same lengths and returns, in float64 near-exactly.

    An ordinary network is another one under the same shuffle."""
    agent, starts = shaken(Agent(members=2), shake=0.2).double(), torch.cat([calm(40), hard(40)])
    settings = {"steps": 100, "sensors": Sensors(shuffle="episode")}
    usual = play(agent, SwingUp(), starts, steps=100)
    mixed = play(agent, SwingUp(), starts, **settings, generator=seeded())
    assert torch.equal(usual.lengths, mixed.lengths)
    assert torch.allclose(usual.returns, mixed.returns, rtol=0, atol=1e-8)
    single = agent.float()
    usual = play(single, SwingUp(), starts.float(), steps=100)
    mixed = play(single, SwingUp(), starts.float(), **settings, generator=seeded())
    assert (usual.lengths == mixed.lengths).float().mean() > 0.95
    assert ((usual.returns - mixed.returns).abs() < 1e-2).float().mean() > 0.9
    plain = Plain([5, 8, 1])
    usual = play(plain, SwingUp(), starts.float(), steps=100).returns
    mixed = play(plain, SwingUp(), starts.float(), **settings, generator=seeded()).returns
    assert ((usual - mixed).abs() > 1e-2).float().mean() > 0.5


def test_a_reshuffle_in_the_middle_is_felt():
    """Memories stay behind: until step 10 the same, later not."""
    agent, starts = shaken(Agent()).double(), calm(30)
    usual = play(agent, SwingUp(), starts, steps=11, trace=True)
    mixed = play(agent, SwingUp(), starts, steps=11, trace=True, sensors=Sensors(shuffle=10),
                 generator=seeded())  # fmt: skip
    assert torch.allclose(usual.codes[:10], mixed.codes[:10], rtol=0, atol=1e-10)
    assert ((usual.codes[10] - mixed.codes[10]).abs().amax((0, 1)) > 1e-3).float().mean() > 0.9


# The compiled loop.


@pytest.fixture
def compiler():
    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("there is no C++ compiler here")


def population(members, shake=0.3, seed=99):
    return shaken(Agent(members=members), seed, shake).weights.detach()


@pytest.mark.parametrize("members, episodes", [(1, 1), (1, 15), (17, 1), (1, 33), (3, 11), (5, 40)])
def test_the_compiled_loop_plays_the_same(compiler, members, episodes):
    """Whatever the number of episodes, full lanes or not."""
    weights = population(members)
    starts = torch.cat([calm(episodes, dtype=torch.float32)[::2], hard(episodes, dtype=torch.float32)[1::2]])  # fmt: skip
    assert len(starts) == episodes
    wanted = play(Agent(), SwingUp(), starts, weights=weights, steps=50)
    returns, lengths = fused_returns(weights, starts, steps=50)
    assert returns.shape == lengths.shape == (members, episodes)
    assert torch.equal(lengths, wanted.lengths) and lengths.dtype == torch.int64
    assert torch.allclose(returns, wanted.returns, rtol=0, atol=1e-3)
    four = fused_returns(weights, starts[:, :4], steps=50)
    assert torch.equal(four[0], returns) and torch.equal(four[1], lengths)


def test_the_compiled_loop_with_any_number_of_threads(compiler):
    """The same bits; an episode's are those it has alone."""
    weights, starts = population(3), hard(29, dtype=torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 5):
            torch.set_num_threads(n)
            found.append(fused_returns(weights, starts, 300))
    finally:
        torch.set_num_threads(before)
    for returns, lengths in found[1:]:
        assert torch.equal(returns, found[0][0]) and torch.equal(lengths, found[0][1])
    assert found[0][1].unique().numel() > 10
    for e, b in ((0, 0), (1, 7), (2, 28)):
        alone = fused_returns(weights[e : e + 1], starts[b : b + 1], 300)
        assert torch.equal(alone[0][0, 0], found[0][0][e, b])


def test_the_compiled_loop_over_long_runs(compiler):
    """Where rounding has grown to chaos, the means still agree, and most lengths."""
    weights, starts = population(2, 0.5), hard(400, dtype=torch.float32)
    wanted = play(Agent(), SwingUp(), starts, weights=weights, steps=400)
    returns, lengths = fused_returns(weights, starts, 400)
    assert (lengths == wanted.lengths).float().mean() > 0.8
    for found, other in ((returns, wanted.returns), (lengths.float(), wanted.lengths.float())):
        error = (found - other).std(1) / len(starts) ** 0.5
        assert bool(((found - other).mean(1).abs() <= 4 * error + 1e-3).all())
        assert bool((error < 0.05 * other.std(1) + 1e-3).all())


@pytest.mark.parametrize("push", [0.0, 0.05, -0.4])
def test_the_physics_of_the_compiled_loop(compiler, push):
    """An agent that pushes always the same, against `SwingUp` in float64: every constant counts."""
    weights = torch.zeros(1, 913)
    weights[0, -1] = math.atanh(push)
    for starts, steps in ((calm(16), 400), (hard(64), 60)):
        wanted = play(Agent(), SwingUp(), starts, weights=weights.double(), steps=steps)
        returns, lengths = fused_returns(weights, starts.float(), steps)
        assert torch.equal(lengths, wanted.lengths)
        assert torch.allclose(returns.double(), wanted.returns, rtol=0, atol=2e-3)
    assert wanted.lengths.min() < 60


def test_the_compiled_loop_refuses(compiler):
    weights, starts = population(2), calm(3, dtype=torch.float32)
    for bad in (weights[:, :-1], weights[:0], weights[0]):
        with pytest.raises(ValueError, match="weights: got"):
            fused_returns(bad, starts)
    for bad in (starts[:, :3], starts[:0], starts[0], torch.zeros(2, 6)):
        with pytest.raises(ValueError, match="starts: got"):
            fused_returns(weights, bad)
    for bad in ((weights * math.nan, starts), (weights, starts / 0)):
        with pytest.raises(ValueError, match="NaN, inf"):
            fused_returns(*bad)
    late, outside, huge = (torch.zeros(2, 5) for _ in range(3))
    late[0, 4], outside[0, 0], huge = 990, 2.5, huge.double() + 1e39
    for bad in (late, outside, huge):
        with pytest.raises(ValueError, match="off the track or later"):
            fused_returns(weights, bad)
    for steps in (0, 1.5, 2**31):
        with pytest.raises(ValueError, match="steps"):
            fused_returns(weights, starts, steps)


def test_numbers_close_to_zero_stay(compiler):
    """Loading the compiled loop does not make the process flush denormals to zero."""
    fused_returns(population(1), calm(1, dtype=torch.float32), 2)
    assert float(torch.tensor(1e-39) * 0.5) != 0


# The task.


def test_the_pole_in_numbers():
    env = SwingUp(dtype=torch.float64)
    down = torch.tensor([[0.3, 0, math.pi, 0, 0]], dtype=torch.float64)
    rest = torch.zeros(1, 1).double()
    after = env.step(down, rest)
    assert torch.allclose(after.state[:, :4], down[:, :4], rtol=0, atol=1e-15)
    assert after.reward.item() < 1e-30
    assert env.step(0 * down, rest).reward.item() == 1
    assert env.step(down, rest + 1).state[0, [1, 3]].tolist() == (
        pytest.approx([0.16, -0.4], abs=1e-14)
    )
    assert env.step(down, rest + 7).state.tolist() == env.step(down, rest + 1).state.tolist()
    # thdd = 1.5 / l (g sin th + xdd cos th), whatever the force and the friction.
    state, action = hard(500), 2 * torch.rand(500, 1, generator=seeded(3), dtype=torch.float64) - 1
    new = env.step(state, action).state
    xdd, thdd = ((new - state)[:, i] / 0.01 for i in (1, 3))
    identity = 2.5 * (9.82 * state[:, 2].sin() + xdd * state[:, 2].cos())
    assert torch.allclose(thdd, identity, rtol=0, atol=1e-10)
    # Upright: how the rate follows the angle, and the velocity the force (10 N an action).
    slopes = torch.autograd.functional.jacobian(
        lambda s, a: env.step(s, a).state, (0 * down, rest), vectorize=True
    )
    assert abs(slopes[0][0, 3, 0, 2] / 0.01 - 39.28) < 1e-10
    assert abs(slopes[1][0, 1, 0, 0] / 0.1 - 1.6) < 1e-12


def test_a_third_of_the_hard_starts_is_lost():
    """v^2 / 20 <= way left to the wall: 65.3 % can be saved, and the controller saves those."""
    far = hard(200_000)
    savable = far[:, 1].square() / 20 <= 2.4 - far[:, 0] * far[:, 1].sign()
    # 1 - E[v^2] / 96, but for speeds too high to brake on the whole track: v^2 / 20 > 4.8.
    s = math.sqrt(96)
    exact = (s - s**3 / 288) / 10
    assert abs(exact - 0.653) < 0.001
    assert abs(savable.double().mean() - exact) < 4 * (0.23 / len(far)) ** 0.5
    starts = hard(2000, seed=4, dtype=torch.float32)
    run = play(Expert(), SwingUp(), starts)
    saved = run.lengths[0] == 1000
    mean = saved.double().mean().item()
    savable = starts[:, 1].square() / 20 <= 2.4 - starts[:, 0] * starts[:, 1].sign()
    assert abs(mean - savable.double().mean().item()) < 0.03 and mean > 0.62
    assert (saved == savable).double().mean() > 0.92
    assert run.returns[0, saved].mean() > 850 and run.lengths[0, ~saved].max() < 1000


# Cloning.


def begin(n, generator):
    return SwingUp().reset(n, generator)


TINY = {"rounds": 2, "updates": 20, "episodes": 16, "length": 25, "batch": 8}


@pytest.mark.slow
def test_a_student_learns_and_comes_out_the_same():
    """The loss falls for every member; the same generator, the same weights; members differ."""
    students = [Agent(members=2), Agent(members=2)]
    starting = students[0].weights.detach().clone()
    curves = [clone(s, Expert(), SwingUp(), begin, seeded(), **TINY) for s in students]
    assert curves[0].shape == (40, 2) and bool(curves[0].isfinite().all())
    assert torch.equal(curves[0], curves[1])
    assert torch.equal(students[0].weights, students[1].weights)
    assert bool((curves[0][15:20].mean(0) < 0.75 * curves[0][:3].mean(0)).all())
    assert bool(((students[0].weights - starting).norm(dim=1) > 0.1).all())
    assert (students[0].weights[0] - students[0].weights[1]).norm() > 1
    other = Agent(members=2)
    assert not torch.equal(clone(other, Expert(), SwingUp(), begin, seeded(1), **TINY), curves[0])


def test_members_learn_as_if_alone():
    """In the round of the teacher, whose episodes are the same for all."""
    tiny = {**TINY, "rounds": 1}
    both = Agent(members=2, seed=3)
    curve = clone(both, Expert(), SwingUp(), begin, seeded(), **tiny)
    for i in range(2):
        alone = Agent(seed=3 + i)
        own = clone(alone, Expert(), SwingUp(), begin, seeded(), **tiny)
        assert torch.allclose(own[:, 0], curve[:, i], rtol=1e-3)
        assert torch.allclose(alone.weights[0], both.weights[i], rtol=0, atol=1e-3)


def test_the_first_update_by_hand():
    """One episode after another in torch's modules: the loss, and Adam's first step with it."""
    student, g = Agent(), seeded()
    curve = clone(student, Expert(), SwingUp(), begin, g, rounds=1, updates=1, episodes=3, length=6,
                  batch=4, noise=0.2)  # fmt: skip
    g, flat = seeded(), Agent().weights[0].detach().requires_grad_()
    lesson = cloning._watch(Expert(), Expert(), SwingUp(), begin(3, g), 6, 0.2, g)
    rows = torch.randint(3, (4,), generator=g)
    readings, before, wanted, counts = (t[rows, 0] for t in lesson)
    assert bool((counts == 1).all()) and not before[:, 0].any()
    twin_actions = Agent()
    with torch.no_grad():
        twin_actions.weights.copy_(flat)
    total = 0
    for r, b, w in zip(readings, before, wanted):
        twin = Twin(flat.detach())
        for x, last, label in zip(r, b, w):
            twin.action = last
            total += (twin(x)[0] - label).square().item()
    assert abs(curve.item() - total / 24) < 1e-5
    loss = (twin_actions.actions_along(readings, before) - wanted).square().mean()
    slope = torch.autograd.grad(loss, twin_actions.weights)[0][0]
    moved = student.weights[0] - flat  # Adam's first step is the sign of the slope
    clear = slope.abs() > 1e-4
    assert clear.sum() > 300
    assert torch.allclose(moved[clear], -0.015 * slope[clear].sign(), rtol=0, atol=1e-4)


def test_the_teacher_says_what_it_would_have_done():
    """Where it acts itself, its labels are its actions; where a student acts, they are not."""
    env, starts = SwingUp(), torch.cat([calm(6), hard(6)])
    for noise in (0.0, 0.2):
        args = env, starts, 40, noise
        readings, before, wanted, counts = cloning._watch(Expert(), Expert(), *args, seeded())
        assert readings.shape == (12, 1, 40, 5) and counts.shape == (12, 1, 40, 1)
        assert torch.allclose(wanted[:, :, :-1], before[:, :, 1:], rtol=0, atol=1e-10)
        assert not before[:, :, 0].any()
        run = play(Expert(), env, starts, steps=40, trace=True, noise=noise, generator=seeded())
        assert torch.allclose(wanted, run.actions.permute(3, 1, 0, 2), rtol=0, atol=1e-10)
        assert torch.equal(counts.sum((2, 3)).long().T, run.lengths) and run.lengths.min() < 40
    student = shaken(Agent(members=2)).double()
    readings, before, wanted, _ = cloning._watch(student, Expert(), *args, seeded())
    assert (
        readings.shape == (12, 2, 40, 5)
        and (wanted[:, :, :-1] - before[:, :, 1:]).abs().max() > 0.1
    )
    for e, t, b in ((0, 0, 0), (1, 13, 5), (1, 39, 7)):
        label = Expert().act(readings[b, e, t][:, None], None)[0]
        assert torch.allclose(label[0, :, 0], wanted[b, e, t], rtol=0, atol=1e-10)


def test_steps_after_the_end_do_not_count():
    """Whatever stands there, the loss is the mean over the others."""
    agent = shaken(Agent(2)).double()
    readings, before, wanted = normal(3, 9, 5), normal(3, 9, 2, seed=1), normal(3, 9, 2, seed=2)
    counts = (torch.arange(9)[None, :, None] < torch.tensor([9, 4, 1])[:, None, None]).double()
    out = agent.actions_along(readings, before)
    wrong = sum(
        (out[b, t] - wanted[b, t]).square().sum() for b in range(3) for t in range([9, 4, 1][b])
    )
    loss = cloning._lesson(agent, 0, (readings, before, wanted, counts))
    assert torch.allclose(loss, wrong / 28, rtol=1e-12)
    junk = [t + 5 * (1 - counts) for t in (readings, before, wanted)]
    assert torch.allclose(cloning._lesson(agent, 0, (*junk, counts)), loss, rtol=1e-12)


def test_lessons_of_episodes_that_all_end_early():
    """As long as any other, so that rounds go together; what lies behind the end does not count."""
    env, lost = SwingUp(), torch.tensor([[2.0, 9, 3, 0, 0], [-2.1, -9, 3, 1, 0]])
    lesson = cloning._watch(Expert(), Expert(), env, lost, 25, 0.0, seeded())
    assert [tuple(t.shape) for t in lesson] == [(2, 1, 25, n) for n in (5, 1, 1, 1)]
    lengths = play(Expert(), env, lost, steps=25).lengths[0]
    assert lengths.max() < 25 and torch.equal(lesson[3].sum((1, 2, 3)).long(), lengths)
    assert not any(t[:, :, lengths.max() :].any() for t in lesson)
    calls = []

    def starts(n, generator):  # the first round is lost, the second is not
        calls.append(n)
        return begin(n, generator) if len(calls) == 2 else lost.repeat(n // 2, 1)

    curve = clone(Agent(), Expert(), env, starts, seeded(), **{**TINY, "updates": 2})
    assert calls == [16, 16] and curve.shape == (4, 1) and bool(curve.isfinite().all())


def test_ordinary_networks():
    """They fit an expert, each on its own, and know only one number of sensors."""
    states = hard(2000, dtype=torch.float32)
    readings, wanted = SwingUp().observe(states), SwingUp().expert(states)
    plain = Plain([5, 16, 1], members=2)

    def wrong(out):
        return (out - wanted.T).square().mean((1, 2))

    memory = plain.begin(2000, 5)
    first = wrong(plain.act(readings.T, memory)[0])
    reported = plain.fit(readings, wanted, 150, seeded(), batch=128)
    last = wrong(plain.act(readings.T, memory)[0])
    assert reported.shape == (2,) and bool((last < 0.6 * first).all())
    assert bool((reported < 0.8 * first).all()) and last[0] != last[1]
    assert not any(p.requires_grad for p in plain.params)
    for e in range(2):
        w1, b1, w2, b2 = (p[e] for p in plain.params)
        by_hand = ((readings[:3] @ w1 + b1).relu() @ w2 + b2).tanh()
        assert torch.allclose(plain.act(readings[:3].T, None)[0][e].T, by_hand, atol=1e-5)
    for n in (4, 6):
        with pytest.raises(ValueError, match=f"sensors: got {n}, wanted 5"):
            plain.begin(3, n)
    for change in ({"noise": 1}, {"copies": 2}, {"dropped": 1}):
        with pytest.raises(ValueError, match="sensors: got"):
            play(plain, SwingUp(), states, sensors=Sensors(**change), generator=seeded())


# Patches.


def eye(affine=False, seed=0):
    found = PatchNeuron(patch=2, frames=3, actions=2, codes=5, message=7, values=6, affine=affine)
    found = found.double()
    nn.utils.vector_to_parameters(
        normal(sum(p.numel() for p in found.parameters()), seed=seed), found.parameters()
    )
    return found


def unit(x):
    return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()


@pytest.mark.parametrize("affine", [False, True])
def test_patches_by_hand(affine):
    """One image, one patch and one query at a time, with the softmax written out."""
    e, seen, action = eye(affine), normal(2, 6, 3, 4), normal(2, 2, seed=1)
    found = e(seen, action)
    assert found.shape == (2, 5, 6)
    scale, shift = (e.before.weight, e.before.bias) if affine else (1, 0)
    Q = torch.tensor(table(5, 8)).double()
    for b in range(2):
        keys, values = [], []
        for patch in seen[b]:
            moves = [patch[f + 1] - patch[f] for f in range(2)]
            keys.append(e.key(torch.cat([*moves, action[b]])))
            values.append(e.value(torch.cat([scale * unit(frame) + shift for frame in patch])))
        for m in range(5):
            asked = e.query(Q[m])
            score = torch.stack([(asked @ k / math.sqrt(7)).exp() for k in keys])
            row = sum(s * v for s, v in zip(score / score.sum(), values)).relu()
            row = unit(row) * (e.after.weight if affine else 1) + (e.after.bias if affine else 0)
            assert torch.allclose(found[b, m], row, rtol=0, atol=1e-6)


def test_patches_in_any_order_and_number():
    """Another order is the same code; hidden patches are accepted; a softmax does not count copies."""
    e, seen, action = eye(), normal(2, 9, 3, 4), normal(2, 2, seed=1)
    code = e(seen, action)
    for seed in range(3):
        order = torch.randperm(9, generator=seeded(seed))
        assert torch.allclose(e(seen[:, order], action), code, rtol=0, atol=1e-11)
    fewer = e(seen[:, [0, 2, 7]], action)
    assert fewer.shape == code.shape and (fewer - code).abs().max() > 1e-2
    assert torch.allclose(e(torch.cat([seen, seen], 1), action), code, rtol=0, atol=1e-11)
    # The last action, like the bias of the keys, shifts all scores of a query alike: no softmax sees it.
    assert torch.allclose(e(seen, action + 1), code, rtol=0, atol=1e-11)
    assert (e(seen + normal(9, 3, 4, seed=2), action) - code).abs().max() > 1e-2


def test_cutting_images():
    """Patch by patch against a loop, and put together again."""
    frames = normal(2, 3, 6, 8)
    found = patches(frames, 2)
    assert found.shape == (2, 12, 3, 4)
    for p in range(12):
        row, column = p // 4 * 2, p % 4 * 2
        cut = frames[:, :, row : row + 2, column : column + 2]
        assert torch.equal(found[:, p], cut.flatten(2))
    back = found.view(2, 3, 4, 3, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 6, 8)
    assert torch.equal(back, frames)
    assert torch.equal(patches(frames[..., ::1].mT.contiguous().mT, 2), found)
    with pytest.raises(ValueError, match="wanted multiples of 4"):
        patches(frames, 4)


def test_patches_of_a_wrong_shape():
    e, seen, action = eye(), normal(2, 9, 3, 4), normal(2, 2)
    for bad in ((seen[0], action), (seen[:, :, :2], action), (seen[..., :3], action),
                (seen, action[:, :1]), (seen, action[:1]), (seen.flatten(2), action)):  # fmt: skip
        with pytest.raises(ValueError, match="seen, action: got"):
            e(*bad)
    with pytest.raises(ValueError, match="frames"):
        PatchNeuron(frames=1)
    with pytest.raises(ValueError, match="patch"):
        PatchNeuron(patch=0)


@pytest.fixture
def doubles():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def driver():
    found = RacingAgent().double()
    nn.utils.vector_to_parameters(0.5 * normal(7212, seed=3), found.parameters())
    return found


@torch.no_grad()
def test_a_driver_does_not_know_the_order_of_patches(doubles):
    """Three steps with memories; shapes; another picture is another action."""
    agent = driver()
    frames = torch.rand(3, 2, 4, 36, 36, generator=seeded(), dtype=torch.float64)
    memory, other = agent.begin(2), agent.begin(2)
    assert [tuple(t.shape) for t in memory] == [(2, 16), (2, 16), (2, 3), (2, 1024, 16)]
    assert not any(t.any() for t in memory)
    order = torch.randperm(36, generator=seeded(1))
    for t in range(3):
        seen = patches(frames[t], 6)
        action, memory = agent(seen, memory)
        same, other = agent(seen[:, order], other)
        assert action.shape == (2, 3) and action.abs().max() <= 1
        assert torch.allclose(action, same, rtol=0, atol=1e-10)
        assert torch.allclose(memory[3], other[3], rtol=0, atol=1e-9)
        assert torch.equal(memory[2], action)
    fewer, _ = agent(seen[:, :20], memory)
    assert fewer.shape == (2, 3)
    again, _ = agent(seen, memory)
    assert (fewer - again).abs().max() > 1e-6


@torch.no_grad()
def test_a_driver_by_hand(doubles):
    """The mixing of codes, the votes and the ten best, for one image over two steps."""
    agent = driver()
    hidden, cell, action, last = (
        torch.zeros(*s).double() for s in ((16,), (16,), (3,), (1024, 16))
    )
    memory = agent.begin(1)
    for t in range(2):
        frames = torch.rand(1, 4, 18, 18, generator=seeded(t), dtype=torch.float64)
        found, memory = agent(patches(frames, 6), memory)
        alpha = agent.mix(torch.cat([hidden, action]))
        last = (1 - alpha) * agent.eye(patches(frames, 6), action[None])[0] + alpha * last
        scores = agent.asks(last) @ agent.answers(last).T
        votes = (scores.exp() / scores.exp().sum(1, keepdim=True)).sum(0).tolist()
        top = sorted(range(1024), key=lambda p: -votes[p])[:10]
        where = torch.tensor([[p // 32 / 32, p % 32 / 32] for p in top]).double().flatten()
        hidden, cell = (s[0] for s in agent.lstm(where[None], (hidden[None], cell[None])))
        action = agent.head(hidden).tanh()
        assert torch.allclose(found[0], action, rtol=0, atol=1e-10)
        assert torch.allclose(memory[3][0], last, rtol=0, atol=1e-10)
    assert 0.01 < alpha < 0.99


@torch.no_grad()
def test_a_driver_in_double_precision():
    """As its eye, it follows the dtype of its weights, whatever the default is."""
    agent = driver()
    action, _ = agent(normal(1, 9, 4, 36), agent.begin(1))
    assert action.dtype == torch.float64


# Bad input.


def test_bad_sizes():
    for name in ("codes", "hidden", "message", "actions", "members"):
        for bad in (0, 1.5):
            with pytest.raises(ValueError, match=name):
                Agent(**{name: bad})
    agent = Agent()
    with pytest.raises(ValueError, match="sensors"):
        agent.begin(3, 0)
    with pytest.raises(ValueError, match="episodes"):
        agent.begin(0, 5)
    with pytest.raises(ValueError, match="members"):
        Plain([5, 1], members=0)


def test_sensors_that_come_and_go_are_refused():
    """Within an episode; and other numbers of episodes."""
    agent = Agent()
    memory = agent.begin(3, 5)
    for shape in ((4, 3), (6, 3), (5, 2), (1, 3), (1, 5, 4)):
        with pytest.raises(ValueError, match="readings: got"):
            agent.act(torch.zeros(shape), memory)
    with pytest.raises(ValueError, match="actions: got"):
        agent.sequence(torch.zeros(2, 3, 5), torch.zeros(2, 3, 2))
    with pytest.raises(ValueError, match="actions: got"):
        agent.sequence(torch.zeros(2, 3, 5), torch.zeros(2, 2, 1))


def test_bad_play():
    agent, env, starts = Agent(), SwingUp(), calm(3, dtype=torch.float32)
    for bad in (starts[0], starts[:0], starts[None], starts * math.nan, starts / 0):
        with pytest.raises(ValueError, match="starts: got"):
            play(agent, env, bad)
    for bad in (torch.zeros(2, 912), torch.zeros(2, 914), torch.zeros(913)):
        with pytest.raises(ValueError, match="weights: got"):
            play(agent, env, starts, weights=bad)
    for steps in (0, 2.5):
        with pytest.raises(ValueError, match="steps"):
            play(agent, env, starts, steps=steps)
    for change in ({"sensors": Sensors()}, {"noise": 0.1}):
        with pytest.raises(ValueError, match="generator"):
            play(agent, env, starts, **change)


def test_a_population_of_none_is_refused():
    with pytest.raises(ValueError, match="weights"):
        play(Agent(), SwingUp(), calm(3, dtype=torch.float32), weights=torch.zeros(0, 913))


def test_starts_of_another_width_are_named():
    with pytest.raises(ValueError, match="starts: got"):
        play(Agent(), SwingUp(), torch.zeros(3, 4))


def test_bad_sensors():
    for bad in (0, -1, 2.5, True, "step"):
        with pytest.raises(ValueError, match="shuffle"):
            Sensors(shuffle=bad)
    for name, bad in (
        ("noise", -1),
        ("noise", 0.5),
        ("copies", 0),
        ("dropped", -1),
        ("spread", 0.0),
    ):
        with pytest.raises(ValueError, match=name):
            Sensors(**{name: bad})
    for sensors, count in ((Sensors(dropped=5), 5), (Sensors(dropped=11, copies=2), 5)):
        with pytest.raises(ValueError, match="dropped"):
            sensors.begin(count, 3, seeded())
    assert Sensors(dropped=5, noise=1).begin(5, 3, seeded()) == 1


def test_bad_lessons():
    for name in TINY:
        with pytest.raises(ValueError, match=name):
            clone(Agent(), Expert(), SwingUp(), begin, seeded(), **{**TINY, name: 0})
    nowhere = SimpleNamespace(act=None)
    with pytest.raises(ValueError, match="rounds"):
        clone(Agent(), nowhere, SwingUp(), begin, seeded(), **{**TINY, "rounds": 1.5})


def test_the_trained_agent_is_the_recorded_one():
    path = Path(__file__).parents[2] / "results" / "sensory_neuron" / "es.json"
    record = json.loads(path.read_text())["numbers"]
    agent = trained()
    assert torch.equal(agent.weights[0], torch.tensor(record["weights"]))
    mean, sd = record["runs"][0]["tests"]["shuffled"]
    g = seeded(3)
    env = SwingUp("hard")
    run = play(agent, env, env.reset(300, g), sensors=Sensors(shuffle="episode"), generator=g)
    assert abs(run.returns.mean() - mean) < 4 * sd / math.sqrt(300)


def test_a_compiler_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("COLLAGE_CACHE", str(tmp_path))
    with pytest.raises(RuntimeError, match="could not be compiled"):
        fused_returns(population(1), calm(1, dtype=torch.float32), 2)
    assert not list(tmp_path.glob("*.so"))
