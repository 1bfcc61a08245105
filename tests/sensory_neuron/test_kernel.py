"""Whole episodes in one Triton kernel: `play` again, in Triton's interpreter, and where a GPU is."""

import os
import subprocess
import sys

import pytest
import torch

triton = pytest.importorskip("triton")
# Two members, five episodes: a program in four is full. One leaves the track in the second step, and
# one in the ninth; all of the last program's are over then.
PROGRAM = """
import torch
from collage.common.environments import SwingUp
from collage.sensory_neuron import Agent, play
from collage.sensory_neuron.fast.kernel import kernel_returns
from tests.sensory_neuron.helpers import shaken
weights = shaken(Agent(members=2), shake=0.3).weights.detach()
starts = torch.tensor([[0.1, 0.3, 3.0, -0.5], [2.33, 6.0, 2.0, 9.0], [0.0, 0.0, 0.1, 0.0],
                       [-1.0, -2.0, 4.4, 3.0], [-1.6, -9.9, 3.3, -8.0]])
expected = play(Agent(), SwingUp(), torch.nn.functional.pad(starts, (0, 1)), weights=weights, steps=12)
returns, lengths = kernel_returns(weights, starts, 12)
assert lengths.tolist() == expected.lengths.tolist() == 2 * [[12, 2, 12, 12, 9]], lengths
assert torch.allclose(returns, expected.returns, rtol=0, atol=1e-4), (returns, expected.returns)
assert len(returns.unique()) == 10
print("equal")
"""


# Older interpreters cannot loop over a number that is only known in the run.
@pytest.mark.skipif([int(n) for n in triton.__version__.split(".")[:2]] < [3, 9],
                    reason="Triton is older than 3.9 (pip install triton)")  # fmt: skip
def test_triton_kernel_in_the_interpreter():
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.getcwd()}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, env=env
    )
    assert run.stdout == "equal\n", run.stderr


def test_bad_input():
    from collage.sensory_neuron.fast.kernel import kernel_returns

    with pytest.raises(ValueError, match=r"weights: got \(2, 912\), wanted \(E, 913\)"):
        kernel_returns(torch.zeros(2, 912), torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"starts: got \(4,\), wanted \(B, 4\)"):
        kernel_returns(torch.zeros(2, 913), torch.zeros(4))
    with pytest.raises(ValueError, match="a start off the track"):
        kernel_returns(torch.zeros(2, 913), torch.tensor([[2.5, 0.0, 0.0, 0.0]]))
