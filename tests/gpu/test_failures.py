"""A step that fails while it warms up, while it is recorded or after a replay leaves nothing behind.

All that it changes is as it was, and what comes next is what comes without the failure.
"""

import pytest
import torch

from collage import decision_transformer, nbeats
from collage.bmg.fast.colours import MetaLoop
from collage.common.graph import Captured
from collage.common.train import train
from collage.sensory_neuron import Agent
from collage.sensory_neuron.fast.graphed import graphed_returns
from tests.gpu import works

pytestmark = pytest.mark.cuda


class Broken(Exception):
    pass


def warm_up(captured, inputs, own):
    own._run_once(captured, inputs)
    raise Broken


def recording(captured, own):
    """It waits for the GPU at its end, which a recording may not."""
    function = captured.function

    def waits(*inputs):
        found = function(*inputs)
        torch.ones(1, device="cuda").item()
        return found

    captured.function = waits
    try:
        own._record(captured)
    except RuntimeError as error:
        raise Broken from error
    finally:
        captured.function = function


def replay(captured, inputs, own):
    found = own._on_gpu(captured, inputs)
    if captured._graph is not None:
        raise Broken
    return found


MOMENTS = {"warm_up": "_run_once", "recording": "_record", "replay": "_on_gpu"}


class Forecasters:
    """N-BEATS; what it draws follows from its members' seeds."""

    def __init__(self):
        members = [nbeats.Member(8, "smape", 0), nbeats.Member(12, "mase", 1)]
        self.made = nbeats.Ensemble(members, 4, stacks=[("trend", 8)], device="cuda")
        self.state = [self.made.weights]

    def run(self):
        return self.made.fit(works.panel("cuda"), 3, batch=4)


class Offline:
    """Decision transformers, or implicit Q-learning with its slower copies."""

    kind = "dt"

    def __init__(self):
        kinds = {
            "dt": decision_transformer.DecisionTransformer,
            "iql": decision_transformer.ImplicitQ,
        }
        shape = {"dt": {"layers": 1, "context": 4, "longest": 10}, "iql": {}}[self.kind]
        self.model = kinds[self.kind](5, 2, width=8, members=2, **shape).to("cuda")
        self.state = [self.model.weights, *self.model.moving()]
        self.data = works.recorded("cuda")

    def run(self):
        return decision_transformer.fit(self.model, self.data, 3, batch=4)


class Values(Offline):
    kind = "iql"


class Loop:
    """`train` with a generator of its user's."""

    def __init__(self):
        self.weights = torch.nn.Parameter(torch.ones(2, 3, device="cuda"))
        self.dice = works.dice("cuda")
        self.state = [self.weights]

    def run(self):
        def gradient():
            noise = torch.randn(2, 3, generator=self.dice, device="cuda")
            return noise.sum(1), noise + self.weights.detach()

        return train(self.weights, lambda i: (), gradient, 3, optimizer=torch.optim.Adam,
                     rate=lambda i: 0.1, clip=1.0, generators=[self.dice])  # fmt: skip


class Meta:
    """BMG's lifetimes, the parameters of their bonus, and Adam."""

    def __init__(self):
        self.loop = MetaLoop(*works.colours("cuda"), 2)
        self.dice = self.loop.learner.generator

    @property
    def state(self):
        return self.loop._buffers()

    def run(self):
        self.loop.run(3)
        return torch.cat([t.flatten() for t in self.loop.w])


class Rollout:
    """Episodes change nothing but what they return."""

    def __init__(self):
        self.weights, self.starts = (
            Agent(members=2).weights.detach().cuda(),
            torch.zeros(3, 5).cuda(),
        )
        self.state = [self.weights, self.starts]
        self.returns = graphed_returns(self.weights, self.starts, 15, inner=5)

    def run(self):
        return self.returns()


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kind", [Forecasters, Offline, Values, Loop, Meta, Rollout])
def test_a_failure_leaves_nothing_behind(kind, moment, monkeypatch):
    whole = kind().run()
    work, name = kind(), MOMENTS[moment]
    before, random = [t.detach().clone() for t in work.state], None
    if hasattr(work, "dice"):
        random = work.dice.get_state()
    own = type("Own", (), {n: staticmethod(getattr(Captured, n)) for n in MOMENTS.values()})
    with monkeypatch.context() as here, pytest.raises(Broken):
        here.setattr(
            Captured, name, lambda captured, *given: globals()[moment](captured, *given, own)
        )
        work.run()
    after = work.state
    assert all(torch.equal(a.detach(), b) for a, b in zip(after, before, strict=False))
    assert not any(t.any() for t in after[len(before) :]), "Adam's moments, made on the way"
    assert random is None or torch.equal(work.dice.get_state(), random)
    torch.testing.assert_close(work.run(), whole, rtol=1e-5, atol=1e-6)


def test_a_meta_gradient_that_is_not_finite_leaves_a_recorded_loop_as_it_was():
    work = Meta()
    work.run()
    before, random = [t.clone() for t in work.state], work.dice.get_state()
    kept = work.loop.life.recent.clone()
    work.loop.life.recent.fill_(torch.inf)
    with pytest.raises(ValueError, match="NaN or inf"):
        work.run()
    work.loop.life.recent.copy_(kept)
    assert all(torch.equal(a, b) for a, b in zip(work.state, before, strict=True))
    assert torch.equal(work.dice.get_state(), random)
