"""Environments against their physics."""

import math

import pytest
import torch

from collage.environments import CartPole, MountainCar


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
        env = CartPole(dt=dt, spread=0.5, dtype=torch.float64)
        state = env.reset(5, seeded())
        start, zero = state, torch.zeros(5, 1).double()
        for _ in range(round(1 / dt)):
            state, _ = env.step(state, zero)
        drifts.append((energy(env, state) - energy(env, start)).abs().max())
        momentum = [(env.cart + env.pole) * s[:, 1] + env.pole * env.length * s[:, 3] * s[:, 2].cos()
                    for s in (start, state)]  # fmt: skip
        assert torch.allclose(*momentum, atol=20 * dt)
    assert drifts[0] < 0.01 and 1.6 < drifts[0] / drifts[1] < 2.5  # of first order in dt


def test_a_force_does_its_work():
    """The gain of energy is force times the way of the cart."""
    env = CartPole(dt=1e-4, dtype=torch.float64)
    state = env.reset(3, seeded())
    start, push = state, torch.full((3, 1), 0.3).double()
    for _ in range(5000):
        state, _ = env.step(state, push)
    work = 0.3 * env.force * (state[:, 0] - start[:, 0])
    assert torch.allclose(energy(env, state) - energy(env, start), work, atol=5e-3)


def test_acceleration_of_the_textbook():
    env = CartPole(dtype=torch.float64)
    x, v, a, w, f = 0.1, -0.2, 0.3, 0.4, 5.0
    state, reward = env.step(double([[x, v, a, w]]), double([[0.5]]))
    temp = (f + 0.05 * w**2 * math.sin(a)) / 1.1
    turn = (9.8 * math.sin(a) - math.cos(a) * temp) / (0.5 * (4 / 3 - 0.1 * math.cos(a) ** 2 / 1.1))
    push = temp - 0.05 * turn * math.cos(a) / 1.1
    v, w = v + 0.02 * push, w + 0.02 * turn
    x, a = x + 0.02 * v, a + 0.02 * w
    assert torch.allclose(state, double([[x, v, a, w]]), atol=1e-12)
    assert abs(reward.item() - math.exp(-4 * (1 - math.cos(a))) / (1 + (x / 2.4) ** 2)) < 1e-12


def test_starts_actions_and_observations():
    down = CartPole("down", spread=0.0, dtype=torch.float64)
    state = down.reset(2, seeded())
    assert torch.equal(state, double([[0, 0, math.pi, 0]] * 2))
    assert down.observe(state)[0].tolist() == pytest.approx([0, 0, -1, 0, 0])
    assert down.step(state, torch.zeros(2, 1).double())[1].max() < 1e-3
    env = CartPole()
    state = env.reset(2, seeded())
    assert torch.equal(
        env.step(state, torch.full((2, 1), 7.0))[0], env.step(state, torch.ones(2, 1))[0]
    )
    with pytest.raises(ValueError, match="start"):
        CartPole("left")


def test_mountain_car_by_the_loop():
    env = MountainCar(dtype=torch.float64)
    state = env.reset(50, seeded())
    assert ((state[:, 0] + 0.5).abs() <= 0.1).all() and not state[:, 1].any()
    g, walls = seeded(1), set()
    twin = state.tolist()
    for _ in range(150):
        force = 3 * torch.randn(50, 1, generator=g, dtype=torch.float64) + 2 * (state[:, 1:].sign())
        state, reward = env.step(state, force)
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
    env = MountainCar(dtype=torch.float64)
    right = pumping = env.reset(20, seeded())
    for _ in range(300):
        right, _ = env.step(right, torch.ones(20, 1).double())
        pumping, _ = env.step(pumping, pumping[:, 1:].sign())
    assert (right[:, 0] < 0.2).all() and (pumping[:, 0] > 0.45).all()
