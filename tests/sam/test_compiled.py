"""A whole step as one program: the steps of `SAM.step`, with or without a compiler."""

import copy
import functools
import warnings

import pytest
import torch
from torch.nn.functional import cross_entropy

from collage import runtime
from collage.common.program import Program
from collage.sam import SAM, compiled_step
from tests.compiler import require_compiler

MOMENTUM = {"lr": 0.05, "momentum": 0.9}


def network():
    g = runtime.generator(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.Tanh(), torch.nn.Flatten(),
                                torch.nn.Linear(27, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3))  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / 2)
    x, y = torch.randn(12, 1, 5, 5, generator=g), torch.randint(3, (12,), generator=g)
    return model, x, y


def loss(net, x, y):
    return cross_entropy(net(x), y)


def beside(compiled, steps=20, **settings):
    """The largest difference of weights, momentum and losses between the program and `SAM.step`."""
    settings = MOMENTUM | settings
    model, x, y = network()
    other = copy.deepcopy(model)
    opt = SAM(model.parameters(), "SGD", fused=True, **settings)
    plain = SAM(other.parameters(), "SGD", **settings)
    run, gaps = compiled_step(opt, model, loss, compiled), []

    def closure():
        value = loss(other, x, y)
        value.backward()
        return value

    for i in range(steps):
        for optimizer in (opt, plain):
            optimizer.param_groups[0]["lr"] = 0.05 / (1 + i)
        gaps.append(run(x, y) - plain.step(closure))
    gaps += [a - b for a, b in zip(model.parameters(), other.parameters(), strict=True)]
    states = [o.state_dict()["state"].values() for o in (opt, plain)]
    for mine, its in zip(*states, strict=settings["momentum"] > 0):
        assert mine.keys() == its.keys()
        gaps += [mine[k] - its[k] for k in mine if its[k] is not None]
    return max(gap.abs().max().item() for gap in gaps)


@pytest.mark.parametrize("settings", [
    {}, {"momentum": 0.0}, {"weight_decay": 0.1, "rho": 0.5}, {"adaptive": True, "p": 3.0},
])  # fmt: skip
def test_the_steps_of_sam(settings):
    assert beside(False, **settings) < 1e-6


@pytest.mark.slow
def test_compiled():
    """The same programs, compiled; no warning."""
    require_compiler()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "compiled: ")
        for settings in ({}, {"adaptive": True}):  # one after the other: each has its own program
            assert beside(True, **settings) < 1e-6


def test_without_a_compiler(monkeypatch):
    """One warning, and the same steps."""

    def refuse(*args, **kwargs):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.warns(UserWarning, match=r"compiled: .*no C\+\+ compiler") as said:
        assert beside(True, steps=5) < 1e-6
    assert len(said) == 1


def test_another_shape_is_refused():
    model, x, y = network()
    run = compiled_step(SAM(model.parameters(), "SGD", fused=True, **MOMENTUM), model, loss, False)
    run(x, y)
    with pytest.raises(ValueError, match="inputs: got"):
        run(x[:6], y[:6])
    double = Program(lambda x: 2 * x, compiled=False)
    assert double(torch.ones(2)).tolist() == [2, 2]


def test_bad_optimisers():
    model, *_ = network()
    norm = torch.nn.Sequential(model, torch.nn.BatchNorm1d(3))
    for net, base, settings, wrong in (
        (model, "SGD", {}, "fused=True"),
        (model, "Adam", {"fused": True}, "around SGD"),
        (model, "SGD", {"fused": True, "momentum": 0.9, "nesterov": True}, "nesterov"),
        (norm, "SGD", {"fused": True}, "running statistics"),
        (torch.nn.Linear(1, 1), "SGD", {"fused": True}, "not the model's"),
    ):
        opt = SAM(copy.deepcopy(model).parameters() if net is not norm and "model's" in wrong
                  else net.parameters(), base, lr=0.1, **settings)  # fmt: skip
        with pytest.raises(ValueError, match=wrong):
            compiled_step(opt, net, loss)
    for p in model[0].parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen parameters"):
        compiled_step(SAM(model.parameters(), "SGD", fused=True, lr=0.1), model, loss)


def test_a_run_sees_what_became_of_its_optimiser():
    """A loaded rate is used; other settings and moved parameters are refused, and nothing steps."""
    model, x, y = network()
    opt = SAM(model.parameters(), "SGD", fused=True, **MOMENTUM)
    run = compiled_step(opt, model, loss, False)
    run(x, y)
    state = opt.state_dict()
    state["param_groups"][0]["lr"] = 0.0
    opt.load_state_dict(state)
    before = [p.detach().clone() for p in model.parameters()]
    run(x, y)
    opt.param_groups[0]["momentum"] = 0.5
    with pytest.raises(ValueError, match=r"'momentum': 0\.5.*'momentum': 0\.9"):
        run(x, y)
    opt.param_groups[0]["momentum"] = 0.9
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    model[0].weight.data = model[0].weight.data.clone()
    with pytest.raises(RuntimeError, match="moved, cast or replaced"):
        run(x, y)


def test_a_program_begins_with_the_first_call_that_goes_well():
    def product(x, y, *, scale=2.0):
        return scale * (x @ y)

    program = Program(product, compiled=False)
    with pytest.raises(RuntimeError):
        program(torch.ones(2, 3), torch.ones(2, 3))
    assert program(torch.ones(2, 3), torch.ones(3, 2)).tolist() == [[6, 6], [6, 6]]
    with pytest.raises(ValueError, match="inputs: got"):
        program(torch.ones(3, 2).T, torch.ones(3, 2))
    with pytest.raises(ValueError, match="function: got partial"):
        Program(functools.partial(product, scale=1.0))


def test_what_failed_half_way_is_put_back(monkeypatch):
    def half(function, **options):
        def made(x):
            function(x)
            raise RuntimeError("lost on the way")

        return made

    def add(x, by=1):
        return x.add_(by)

    monkeypatch.setattr(torch, "compile", half)
    with pytest.warns(UserWarning, match="lost on the way"):
        assert Program(add)(torch.zeros(1)).tolist() == [1]
