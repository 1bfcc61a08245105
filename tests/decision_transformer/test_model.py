"""The module against `core`, another library, and what can be counted."""

import functools

import pytest
import torch

from collage.common.environments import SwingUp
from collage.decision_transformer import DecisionTransformer, Window, core, rollout
from collage.decision_transformer.fast.transformer import transformer
from collage.decision_transformer.model import arrange
from tests.decision_transformer.examples import episodes, inputs, seeded, small_model
from tools import transplant


def history(returns, states, actions, steps):
    """A `Window` of which only the first four fields are looked at."""
    real = torch.ones_like(steps, dtype=torch.bool)
    return Window(returns, states, actions, steps, returns, ~real, real)


@pytest.mark.parametrize("settings", [
    {}, {"discrete": True}, {"conditioned": False}, {"members": 2, "predict_return": True}])  # fmt: skip
def test_a_model_is_the_plain_transformer_in_its_units(settings):
    model = small_model(**settings)
    mean, std = torch.tensor([1.0, -1, 0, 2, 0]), torch.tensor([1, 2, 0.5, 3, 1])
    model.units(mean, std, 7.0)
    batch = inputs(model)
    R, s, a, t = (field.expand(model.members, *field.shape) for field in batch)
    R, s = R / 7 if model.conditioned else R * 0, (s - mean) / std
    p = arrange(model.tensors(), model.layers)
    actions, returns = core.predict(R, s, a, t, p, model.heads)
    predicted = model(*batch)
    assert predicted.shape[: predicted.dim() - 3] == (() if model.members == 1 else (2,))
    assert torch.allclose(predicted, actions if model.members > 1 else actions[0], atol=2e-6)
    if returns is not None:
        assert torch.allclose(model.predicted_returns(*batch), 7 * returns, atol=2e-5)


def test_parameter_counts():
    """Hopper's, as in the paper's Gym experiments, and another by hand."""
    assert DecisionTransformer(11, 3).weights.numel() == 726_019
    d, S, A, T = 24, 7, 5, 40
    blocks = 2 * (12 * d * d + 13 * d)
    both = 2 * d + (S + 1) * d + T * d + 2 * d + blocks + 2 * d + (d + 1) * A
    model = DecisionTransformer(S, A, width=d, layers=2, heads=3, longest=T, discrete=True)
    assert model.weights.numel() == both + A * d
    model = DecisionTransformer(S, A, width=d, layers=2, heads=3, longest=T, predict_return=True)
    assert model.weights.numel() == both + (A + 1) * d + d + 1


def test_causality_is_exact():
    """What comes later, and the action itself, do not reach a prediction; what came does."""
    model = small_model()
    batch = inputs(model, K=6)
    before = model(*batch)
    for field, first in ((0, 3), (1, 3), (2, 4)):  # the action a_3 is first seen at step 4
        changed = [t.clone() for t in batch]
        changed[field][:, 3] += 1
        after = model(*changed)
        assert torch.equal(after[:, :first], before[:, :first])
        assert bool((after[:, first:] != before[:, first:]).any(-1).all())


def test_padding_behind_is_exact():
    """Shorter windows say the same; and what lies behind does not move a bit."""
    model = small_model()
    batch = inputs(model, K=6)
    whole = model(*batch)
    assert torch.allclose(model(*(x[:, :4] for x in batch)), whole[:, :4], atol=1e-6)
    other = [x.clone() for x in batch]
    for x in other:
        x[:, 4:] = 7
    assert torch.equal(model(*other)[:, :4], whole[:, :4])


@pytest.mark.parametrize("run", [core.transformer, transformer], ids=["core", "fast"])
def test_padding_in_front_is_masked(run):
    """With the mask it does not matter what is there, without it it does."""
    model = small_model()
    p, batch = arrange(model.tensors(), model.layers), inputs(model, K=6)
    real = torch.ones(1, 3, 6, dtype=torch.bool)
    real[:, :, :2] = False
    wanted = model(*(x[:, 2:] for x in batch))
    for fill in (0, 9):
        padded = [x.clone()[None] for x in batch]
        for x in padded:
            x[:, :, :2] = fill
        masked, _ = core.predict(*padded, p, 2, functools.partial(run, real=real))
        assert torch.allclose(masked[0, :, 2:], wanted, atol=1e-6)
        seen, _ = core.predict(*padded, p, 2, run)
        assert (seen[0, :, 2:] - wanted).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True])
def test_transplant_from_and_to_transformers(padded):
    transformers = pytest.importorskip("transformers")
    model, other = small_model(shake=0.0), small_model(shake=0.2, seed=5)
    peer = transformers.DecisionTransformerModel(transplant.config(model)).eval()
    with torch.no_grad():
        for t in peer.parameters():
            t.add_(0.2 * torch.randn(t.shape, generator=seeded(t.numel())))
    batch = inputs(model)
    real = torch.ones(3, 6, dtype=torch.bool)
    if padded:
        real[0, :3] = real[1, :1] = False

    def theirs():
        R, s, a, t = batch
        return peer(states=s, actions=a, rewards=None, returns_to_go=R[..., None], timesteps=t,
                    attention_mask=real.long()).action_preds  # fmt: skip

    def ours(model):
        p, fields = arrange(model.tensors(), model.layers), [x[None] for x in batch]
        run = functools.partial(transformer, real=real[None] if padded else None)
        return core.predict(*fields, p, model.heads, run)[0][0]

    transplant.from_transformers(peer, model)
    assert torch.allclose(ours(model)[real], theirs()[real], atol=2e-6)
    assert ours(model).std() > 0.1
    if padded:
        assert (model(*batch) - theirs())[0, 3:].abs().max() > 1e-3
    transplant.to_transformers(other, peer)
    assert torch.allclose(ours(other)[real], theirs()[real], atol=2e-6)


