"""Trajectories, their windows and rollouts against plain loops."""

import pytest
import torch

from collage.common.environments import SwingUp
from collage.decision_transformer import (
    KeyToDoor,
    Trajectories,
    Walks,
    collect,
    returns_to_go,
    rollout,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def example(lengths=(3, 1, 5, 2), seed=0, discrete=False):
    g, n = seeded(seed), sum(lengths)
    actions = torch.randint(3, (n,), generator=g) if discrete else torch.randn(n, 2, generator=g)
    return Trajectories(torch.randn(n, 4, generator=g), actions, torch.randn(n, generator=g),
                        torch.tensor(lengths))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_returns_to_go_of_a_loop(dtype):
    g = seeded(1)
    rewards = torch.randn(200, generator=g, dtype=dtype)
    ends = torch.rand(200, generator=g) < 0.1
    wanted, total = [], 0.0
    for r, end in zip(rewards.flip(0).tolist(), ends.flip(0).tolist()):
        total = r + (0.0 if end else total)
        wanted.append(total)
    found = returns_to_go(rewards, ends)
    assert found.dtype == dtype
    assert torch.allclose(found, torch.tensor(wanted[::-1], dtype=dtype), atol=1e-6)
    inside = ~ends[:-1]
    assert torch.allclose((found[:-1] - found[1:])[inside], rewards[:-1][inside], atol=1e-5)
    assert torch.allclose(found[ends], rewards[ends], atol=1e-6)


def test_returns_to_go_far_from_zero():
    """Thousands of episodes do not cost the last ones their digits."""
    rewards = torch.full((100_000,), 0.1)
    ends = torch.arange(100_000) % 10 == 9
    assert torch.allclose(returns_to_go(rewards, ends)[::10], torch.ones(10_000), atol=1e-6)


def test_fields_follow_from_the_lengths():
    data = example()
    assert data.starts.tolist() == [0, 3, 4, 9]
    assert data.steps.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4, 0, 1]
    assert data.episode.tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2, 3, 3]
    assert data.ends.nonzero()[:, 0].tolist() == [2, 3, 8, 10]
    assert torch.allclose(data.totals[2], data.rewards[4:9].sum(), atol=1e-6)
    mean, std = data.moments()
    assert torch.allclose(std, data.states.std(0, unbiased=False)) and mean.shape == (4,)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_windows_of_a_loop(k, discrete):
    data = example(discrete=discrete)
    first = torch.arange(len(data))
    found = data.windows(first, k)
    for b in range(len(data)):
        episode = int(data.episode[b])
        end = int(data.starts[episode] + data.lengths[episode])
        n = min(k, end - b)
        assert found.mask[b].tolist() == [True] * n + [False] * (k - n)
        for name in ("returns", "states", "actions", "steps", "rewards", "over"):
            mine, source = getattr(found, name)[b], getattr(data, name)
            assert torch.equal(mine[:n], source[b : b + n])
            assert not mine[n:].any()


def test_draws_are_uniform_over_steps():
    data = example()
    count = torch.bincount(data.draw(22_000, seeded(3)), minlength=11)
    chi = ((count - 2000.0) ** 2 / 2000).sum()
    assert chi < 29.6  # 0.1 % of chi-squared with 10 degrees of freedom


def test_draws_follow_the_weights():
    data = example()
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0])
    first = data.draw(40_000, seeded(4), weights)
    wanted = torch.tensor([1 / 12] * 3 + [0.0] + [1 / 10] * 5 + [1 / 8] * 2)
    count = torch.bincount(first, minlength=11) / 40_000
    assert count[3] == 0 and torch.allclose(count, wanted, atol=0.007)


def test_whole_episodes():
    data = example()
    for weights in (None, torch.ones(4)):
        first = data.draw(20_000, seeded(4), weights, whole=True)
        assert set(first.tolist()) == set(data.starts.tolist())
        share = torch.bincount(data.episode[first], minlength=4) / 20_000
        wanted = data.lengths / 11 if weights is None else torch.full((4,), 0.25)
        assert torch.allclose(share, wanted, atol=0.015)


