"""Implicit Q-learning against plain loops and exact values."""

import pytest
import torch
import torch.nn.functional as F

from collage.decision_transformer import ImplicitQ, Trajectories, Window, fit
from tests.decision_transformer.examples import episodes, seeded


def data(discrete=False):
    ended = torch.tensor([True, True, False, True])
    return episodes((6, 1, 4, 9), 1, discrete, state_dim=2, actions=3, ended=ended)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("context", [1, 3])
def test_loss_of_a_loop(discrete, context):
    m = ImplicitQ(2, 3, context=context, width=8, discrete=discrete, expectile=0.8, temperature=2.0,
                  discount=0.9, seed=3).units(torch.tensor([0.5, -1]), torch.tensor([2.0, 0.5]), 3.0)  # fmt: skip
    m.target.add_(0.3 * torch.randn(m.target.shape, generator=seeded(4)))
    sets = data(discrete=discrete)
    window = sets.windows(torch.tensor([0, 4, 6, 7, 9, 12, 19]), context + 1)

    def net(name, x, weights=None):
        p = m.tensors(weights)
        for i in range(3):
            x = x.relu() if i else x
            x = x @ p[f"{name}{i} weight"][0] + p[f"{name}{i} bias"][0, 0]
        return x

    def history(b, t):
        """The newest first: states with a flag, then the earlier actions."""
        states, actions = [], []
        for back in range(context):
            there = t - back >= 0 and bool(window.mask[b, t - back])
            s = (window.states[b, t - back] - torch.tensor([0.5, -1])) / torch.tensor([2.0, 0.5])
            states.append(torch.cat([s, torch.ones(1)]) if there else torch.zeros(3))
            a = window.actions[b, t - back]
            a = F.one_hot(a, 3).float() if discrete else a
            actions.append(a if there else torch.zeros(3))
        return torch.cat([*states, *actions[1:]])

    total, count = 0.0, 0
    for b in range(len(window.mask)):
        for t in range(context):
            if not window.mask[b, t]:
                continue
            count += 1
            h = history(b, t)
            a = window.actions[b, t]
            a = F.one_hot(a, 3).float() if discrete else a
            pair = torch.cat([h, a])
            q = min(float(net(n, pair, m.target).detach()) for n in ("q1", "q2"))
            v = float(net("v", h))
            total += (0.8 if q > v else 0.2) * (q - v) ** 2
            pi = net("pi", h)
            miss = -float((pi.log_softmax(0) * a).sum()) if discrete else float(
                (pi.tanh() - a).square().mean())  # fmt: skip
            total += min(100.0, float(torch.tensor(2.0 * (q - v)).exp())) * miss
            follows = bool(window.mask[b, t + 1])
            if follows or window.over[b, t]:
                later = 0.0
                if follows:
                    later = float(net("v", history(b, t + 1)))
                goal = float(window.rewards[b, t]) / 3 + 0.9 * later
                total += sum((float(net(n, pair)) - goal) ** 2 for n in ("q1", "q2"))
    assert abs(float(m.loss(window)) - total / count) < 1e-4


@pytest.mark.slow
def test_values_of_a_chain():
    """Two steps, known rewards: V approaches the value of the best recorded action."""
    g, n = seeded(5), 1000
    a = torch.randint(2, (n, 2), generator=g)
    rewards = torch.stack([torch.zeros(n), (a[:, 0] == 1).float() * (a[:, 1] == 0)], 1)
    # One stands at 0; action 1 leads to 2, action 0 to 1, where nothing can be won.
    states = torch.stack([torch.zeros(n, dtype=torch.long), 1 + a[:, 0]], 1)
    sets = Trajectories(F.one_hot(states, 3).float().flatten(0, 1), a.flatten(), rewards.flatten(),
                        torch.full((n,), 2))  # fmt: skip
    m = ImplicitQ(3, 2, discrete=True, width=32, expectile=0.95, temperature=10.0, discount=1.0)
    fit(m, sets, 1500, batch=128, lr=3e-3, clip=10.0)
    x = torch.cat([torch.eye(3), torch.ones(3, 1)], 1)[None]
    v = m.network("v", x, m.tensors())[0, :, 0]
    assert torch.allclose(v, torch.tensor([1.0, 0.0, 1.0]), atol=0.1)
    zero = torch.zeros(3, 1)
    window = Window(zero, torch.eye(3)[:, None], zero.long(), zero.long(), zero, zero > 1, zero < 1)
    act = m.act(window)
    assert act[0] == 1 and act[2] == 0


