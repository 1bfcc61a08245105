"""Every room on a GPU gives what it gives on the CPU, and its models can be made there."""

import pytest
import torch

from collage.decision_transformer import DecisionTransformer, ImplicitQ
from collage.nbeats import NBeats
from collage.sensory_neuron import Agent
from tests.gpu import works
from tests.pretend_cuda import installed

pytestmark = pytest.mark.cuda
REAL = pytest.mark.skipif(torch.cuda.is_available() and not installed(), reason="other draws there")
BOTH = [works.sam_steps, works.sam_ensemble, works.hull, works.slopes, works.games, works.controls,
        works.population, works.exact, works.valley]  # fmt: skip
DRAWING = [works.eigenpairs, works.rides, works.grown, works.unrolls, works.estimators]  # both, too
SINGLE = [works.forecasts, works.agents, works.strategies, works.meta_step]


def tensors(nest):
    if isinstance(nest, torch.Tensor):
        return [nest.detach()]
    return [t for part in nest if part is not None for t in tensors(part)]


def same(work, dtype):
    here, there = tensors(work("cpu", dtype)), tensors(work("cuda", dtype))
    assert here and len(here) == len(there)
    tol = {torch.float32: 2e-4, torch.float64: 1e-8}[dtype]
    for a, b in zip(here, there, strict=True):
        assert b.is_cuda and a.shape == b.shape and a.dtype == b.dtype
        assert torch.allclose(a.double(), b.cpu().double(), rtol=tol, atol=tol, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("work", BOTH, ids=lambda f: f.__name__)
def test_a_gpu_gives_the_same(work, dtype):
    same(work, dtype)


@REAL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("work", DRAWING, ids=lambda f: f.__name__)
def test_a_gpu_gives_the_same_from_the_same_draws(work, dtype):
    same(work, dtype)


@REAL
@pytest.mark.parametrize("work", SINGLE, ids=lambda f: f.__name__)
def test_a_gpu_gives_the_same_in_float32(work):
    same(work, torch.float32)


@pytest.mark.parametrize("kind", ["dt", "iql"])
@REAL
def test_a_gpu_learns_offline_what_a_cpu_does(kind):
    same(lambda device, dtype: works.offline(device, kind), torch.float32)


MODELS = {"nbeats": lambda: NBeats(8, 4), "agent": Agent, "iql": lambda: ImplicitQ(3, 1, width=8),
          "dt": lambda: DecisionTransformer(3, 1, width=8)}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_made_on_the_default_device(name):
    here = MODELS[name]()
    torch.set_default_device("cuda")
    try:
        there = MODELS[name]()
    finally:
        torch.set_default_device(None)
    for a, b in zip(here.state_dict().values(), there.state_dict().values(), strict=True):
        assert b.is_cuda and torch.equal(a, b.cpu())


def test_a_forecaster_is_made_elsewhere_than_on_the_default_device():
    torch.set_default_device("cuda")
    try:
        there = NBeats(8, 4, device="cpu")
    finally:
        torch.set_default_device(None)
    assert torch.equal(
        there.state_dict()["ensemble.weights"], NBeats(8, 4).state_dict()["ensemble.weights"]
    )
