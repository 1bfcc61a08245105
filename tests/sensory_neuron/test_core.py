"""The layer and the agent: a slow twin, sizes, invariances of the code, bad input."""

import json
import math
from pathlib import Path

import pytest
import torch

from collage.common.environments import SwingUp
from collage.sensory_neuron import Agent, AttentionNeuron, Sensors, play, trained
from collage.sensory_neuron.core import Memory, positions
from tests.sensory_neuron.helpers import Twin, large, normal, seeded, shaken, table


def test_positions():
    """Against a loop; the first row is 0, 1, 0, 1, whatever the width."""
    for rows, dim in ((16, 8), (7, 6), (1024, 8), (1, 3)):
        actual = positions(rows, dim)
        assert actual.dtype == torch.float32
        assert torch.allclose(actual, torch.tensor(table(rows, dim)), atol=1e-6)
        assert actual[0].tolist() == [j % 2 for j in range(dim)]
    exact = positions(40, 8, torch.zeros(1, dtype=torch.float64))
    assert torch.allclose(exact, torch.tensor(table(40, 8), dtype=torch.float64), atol=1e-14)


def test_parameter_counts():
    """The paper's, and another shape by hand."""
    assert Agent().weights.shape == (1, 913)
    A, M, H, d = 3, 5, 6, 7
    lstm, attention, head = 4 * H * (1 + A + H + 2), 2 * d * H, A * (M + 1)
    agent = Agent(A, codes=M, hidden=H, message=d)
    assert agent.weights.numel() == lstm + attention + head
    assert AttentionNeuron(A, hidden=H, message=d).weights.numel() == lstm + attention


@pytest.mark.parametrize(
    "kind, sensors, shake, shape",
    [(Agent, 5, 0.5, {}), (Agent, 1, 0.5, {}), (large, 28, 0.1, {"actions": 8, "codes": 32})],
)
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
                expected, seen = twin(x[e, :, b])
                assert torch.allclose(action[e, :, b], expected, rtol=0, atol=1e-12)
                assert torch.allclose(code[e, :, b], seen, rtol=0, atol=1e-12)
                hidden, cell = (t[e, :, :, b].T for t in memory[:2])
                assert torch.allclose(hidden, twin.state[0], rtol=0, atol=1e-12)
                assert torch.allclose(cell, twin.state[1], rtol=0, atol=1e-12)
    assert torch.equal(memory.action, action) and action.std() > 0.1


def test_weights_start_like_torch_modules():
    """Uniform within 1 / sqrt(inputs); within 1 / sqrt(units) for all of the LSTM."""
    t = large(members=30).tensors()
    bounds = {"lstm": 8, "query": 8, "key": 8, "head": 32}
    for name, w in t.items():
        bound = bounds[name.split(".")[0]] ** -0.5
        assert 0.95 * bound < w.abs().max() <= bound
        assert abs(w.var() / (bound**2 / 3) - 1) < 0.3 and abs(w.mean()) < 0.15 * bound


def test_members_follow_from_their_own_seeds():
    both = Agent(members=2, seed=4)
    for i in range(2):
        assert torch.equal(both.weights[i], Agent(seed=4 + i).weights[0])
    assert not torch.equal(both.weights[0], both.weights[1])


@pytest.mark.parametrize(("name", "record"), [("swing_up", "es"), ("students", "clone")])
def test_the_trained_agents_are_the_recorded_ones(name, record):
    path = Path(__file__).parents[2] / "results" / "sensory_neuron" / f"{record}.json"
    runs = json.loads(path.read_text())["numbers"]["runs"]
    agents = trained(name)
    assert torch.equal(agents.weights, torch.tensor([run["weights"] for run in runs]).flatten(1))
    g = seeded(3)
    env = SwingUp("hard")
    played = play(agents, env, env.reset(300, g), sensors=Sensors(shuffle="episode"), generator=g)
    for returns, run in zip(played.returns, runs, strict=True):
        mean, sd = run["tests"]["shuffled"]
        assert abs(returns.mean() - mean) < 4 * sd / math.sqrt(300)


def test_no_other_agent_was_trained():
    with pytest.raises(ValueError, match="name: got 'teacher'"):
        trained("teacher")


# Invariances of the code.


def warmed(agent, sensors, episodes=4, steps=6):
    """In the middle of an episode."""
    memory = agent.begin(episodes, sensors)
    for x in normal(steps, sensors, episodes, seed=3):
        _, _, memory = agent.act(x, memory)
    return memory


def permuted(memory, order):
    return Memory(memory.hidden[:, :, order], memory.cell[:, :, order], memory.action)


@pytest.mark.parametrize("kind, sensors", [(Agent, 5), (large, 28)])
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
    agent = shaken(large(members=2)).double()
    memory, x = warmed(agent, 6), normal(6, 4, seed=5)
    code = agent(x, memory)[0]
    for at in (0, 3, 6):
        states = [normal(2, 8, 1, 4, seed=7), normal(2, 8, 1, 4, seed=8)]
        wider = Memory(*(torch.cat([t[:, :, :at], s, t[:, :, at:]], 2)
                         for t, s in zip(memory[:2], states)), memory.action)  # fmt: skip
        silent = torch.cat([x[:at], torch.zeros(1, 4), x[at:]])
        actual = agent(silent, wider)[0]
        assert torch.allclose(actual, code, rtol=0, atol=1e-14)
        loud = torch.cat([x[:at], torch.ones(1, 4), x[at:]])
        assert (agent(loud, wider)[0] - code).abs().max() > 1e-2


def test_no_sensor_takes_weight_from_another():
    """Scores are no softmax: two of each double the sum, tanh(2 artanh m)."""
    agent = shaken(Agent()).double()
    memory, x = warmed(agent, 5), 0.3 * normal(5, 4, seed=5)
    code = agent(x, memory)[0]
    twice = Memory(*(torch.cat([t, t], 2) for t in memory[:2]), memory.action)
    actual = agent(torch.cat([x, x]), twice)[0]
    assert torch.allclose(actual, (2 * code.atanh()).tanh(), rtol=0, atol=1e-12)
    parts = [agent(x[i : i + 1], Memory(memory.hidden[:, :, i : i + 1], memory.cell[:, :, i : i + 1],
                                        memory.action))[0].atanh() for i in range(5)]  # fmt: skip
    assert torch.allclose(code, sum(parts).tanh(), rtol=0, atol=1e-12)


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


def test_sensors_that_come_and_go_are_refused():
    """Within an episode; and other numbers of episodes."""
    agent = Agent()
    memory = agent.begin(3, 5)
    for shape in ((4, 3), (6, 3), (5, 2), (1, 3), (1, 5, 4)):
        with pytest.raises(ValueError, match="readings: got"):
            agent.act(torch.zeros(shape), memory)
