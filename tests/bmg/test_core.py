"""Bootstrapped meta-gradients: identities, finite differences, fixed points, independence, memory."""

import gc
import math
import weakref

import pytest
import torch

from collage.bmg import bootstrap_target, meta_gradient, policy_kl, squared_distance, unroll
from collage.bmg.core import coefficient_gradient
from collage.common.populations import tree_leaves
from tests.bmg.valley import NoisyValley

ALPHA = 0.05


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def problem(S=3, d=4, seed=0):
    """A loss that is not quadratic, gradient steps on it with learned rates, and a start."""
    A, b = normal(S, d, d, seed=seed), normal(S, d, seed=seed + 1)

    def f(x):
        return (torch.einsum("sij,sj->si", A, x) - b).tanh().square().sum(1)

    slope = torch.func.grad(lambda x: f(x).sum())

    def update(x, w, k):
        return x - w["rate"].exp() * slope(x) + w["pull"][:, None] * 0.1 * x.sin()

    w = {"rate": normal(S, d, seed=seed + 2) - 2, "pull": normal(S, seed=seed + 3)}
    return f, update, (lambda x, k: x - ALPHA * slope(x)), w, normal(S, d, seed=seed + 4)


@pytest.mark.parametrize("K", [1, 3, 6])
def test_one_step_of_bootstrap_is_the_plain_meta_gradient(K):
    f, update, real_step, w, x = problem()
    mg = meta_gradient(update, x, w, K, objective=f)
    bmg = meta_gradient(update, x, w, K, 1, ground_truth_step=real_step)
    for name in w:
        assert torch.allclose(bmg.gradient[name], ALPHA * mg.gradient[name], rtol=1e-12, atol=0)
    assert torch.equal(bmg.onward, mg.onward)


def test_one_step_in_another_metric():
    """A preconditioned last step is matched with the inverse metric to the same gradient."""
    f, update, _, w, x = problem()
    B = normal(3, 4, seed=9).square() + 0.5
    slope = torch.func.grad(lambda x: f(x).sum())
    mg = meta_gradient(update, x, w, 2, objective=f)
    bmg = meta_gradient(update, x, w, 2, 1, ground_truth_step=lambda x, k: x - ALPHA * B * slope(x),
                        matching=lambda t, x: ((t - x).square() / B).sum(1) / 2)  # fmt: skip
    assert torch.allclose(bmg.gradient["rate"], ALPHA * mg.gradient["rate"], rtol=1e-11, atol=0)


def test_a_target_that_is_reached_asks_for_nothing():
    _, update, _, w, x = problem()
    for matching in (squared_distance, policy_kl):
        meta = meta_gradient(
            update, x, w, 3, 1, ground_truth_step=lambda x, k: x, matching=matching
        )
        assert all(bool(g.abs().max() < 1e-15) for g in meta.gradient.values())


@pytest.mark.parametrize("L", [None, 1, 4])
def test_central_differences(L):
    """With the target held, the gradient of the matching is that of finite differences."""
    f, update, real_step, w, x = problem()
    meta = meta_gradient(update, x, w, 3, L, objective=f, ground_truth_step=real_step)

    def loss(w):
        student = unroll(update, x, w, 3)[-1]
        return (f(student) if L is None else squared_distance(meta.target, student)).sum()

    for name in w:
        flat = w[name].flatten()
        for i in range(len(flat)):
            ends = []
            for h in (1e-5, -1e-5):
                moved = flat.clone()
                moved[i] += h
                ends.append(loss({**w, name: moved.view_as(w[name])}))
            slope = (ends[0] - ends[1]) / 2e-5
            assert abs(slope - meta.gradient[name].flatten()[i]) < 1e-6 * (1 + abs(slope))


def test_the_lifetime_goes_on_from_a_replay():
    """Onward is x after K + L - 1 updates, bit for bit, and the target one real step more."""
    _, update, real_step, w, x = problem()
    meta = meta_gradient(update, x, w, 2, 5, ground_truth_step=real_step)
    states = unroll(update, x, w, 6)
    assert torch.equal(meta.onward, states[-1])
    assert torch.equal(meta.target, real_step(states[-1], 6))
    boot = bootstrap_target(update, real_step, states[2], w, 5, first=2)
    assert torch.equal(boot.onward, states[-1]) and torch.equal(boot.target, meta.target)


def test_steps_are_counted_through():
    calls = []

    def update(x, w, k):
        calls.append(k)
        return x * w

    meta_gradient(update, torch.ones(1), torch.ones(1), 2, 3,
                  ground_truth_step=lambda x, k: calls.append(("real", k)) or x)  # fmt: skip
    assert calls == [0, 1, 2, 3, ("real", 4)]


