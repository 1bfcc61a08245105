"""The CUDA graph: `play` again, on a GPU where there is one."""

import pytest
import torch

from collage.common.environments import SwingUp
from collage.sensory_neuron import Agent, play
from collage.sensory_neuron.fast.graphed import graphed_returns
from experiments import sensory_neuron
from tests.sensory_neuron.helpers import hard, shaken


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_it_plays_the_same(device):
    """Run twice, with episodes that end on the way."""
    weights = shaken(Agent(members=3), shake=0.3).weights.detach().to(device)
    starts = hard(20, dtype=torch.float32).to(device)
    returns = graphed_returns(weights, starts, 60, inner=20)
    expected = play(Agent().to(device), SwingUp(), starts, weights=weights, steps=60)
    assert expected.lengths.min() < 60
    for _ in range(2):
        assert torch.allclose(returns(), expected.returns, rtol=0, atol=1e-3)
    others, later = weights.flip(0) * 0.9, hard(20, seed=5, dtype=torch.float32).to(device)
    expected = play(Agent().to(device), SwingUp(), later, weights=others, steps=60)
    assert torch.allclose(returns(others, later), expected.returns, rtol=0, atol=1e-3)
    if device == "cuda":
        with pytest.raises(ValueError, match="input 0: got"):
            returns(weights[:2])


@pytest.mark.cuda
def test_the_search_plays_the_same():
    """On a GPU by the kernel, or by the graph where Triton is missing."""
    weights = shaken(Agent(members=3), shake=0.3).weights.detach()
    for starts in (hard(7, dtype=torch.float32), hard(7, seed=5, dtype=torch.float32)):
        expected = play(Agent(), SwingUp(), starts, weights=weights, steps=50).returns
        for given in (starts, starts[:, :4]):
            found = sensory_neuron.returns(weights, given, 50)
            assert torch.allclose(found, expected, rtol=0, atol=1e-3)


def test_bad_input():
    with pytest.raises(ValueError, match="weights: got"):
        graphed_returns(torch.zeros(2, 912), torch.zeros(1, 5))
    for steps in (0, 30):
        with pytest.raises(ValueError, match="steps: got"):
            graphed_returns(torch.zeros(2, 913), torch.zeros(1, 5), steps)
