"""The compiled loop: `play` again, episodes on their own, the rules of `SwingUp`, bad input."""

import math

import numpy as np
import pytest
import torch

from collage.common.environments import SwingUp
from collage.sensory_neuron import Agent, play
from collage.sensory_neuron.fast import rollout
from collage.sensory_neuron.fast.rollout import fast_tanh, fused_returns
from tests.sensory_neuron.helpers import calm, hard, shaken

pytest.importorskip("numba")


def population(members, shake=0.3, seed=99):
    return shaken(Agent(members=members), seed, shake).weights.detach()


@pytest.mark.parametrize("members, episodes", [(1, 1), (1, 15), (17, 1), (1, 33), (3, 11), (5, 40)])
def test_the_loop_plays_the_same(members, episodes):
    """Whatever the number of episodes, full lanes or not."""
    weights = population(members)
    starts = torch.cat([calm(episodes, dtype=torch.float32)[::2], hard(episodes, dtype=torch.float32)[1::2]])  # fmt: skip
    assert len(starts) == episodes
    expected = play(Agent(), SwingUp(), starts, weights=weights, steps=50)
    returns, lengths = fused_returns(weights, starts, steps=50)
    assert returns.shape == lengths.shape == (members, episodes)
    assert torch.equal(lengths, expected.lengths) and lengths.dtype == torch.int64
    assert torch.allclose(returns, expected.returns, rtol=0, atol=1e-3)
    four = fused_returns(weights, starts[:, :4], steps=50)
    assert torch.equal(four[0], returns) and torch.equal(four[1], lengths)


def test_the_loop_with_any_number_of_threads():
    """The same bits; an episode's are those it has alone."""
    weights, starts = population(3), hard(29, dtype=torch.float32)
    before, actual = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 5):
            torch.set_num_threads(n)
            actual.append(fused_returns(weights, starts, 300))
    finally:
        torch.set_num_threads(before)
    for returns, lengths in actual[1:]:
        assert torch.equal(returns, actual[0][0]) and torch.equal(lengths, actual[0][1])
    assert actual[0][1].unique().numel() > 10
    for e, b in ((0, 0), (1, 7), (2, 28)):
        alone = fused_returns(weights[e : e + 1], starts[b : b + 1], 300)
        assert torch.equal(alone[0][0, 0], actual[0][0][e, b])


def test_the_loop_over_long_runs():
    """Where rounding has grown to chaos, the means still agree, and most lengths."""
    weights, starts = population(2, 0.5), hard(400, dtype=torch.float32)
    expected = play(Agent(), SwingUp(), starts, weights=weights, steps=400)
    returns, lengths = fused_returns(weights, starts, 400)
    assert (lengths == expected.lengths).float().mean() > 0.8
    for actual, other in ((returns, expected.returns), (lengths.float(), expected.lengths.float())):
        error = (actual - other).std(1) / len(starts) ** 0.5
        assert bool(((actual - other).mean(1).abs() <= 4 * error + 1e-3).all())
        assert bool((error < 0.05 * other.std(1) + 1e-3).all())


@pytest.mark.parametrize("push", [0.0, 0.05, -0.4])
def test_the_physics_of_the_loop(push):
    """An agent that pushes always the same, against `SwingUp` in float64: every constant counts."""
    weights = torch.zeros(1, 913)
    weights[0, -1] = math.atanh(push)
    for starts, steps in ((calm(16), 400), (hard(64), 60)):
        expected = play(Agent(), SwingUp(), starts, weights=weights.double(), steps=steps)
        returns, lengths = fused_returns(weights, starts.float(), steps)
        assert torch.equal(lengths, expected.lengths)
        assert torch.allclose(returns.double(), expected.returns, rtol=0, atol=2e-3)
    assert expected.lengths.min() < 60


def test_the_loop_refuses():
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


def test_numbers_close_to_zero_stay():
    """The compiled loop does not make the process flush denormals to zero."""
    fused_returns(population(1), calm(1, dtype=torch.float32), 2)
    assert float(torch.tensor(1e-39) * 0.5) != 0


def test_its_tanh():
    """Within 5e-7 of the true one, and odd."""
    points = np.linspace(-12, 12, 20_001, dtype=np.float32)
    actual = np.array([fast_tanh(x) for x in points])
    assert np.abs(actual - np.tanh(points.astype(float))).max() < 5e-7
    assert [fast_tanh(-x) for x in points[::9]] == [-fast_tanh(x) for x in points[::9]]


def test_the_rules_are_those_of_the_environment(monkeypatch):
    """Other gravity, masses, frictions and tracks: the loop plays by them, too."""
    weights, starts = population(1), hard(40, dtype=torch.float32)
    usual = fused_returns(weights, starts, 60)[0]
    changes = {"gravity": 5.0, "cart": 0.8, "pole": 0.3, "length": 0.4, "friction": 0.5,
               "force": 7.0, "dt": 0.02, "track": 3.0}  # fmt: skip
    for name, value in changes.items():
        with monkeypatch.context() as patch:
            patch.setattr(SwingUp, name, value)
            expected = play(Agent(), SwingUp(), starts, weights=weights, steps=60)
            returns, lengths = fused_returns(weights, starts, 60)
        assert torch.equal(lengths, expected.lengths), name
        assert torch.allclose(returns, expected.returns, rtol=0, atol=1e-3), name
        assert not torch.allclose(returns, usual, rtol=0, atol=1e-2), name


def test_without_numba_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(rollout, "numba", None)
    with pytest.raises(RuntimeError, match=r"pip install 'ml-collage\[fast\]'"):
        fused_returns(population(1), calm(1, dtype=torch.float32), 2)