def test_nothing_flows_through_the_target():
    """The gradient is that of the same target given as a constant; the step's w is not seen."""
    _, update, real_step, w, x = problem()
    meta = meta_gradient(update, x, w, 2, 4, ground_truth_step=real_step)
    same = meta_gradient(update, x, w, 2, 1, ground_truth_step=lambda x, k: meta.target)
    assert all(torch.equal(meta.gradient[n], same.gradient[n]) for n in w)


@pytest.mark.parametrize("L", [None, 4])
def test_what_is_returned_has_no_graph(L):
    f, update, real_step, w, x = problem()
    meta = meta_gradient(update, x, w, 2, L, objective=f, ground_truth_step=real_step)
    returned = [meta.onward, meta.losses, *meta.gradient.values(), *w.values()]
    assert not any(t.requires_grad for t in returned + ([] if L is None else [meta.target]))


def test_lifetimes_are_independent():
    _, update, real_step, w, x = problem(S=4)
    every = meta_gradient(update, x, w, 2, 3, ground_truth_step=real_step)
    x2 = x.clone()
    x2[1] += 1
    other = meta_gradient(update, x2, w, 2, 3, ground_truth_step=real_step)
    for name in w:
        same = (every.gradient[name] == other.gradient[name]).view(4, -1).all(1)
        assert same.tolist() == [True, False, True, True]


def stationary(gradient):
    """The root of a meta-gradient in w, by bisection."""
    low, high = 0.0, 1000.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if gradient(middle) < 0 else (low, middle)
    return (low + high) / 2


def test_fixed_points_of_the_quadratic():
    """MG settles on the Cauchy step, a far-sighted bootstrap on the step of least error."""
    h = torch.tensor([1.0, 0.01], dtype=torch.float64)
    x = torch.tensor([[1.0, 100.0]], dtype=torch.float64)

    def update(x, w, k):  # exact gradients of sum h x^2 / 2, one learned rate
        return x - w[:, None] * h * x

    def mg(rate):
        w = torch.tensor([rate], dtype=torch.float64)
        return meta_gradient(update, x, w, 1, objective=lambda x: (h * x * x).sum(1) / 2).gradient

    def bmg(rate):
        w = torch.tensor([rate], dtype=torch.float64)
        return meta_gradient(update, x, w, 1, 1, ground_truth_step=lambda x, k: 0 * x).gradient

    assert stationary(mg) == pytest.approx(1.9801980198, abs=1e-9)  # g'g / g'Hg
    assert stationary(bmg) == pytest.approx(50.5, abs=1e-9)  # x'g / g'g, the optimum at 0


def test_one_additive_term_needs_no_second_backward():
    """The coefficient of an entropy bonus, by the chain rule and by autograd through the update."""
    states, actions = 6, 4
    x, values = normal(3, states, actions), normal(3, states, actions, seed=5)

    def gain(x):
        return (x.softmax(-1) * values).sum((1, 2))

    def entropy(x):
        return -(x.softmax(-1) * x.log_softmax(-1)).sum((1, 2))

    climb = torch.func.grad(lambda x: gain(x).sum())
    widen = torch.func.grad(lambda x: entropy(x).sum())

    def update(x, w, k):
        eps = torch.sigmoid(w)[:, None, None]
        return x + 0.3 * (climb(x) + eps * widen(x))

    def real_step(x, k):
        return x + 0.3 * climb(x)

    w = normal(3, seed=6)
    meta = meta_gradient(update, x, w, 1, 4, ground_truth_step=real_step, matching=policy_kl)
    student = update(x, w, 0)
    slope, losses = coefficient_gradient(student, 0.3 * widen(x), meta.target, policy_kl)
    eps = torch.sigmoid(w)
    assert torch.allclose(slope * eps * (1 - eps), meta.gradient, rtol=1e-10, atol=1e-16)
    assert torch.allclose(losses, meta.losses, rtol=1e-12)
    assert slope.abs().min() > 1e-6
    with pytest.raises(ValueError, match="direction: got"):
        coefficient_gradient(student, x[:, :-1], meta.target, policy_kl)
    with pytest.raises(ValueError, match="matching: returned"):
        coefficient_gradient(student, x, x, lambda t, x: (t - x).sum((1, 2), keepdim=True))
    with pytest.raises(ValueError, match="matching: its result does not depend"):
        coefficient_gradient(student, x, x, lambda t, x: t.sum((1, 2)))


