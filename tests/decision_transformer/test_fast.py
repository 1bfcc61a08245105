"""What is fast is what is plain: the last layer for some tokens, and dropout from few draws."""

import functools

import pytest
import torch

from collage.decision_transformer import core
from collage.decision_transformer.fast.transformer import Dropout, random_bits, transformer
from collage.decision_transformer.model import arrange
from tests.decision_transformer.examples import episodes, seeded, small_model


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("read", [core.STATES, slice(-1, None)], ids=["states", "newest"])
def test_the_last_layer_for_some_tokens_is_the_last_layer(read, drops, padded):
    """Values and gradients; with a dropout that halves everything, so that it is seen to act."""
    model = small_model(members=2)
    p = arrange(model.tensors(), model.layers)
    x = torch.randn(2, 3, 17, 16, generator=seeded(2))
    real = torch.rand(2, 3, 6, generator=seeded(3)) < 0.6 if padded else None
    drop = (lambda t: t / 2) if drops else core.keep
    plain, fast = (run(x, p, 2, read, real, drop) for run in (core.transformer, transformer))
    assert plain.shape == fast.shape and torch.allclose(plain, fast, atol=1e-5)
    a, b = (torch.autograd.grad(t.square().sum(), model.weights, retain_graph=True)[0]
            for t in (plain, fast))  # fmt: skip
    assert torch.allclose(a, b, atol=1e-3)


def dropped(x, chance, generators):
    return Dropout(chance, random_bits(-(-x[0].numel() // 4), generators, x.device))(x)


def test_dropout_is_unbiased_and_each_member_has_its_own():
    x = torch.ones(2, 4000)
    kept = dropped(x, 0.3, [seeded(1), seeded(2)])
    assert torch.allclose(kept.unique(), torch.tensor([0.0, 1 / 0.7]))
    assert (kept.mean(1) - 1).abs().max() < 0.05 and not torch.equal(kept[0], kept[1])
    assert torch.equal(dropped(x[1:], 0.3, [seeded(2)])[0], kept[1])
    twice = Dropout(0.3, random_bits(2000, [seeded(1), seeded(2)], x.device))
    assert torch.equal(twice(x), kept) and twice.used == 1000
    assert not torch.equal(twice(x), kept) and twice.used == 2000


def test_four_decisions_of_one_draw_are_independent():
    """Any two of the four quarters of a draw keep together as often as they should."""
    quarters = (dropped(torch.ones(1, 40_000), 0.25, [seeded(4)]) > 0).view(-1, 4).double()
    together = quarters.T @ quarters / len(quarters)
    wanted = torch.full((4, 4), 0.75**2).double().fill_diagonal_(0.75)
    assert (together - wanted).abs().max() < 0.02


def test_dropout_only_with_noise():
    model = small_model(dropout=0.3, layers=1)
    window = episodes().sample(8, 6, seeded(8))
    size = model.noise_size(window)
    a, b = (random_bits(size, [seeded(s)], window.mask.device) for s in (3, 4))
    loss = functools.partial(model.loss, window)
    assert torch.equal(loss(), loss()) and torch.equal(loss(a), loss(a))
    assert not torch.equal(loss(a), loss(b)) and not torch.equal(loss(a), loss())
    with pytest.raises(RuntimeError):  # no bit serves twice
        loss(a[:, :-1])
    assert torch.equal(loss(torch.cat([a, b], 1)), loss(a))
    assert small_model(dropout=0.0).noise_size(window) == 0
