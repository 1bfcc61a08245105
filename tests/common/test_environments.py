"""Environments against their physics."""

import math

import pytest
import torch

from collage.common.environments import CartPole, MountainCar, SwingUp


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def energy(env, state):
    """Kinetic and potential energy of cart and rod (length 2 l, mass m), from first principles."""
    _, v, a, w = state.unbind(1)
    m, l = env.pole, env.length
    vx, vy = v + l * w * a.cos(), -l * w * a.sin()
    kinetic = env.cart * v**2 + m * (vx**2 + vy**2) + m * (2 * l) ** 2 / 12 * w**2
    return kinetic / 2 + m * env.gravity * l * a.cos()


def test_without_a_force_energy_and_momentum_are_kept():
    drifts = []
    for dt in (1e-3, 5e-4):
        env = CartPole()
        env.dt, env.spread = dt, 0.5
        state = env.reset(5, seeded()).double()
        start, zero = state, torch.zeros(5, 1).double()
        for _ in range(round(1 / dt)):
            state = env.step(state, zero).state
        drifts.append((energy(env, state) - energy(env, start)).abs().max())
        momentum = [(env.cart + env.pole) * s[:, 1] + env.pole * env.length * s[:, 3] * s[:, 2].cos()
                    for s in (start, state)]  # fmt: skip
        assert torch.allclose(*momentum, atol=20 * dt)
    assert drifts[0] < 0.01 and 1.6 < drifts[0] / drifts[1] < 2.5  # of first order in dt


def test_a_force_does_its_work():
    """The gain of energy is force times the way of the cart."""
    env = CartPole()
    env.dt = 1e-4
    state = env.reset(3, seeded()).double()
    start, push = state, torch.full((3, 1), 0.3).double()
    for _ in range(5000):
        state = env.step(state, push).state
    work = 0.3 * env.force * (state[:, 0] - start[:, 0])
    assert torch.allclose(energy(env, state) - energy(env, start), work, atol=5e-3)


def test_acceleration_of_the_textbook():
    env = CartPole()
    x, v, a, w, f = 0.1, -0.2, 0.3, 0.4, 5.0
    state, reward, *_ = env.step(double([[x, v, a, w]]), double([[0.5]]))
    temp = (f + 0.05 * w**2 * math.sin(a)) / 1.1
    turn = (9.8 * math.sin(a) - math.cos(a) * temp) / (0.5 * (4 / 3 - 0.1 * math.cos(a) ** 2 / 1.1))
    push = temp - 0.05 * turn * math.cos(a) / 1.1
    v, w = v + 0.02 * push, w + 0.02 * turn
    x, a = x + 0.02 * v, a + 0.02 * w
    assert torch.allclose(state, double([[x, v, a, w]]), atol=1e-12)
    assert abs(reward.item() - math.exp(-4 * (1 - math.cos(a))) / (1 + (x / 2.4) ** 2)) < 1e-12


def test_starts_actions_and_observations():
    env, down = CartPole(), double([[0, 0, math.pi, 0]] * 2)
    assert env.observe(down)[0].tolist() == pytest.approx([0, 0, -1, 0, 0])
    assert env.step(down, torch.zeros(2, 1).double())[1].max() < 1e-3
    assert env.reset(4000, seeded()).std(0).tolist() == pytest.approx([0.2] * 4, rel=0.05)
    env = CartPole()
    state = env.reset(2, seeded())
    assert torch.equal(
        env.step(state, torch.full((2, 1), 7.0))[0], env.step(state, torch.ones(2, 1))[0]
    )


