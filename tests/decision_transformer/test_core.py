"""The algorithm in plain loops: one sequence, one head and one token at a time, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from collage.decision_transformer import Window, core, returns_to_go
from collage.decision_transformer.model import arrange
from tests.decision_transformer.examples import episodes, inputs, seeded, small_model


def loops(parameters, heads, returns, states, actions, steps):
    """Actions and returns of the first member for one sequence (K, ...)."""
    p = parameters
    K, d = len(returns), p.embed_time.shape[-1]
    size = d // heads

    def affine(x, layer):
        return x @ layer.weight[0].double() + layer.bias[0, 0].double()

    def norm(x, layer):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        return x * layer.weight[0, 0].double() + layer.bias[0, 0].double()

    sequence = []
    for t in range(K):
        time = p.embed_time[0, steps[t]].double()
        if isinstance(p.embed_action, torch.Tensor):
            action = p.embed_action[0, actions[t]].double()
        else:
            action = affine(actions[t].double(), p.embed_action)
        sequence.append(affine(returns[t : t + 1].double(), p.embed_return) + time)
        sequence.append(affine(states[t].double(), p.embed_state) + time)
        sequence.append(action + time)
    x = norm(torch.stack(sequence), p.norm_in)
    for layer in p.blocks:
        q, k, v = affine(norm(x, layer.norm_1), layer.qkv).split(d, 1)
        mixed = torch.zeros_like(x)
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            for token in range(3 * K):
                score = q[token, part] @ k[: token + 1, part].T / math.sqrt(size)
                mixed[token, part] = score.softmax(0) @ v[: token + 1, part]
        x = x + affine(mixed, layer.out)
        x = x + affine(affine(norm(x, layer.norm_2), layer.up).relu(), layer.down)
    x = norm(x, p.norm_out)[1::3]
    action = affine(x, p.predict_action)
    returns = None if p.predict_return is None else affine(x, p.predict_return)[:, 0]
    return action if isinstance(p.embed_action, torch.Tensor) else action.tanh(), returns


@pytest.mark.parametrize("settings", [
    {}, {"layers": 1}, {"heads": 4, "layers": 3}, {"discrete": True},
    {"discrete": True, "predict_return": True}])  # fmt: skip
def test_predictions_of_loops(settings):
    model = small_model(**settings)
    batch, p = inputs(model), arrange(model.tensors(), model.layers)
    actions, returns = core.predict(*(field[None] for field in batch), p, model.heads)
    for b in range(3):
        wanted, to_go = loops(p, model.heads, *(field[b] for field in batch))
        assert torch.allclose(actions[0, b].double(), wanted, atol=2e-5)
        assert (returns is None) == (to_go is None)
        if returns is not None:
            assert torch.allclose(returns[0, b].double(), to_go, atol=2e-5)


def test_attention_with_dropout_is_attention():
    """Written out, for the sake of dropout, it is the fused one, with a mask and without."""
    q, k, v = torch.randn(3, 2, 4, 8, 5, generator=seeded())
    real = torch.tensor([[[False, True, True], [True, True, True]]])
    padded = core.causal_mask(k, real)
    for mask in (None, core.causal_mask(k), padded):
        fused = core.attend(q, k, v, mask, core.keep)
        assert torch.allclose(core.attend(q, k, v, mask, torch.clone), fused, atol=1e-6)
    assert padded.shape == (2, 1, 8, 8) and torch.equal(padded[1, 0], core.causal_mask(k))
    assert padded[0, 0].long().sum(1).tolist() == [1, 1, 1, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("discrete", [False, True])
def test_loss_of_a_loop(discrete):
    model = small_model(discrete=discrete, members=2, context=[3, 6])
    window = episodes(discrete=discrete).sample(8, 6, seeded(8))
    losses = model.loss(window).detach()
    predicted = model(*window[:4]).detach()
    for i, k in enumerate((3, 6)):
        total, count = 0.0, 0
        for b in range(8):
            for t in range(k):
                if not window.mask[b, t]:
                    continue
                a, count = window.actions[b, t], count + 1
                y = predicted[i, b, t]
                total += float(F.cross_entropy(y, a) if discrete else (y - a).square().mean())
        assert abs(float(losses[i]) - total / count) < 1e-5


def test_the_error_of_predicted_returns_is_added():
    zero, one = torch.zeros(1, 2, 3), torch.ones(1, 2, 3, dtype=torch.bool)
    window = Window(zero, zero[..., None], zero[..., None], zero, zero, one, one)
    actions, returns = torch.full((1, 2, 3, 1), 2.0), torch.full((1, 2, 3), 3.0)
    assert core.loss((actions, None), window).tolist() == [4.0]
    assert core.loss((actions, returns), window).tolist() == [13.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_returns_to_go_of_a_loop(dtype):
    g = seeded(1)
    rewards = torch.randn(200, generator=g, dtype=dtype)
    ends = torch.rand(200, generator=g) < 0.1
    sums, total = [], 0.0
    for r, end in zip(rewards.flip(0).tolist(), ends.flip(0).tolist()):
        total = r + (0.0 if end else total)
        sums.append(total)
    returns = returns_to_go(rewards, ends)
    assert returns.dtype == dtype
    assert torch.allclose(returns, torch.tensor(sums[::-1], dtype=dtype), atol=1e-6)


def test_returns_to_go_far_from_zero():
    """Thousands of episodes do not cost the last ones their digits."""
    rewards = torch.full((100_000,), 0.1)
    ends = torch.arange(100_000) % 10 == 9
    assert torch.allclose(returns_to_go(rewards, ends)[::10], torch.ones(10_000), atol=1e-6)


def test_bad_rewards():
    rewards, ends = torch.zeros(3), torch.zeros(3, dtype=torch.bool)
    for match, args in [
        ("ends", (rewards, ends[:2])),
        ("ends", (rewards, rewards)),
        ("rewards: got NaN", (torch.tensor([0.0, torch.nan, 0.0]), ends)),
    ]:
        with pytest.raises(ValueError, match=match):
            returns_to_go(*args)