def test_direction_and_slope_of_the_divergence():
    target, logits = normal(2, 3, 5), normal(2, 3, 5, seed=1).requires_grad_()
    p, q = target.softmax(-1), logits.softmax(-1)
    by_loop = torch.zeros(2, dtype=torch.float64)
    for s in range(2):
        for i in range(3):
            for a in range(5):
                by_loop[s] += (p[s, i, a] * (p[s, i, a].log() - q[s, i, a].log())).detach()
    divergence = policy_kl(target, logits)
    assert torch.allclose(divergence, by_loop, rtol=1e-12)
    (slope,) = torch.autograd.grad(divergence.sum(), logits)
    assert torch.allclose(slope, q - p, atol=1e-14)
    assert not torch.allclose(policy_kl(logits, target), divergence)


def test_what_a_target_never_does_costs_nothing():
    never = torch.tensor([[[0.0, 0.0, -torch.inf]]])
    assert torch.allclose(policy_kl(never, never), torch.zeros(1))
    assert torch.allclose(policy_kl(never, torch.zeros(1, 1, 3)), torch.tensor([math.log(1.5)]))


def test_counters_are_no_distance():
    x = (normal(2, 3), torch.zeros(2, dtype=torch.long))
    assert torch.equal(squared_distance((x[0], x[1] + 9), x), torch.zeros(2).double())


def tensors_alive():
    gc.collect()
    return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())


def test_memory_is_flat():
    _, update, real_step, w, x = problem(S=2, d=2)
    w = {name: t.requires_grad_() for name, t in w.items()}
    adam = torch.optim.Adam(w.values(), 1e-3)
    for i in range(100):
        meta = meta_gradient(update, x, w, 2, 3, ground_truth_step=real_step)
        for leaf, gradient in zip(tree_leaves(w), tree_leaves(meta.gradient), strict=True):
            leaf.grad = gradient
        adam.step()
        x = meta.onward
        if i == 10:
            count = tensors_alive()
    assert tensors_alive() <= count + 2


def test_a_long_bootstrap_keeps_no_states():
    """Memory does not grow with L: a state is gone when the next but one is made."""
    _, update, real_step, w, x = problem()
    made, most = [], 0

    def watched(x, w, k):
        nonlocal most
        new = update(x, w, k)
        made.append(weakref.ref(new))
        most = max(most, sum(ref() is not None for ref in made))
        return new

    bootstrap_target(watched, real_step, x, w, 20)
    assert len(made) == 19 and most <= 2


def test_bad_input():
    f, update, real_step, w, x = problem()
    for bad in (0, -1, 1.5):
        with pytest.raises(ValueError, match="K: got"):
            meta_gradient(update, x, w, bad, objective=f)
        with pytest.raises(ValueError, match="L: got"):
            meta_gradient(update, x, w, 1, bad, ground_truth_step=real_step)
        with pytest.raises(ValueError, match="steps: got"):
            unroll(update, x, w, bad)
    with pytest.raises(ValueError, match="objective: got None"):
        meta_gradient(update, x, w, 1)
    with pytest.raises(ValueError, match="ground_truth_step: got None"):
        meta_gradient(update, x, w, 1, 1)
    with pytest.raises(ValueError, match="matching: returned"):
        meta_gradient(update, x, w, 1, 1, ground_truth_step=real_step,
                      matching=lambda t, x: squared_distance(t, x).sum())  # fmt: skip
    with pytest.raises(ValueError, match="does not depend on w"):
        meta_gradient(lambda x, w, k: x * 0.5, x, w, 1, objective=f)
    with pytest.raises(ValueError, match="every leaf of w"):
        meta_gradient(lambda x, w, k: x * w["rate"], x, w, 1, objective=f)
    for matching in (squared_distance, policy_kl):
        with pytest.raises(ValueError, match="target: got"):
            matching(torch.zeros(2, 3), torch.zeros(2, 4))


def test_short_sight_shrinks_the_rate_and_the_bootstrap_does_not():
    """From the same low rate in a noisy valley: the far-sighted bootstrap ends with a larger one."""
    valley = NoisyValley([1.0, 0.01], sigma=[1.0, 0.01])
    rates = {}
    for name, L in (("MG", None), ("BMG", 20)):
        x = torch.tensor([[0.0, 30.0]]).repeat(32, 1)
        w = torch.full((32,), 0.05).log().requires_grad_()
        updates = 1 if L is None else L  # of a meta-step
        adam = torch.optim.Adam([w], 0.01 * updates)
        for k in range(0, 400, updates):
            meta = meta_gradient(lambda x, w, i, k=k: valley.update(x, w, k + i), x, w, 1, L,
                                 objective=valley.objective, ground_truth_step=lambda x, i, k=k:
                                 valley.ground_truth_step(x, k + i))  # fmt: skip
            w.grad, x = meta.gradient, meta.onward
            adam.step()
        rates[name] = w.exp().mean().item()
    assert rates["BMG"] > 1.3 * rates["MG"]
