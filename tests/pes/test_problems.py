"""Inner problems against slow twins: autograd, loops over particles, and known constants."""

import math

import pytest
import torch
import torch.nn.functional as F

from collage.common.environments import CartPole
from collage.pes.problems import Control, Influence, Schedule, Toy
from experiments.pes import ErrorSchedule, LayerSchedule, LearnedOptimiser
from tests.pes.helpers import seeded


@pytest.mark.parametrize("theta, loss", [
    ((0.0, 0.0), 2423.4682989466), ((-4.0, -4.0), 2487.7687702006), ((-1.0, -2.0), 2429.7076765498),
])  # fmt: skip
def test_toy_losses(theta, loss):
    assert abs(Toy().loss(torch.tensor([theta]).double()).item() - loss) < 1e-8


def test_toy_is_gradient_descent_by_autograd():
    toy, theta = Toy(horizon=12), torch.tensor([[-1.0, -2.0], [0.3, -0.5], [-4.0, 1.0]]).double()
    state, losses = toy.unroll(theta, toy.reset(3), 5)
    state, more = toy.unroll(theta, state, 7)
    total = torch.zeros(3).double()
    z = torch.ones(3, 2).double()
    for t in range(12):
        z.requires_grad_()
        (slope,) = torch.autograd.grad(toy.f(z[:, 0], z[:, 1]).sum(), z)
        rate = theta[:, 0].exp() * (1 - t / 12) + theta[:, 1].exp() * t / 12
        z = (z - rate[:, None] * slope).detach()
        total = total + toy.f(z[:, 0], z[:, 1])
    assert torch.allclose(losses + more, total, atol=1e-9)
    assert torch.allclose(torch.stack(state[:2], 1), z, atol=1e-10)


def test_toy_gradient_is_that_of_the_facts():
    theta = torch.tensor([[-2.0, -3.0]]).double().requires_grad_()
    (g,) = torch.autograd.grad(Toy().loss(theta).sum(), theta)
    assert torch.allclose(g[0], torch.tensor([-34.02179793304, -4.83915108086]).double(), atol=1e-7)


def test_influence_constants():
    problem = Influence(dtype=torch.float64)
    theta = torch.tensor([[0.5], [-1 / 6], [0.1]]).double()
    state, losses = problem.unroll(theta, problem.reset(3), 2000)
    assert torch.allclose(state[:, 0], -6 * theta[:, 0], atol=1e-9)
    assert abs(losses[0] - 8) < 1e-9 and losses[1] < 1e-15


def digits(n=60):
    g = seeded(3)
    return torch.randn(n, 12, generator=g).double(), torch.randint(4, (n,), generator=g)


def network(problem, w):
    a, b, e, f = (t[0] for t in problem.layers(w[None]))
    return lambda x: (x @ a + b).relu() @ e + f


def test_classifier_gradient_is_autograd():
    x, y = digits()
    problem = Schedule(x, y, hidden=5, batch=7)
    w, offset, t = problem.initial(3, seeded())
    w = (w + 0.1).requires_grad_()
    bx, by = problem.data(offset, t + 2)
    losses, g = problem.gradient(w, bx, by)
    twin = torch.stack([F.cross_entropy(network(problem, w[i])(bx[i]), by[i]) for i in range(3)])
    assert torch.allclose(losses, twin)
    assert torch.allclose(g, torch.autograd.grad(twin.sum(), w)[0], atol=1e-12)
    errors = ErrorSchedule(x, y, hidden=5, validation=None).error(w, x, y)
    right = [(network(problem, w[i])(x).argmax(1) != y).double().mean() for i in range(3)]
    assert torch.allclose(errors, torch.stack(right))


def test_batches_follow_from_the_state():
    x, y = digits()
    problem = Schedule(x, y, batch=7)
    offset = torch.tensor([0, 55])
    rows = problem.data(offset, torch.tensor([0, 1]))[0]
    assert torch.equal(rows[0], x[:7]) and torch.equal(rows[1], x[[2, 3, 4, 5, 6, 7, 8]])


def test_schedule_for_each_tensor():
    """Equal entries are the common schedule; unequal ones move their own tensor."""
    x, y = digits()
    common = Schedule(x, y, horizon=6, hidden=5, batch=7)
    each = LayerSchedule(x, y, horizon=6, hidden=5, batch=7)
    state = common.reset(2, seeded())
    rate, power, momentum = -3.0, 0.5, math.log(9)  # sigmoid(log 9) = 0.9
    theta = torch.tensor([[rate, power]] * 2).double()
    spread = torch.tensor([[rate] * 4 + [power] * 4 + [momentum] * 4] * 2, dtype=torch.float64)
    after, losses = common.unroll(theta, state, 5)
    same, equal = each.unroll(spread, state, 5)
    assert torch.allclose(after[0], same[0], atol=1e-7) and torch.allclose(losses, equal, atol=1e-6)
    still = spread.clone()
    still[:, 2] = -50.0  # the weights of the second layer do not move
    moved = each.layers(each.unroll(still, state, 5)[0][0] - state[0])
    assert moved[2].abs().max() < 1e-12 and all(moved[i].abs().max() > 1e-3 for i in (0, 1, 3))


