"""Truncated backpropagation and RTRL against autograd; failures and bad input."""

import pytest
import torch

from collage.pes import PESAnalytic
from collage.pes.exact import RTRL, TruncatedBackprop
from tests.pes.helpers import (
    THETA,
    Tanh,
    assert_mean,
    check_interrupted,
    functions,
    seeded,
    totals,
    whole,
)

BOTH = pytest.mark.parametrize("kind", [RTRL, TruncatedBackprop])


@BOTH
def test_one_unroll_of_everything_is_autograd(kind):
    theta = torch.randn(2, 3, generator=seeded(1), dtype=torch.float64)
    for row in theta:
        estimator = kind(Tanh(), truncation=12, horizon=12, generator=seeded())
        assert torch.allclose(estimator.step(row), whole(Tanh(), row, 12), atol=1e-11)


def test_rtrl_adds_up_to_autograd_over_several_problems():
    rtrl = RTRL(Tanh(), truncation=5, horizon=12, generator=seeded())
    total = sum(rtrl.step(THETA) for _ in range(12))  # five problems of 12
    g, exact = seeded(), 0
    for _ in range(5):
        theta = THETA.clone().requires_grad_()
        losses = Tanh().unroll(theta[None], Tanh().reset(1, g), 12)[1]
        exact = exact + torch.autograd.grad(losses.sum(), theta)[0]
    assert torch.allclose(total, exact, atol=1e-11)


@BOTH
def test_runs_side_by_side(kind):
    """Two runs draw two problems; each has its own gradient."""
    theta = torch.randn(2, 3, generator=seeded(1), dtype=torch.float64)
    state = Tanh().reset(2, seeded())
    both = kind(Tanh(), truncation=4, horizon=12, generator=seeded())
    gradients = [both.step(theta) for _ in range(3)]
    for r in range(2):
        part = {name: t[r : r + 1] for name, t in state.items()}
        alone = kind(functions(Tanh().unroll, lambda n, g, s=part: s), truncation=4, horizon=12)
        for g in gradients:
            assert torch.allclose(alone.step(theta[r]), g[r], atol=1e-11)


def test_a_first_loss_may_come_before_theta_has_acted():
    """The loss before the update, as in tuning: its gradient is zero, and no error."""

    def late(theta, state, steps):
        total = 0
        for _ in range(steps):
            total = total + state.square()
            state = state / 2 + theta[:, 0]
        return state, total

    problem = functions(late, lambda n, g: torch.ones(n).double())
    theta = torch.tensor([0.3]).double()
    for kind in (RTRL, TruncatedBackprop):
        assert kind(problem, truncation=1, horizon=3).step(theta).item() == 0
    rtrl = RTRL(problem, truncation=1, horizon=3)
    total = sum(rtrl.step(theta) for _ in range(3))
    assert_mean(totals(PESAnalytic, problem, theta, 0.3, 1, 3, 50_000), total)


@BOTH
def test_an_interrupted_step_leaves_nothing_behind(kind):
    check_interrupted(lambda problem, g: kind(problem, truncation=3, horizon=7, generator=g), 4)


@BOTH
def test_bad_input(kind):
    reset, lengths = Tanh().reset, {"truncation": 2, "horizon": 6}
    with pytest.raises(ValueError, match="truncation"):
        kind(Tanh(), truncation=7, horizon=6)
    with pytest.raises(ValueError, match="reset"):
        kind(functions(Tanh().unroll, lambda n, g: torch.zeros(())), **lengths).step(THETA)
    broken = kind(functions(lambda t, s, k: (s, t.sum(1) * torch.nan), reset), **lengths)
    with pytest.raises(ValueError, match=r"inf or NaN|NaN or inf"):
        broken.step(THETA)
    assert broken.carried is None
    for losses in (lambda t: t[:, :1], lambda t: t.sum(), lambda t: t.new_zeros(7)):
        problem = functions(lambda t, s, k, f=losses: (s, f(t)), reset)
        with pytest.raises(ValueError, match="losses: got"):
            kind(problem, **lengths).step(THETA)
    for bad in (THETA[None, None], THETA[:0], torch.tensor(1.0), [1.0]):
        with pytest.raises(ValueError, match="theta: got"):
            kind(Tanh(), **lengths).step(bad)
    once = kind(Tanh(), **lengths)
    once.step(THETA)
    with pytest.raises(ValueError, match="as before"):
        once.step(THETA[:2])


def test_backpropagation_needs_a_derivative():
    problem = functions(lambda t, s, k: (s, t.detach().sum(1)), Tanh().reset)
    with pytest.raises(ValueError, match="depends on theta"):
        TruncatedBackprop(problem, truncation=2, horizon=6).step(THETA)