def test_balance():
    """Every kind of return comes up alike often; inside a kind the length decides."""
    rewards = torch.tensor([0.0, 0, 0, 0, 1, 0, 1])
    data = Trajectories(torch.zeros(7, 1), torch.zeros(7, 1), rewards, torch.tensor([3, 2, 2]))
    assert torch.allclose(data.balanced(2), torch.tensor([1.0, 0.5, 0.5]).double())
    assert torch.allclose(example().balanced(1).sum(), torch.tensor(1.0).double())
    same = Trajectories(torch.zeros(4, 1), torch.zeros(4, 1), torch.ones(4), torch.tensor([2, 2]))
    assert torch.allclose(same.balanced(), torch.tensor([0.5, 0.5]).double())


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9, 1])
def test_the_best_share_of_the_steps(share):
    data = example(lengths=(4, 2, 7, 1, 6, 3), seed=5)
    kept, steps = [], 0
    for i in sorted(range(6), key=lambda i: -float(data.totals[i])):
        steps += int(data.lengths[i])
        if kept and steps > share * len(data):
            break
        kept.append(i)
    best = data.best(share)
    assert best.lengths.tolist() == data.lengths[kept].tolist()
    assert torch.equal(best.totals, data.totals[kept])
    assert torch.equal(best.states[: best.lengths[0]], data.pick([kept[0]]).states)


def test_pick_and_join():
    data = example()
    again = Trajectories.join(
        [data.pick([2, 0]), data.pick(torch.tensor([False, True, False, True]))]
    )
    assert again.lengths.tolist() == [5, 3, 1, 2]
    assert torch.equal(again.pick([1, 2, 0, 3]).states, data.states)
    with pytest.raises(ValueError, match="episodes: got none"):
        data.pick([])
    with pytest.raises(ValueError, match="mask"):
        data.pick(torch.tensor([True, False]))


def test_bad_trajectories():
    x, a, r = torch.zeros(3, 2), torch.zeros(3, 1), torch.zeros(3)
    bad = torch.tensor([0.0, torch.nan, 0.0])
    for match, args in [
        ("lengths: got an episode of 0", (x, a, r, torch.tensor([3, 0]))),
        ("lengths: got", (x, a, r, torch.tensor([], dtype=torch.long))),
        ("lengths: got", (x, a, r, torch.tensor([3.0]))),
        ("states: got", (x, a, r, torch.tensor([4]))),
        ("rewards: got", (x, a, r[:2], torch.tensor([3]))),
        ("actions: got", (x, a[:1], r, torch.tensor([3]))),
        ("actions: got", (x, torch.tensor([0, -1, 0]), r, torch.tensor([3]))),
        ("actions: got", (x, r, r, torch.tensor([3]))),
        ("actions: got", (x, r > 0, r, torch.tensor([3]))),
        ("actions: got", (x, a.long(), r, torch.tensor([3]))),
        ("rewards: got NaN", (x, a, bad, torch.tensor([3]))),
        ("states: got NaN", (bad[:, None], a, r, torch.tensor([3]))),
        ("states, rewards", (x.long(), a, r, torch.tensor([3]))),
        ("terminated", (x, a, r, torch.tensor([3]), torch.tensor([True, False]))),
    ]:
        with pytest.raises(ValueError, match=match):
            Trajectories(*args)
    with pytest.raises(ValueError, match="ends"):
        returns_to_go(r, torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="ends"):
        returns_to_go(r, torch.zeros(3))
    with pytest.raises(ValueError, match="rewards: got NaN"):
        returns_to_go(bad, torch.zeros(3, dtype=torch.bool))
    data = example()
    for share in (0, 1.5, True, "all", torch.nan):
        with pytest.raises(ValueError, match="share"):
            data.best(share)
    for weights in ([1.0], [0.0] * 4, [1, 1, 1, -1.0], [1, 1, 1, torch.nan]):
        with pytest.raises(ValueError, match="weights"):
            data.draw(3, seeded(), torch.tensor(weights))


