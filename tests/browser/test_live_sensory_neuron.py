"""Chapter 33's live figure computes what `collage` computes."""

import json

import pytest
import torch
from live import calls

from collage.common.environments import SwingUp
from collage.sensory_neuron import Agent, Plain, trained
from tools.live import LIVE, digits

pytestmark = pytest.mark.browser
WEIGHTS = json.loads((LIVE / "sensory_neuron.json").read_text())


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(values, tolerance=1e-9):
    return pytest.approx(values, rel=tolerance, abs=tolerance)


def test_the_cart(window, site):
    """Steps, rewards and ends from 200 states, some of them at the wall."""
    state, action = 1.5 * random(200, 4, seed=0), 2 * random(200, 1, seed=1)
    state[:20, 0] = 2.39 * state[:20, 0].sign()
    found = calls(window, site, "sensory_neuron", """(m, [state, [a]]) => {
      const t = m.tick(state, a);
      return [...t.state, t.reward, t.out, ...m.observe(state)];
    }""", [[s.tolist(), a.tolist()] for s, a in zip(state, action, strict=True)])  # fmt: skip
    env = SwingUp()
    inside = state[:, 0].abs() <= env.track
    whole = torch.cat([state, torch.zeros(200, 1).double()], 1)
    wanted, seen = env.step(whole, action), env.observe(whole)
    assert wanted.terminated.any() and inside.sum() > 150
    for i in inside.nonzero()[:, 0].tolist():
        assert found[i][:4] == near(wanted.state[i, :4].tolist())
        assert found[i][4] == near(wanted.reward[i].item())
        assert found[i][5] == bool(wanted.terminated[i]) and found[i][6:] == near(seen[i].tolist())


@pytest.mark.parametrize("sensors", [1, 5, 10])
def test_the_agent(window, site, sensors):
    """Twenty steps of ten agents, the wires swapped in the middle, one reading that is zero."""
    weights = torch.cat(
        [torch.tensor([WEIGHTS["agent"]], dtype=torch.float64), random(9, 913, seed=2) / 3]
    )
    readings, order = (
        random(20, sensors, seed=3),
        torch.randperm(sensors, generator=torch.Generator().manual_seed(4)),
    )
    readings[:, 0] = 0
    readings[10:] = readings[10:, order]
    found = calls(window, site, "sensory_neuron", f"""(m, w) => {{
      let memory = m.memory({sensors});
      return {readings.tolist()}.map((x) => {{
        const step = m.act(m.agent(w), x, memory);
        memory = step.memory;
        return [step.action, ...step.code];
      }});
    }}""", weights.tolist())  # fmt: skip
    agent = Agent(members=10)
    folded, memory = agent.fold(weights), agent.begin(1, sensors, weights)
    for t, x in enumerate(readings):
        action, code, memory = agent.act(x[:, None], memory, folded)
        for e in range(10):
            assert found[e][t] == near([action[e].item(), *code[e, :, 0].tolist()])


def test_the_ordinary_network(window, site):
    network = Plain([5, 64, 64, 1])
    flat = torch.tensor(WEIGHTS["ordinary"], dtype=torch.float64)
    pieces = flat.split([p.numel() for p in network.params])
    network.params = [w.view(p.shape) for w, p in zip(pieces, network.params, strict=True)]
    x = 2 * random(200, 5, seed=5)
    found = calls(
        window,
        site,
        "sensory_neuron",
        f"(m, x) => m.ordinary({WEIGHTS['ordinary']}, x)",
        x.tolist(),
    )
    assert found == near(network.act(x.T, None)[0].flatten().tolist())


def test_the_agent_s_weights_are_the_package_s():
    assert WEIGHTS["agent"] == digits(trained().weights.detach().flatten())


def test_what_the_figure_shows(window, site):
    """Swapped for good, the agent keeps the pole up as before, and the ordinary network does not."""
    (found,) = calls(window, site, "sensory_neuron", """(m, data) => [false, true].map((swapped) => {
      const state = {every: "never", extra: "none"}, model = m.demo.begin(state, data);
      if (swapped) model.order = [3, 0, 4, 1, 2];
      for (let t = 0; t < 3000; t++) m.demo.step(model, state);
      return [model.carts.agent.earned, model.carts.ordinary.earned];
    })""", [WEIGHTS])  # fmt: skip
    (agent, plain), (agent_swapped, plain_swapped) = found
    assert agent > 500 and agent_swapped > 0.9 * agent
    assert plain > 500 and plain_swapped < plain / 2