@pytest.mark.parametrize("discrete", [False, True])
def test_a_stack_is_its_members(discrete):
    model = small_model(members=3, context=[2, 6, 4], discrete=discrete)
    mean = torch.randn(3, 5, generator=seeded(3))
    model.units(mean, mean.abs() + 0.5, 4.0)
    own, shared = inputs(model, members=3), inputs(model)
    for i in range(3):
        one = model.member(i)
        assert one.context == [2, 6, 4][i] and one.seed == i
        assert torch.allclose(model(*own)[i], one(*(t[i] for t in own)), atol=1e-6)
        assert torch.allclose(model(*shared)[i], one(*shared), atol=1e-6)
    fresh = DecisionTransformer(5, 2, members=3, width=16, seed=4)
    assert torch.equal(fresh.weights[1:2], DecisionTransformer(5, 2, width=16, seed=5).weights)
    with pytest.raises(ValueError, match="i: got 3"):
        model.member(3)


def test_the_return_head_learns_in_units_of_the_scale():
    model = small_model(predict_return=True, conditioned=False)
    model.units(torch.zeros(5), torch.ones(5), 10.0)
    window = episodes().sample(8, 6, seeded(8))
    actions = (model(*window[:4]) - window.actions).square().mean(-1)
    returns = (model.predicted_returns(*window[:4]) - window.returns).square() / 100
    wanted = ((actions + returns) * window.mask).sum() / window.mask.sum()
    assert torch.allclose(model.loss(window), wanted, atol=1e-5)
    with pytest.raises(ValueError, match="predict_return"):
        small_model().predicted_returns(*window[:4])


def test_acting_in_an_environment():
    """A stack acts as its members; the last action is that of the last `context` steps."""
    env = SwingUp(hold=5, longest=60)
    model = DecisionTransformer(5, 1, width=16, layers=2, context=4, longest=12, members=2)
    start, targets = env.reset(6, seeded(3)), torch.linspace(0, 5, 6)
    both = rollout(model, env, targets, seeded(), start=start).data
    for i in range(2):
        part = slice(3 * i, 3 * i + 3)
        one = rollout(model.member(i), env, targets[part], seeded(), start=start[part])
        alike = both.pick(list(range(6)[part])).actions
        assert torch.allclose(alike, one.data.actions, atol=1e-5)
    data, tokens = one
    n = int(data.lengths[0])
    k = slice(n - 4, n)
    actions = data.actions[k].clone()
    actions[-1] = 0
    steps = torch.arange(n - 4, n)
    out = model.member(1)(tokens[None, k], data.states[None, k], actions[None], steps)
    assert torch.allclose(out[0, -1], data.actions[n - 1], atol=1e-6)
    with pytest.raises(ValueError, match="multiple of 2"):
        rollout(model, env, torch.zeros(3), seeded())
    with pytest.raises(ValueError, match="longest"):
        rollout(DecisionTransformer(5, 1, width=8, longest=20), SwingUp(), torch.zeros(2), seeded())


def test_a_stack_of_contexts_acts_as_its_members():
    model = small_model(members=2, context=[2, 5], discrete=True, shake=1.0)
    window = history(*(torch.cat([x, x]) for x in inputs(model, B=40, K=6)))
    both = model.act(window).view(2, 40)
    for i in range(2):
        half = Window(*(x[:40] for x in window))
        assert torch.equal(both[i], model.member(i).act(half))
    assert not torch.equal(both[0], both[1])


def test_acting_is_the_last_prediction():
    model = small_model(layers=3, heads=4)
    batch = inputs(model)
    assert torch.allclose(model.act(history(*batch)), model(*batch)[:, -1], atol=1e-6)


def test_sampling_follows_the_probabilities():
    model = small_model(discrete=True, action_dim=3)
    batch = inputs(model)
    window = history(*(x[:1].expand(3000, *x.shape[1:]) for x in batch))
    drawn = torch.bincount(model.act(window, seeded(), sample=True), minlength=3) / 3000
    wanted = model(*(x[:1] for x in batch))[0, -1].softmax(0)
    assert (drawn - wanted).abs().max() < 0.04
    assert int(model.act(window)[0]) == int(wanted.argmax())


def test_bad_models():
    for settings, match in [({"width": 0}, "width"), ({"width": 10, "heads": 3}, "heads"),
                            ({"dropout": 1.0}, "dropout"), ({"context": 31}, "context"),
                            ({"context": [3, 4]}, "context"), ({"layers": 0}, "layers"),
                            ({"members": 0}, "members")]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            small_model(**settings)


def test_bad_inputs():
    model = small_model()
    R, s, a, t = inputs(model)
    for match, batch in [("returns", (R[0], s, a, t)), ("states", (R, s[..., :4], a, t)),
                         ("actions", (R, s, a[:, :5], t)), ("steps", (R, s, a, t + 30)),
                         ("steps", (R, s, a, t[:, :5])), ("steps", (R, s, a, t - 40))]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            model(*batch)
    with pytest.raises(ValueError, match="steps: got"):
        model.loss(history(R, s, a, t + 30))
    discrete = small_model(discrete=True, members=2)
    R, s, a, t = inputs(discrete)
    with pytest.raises(ValueError, match="actions: got 0 to 2"):
        discrete(R, s, a * 0 + torch.tensor([0, 1, 2] * 2), t)


def test_bad_units():
    zero, one = torch.zeros(5), torch.ones(5)
    for args in ((torch.zeros(4), one, 1.0), (zero, -one, 1.0), (zero, one, 0.0)):
        with pytest.raises(ValueError, match=r"mean|scale"):
            small_model().units(*args)