@pytest.mark.slow
def test_values_travel_back_through_a_long_chain():
    """Sixteen steps with a reward at the end: its value arrives at the start in time."""
    n = 16
    sets = Trajectories(torch.eye(n), torch.zeros(n, dtype=torch.long),
                        F.one_hot(torch.tensor(n - 1), n).float(), torch.tensor([n]))  # fmt: skip
    m = ImplicitQ(n, 1, discrete=True, width=32, discount=1.0, follow=0.1)
    fit(m, sets, 800, batch=64, lr=2e-3, clip=10.0)
    x = torch.cat([torch.eye(n), torch.ones(n, 1)], 1)[None]
    assert (m.network("v", x, m.tensors())[0, :, 0] - 1).abs().max() < 0.15


def test_temperature_zero_is_behaviour_cloning():
    """The policy's gradient is that of the plain log-likelihood."""
    m = ImplicitQ(2, 3, width=8, discrete=True, temperature=0.0)
    window = data(discrete=True).windows(torch.arange(15), 2)
    (found,) = torch.autograd.grad(m.loss(window).sum(), m.weights)
    h = m.histories(m.in_units(window))[:, :, :1].flatten(1, 2)
    logits = m.network("pi", h, m.tensors())[0]
    (wanted,) = torch.autograd.grad(F.cross_entropy(logits, window.actions[:, 0]), m.weights)
    a, b = m.tensors(found), m.tensors(wanted)
    for name in [k for k in m.shapes if k.startswith("pi")]:
        assert torch.allclose(a[name], b[name], atol=1e-6) and b[name].abs().sum() > 0


def test_slow_copies_follow_and_stacks_are_their_members():
    m = ImplicitQ(2, 3, width=8, members=2)
    start = m.target.clone()
    losses = fit(m, data(), 20, batch=16, lr=1e-3)
    assert not torch.equal(m.target, start)
    assert (m.target - start).norm() < (m.weights - start).norm()
    one = ImplicitQ(2, 3, width=8, seed=1)
    assert torch.allclose(fit(one, data(), 20, batch=16, lr=1e-3)[:, 0], losses[:, 1], atol=1e-5)
    assert torch.allclose(one.weights[0], m.weights[1], atol=1e-5)


def test_resumed_with_its_slow_copies(tmp_path):
    wanted = ImplicitQ(2, 3, width=8)
    fit(wanted, data(), 30, batch=8)
    m = ImplicitQ(2, 3, width=8)
    after, calls = m.after, []

    def breaks():
        calls.append(1)
        if len(calls) == 25:
            raise KeyboardInterrupt
        after()

    m.after = breaks
    with pytest.raises(KeyboardInterrupt):
        fit(m, data(), 30, batch=8, every=10, checkpoint=tmp_path / "q.npz")
    m.after = after
    fit(m, data(), 30, batch=8, every=10, checkpoint=tmp_path / "q.npz")
    assert torch.equal(m.weights, wanted.weights) and torch.equal(m.target, wanted.target)


def test_bad_settings():
    for settings in ({"expectile": 1.0}, {"discount": 0.0}, {"temperature": -1.0}, {"follow": 0}):
        with pytest.raises(ValueError, match=r"expectile, discount, temperature|follow"):
            ImplicitQ(2, 3, **settings)
    for name in ("context", "width", "members"):
        with pytest.raises(ValueError, match=name):
            ImplicitQ(2, 3, **{name: 0})