def test_mountain_car_by_the_loop():
    env = MountainCar()
    state = env.reset(50, seeded()).double()
    assert ((state[:, 0] + 0.5).abs() <= 0.1).all() and not state[:, 1].any()
    g, walls = seeded(1), set()
    twin = state.tolist()
    for _ in range(150):
        force = 3 * torch.randn(50, 1, generator=g, dtype=torch.float64) + 2 * (state[:, 1:].sign())
        state, reward, *_ = env.step(state, force)
        for i, (x, v) in enumerate(twin):
            v += 0.0015 * min(1, max(-1, force[i, 0].item())) - 0.0025 * math.cos(3 * x)
            v = min(0.07, max(-0.07, v))
            x += v
            if x <= -1.2 or x >= 0.6:
                walls.add(x > 0)
                x, v = (-1.2 if x < 0 else 0.6), 0.0
            twin[i] = x, v
            assert abs(reward[i] - (1 + math.sin(3 * x)) / 2) < 1e-9
        assert torch.allclose(state, double(twin), atol=1e-9)
    assert walls == {True, False}  # both walls were met


def test_mountain_car_is_too_weak_to_drive_straight_out():
    env = MountainCar()
    right = pumping = env.reset(20, seeded()).double()
    for _ in range(300):
        right = env.step(right, torch.ones(20, 1).double()).state
        pumping = env.step(pumping, pumping[:, 1:].sign()).state
    assert (right[:, 0] < 0.2).all() and (pumping[:, 0] > 0.45).all()


def test_swing_up_of_the_textbook():
    """The equations from the Lagrangian of a cart and a uniform rod, solved as a linear system."""
    env = SwingUp()
    x, v, a, w, f = 0.3, -0.7, 2.1, 1.3, 0.4
    m, M, l, g, b = 0.5, 1.0, 0.6, 9.82, 0.1
    left = double([[M, m * l / 2 * -math.cos(a)], [-math.cos(a), 2 * l / 3]])
    right = double([10 * f - b * v - m * l / 2 * w * w * math.sin(a), g * math.sin(a)])
    dv, dw = torch.linalg.solve(left, right).tolist()
    step = env.step(double([[x, v, a, w, 7]]), double([[f]]))
    wanted = double([[x + 0.01 * v, v + 0.01 * dv, a + 0.01 * w, w + 0.01 * dw, 8]])
    assert torch.allclose(step.state, wanted, atol=1e-12)
    x, a = wanted[0, 0], wanted[0, 2]
    reward = (a.cos() + 1) / 2 * torch.cos(math.pi * x / 4.8)
    assert torch.allclose(step.reward, reward) and not step.terminated and not step.truncated


def test_holding_an_action_is_repeating_it():
    one, five = SwingUp(), SwingUp(hold=5, longest=12)
    state = held = one.reset(50, seeded(8)) + torch.tensor([2.2, 2.0, 0, 0, 0])
    action = 2 * torch.rand(50, 1, generator=seeded(9)) - 1
    out, total = torch.zeros(50, dtype=torch.bool), torch.zeros(50)
    for t in range(12):
        step = one.step(state, action)
        total += step.reward * ~out
        state = torch.where(out[:, None], state, step.state)
        out |= step.terminated
        if t in (4, 9, 11):
            assert torch.allclose(total, five.step(held, action).reward, atol=1e-5)
            after = five.step(held, action)
            assert torch.allclose(after.state, state) and torch.equal(after.terminated, out)
            assert torch.equal(after.truncated, ~out & (t == 11))
            held, total = after.state, torch.zeros(50)
    assert 0 < out.sum() < 50 and five.longest == 3


def test_the_expert_swings_up():
    env = SwingUp()
    state, total = env.reset(40, seeded(10)), torch.zeros(40)
    for _ in range(1000):
        step = env.step(state, env.expert(state))
        state, total = step.state, total + step.reward
        assert not step.terminated.any()
    assert total.min() > 850 and state[:, 2].cos().min() > 0.99


def test_the_hard_start():
    env = SwingUp("hard")
    state = env.reset(4000, seeded(11))
    wide = torch.tensor([2.4, 10, math.pi / 2, 10])
    away = (state[:, :4] - torch.tensor([0, 0, math.pi, 0])).abs()
    assert bool((away <= wide + 1e-6).all()) and bool((away.max(0).values > 0.98 * wide).all())
    with pytest.raises(ValueError, match="start"):
        SwingUp("up")
    with pytest.raises(ValueError, match="hold"):
        SwingUp(hold=0)
