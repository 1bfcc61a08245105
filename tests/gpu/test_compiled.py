"""What is compiled for a GPU and recorded there gives what the plain steps give."""

import warnings

import pytest
import torch
from torch.nn.functional import cross_entropy

from collage import nbeats, sam
from collage.bmg.fast.colours import MetaLoop
from collage.common.graph import Captured
from collage.common.populations import tree_leaves
from tests.gpu import works

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def compiles(monkeypatch):
    """A program that falls back is a failure, and so is a step of which no graph was recorded."""
    graphs, record = [], Captured._record

    def noted(self):
        graphs.append(self)
        record(self)

    monkeypatch.setattr(Captured, "_record", noted)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "compiled: ")
        yield
    assert graphs


def close(one, other, tolerance=1e-5):
    for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sam(momentum):
    ends = []
    for compiled in (False, True):
        model, opt, closure = works.sam_of("cuda", torch.float32, fused=True)
        opt.param_groups[0]["momentum"] = momentum
        x, y = works.classes("cuda", torch.float32)
        run = lambda closure=closure, opt=opt: opt.step(closure)  # noqa: E731
        if compiled:
            step = sam.compiled_step(opt, model, lambda net, x, y: cross_entropy(net(x), y))
            run = lambda step=step, x=x, y=y: step(x, y)  # noqa: E731
        losses = []
        for t in range(5):
            opt.param_groups[0]["lr"] = 0.1 / (t + 1)  # a schedule is no reason to compile anew
            losses.append(run())
        ends.append([losses, [p.detach() for p in model.parameters()]])
    close(*ends)


def test_sam_says_so_where_its_momentum_was_replaced():
    model, opt, _ = works.sam_of("cuda", torch.float32, fused=True)
    run = sam.compiled_step(opt, model, lambda net, x, y: cross_entropy(net(x), y))
    batch = works.classes("cuda", torch.float32)
    for _ in range(3):
        run(*batch)
    whole = opt.flats()[0].whole
    opt.base.state[whole]["momentum_buffer"] = opt.base.state[whole]["momentum_buffer"].clone()
    with pytest.raises(RuntimeError, match="momentum"):
        run(*batch)


def test_forecasters():
    ends = []
    for compiled in (False, True):
        members = [nbeats.Member(8, "smape", 0), nbeats.Member(12, "mase", 1)]
        stacks = [("trend", 8), ("generic", 6), ("seasonality", 8)]
        made = nbeats.Ensemble(members, 4, stacks=stacks, device="cuda")
        losses = made.fit(works.panel("cuda"), 6, batch=8, compiled=compiled)
        ends.append([losses, made.weights.detach()])
    close(*ends, tolerance=1e-4)


@pytest.mark.parametrize("kind", ["dt", "iql"])
def test_offline(kind):
    """With dropout, from the same draws."""
    close(*([*works.offline("cuda", kind, 5, 2, compiled)] for compiled in (False, True)),
          tolerance=1e-4)  # fmt: skip


def test_meta_steps():
    ends = []
    for compiled in (False, True):
        loop = MetaLoop(*works.colours("cuda"), 3, compiled=compiled)
        loop.run(4)
        ends.append([tree_leaves(loop.life), loop.w, loop.losses])
    close(*ends)
