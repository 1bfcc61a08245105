"""Rollouts against plain loops, one environment after the other."""

import pytest
import torch

from collage.common.environments import SwingUp
from collage.decision_transformer import Trajectories, collect, rollout
from collage.decision_transformer.worlds import KeyToDoor, Walks
from tests.decision_transformer.examples import seeded


def policy(window, generator):
    """Some deterministic function of all that is in the window."""
    mixed = window.states[:, -1].sum(1) + window.returns.sum(1) + window.actions.float().sum(1)
    return (mixed.abs() * 10).long() % 4


def test_rollout_is_a_plain_loop():
    env, targets = KeyToDoor(3, 3), torch.tensor([1.0, 0.0, 2.0, 1.0])
    start = env.reset(4, seeded(6))
    data, tokens = rollout(policy, env, targets, seeded(), context=3, start=start)
    at = 0
    for i in range(4):
        state, token, seen, took, asked = start[i : i + 1], targets[i : i + 1], [], [], []
        total = 0.0
        for _ in range(env.longest):
            seen.append(env.observe(state))
            asked.append(token)
            window = type("W", (), {})
            window.states = torch.stack(seen[-3:], 1)
            window.returns = torch.stack(asked[-3:], 1)
            window.actions = torch.stack([*took, torch.zeros(1, dtype=torch.long)][-3:], 1)
            took.append(policy(window, None))
            step = env.step(state, took[-1])
            state, total = step.state, total + float(step.reward)
            token = token - step.reward
            if step.terminated or step.truncated:
                break
        n = len(took)
        assert int(data.lengths[i]) == n
        assert torch.equal(data.actions[at : at + n], torch.cat(took))
        assert torch.equal(data.states[at : at + n], torch.cat(seen))
        assert torch.equal(tokens[at : at + n], torch.cat(asked))
        assert bool(data.terminated[i]) == bool(step.terminated)
        assert float(data.totals[i]) == total
        last = at + n - 1  # what is asked for and what has come add up to the target
        assert float(targets[i]) - total == float(tokens[last] - data.rewards[last])
        at += n


def test_episodes_do_not_know_of_each_other():
    env = SwingUp(hold=5, longest=100)
    start = env.reset(5, seeded(7))
    act = lambda window, g: window.states[:, -1, :1].sin()  # noqa: E731
    together = rollout(act, env, torch.zeros(5), seeded(), start=start).data
    for i in range(5):
        alone = rollout(act, env, torch.zeros(1), seeded(), start=start[i : i + 1]).data
        assert torch.equal(together.lengths[i : i + 1], alone.lengths)
        assert torch.allclose(together.pick([i]).states, alone.states, atol=1e-5)


def test_what_is_cut_off_has_not_terminated():
    push_nothing = lambda window, generator: window.actions[:, -1]  # noqa: E731
    data = rollout(push_nothing, SwingUp(longest=6), torch.zeros(3), seeded()).data
    assert data.lengths.tolist() == [6, 6, 6]
    assert not data.terminated.any() and not data.over.any()


def test_collect_lets_the_behaviour_see_the_state():
    env = Walks.random(8, 0.3, seeded(8))
    data = collect(env, env.wander, 200, seeded(9))
    nodes = data.states.argmax(1)
    assert bool(env.edges[nodes, data.actions].all())
    assert int(data.lengths.max()) <= 10 and len(data.lengths) == 200


def test_completing_an_observed_episode():
    """Stopped and taken up again, it goes on as it would have."""
    env, targets = Walks.random(9, 0.25, seeded(1)), torch.tensor([-3.0, -5, -7])

    def act(window, generator):  # depends on all that it has seen
        mixed = window.returns.sum(1) + window.actions.sum(1) + window.states.argmax(2).sum(1)
        return mixed.abs().long() % 9

    start = env.at(torch.tensor([1, 5, 8]))
    whole, tokens = rollout(act, env, targets, seeded(), context=4, start=start)
    assert int(whole.lengths.min()) > 3
    rows = torch.cat([s + torch.arange(3) for s in whole.starts])
    before = Trajectories(whole.states[rows], whole.actions[rows], whole.rewards[rows],
                          torch.tensor([3, 3, 3]))  # fmt: skip
    state = start
    for t in range(3):
        state = env.step(state, whole.actions[whole.starts + t]).state
    again, same = rollout(act, env, targets, seeded(), context=4, start=state, before=before)
    assert torch.equal(again.actions, whole.actions) and torch.equal(same, tokens)
    assert torch.equal(again.states, whole.states) and torch.equal(again.totals, whole.totals)
    for bad in (before.pick([0, 1]), whole):
        with pytest.raises(ValueError, match="before"):
            rollout(act, env, targets, seeded(), start=state, before=bad)


def test_bad_rollouts():
    env, g = KeyToDoor(3, 3), seeded()
    for target in (torch.zeros(0), torch.zeros(2, 2), 1.0, [torch.nan]):
        with pytest.raises(ValueError, match="target_return"):
            rollout(policy, env, target, g)
    with pytest.raises(ValueError, match="start"):
        rollout(policy, env, torch.zeros(2), g, start=env.reset(3, g))
    with pytest.raises(ValueError, match="model: got actions"):
        rollout(lambda w, g: torch.zeros(2, 1), env, torch.zeros(2), g)
    with pytest.raises(ValueError, match="context"):
        rollout(policy, env, torch.zeros(2), g, context=0)
