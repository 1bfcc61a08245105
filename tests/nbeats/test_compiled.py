"""Training with the compiled gradient: the same as without, after 20 steps and from a checkpoint."""

import warnings

import numpy as np
import pytest
import torch

from collage import runtime
from collage.nbeats import Ensemble, Member
from tests.compiler import require_compiler

MEMBERS = [Member(6, "smape"), Member(8, "mape", 1), Member(8, "mase", 2)]


def trained(compiled, **settings):
    """(weights, losses) after 20 steps, in double precision: Adam enlarges what rounding leaves."""
    g = runtime.generator(0)
    series = [2 + torch.rand(n, generator=g, dtype=torch.float64) for n in (20, 9, 31)]
    ensemble = Ensemble(MEMBERS, 4, stacks=[("trend", 8), ("generic", 8)], blocks=2, layers=1)
    ensemble.double()
    losses = ensemble.fit(series, 20, batch=16, lr=1e-2, compiled=compiled, **settings)
    return ensemble.weights.detach(), losses


def gap(first, second):
    return max((a - b).abs().max().item() for a, b in zip(first, second, strict=True))


def test_without_a_compiler(monkeypatch):
    """One warning, and the same numbers."""

    def refuse(*args, **kwargs):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.warns(UserWarning, match=r"compiled: .*no C\+\+ compiler") as said:
        made = trained(True)
    assert len(said) == 1
    assert gap(made, trained(False)) < 1e-9


def test_another_horizon_has_a_program_of_its_own(monkeypatch):
    """A stack of trends alone has weights of the same shapes for every horizon."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    series = [2 + torch.rand(30, generator=runtime.generator(0))]
    for horizon in (4, 5, 4):
        ensemble = Ensemble([Member(8, "smape")], horizon, stacks=[("trend", 8)])
        assert ensemble.fit(series, 2, batch=4, compiled=True).isfinite().all()


@pytest.mark.slow
def test_compiled(tmp_path):
    """Compiled, without a warning; a run that begins plainly goes on compiled, Adam's state with it."""
    require_compiler()
    plain, states = trained(False, checkpoint=tmp_path / "plain"), []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "compiled: ")
        assert gap(trained(True, checkpoint=tmp_path / "compiled"), plain) < 1e-9
    for name in ("plain", "compiled"):
        (path,) = tmp_path.glob(f"{name}*")
        states.append(dict(np.load(path)))
    assert states[0].keys() == states[1].keys()
    for name in ("exp_avg", "exp_avg_sq", "step"):
        assert abs(states[0][name] - states[1][name]).max() < 1e-9


def test_refusals():
    with pytest.raises(ValueError, match="product: got"):
        trained(True, product=torch.bfloat16)
