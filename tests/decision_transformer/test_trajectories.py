"""Recorded episodes and their windows against plain loops."""

import pytest
import torch

from collage.decision_transformer import Trajectories
from tests.decision_transformer.examples import episodes, seeded


def example(lengths=(3, 1, 5, 2), seed=0, discrete=False):
    return episodes(lengths, seed, discrete, state_dim=4, actions=3 if discrete else 2)


def test_fields_follow_from_the_lengths():
    data = example()
    assert data.starts.tolist() == [0, 3, 4, 9]
    assert data.steps.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4, 0, 1]
    assert data.episode.tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2, 3, 3]
    assert data.ends.nonzero()[:, 0].tolist() == [2, 3, 8, 10]
    assert torch.allclose(data.totals[2], data.rewards[4:9].sum(), atol=1e-6)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_windows_of_a_loop(k, discrete):
    data = example(discrete=discrete)
    first = torch.arange(len(data))
    window = data.windows(first, k)
    for b in range(len(data)):
        episode = int(data.episode[b])
        end = int(data.starts[episode] + data.lengths[episode])
        n = min(k, end - b)
        assert window.mask[b].tolist() == [True] * n + [False] * (k - n)
        for name in ("returns", "states", "actions", "steps", "rewards", "over"):
            piece, recorded = getattr(window, name)[b], getattr(data, name)
            assert torch.equal(piece[:n], recorded[b : b + n])
            assert not piece[n:].any()


def numbers(n, seed):
    return torch.rand(n, generator=seeded(seed), dtype=torch.float64)


def test_draws_are_uniform_over_steps():
    data = example()
    count = torch.bincount(data.first(numbers(22_000, 3)), minlength=11)
    chi = ((count - 2000.0) ** 2 / 2000).sum()
    assert chi < 29.6  # 0.1 % of chi-squared with 10 degrees of freedom


def test_draws_follow_the_weights():
    data = example()
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0])
    first = data.first(numbers(40_000, 4), data.checked(weights))
    assert torch.equal(data.sample(9, 2, seeded(4), weights).steps[:, 0], data.steps[first[:9]])
    wanted = torch.tensor([1 / 12] * 3 + [0.0] + [1 / 10] * 5 + [1 / 8] * 2)
    count = torch.bincount(first, minlength=11) / 40_000
    assert count[3] == 0 and torch.allclose(count, wanted, atol=0.007)


def test_whole_episodes():
    data = example()
    for weights in (None, torch.ones(4)):
        first = data.first(numbers(20_000, 4), weights, whole=True)
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


def test_pick():
    data = example()
    for some in ([2, 0], torch.tensor([2, 0])):
        picked = data.pick(some)
        assert picked.lengths.tolist() == [5, 3]
        assert torch.equal(picked.states, torch.cat([data.states[4:9], data.states[:3]]))
        assert torch.equal(picked.returns, torch.cat([data.returns[4:9], data.returns[:3]]))
    assert data.pick(torch.tensor([False, True, False, True])).lengths.tolist() == [1, 2]
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
    data = example()
    for share in (0, 1.5, True, "all", torch.nan):
        with pytest.raises(ValueError, match="share"):
            data.best(share)
    for weights in ([1.0], [0.0] * 4, [1, 1, 1, -1.0], [1, 1, 1, torch.nan]):
        with pytest.raises(ValueError, match="weights"):
            data.sample(3, 1, seeded(), torch.tensor(weights))