def policy(window, generator):
    """Some deterministic function of all that is in the window."""
    mixed = window.states[:, -1].sum(1) + window.returns.sum(1) + window.actions.float().sum(1)
    return (mixed.abs() * 10).long() % 4


@pytest.mark.parametrize("delayed", [False, True])
def test_rollout_is_a_plain_loop(delayed):
    env, targets = KeyToDoor(3, 3), torch.tensor([1.0, 0.0, 2.0, 1.0])
    start = env.reset(4, seeded(6))
    data, tokens = rollout(policy, env, targets, seeded(), context=3, delayed=delayed, start=start)
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
            token = token if delayed else token - step.reward
            if step.terminated or step.truncated:
                break
        n = len(took)
        assert int(data.lengths[i]) == n
        assert torch.equal(data.actions[at : at + n], torch.cat(took))
        assert torch.equal(data.states[at : at + n], torch.cat(seen))
        assert torch.equal(tokens[at : at + n], torch.cat(asked))
        assert bool(data.terminated[i]) == bool(step.terminated)
        assert float(data.totals[i]) == total
        if not delayed:  # what is asked for and what has come add up to the target
            last = at + n - 1
            assert float(targets[i]) - total == float(tokens[last] - data.rewards[last])
        at += n


def test_episodes_do_not_know_of_each_other():
    env = SwingUp(hold=5, longest=100)
    start = env.reset(5, seeded(7))
    act = lambda window, g: window.states[:, -1, :1].sin()  # noqa: E731
    together = rollout(act, env, torch.zeros(5), seeded(), start=start).data
    alone = Trajectories.join(
        [rollout(act, env, torch.zeros(1), seeded(), start=start[i : i + 1]).data for i in range(5)]
    )
    assert torch.equal(together.lengths, alone.lengths)
    assert torch.allclose(together.states, alone.states, atol=1e-5)


def test_longest_cuts_off_and_says_so():
    env = KeyToDoor(3, 3)
    data = rollout(policy, env, torch.zeros(3), seeded(), longest=2).data
    assert data.lengths.tolist() == [2, 2, 2] and not data.terminated.any() and not data.over.any()


def test_collect_lets_the_behaviour_see_the_state():
    env = Walks.random(8, 0.3, seeded(8), longest=6)
    data = collect(env, env.wander, 200, seeded(9))
    nodes = data.states.argmax(1)
    assert bool(env.edges[nodes, data.actions].all())
    assert int(data.lengths.max()) <= 6 and len(data.lengths) == 200


@pytest.mark.parametrize("delayed", [False, True])
def test_completing_an_observed_episode(delayed):
    """Stopped and taken up again, it goes on as it would have."""
    env, targets = Walks.random(9, 0.25, seeded(1)), torch.tensor([-3.0, -5, -7])

    def act(window, generator):  # depends on all that it has seen
        mixed = window.returns.sum(1) + window.actions.sum(1) + window.states.argmax(2).sum(1)
        return mixed.abs().long() % 9

    start = env.at(torch.tensor([1, 5, 8]))
    whole, tokens = rollout(act, env, targets, seeded(), context=4, delayed=delayed, start=start)
    assert int(whole.lengths.min()) > 3
    rows = torch.cat([s + torch.arange(3) for s in whole.starts])
    before = Trajectories(whole.states[rows], whole.actions[rows], whole.rewards[rows],
                          torch.tensor([3, 3, 3]))  # fmt: skip
    state = start
    for t in range(3):
        state = env.step(state, whole.actions[whole.starts + t]).state
    again, same = rollout(act, env, targets, seeded(), context=4, delayed=delayed, start=state,
                          before=before)  # fmt: skip
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