@pytest.mark.parametrize("kind", [Schedule, ErrorSchedule])
def test_schedule_by_the_loop(kind):
    x, y = digits()
    judged = {"validation": (x, y)} if kind is ErrorSchedule else {}
    problem = kind(x, y, horizon=6, hidden=5, batch=7, **judged)
    theta = torch.tensor([[-3.0, 0.5], [4.0, 0.0]]).double()  # the second diverges
    state = problem.reset(2, seeded())
    after, losses = problem.unroll(theta, state, 4)
    after, more = problem.unroll(theta, after, 2)
    for i in range(2):
        w, offset, total, shares = state[0][i], state[1][i : i + 1], 0, 0
        v = torch.zeros_like(w)
        for t in range(6):
            bx, by = problem.data(offset, torch.tensor([t]))
            loss, g = problem.gradient(w[None], bx, by)
            v = 0.9 * v + g[0]
            w = w - math.exp(theta[i, 0]) / (1 + t / 6) ** math.exp(theta[i, 1]) * v
            total += min(loss.item(), 10) if math.isfinite(loss.item()) else 10
            if judged:
                shares += {3: 4, 5: 2}.get(t, 0) * problem.error(w[None], x, y).item()
        total = shares if judged else total
        assert abs((losses + more)[i] - total) < 1e-8
    assert torch.isfinite(losses + more).all() and torch.equal(after[2], torch.tensor([6, 6]))


def test_learned_optimiser_weight_by_weight():
    x, y = digits()
    problem = LearnedOptimiser(x, y, horizon=9, units=3, hidden=5, batch=7)
    theta = torch.randn(2, problem.size, generator=seeded(2)).double()
    state = problem.reset(2, seeded())
    (w, _, t, v), total = problem.unroll(theta, state, 2)
    for i in range(2):
        ww, vv, sum_ = state[0][i], torch.zeros(3, w.shape[1]).double(), 0
        a, b, c, e, f = (p.view(s) for p, s in zip(
            theta[i].split([p * q for p, q in problem.shapes]), problem.shapes, strict=True))  # fmt: skip
        for step in range(2):
            loss, g = problem.gradient(
                ww[None], *problem.data(state[1][i : i + 1], torch.tensor([step]))
            )
            vv = torch.stack(
                [k * m + (1 - k) * g[0] for k, m in zip((0.5, 0.9, 0.99), vv, strict=True)]
            )
            seen = torch.stack([g[0], *vv, ww], 1)
            seen = seen / (seen.square().mean(0) + 1e-10).sqrt()
            h = torch.tanh(seen @ a + b + c * step / 9)
            d, m = (h @ e + f).unbind(1)
            ww, sum_ = ww - 0.01 * d * torch.exp(m / 10), sum_ + loss
        assert torch.allclose(ww, w[i], atol=1e-10) and torch.allclose(vv, v[i], atol=1e-12)
        assert torch.allclose(sum_[0], total[i])
    assert problem.start(4, seeded()).shape == (4, problem.size)
    assert t.tolist() == [2, 2]


def test_control_is_a_linear_policy():
    env = CartPole()
    problem = Control(env)
    theta = torch.randn(3, problem.size, generator=seeded()).double()
    state = problem.reset(3, seeded(1)).double()
    after, losses = problem.unroll(theta, state, 4)
    for i in range(3):
        s, total = state[i : i + 1], 0
        for _ in range(4):
            action = torch.tanh(theta[i, :5] @ env.observe(s)[0] + theta[i, 5])
            s, reward, *_ = env.step(s, action.view(1, 1))
            total -= reward[0]
        assert torch.allclose(s[0], after[i]) and torch.allclose(total, losses[i])
    assert problem.size == 6


def test_bad_input():
    x, y = digits()
    small = Schedule(x, y, hidden=5, batch=7)
    rule = LearnedOptimiser(x, y, units=3, hidden=5, batch=7)
    control = Control(CartPole())
    for problem, width in ((Toy(), 3), (Influence(), 2), (small, 12), (rule, 2), (control, 5)):
        state = problem.reset(4, seeded())
        with pytest.raises(ValueError, match="theta: got"):
            problem.unroll(torch.zeros(4, width), state, 1)
    with pytest.raises(ValueError, match="y: got"):
        Schedule(x, y[:-1])
