"""The Triton kernel of the benchmark, in Triton's interpreter, against the outer step."""

import os
import subprocess
import sys

import pytest
import torch

from benchmarks import toy_kernel

PROGRAM = """
import torch
from benchmarks.toy_kernel import toy_steps
from collage.pes.fast.outer import Adam, Settings, outer_step
from collage.pes.problems import Toy
toy, betas = Toy(dtype=torch.float32, horizon=15), (0.9, 0.99)
noise = torch.randn(7, 2, 6, 2, generator=torch.Generator().manual_seed(0))
theta, zero = torch.tensor([[-4.0, -4.0], [-2.0, -3.0]]), torch.zeros(2, 2)
*kernel, count = toy_steps(theta, zero, zero, 0, noise, truncation=5, horizon=15, betas=betas)
settings = Settings(5, sigma=0.3, lr=1e-2, betas=torch.tensor(betas), eps=1e-8)
adam = Adam(theta, zero, zero, torch.ones(2))
for s in range(7):
    if s % 3 == 0:
        xi, state = torch.zeros(2, 6, 2), toy.reset(24)
    adam, xi, state = outer_step(adam, xi, state, noise[s], toy.unroll, settings)
assert count == 7
for a, b in zip(kernel, adam):
    assert torch.allclose(a, b, rtol=2e-3, atol=2e-5), (a, b)
print("equal")
"""


# Older interpreters cannot loop over a number that is only known in the run.
@pytest.mark.skipif(
    not toy_kernel.triton
    or [int(n) for n in toy_kernel.triton.__version__.split(".")[:2]] < [3, 9],
    reason="Triton is not installed, or older than 3.9 (pip install triton)",
)
def test_triton_kernel_in_the_interpreter():
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.getcwd()}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, env=env
    )
    assert run.stdout == "equal\n", run.stderr


def test_bad_input():
    theta = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"noise: got \(5, 6, 2\), wanted \(S, 1, M, 2\)"):
        toy_kernel.toy_steps(theta, theta, theta, 0, torch.zeros(5, 6, 2))
    with pytest.raises(ValueError, match=r"noise: got 1025 pairs, wanted 1024 at most"):
        toy_kernel.toy_steps(theta, theta, theta, 0, torch.zeros(1, 1, 1025, 2))


def test_the_package_does_not_import_triton():
    program = "import sys, collage.pes; print('triton' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout == "False\n"
