"""Sensors that change, whole episodes one by one and together, ordinary networks, bad input."""

import math

import pytest
import torch

from collage.common.environments import SwingUp
from collage.sensory_neuron import Agent, Plain, Sensors, play
from collage.sensory_neuron.cloning import actions_along
from tests.sensory_neuron.helpers import Expert, Twin, calm, hard, normal, seeded, shaken

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
    """N(0, 0.1^2), new at each step, the same for a population, beside readings as they were."""
    sensors, B = Sensors(noise=4), 2000
    assert sensors.begin(5, B, seeded()) == 9
    x = normal(2, 5, B)
    seen = torch.stack([sensors(x, t) for t in range(10)])
    assert torch.equal(seen[:, :, :5], x.expand(10, -1, -1, -1))
    assert torch.equal(seen[:, 0, 5:], seen[:, 1, 5:]) and seen.dtype == torch.float64
    draws = seen[:, 0, 5:].reshape(40, B) / 0.1
    n = draws.numel()
    assert abs(draws.mean()) < 4 * n**-0.5 and abs(draws.square().mean() - 1) < 4 * (2 / n) ** 0.5
    assert abs(draws.pow(4).mean() - 3) < 4 * (96 / n) ** 0.5
    across = draws @ draws.T / B  # no two rows, of other steps or sensors, know each other
    assert (across - across.diag().diag()).abs().max() < 5 * B**-0.5


def test_copies():
    """They follow the readings; some of the episodes go on with their own orders."""
    x, sensors = normal(5, 300), Sensors(copies=2)
    assert sensors.begin(5, 300, seeded()) == 10
    assert torch.equal(sensors(x, 0), torch.cat([x, x]))
    sensors = Sensors(copies=2, shuffle="episode")
    assert sensors.begin(5, 300, seeded()) == 10
    mixed = sensors(x, 0)
    assert torch.equal(mixed.sort(0).values, torch.cat([x, x]).sort(0).values)
    sensors.keep(torch.tensor([3, 5]))
    assert torch.equal(sensors(x[:, [3, 5]], 1), mixed[:, [3, 5]])


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
    assert torch.allclose(actions_along(agent, *whole[:2]), whole[2], rtol=0, atol=1e-12)


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
    assert torch.allclose(actions_along(agent, *whole[:2]), whole[2], rtol=0, atol=1e-12)
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


def test_ordinary_networks():
    """They fit an expert, each on its own, and know only one number of sensors."""
    states = hard(2000, dtype=torch.float32)
    readings, expected = SwingUp().observe(states), SwingUp().expert(states)
    plain = Plain([5, 16, 1], members=2)

    def wrong(out):
        return (out - expected.T).square().mean((1, 2))

    memory = plain.begin(2000, 5)
    first = wrong(plain.act(readings.T, memory)[0])
    reported = plain.fit(readings, expected, 150, seeded(), batch=128)
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
    for change in ({"noise": 1}, {"copies": 2}):
        with pytest.raises(ValueError, match="sensors: got"):
            play(plain, SwingUp(), states, sensors=Sensors(**change), generator=seeded())


# Bad input.


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
    for name, bad in (("noise", -1), ("noise", 0.5), ("copies", 0)):
        with pytest.raises(ValueError, match=name):
            Sensors(**{name: bad})


def test_no_ordinary_networks():
    with pytest.raises(ValueError, match="members"):
        Plain([5, 1], members=0)
