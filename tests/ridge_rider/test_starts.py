"""Ridges and saddles in closed form, by Lanczos and by whole Hessians; descent as torch does it."""

import warnings

import pytest
import torch
from torch.func import grad

from collage.data import digits
from collage.ridge_rider import descend, ridges, saddle, starts
from collage.ridge_rider.landscapes import Levers, Tanh
from tests.ridge_rider.surfaces import bowl, seeded


def test_ridges_by_lanczos_and_by_the_whole_hessian(monkeypatch):
    loss, A = bowl(30)
    zero = torch.zeros(30).double()
    whole = ridges(loss, zero, 4)
    monkeypatch.setattr(starts, "DENSE", 5)
    pairs = ridges(loss, zero, 4, tol=1e-9, generator=seeded())
    torch.testing.assert_close(pairs.values, whole.values)
    torch.testing.assert_close(pairs.vectors, whole.vectors, atol=1e-6, rtol=0)  # the same signs
    residuals = (pairs.vectors @ A - pairs.values[:, None] * pairs.vectors).norm(dim=1)
    torch.testing.assert_close(pairs.residuals, residuals, atol=1e-12, rtol=1e-3)
    with pytest.raises(ValueError, match="k: got None"):
        ridges(loss, zero)


@pytest.mark.slow
def test_one_of_each_space():
    x, y = digits()
    net = Tanh(x[:400].double() / 16, y[:400], 8, 10)
    nine = ridges(net, net.saddle(), 9, tol=1e-4, distinct=True, generator=seeded())
    assert net.size > 256
    torch.testing.assert_close(nine.values, -net.strengths()[:9], atol=1e-6, rtol=0)
    small = Tanh(x[:400, ::8].double() / 16, y[:400], 4, 10)
    assert small.size < 256
    every = ridges(small, small.saddle())
    assert every.spaces.bincount().tolist() == [4, 4]
    few = ridges(small, small.saddle(), distinct=True)
    torch.testing.assert_close(few.values, every.values[::4])


def test_a_steep_loss_has_one_ridge_of_each_space_without_a_word():
    """Only Lanczos brings copies in: of a whole Hessian there is nothing to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = ridges(lambda t: -1000 * t.square().sum(), torch.zeros(3), distinct=True)
    assert one.values.tolist() == [-2000]


def test_where_nothing_bends_down_there_is_no_ridge():
    with pytest.warns(RuntimeWarning, match="no negative curvature here"):
        none = ridges(lambda t: (t**2).sum(), torch.ones(3))
    assert none.values.shape == (0,) and none.vectors.shape == (0, 3)


def test_flat_directions_of_a_large_minimum_are_no_ridges():
    q, _ = torch.linalg.qr(torch.randn(300, 300, generator=seeded(3), dtype=torch.float64))
    A = q @ torch.diag(torch.cat([torch.zeros(40), torch.linspace(0.1, 1, 260)]).double()) @ q.T
    for seed in range(4):
        with pytest.warns(RuntimeWarning, match="no negative curvature"):
            none = ridges(lambda t: 0.5 * t @ A @ t, torch.zeros(300).double(), 2,
                          generator=seeded(seed))  # fmt: skip
        assert len(none.values) == 0


@pytest.mark.slow
def test_saddles():
    game = Levers(torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64))
    start = 0.3 * torch.randn(3, 6, generator=seeded(), dtype=torch.float64)
    critical = saddle(game, start, game.entropy, steps=500)
    assert critical.slopes.max() < 1e-10
    policies = critical.thetas.unflatten(1, (2, 3)).softmax(-1)
    exact = game.saddle().view(2, 3).softmax(-1)
    torch.testing.assert_close(policies, exact.expand_as(policies), atol=1e-6, rtol=0)
    pushed = saddle(game, start, game.entropy, floor=0.1, steps=500)
    assert pushed.slopes.min() > 1e-3  # with the bonus on it is no critical point


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_descent_is_the_plain_loop(dtype):
    """Many steps are written down once and replayed; few are not: the same points either way."""
    smooth, _ = bowl(8)
    start = torch.randn(5, 8, generator=seeded(3), dtype=torch.float64).to(dtype)
    before = start.clone()

    def loss(t):
        return smooth(t.double()).to(t)

    theta = start.clone()
    for _ in range(130):
        theta = theta - 0.05 * torch.stack([grad(loss)(t) for t in theta])
    replayed = descend(loss, start, 130, 0.05)
    in_parts = descend(loss, descend(loss, start, 65, 0.05), 65, 0.05)
    close = {torch.float32: (1e-4, 1e-5), torch.float64: (1e-9, 1e-11)}[dtype]
    assert torch.allclose(replayed, theta, *close) and torch.allclose(in_parts, theta, *close)
    assert torch.equal(start, before) and torch.equal(descend(loss, start, 0, 0.01), start)


def test_a_loss_that_cannot_be_written_down_descends_all_the_same():
    class Cube(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x**3

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, slope):
            return 3 * ctx.saved_tensors[0] ** 2 * slope

    start = torch.tensor([[0.5], [0.3]])
    by_hand = descend(lambda t: Cube.apply(t.abs()).sum(), start, 120, 0.1)
    assert torch.allclose(by_hand, descend(lambda t: (t.abs() ** 3).sum(), start, 120, 0.1))
    assert not descend(lambda t: -(t**4).sum(), start * 9, 120, 0.5).isfinite().any()


@pytest.mark.parametrize("call, message", [
    (lambda: ridges(lambda t: t, torch.zeros(3)), "loss: returned"),
    (lambda: ridges(lambda t: t.sum() * float("nan"), torch.zeros(3)), "loss: got NaN"),
    (lambda: ridges(lambda t: t.sum(), torch.zeros(2, 3)), "theta: got"),
    (lambda: ridges(lambda t: t.sum(), torch.zeros(3), 4), "k: got 4"),
    (lambda: ridges(lambda t: t.sum(), torch.zeros(3), 0), "k: got 0"),
    (lambda: ridges(lambda t: t.sum(), torch.tensor([1, 2])), "thetas: got torch.int64"),
    (lambda: ridges(lambda t: t.abs().pow(1.5).sum(), torch.zeros(3)), "its Hessian at theta"),
    (lambda: descend(lambda t: t.sum(), torch.zeros(1, 3), 5, 0), "lr: got"),
    (lambda: descend(lambda t: t.sum(), torch.zeros(1, 2), 5, [0.1, 0.2]), "lr: got"),
    (lambda: saddle(lambda t: t.sum(), torch.zeros(3)), "thetas: got"),
])  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
