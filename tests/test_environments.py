"""Environments against their physics."""

import math

import pytest
import torch

from collage.environments import CartPole


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
    assert abs(reward.item() - (1 + math.cos(a)) / 2 * math.exp(-((x / 2.4) ** 2))) < 1e-12


def test_starts_actions_and_observations():
    down = CartPole("down", spread=0.0, dtype=torch.float64)
    state = down.reset(2, seeded())
    assert torch.equal(state, double([[0, 0, math.pi, 0]] * 2))
    assert down.observe(state)[0].tolist() == pytest.approx([0, 0, -1, 0, 0])
    assert down.step(state, torch.zeros(2, 1).double())[1].max() < 1e-12
    env = CartPole()
    state = env.reset(2, seeded())
    assert torch.equal(
        env.step(state, torch.full((2, 1), 7.0))[0], env.step(state, torch.ones(2, 1))[0]
    )
    with pytest.raises(ValueError, match="start"):
        CartPole("left")
