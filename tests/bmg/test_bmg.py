"""Bootstrapped meta-gradients: identities, finite differences, fixed points, independence, memory."""

import gc
import math
import weakref

import pytest
import torch

from collage.bmg import (
    ColourLearner,
    ExactColours,
    ExactLearner,
    MetaLoop,
    NoisyQuadratic,
    TwoColours,
    actors,
    bootstrap_target,
    coefficient_gradient,
    colour_step,
    detached,
    match,
    match_tables,
    meta_gradient,
    meta_step,
    objective,
    policy_kl,
    squared_distance,
    start_meta,
    unroll,
)
from collage.common.networks import forward
from collage.common.populations import leaves, nest

ALPHA = 0.05


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


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
    f, update, plain, w, x = problem()
    mg = meta_gradient(update, x, w, K, objective=f)
    bmg = meta_gradient(update, x, w, K, 1, ground_truth_step=plain)
    for name in w:
        assert torch.allclose(bmg.gradient[name], ALPHA * mg.gradient[name], rtol=1e-12, atol=0)
    assert torch.equal(bmg.onward, mg.onward)


def test_one_step_in_another_metric():
    """A preconditioned last step is matched with the inverse metric to the same gradient."""
    f, update, _, w, x = problem()
    B = torch.rand(3, 4, generator=seeded(9), dtype=torch.float64) + 0.5
    slope = torch.func.grad(lambda x: f(x).sum())
    mg = meta_gradient(update, x, w, 2, objective=f)
    bmg = meta_gradient(update, x, w, 2, 1, ground_truth_step=lambda x, k: x - ALPHA * B * slope(x),
                        matching=lambda t, x: ((t - x).square() / B).sum(1) / 2)  # fmt: skip
    assert torch.allclose(bmg.gradient["rate"], ALPHA * mg.gradient["rate"], rtol=1e-11, atol=0)


def test_a_target_that_is_reached_asks_for_nothing():
    _, update, _, w, x = problem()
    for matching in (squared_distance, policy_kl):
        done = meta_gradient(
            update, x, w, 3, 1, ground_truth_step=lambda x, k: x, matching=matching
        )
        assert all(bool(g.abs().max() < 1e-15) for g in done.gradient.values())


@pytest.mark.parametrize("L", [None, 1, 4])
def test_central_differences(L):
    """With the target held, the gradient of the matching is that of finite differences."""
    f, update, plain, w, x = problem()
    found = meta_gradient(update, x, w, 3, L, objective=f, ground_truth_step=plain)

    def loss(w):
        student = unroll(update, x, w, 3)[-1]
        return (f(student) if L is None else squared_distance(found.target, student)).sum()

    for name, h in (("rate", 1e-5), ("pull", 1e-5)):
        flat = w[name].flatten()
        for i in range(len(flat)):
            ends = []
            for sign in (1, -1):
                moved = flat.clone()
                moved[i] += sign * h
                ends.append(loss({**w, name: moved.view_as(w[name])}))
            slope = (ends[0] - ends[1]) / (2 * h)
            assert abs(slope - found.gradient[name].flatten()[i]) < 1e-6 * (1 + abs(slope))


def test_the_lifetime_goes_on_from_a_replay():
    """Onward is x after K + L - 1 updates, bit for bit, and the target one plain step more."""
    _, update, plain, w, x = problem()
    found = meta_gradient(update, x, w, 2, 5, ground_truth_step=plain, first=7)
    states = unroll(update, x, w, 6, first=7)
    assert torch.equal(found.onward, states[-1])
    assert torch.equal(found.target, plain(states[-1], 13))
    boot = bootstrap_target(update, plain, states[2], w, 5, first=9)
    assert torch.equal(boot.onward, states[-1]) and torch.equal(boot.target, found.target)


def test_steps_are_counted_through():
    seen = []

    def update(x, w, k):
        seen.append(k)
        return x * w

    meta_gradient(update, torch.ones(1), torch.ones(1), 2, 3, first=10,
                  ground_truth_step=lambda x, k: seen.append(("plain", k)) or x)  # fmt: skip
    assert seen == [10, 11, 12, 13, ("plain", 14)]


def test_nothing_flows_through_the_target():
    """The gradient is that of the same target given as a constant; the step's w is not seen."""
    _, update, plain, w, x = problem()
    found = meta_gradient(update, x, w, 2, 4, ground_truth_step=plain)
    same = meta_gradient(update, x, w, 2, 1, ground_truth_step=lambda x, k: found.target)
    assert all(torch.equal(found.gradient[n], same.gradient[n]) for n in w)
    for leaf in (found.onward, found.target, found.losses, *found.gradient.values()):
        assert not leaf.requires_grad
    assert not any(leaf.requires_grad for leaf in w.values())


def test_lifetimes_are_independent():
    _, update, plain, w, x = problem(S=4)
    every = meta_gradient(update, x, w, 2, 3, ground_truth_step=plain)
    x2 = x.clone()
    x2[1] += 1
    other = meta_gradient(update, x2, w, 2, 3, ground_truth_step=plain)
    for name in w:
        same = (every.gradient[name] == other.gradient[name]).view(4, -1).all(1)
        assert same.tolist() == [True, False, True, True]


def quadratic(x, h=(1.0, 0.01)):
    """One learned rate, exact gradients of sum h x^2 / 2: (S, 2)."""
    h = torch.tensor(h, dtype=torch.float64)

    def update(x, w, k):
        return x - w[:, None] * h * x

    return h, update, torch.tensor([x], dtype=torch.float64)


def stationary(gradient):
    """The root of a meta-gradient in w, by bisection."""
    low, high = 0.0, 1000.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if gradient(middle) < 0 else (low, middle)
    return (low + high) / 2


def test_fixed_points_of_the_quadratic():
    """MG settles on the Cauchy step, a far-sighted bootstrap on the step of least error."""
    h, update, x = quadratic((1.0, 100.0))

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

    def plain(x, k):
        return x + 0.3 * climb(x)

    w = normal(3, seed=6)
    found = meta_gradient(update, x, w, 1, 4, ground_truth_step=plain, matching=policy_kl)
    student = update(x, w, 0)
    slope, losses = coefficient_gradient(student, 0.3 * widen(x), found.target, policy_kl)
    eps = torch.sigmoid(w)
    assert torch.allclose(slope * eps * (1 - eps), found.gradient, rtol=1e-10, atol=1e-16)
    assert torch.allclose(losses, found.losses, rtol=1e-12)
    assert slope.abs().min() > 1e-6
    with pytest.raises(ValueError, match="direction: got"):
        coefficient_gradient(student, x[:, :-1], found.target, policy_kl)
    with pytest.raises(ValueError, match="matching: returned"):
        coefficient_gradient(student, x, x, lambda t, x: (t - x).sum((1, 2), keepdim=True))


def test_direction_and_slope_of_the_divergence():
    target, logits = normal(2, 3, 5), normal(2, 3, 5, seed=1).requires_grad_()
    p, q = target.softmax(-1), logits.softmax(-1)
    loop = torch.zeros(2, dtype=torch.float64)
    for s in range(2):
        for i in range(3):
            for a in range(5):
                loop[s] += (p[s, i, a] * (p[s, i, a].log() - q[s, i, a].log())).detach()
    found = policy_kl(target, logits)
    assert torch.allclose(found, loop, rtol=1e-12)
    (slope,) = torch.autograd.grad(found.sum(), logits)
    assert torch.allclose(slope, q - p, atol=1e-14)
    assert not torch.allclose(policy_kl(logits, target), found)


def test_a_step_moves_w_and_leaves_no_graph():
    _, update, plain, w, x = problem()
    w = {name: t.requires_grad_() for name, t in w.items()}
    before = {name: t.detach().clone() for name, t in w.items()}
    sgd = torch.optim.SGD(w.values(), 0.1)
    done = meta_step(sgd, w, update, x, 2, 3, ground_truth_step=plain)
    for name in w:
        assert torch.allclose(w[name], before[name] - 0.1 * done.gradient[name])
        assert w[name].grad is None and w[name].is_leaf


def alive():
    gc.collect()
    return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())


@pytest.mark.slow
def test_memory_is_flat():
    _, update, plain, w, x = problem(S=2, d=2)
    w = {name: t.requires_grad_() for name, t in w.items()}
    adam = torch.optim.Adam(w.values(), 1e-3)
    for i in range(1000):
        x = meta_step(adam, w, update, x, 2, 3, ground_truth_step=plain).onward
        if i == 10:
            count = alive()
    assert alive() <= count + 2


def test_a_long_bootstrap_keeps_no_states():
    """Memory does not grow with L: a state is gone when the next but one is made."""
    _, update, plain, w, x = problem()
    made, most = [], 0

    def watched(x, w, k):
        nonlocal most
        new = update(x, w, k)
        made.append(weakref.ref(new))
        most = max(most, sum(ref() is not None for ref in made))
        return new

    bootstrap_target(watched, plain, x, w, 20)
    assert len(made) == 19 and most <= 2


def test_bad_input():
    f, update, plain, w, x = problem()
    for bad in (0, -1, 1.5):
        with pytest.raises(ValueError, match="K: got"):
            meta_gradient(update, x, w, bad, objective=f)
        with pytest.raises(ValueError, match="L: got"):
            meta_gradient(update, x, w, 1, bad, ground_truth_step=plain)
        with pytest.raises(ValueError, match="steps: got"):
            unroll(update, x, w, bad)
    with pytest.raises(ValueError, match="objective: got None"):
        meta_gradient(update, x, w, 1)
    with pytest.raises(ValueError, match="ground_truth_step: got None"):
        meta_gradient(update, x, w, 1, 1)
    with pytest.raises(ValueError, match="matching: returned"):
        meta_gradient(update, x, w, 1, 1, ground_truth_step=plain,
                      matching=lambda t, x: squared_distance(t, x).sum())  # fmt: skip
    with pytest.raises(ValueError, match="does not depend on w"):
        meta_gradient(lambda x, w, k: x * 0.5, x, w, 1, objective=f)
    with pytest.raises(ValueError, match="every leaf of w"):
        meta_gradient(lambda x, w, k: x * w["rate"], x, w, 1, objective=f)
    for matching in (squared_distance, policy_kl):
        with pytest.raises(ValueError, match="target: got"):
            matching(torch.zeros(2, 3), torch.zeros(2, 4))


def doubled(state):
    return nest(lambda t: t.double() if t.is_floating_point() else t, state)


def learners(S=3, seed=0, **settings):
    """Two learners with the same draws before them, a life and meta-parameters in float64."""
    pair = []
    for _ in range(2):
        env = TwoColours(3, period=200, see="ways")
        pair.append(
            ColourLearner(env, S, seeded(seed), walkers=4, steps=6, widths=(8,), **settings)
        )
        life, w = doubled(pair[-1].begin()), doubled(pair[-1].start_meta(hidden=5))
    return pair, life, w


@pytest.mark.slow
@pytest.mark.parametrize("L", [1, 2, 5])
def test_the_fast_step_is_the_general_one(L):
    (fast, slow), life, w = learners()
    for _ in range(4):  # some rewards to look back on, from the same draws
        life = fast.update(life, w, 0)
        slow.rollout(life)
    slow.generator.set_state(fast.generator.get_state())
    found = colour_step(fast, life, w, L)
    seen = {}

    def matching(target, x):
        return policy_kl(forward(target.actor, seen["here"]), forward(x.actor, seen["here"])) / (
            seen["here"].shape[1])  # fmt: skip

    # The states of the first rollout after the update: the same draws give the same ones.
    state = slow.generator.get_state()
    student = slow.update(life, w, 0)
    seen["here"] = slow.rollout(student)[0].seen
    slow.generator.set_state(state)
    wanted = meta_gradient(
        slow.update, life, w, 1, L, ground_truth_step=slow.plain, matching=matching
    )
    for mine, theirs in zip(found.gradient, wanted.gradient, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-8, atol=1e-16)
    assert torch.allclose(found.losses, wanted.losses, rtol=1e-9)
    assert found.gradient[-1].abs().min() > 0
    for mine, theirs in zip(found.onward.actor, wanted.onward.actor, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-12)
    assert torch.equal(found.onward.cells, wanted.onward.cells)


def test_with_the_meta_parameters_frozen_it_is_an_actor_critic():
    """L learned updates go on as an ordinary learner with the same bonus would."""
    (one, two), life, w = learners()
    done = colour_step(one, life, w, 4).onward
    for k in range(4):
        life = two.update(life, w, k)
    for a, b in zip(done.actor + done.critic, life.actor + life.critic, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)
    assert torch.equal(done.recent, life.recent)


def test_without_context_the_bonus_is_one_number():
    (learner, _), life, w = learners(context=False)
    moved = life._replace(recent=life.recent + torch.rand(3, 10, generator=seeded()).double())
    assert torch.equal(learner.bonus(w, life), learner.bonus(w, moved))
    (learner, _), life, w = learners()
    moved = life._replace(recent=life.recent + torch.rand(3, 10, generator=seeded()).double())
    assert not torch.equal(learner.bonus(w, life), learner.bonus(w, moved))


def test_an_actor_critic_learns_to_fetch():
    """Well above random moves after 200 updates, while the colours keep their roles."""
    learner = ColourLearner(TwoColours(3, see="ways"), 2, seeded(1), lr=0.5)
    life, w = learner.begin(), learner.start_meta()
    first = learner.update(life, w, 0).recent[:, -1]
    for k in range(200):
        life = learner.update(life, w, k)
    assert bool((life.recent.mean(1) > 0.15).all()) and bool((first < 0.1).all())


def test_a_valley_in_numbers():
    """Steps in a loop; the noise of a step is the same for whoever asks, and has its spread."""
    valley = NoisyQuadratic([1.0, 0.25], sigma=[0.5, 0.1], alpha=0.2, seed=4)
    x, w = normal(3, 2), normal(3, seed=1)
    noise = valley.noise(x, 7)
    after = valley.update(x, w, 7)
    for s in range(3):
        for i, h in enumerate((1.0, 0.25)):
            wanted = x[s, i] - w[s].exp() * (h * x[s, i] + noise[s, i])
            assert after[s, i] == pytest.approx(wanted.item(), rel=1e-12)
    assert torch.allclose(valley.plain(x, 7), x - 0.2 * valley.slope(x, 7))
    assert torch.equal(noise, valley.noise(x, 7)) and not torch.equal(noise, valley.noise(x, 8))
    many = valley.noise(torch.zeros(20_000, 2, dtype=torch.float64), 3)
    assert torch.allclose(many.std(0), torch.tensor([0.5, 0.1]).double(), rtol=0.03)
    assert torch.allclose(valley.objective(x), (x[:, 0] ** 2 + 0.25 * x[:, 1] ** 2) / 2)


def test_short_sight_shrinks_the_rate_and_the_bootstrap_does_not():
    """From the same low rate in a noisy valley: the far-sighted bootstrap ends with a larger one."""
    valley = NoisyQuadratic([1.0, 0.01], sigma=[1.0, 0.01])
    ends = {}
    for name, L in (("MG", None), ("BMG", 20)):
        x = torch.tensor([[0.0, 30.0]]).repeat(32, 1)
        w = torch.full((32,), 0.05).log().requires_grad_()
        many = 1 if L is None else L  # updates of a meta-step
        adam, done = torch.optim.Adam([w], 0.01 * many), 0
        while done < 400:
            x = meta_step(adam, w, valley.update, x, 1, L, first=done, objective=valley.objective,
                          ground_truth_step=valley.plain).onward  # fmt: skip
            done += many
        ends[name] = w.exp().mean().item()
    assert ends["BMG"] > 1.3 * ends["MG"]


def test_valleys_refused():
    for bad in (1.0, [1.0, 0.0], [-1.0], "steep"):
        with pytest.raises(ValueError, match="h: got"):
            NoisyQuadratic(bad)
    with pytest.raises(ValueError, match="alpha: got"):
        NoisyQuadratic([1.0], alpha=0)


def twins_of(S=5, walkers=11, steps=7, widths=(33, 8), see="ways", seed=0, **settings):
    """A learner that runs compiled and one of batched tensors, with the same draws before them."""
    pair = [
        ColourLearner(TwoColours(4, period=9, see=see), S, seeded(seed), walkers=walkers, steps=steps,
                      widths=widths, compiled=compiled, lr=0.7, **settings)
        for compiled in (True, False)
    ]  # fmt: skip
    lives = [learner.begin() for learner in pair]
    assert pair[0].can_compile(lives[0]) and not pair[1].can_compile(lives[1])
    return pair, lives


def assert_alike(one, other, atol=1e-5):
    for a, b in zip(leaves(one), leaves(other), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-4, atol=atol)


@pytest.mark.parametrize(("walkers", "widths", "see"),
                         [(8, (32, 32), "ways"), (11, (33, 8), "places"), (1, (5,), "ways")])  # fmt: skip
def test_the_compiled_life_is_the_life_of_tensors(walkers, widths, see):
    """Step by step: where it goes, what it earns, what it learns, with and without a bonus."""
    pair, (mine, theirs) = twins_of(walkers=walkers, widths=widths, see=see)
    eps = torch.linspace(0, 0.4, 5)
    for k in range(6):
        bonus = None if k == 3 else eps
        mine, where, widening = pair[0].advance(mine, bonus, seen=True, widen=True)
        theirs, there, opening = pair[1].advance(theirs, bonus, seen=True, widen=True)
        assert torch.equal(mine.cells, theirs.cells) and torch.equal(where, there)
        assert_alike(mine, theirs)
        assert_alike(widening, opening, 1e-6)
    found, moved = pair[0].rollout(mine)
    wanted, stayed = pair[1].rollout(mine)
    assert_alike(found, wanted)
    assert_alike(moved, stayed)


@pytest.mark.parametrize("L", [None, 1, 4])
def test_the_compiled_meta_step(L):
    pair, lives = twins_of()
    w = pair[0].start_meta()
    pair[1].start_meta()
    found, wanted = (colour_step(learner, life, w, L, bonus=0.1)
                     for learner, life in zip(pair, lives, strict=True))  # fmt: skip
    assert_alike(found.gradient, wanted.gradient, 1e-7)
    assert_alike(found.losses, wanted.losses, 1e-7)
    assert_alike(found.onward, wanted.onward)


def test_threads_share_the_lifetimes():
    before = torch.get_num_threads()
    found = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        learner = twins_of(S=5)[0][0]
        life = learner.begin()
        for _ in range(3):
            life = learner.advance(life, torch.full((5,), 0.1))[0]
        found.append(torch.cat([t.flatten() for t in life.actor + life.critic]))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_without_a_compiler_tensors_do_it(monkeypatch):
    monkeypatch.setattr(actors, "_library", refuse)
    learner = ColourLearner(TwoColours(3, see="ways"), 2, seeded())
    life = learner.begin()
    assert learner.advance(life, None)[0].recent.shape == (2, 10) and learner.compiled is False


def refuse():
    raise RuntimeError("no compiler")


@pytest.mark.parametrize("bonus", [0.0, 0.3])
def test_the_fast_plain_meta_gradient_is_the_general_one(bonus):
    (fast, slow), life, w = learners()
    for _ in range(3):
        life = fast.update(life, w, 0)
    slow.generator.set_state(fast.generator.get_state())
    found = colour_step(fast, life, w, bonus=bonus)
    wanted = meta_gradient(slow.update, life, w, 1, objective=objective(slow, bonus))
    for mine, theirs in zip(found.gradient, wanted.gradient, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-8, atol=1e-16)
    assert torch.allclose(found.losses, wanted.losses, rtol=1e-9)
    assert torch.equal(found.onward.cells, wanted.onward.cells) and found.target is None


def test_several_updates_with_a_rollout_of_its_own_to_match_over():
    (learner, _), life, w = learners()
    found = meta_gradient(learner.update, life, w, 3, 2, ground_truth_step=learner.plain,
                          matching=match(learner))  # fmt: skip
    assert found.losses.shape == (3,) and bool((found.losses > 0).all())
    assert all(bool(g.isfinite().all()) for g in found.gradient)


@pytest.mark.parametrize(("L", "bonus"), [(None, 0.1), (1, 0.0), (4, 0.0)])
def test_steps_on_buffers_are_a_loop_with_adam(L, bonus):
    (one, two), life, w = learners()
    before = [t.clone() for t in [*leaves(life), *w]]
    steps = MetaLoop(one, life, w, L, lr=0.01, bonus=bonus, graph=False)
    buffers = [*leaves(steps.life), *steps.w, steps.losses]
    steps.run(0)
    steps.run(3)
    steps.run()
    assert all(torch.equal(a, b) for a, b in zip(before, [*leaves(life), *w], strict=True))
    w = [t.clone() for t in w]
    adam = torch.optim.Adam(w, 0.01)
    for _ in range(4):
        found = colour_step(two, life, w, L, bonus)
        for leaf, gradient in zip(w, found.gradient, strict=True):
            leaf.grad = gradient
        adam.step()
        life = found.onward
    wanted = [*leaves(life), *w, found.losses]
    assert all(torch.equal(a, b) for a, b in zip(buffers, wanted, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, wanted, strict=False))


def test_captured_refuses():
    (learner, _), life, w = learners()
    with pytest.raises(ValueError, match="graph: got True on cpu"):
        MetaLoop(learner, life, w, 2, graph=True)
    for bad, word in (({"L": 0}, "L: got"), ({"lr": 0.0}, "lr: got")):
        with pytest.raises(ValueError, match=word):
            MetaLoop(learner, life, w, **bad)
    with pytest.raises(ValueError, match="n: got"):
        MetaLoop(learner, life, w, 2).run(-1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize(("L", "see"), [(None, "ways"), (1, "places"), (7, "ways")])
def test_a_captured_meta_step_is_the_plain_one(L, see):
    """From the same draws, also after other environments have filled the look-up tables' cache."""
    found = []
    for graph in (False, True):
        g = torch.Generator("cuda").manual_seed(0)
        learner = ColourLearner(TwoColours(see=see), 3, g, lr=0.5)
        steps = MetaLoop(learner, learner.begin(), learner.start_meta(), L, graph=graph)
        steps.run(2)
        for size in range(2, 7):
            TwoColours(size).tables(steps.life.recent.device)
        steps.run(3)
        found.append([*leaves(steps.life), *steps.w, steps.losses])
    assert torch.equal(found[0][-3 - len(steps.w)], found[1][-3 - len(steps.w)])  # the cells
    assert_alike(*found, atol=1e-4)


def test_plain_meta_gradients_leave_no_graph_either():
    f, update, _, w, x = problem(S=2, d=2)
    w = {name: t.requires_grad_() for name, t in w.items()}
    adam = torch.optim.Adam(w.values(), 1e-3)
    for _ in range(3):
        found = meta_step(adam, w, update, x, 2, objective=f)
        assert not any(t.requires_grad for t in [*leaves(found.onward), found.losses])
        x = found.onward


def test_finite_differences_through_three_rollouts():
    """With the rollouts held: where the walkers went does not depend smoothly on anything."""
    (learner, _), life, w = learners()
    for k in range(3):
        life = detached(learner.update(life, w, k))
    roll, tape = learner.rollout, []

    def taping(x):
        tape.append(roll(x))
        return tape[-1]

    def find():
        return meta_gradient(learner.update, life, w, 3, 2, ground_truth_step=learner.plain,
                             matching=match(learner))  # fmt: skip

    def again():
        rolls = iter(tape)

        def held(x):
            batch, moved = next(rolls)
            return batch, x._replace(cells=moved.cells, recent=moved.recent)

        learner.rollout = held

    learner.rollout = taping
    find()
    again()
    found, where = find(), tape[-1][0].seen
    for j, slope in enumerate(found.gradient):
        away = torch.randn(slope.shape, generator=seeded(j), dtype=torch.float64)
        ends = []
        for h in (1e-5, -1e-5):
            again()
            v = [t + h * away if i == j else t for i, t in enumerate(w)]
            ends.append(match(learner, where)(found.target, unroll(learner.update, life, v, 3)[-1]))
        wanted = (slope * away).flatten(1).sum(1)
        assert torch.allclose((ends[0] - ends[1]) / 2e-5, wanted, rtol=1e-5, atol=1e-10)
        assert wanted.abs().max() > 1e-6


def test_a_batch_of_lives_is_lives_alone():
    def make(S):
        return ColourLearner(TwoColours(3, period=20, see="ways"), S, seeded(), walkers=4, steps=6,
                             widths=(8,), compiled=False)  # fmt: skip

    def run(learner, life, w, cut):
        rolls = iter(tape)
        learner.chance = lambda like: cut(*next(rolls))
        return colour_step(learner, life, w, 4)

    whole = make(3)
    life, w = doubled(whole.begin()), doubled(whole.start_meta())
    tape = [whole.chance(life.recent) for _ in range(5)]
    every = run(whole, life, w, lambda n, d: (n, d))
    for s in range(3):
        one = run(make(1), nest(lambda t, s=s: t.unflatten(0, (3, -1))[s], life),
                  [t[s : s + 1] for t in w],
                  lambda n, d, s=s: (n[:, s : s + 1], d[:, 4 * s : 4 * s + 4]))  # fmt: skip
        for a, b in zip(every.gradient, one.gradient, strict=True):
            assert torch.allclose(a[s : s + 1], b, rtol=1e-9, atol=1e-16)
        assert torch.equal(every.onward.cells.view(3, 4, 4)[s], one.onward.cells)


@pytest.mark.parametrize("L", [None, 3])
def test_exact_meta_gradients_across_a_flip(L):
    learner = ExactLearner(ExactColours(2, folded=False), period=4, lr=20.0)
    x = learner.begin(2)
    x = x._replace(theta=torch.randn(x.theta.shape, generator=seeded(), dtype=torch.float64))
    w = torch.tensor([0.1, 0.3], dtype=torch.float64)
    found = meta_gradient(learner.update, x, w, 6, L, objective=learner.objective,
                          ground_truth_step=learner.plain, matching=match_tables(learner))  # fmt: skip
    states = unroll(learner.update, x, w, 6)
    last = states[-1]
    assert [int(learner.sign(s)[0]) for s in states] == [1] * 4 + [-1] * 3
    often = learner.exact.policy(last.theta, learner.sign(last))[2]

    def loss(w):
        student = unroll(learner.update, x, w, 6)[-1]
        if L is None:
            return learner.objective(student)
        p, q = found.target.theta.log_softmax(-1), student.theta.log_softmax(-1)
        return (often * (p.exp() * (p - q)).sum(-1)).sum(1)

    slope = (loss(w + 1e-6) - loss(w - 1e-6)) / 2e-6
    assert torch.allclose(found.gradient, slope, rtol=1e-6, atol=1e-12) and slope.abs().min() > 1e-6
    assert torch.allclose(found.losses, loss(w), rtol=1e-12)
    assert found.onward.time.tolist() == [6 if L is None else 8] * 2


def test_exact_gradients_through_the_context():
    """The rewards that a later bonus looks at depend on earlier bonuses, too."""
    learner = ExactLearner(ExactColours(2), lr=20.0)
    x = learner.begin(1)
    x = x._replace(theta=torch.randn(x.theta.shape, generator=seeded(), dtype=torch.float64))
    w = [t.double() for t in start_meta(1, seeded(1))]
    w[-2] = 10 * w[-2]
    for k in range(12):
        x = detached(learner.update(x, w, k))
    found = meta_gradient(learner.update, x, w, 3, objective=learner.objective).gradient
    away = [torch.randn(t.shape, generator=seeded(3), dtype=torch.float64) for t in w]

    def ahead(h):
        v = [a + h * b for a, b in zip(w, away, strict=True)]
        return learner.objective(unroll(learner.update, x, v, 3)[-1])

    wanted = sum((a * b).sum() for a, b in zip(found, away, strict=True))
    assert torch.allclose((ahead(1e-5) - ahead(-1e-5)) / 2e-5, wanted[None], rtol=1e-6)


@pytest.mark.parametrize("wrong", [
    lambda x: x._replace(cells=x.cells[:8]), lambda x: x._replace(cells=x.cells.int()),
    lambda x: x._replace(actor=[t[:2] for t in x.actor]), lambda x: x._replace(critic=x.actor),
    lambda x: x._replace(cells=x.cells + torch.tensor([0, 99, 0, 0])),
    lambda x: x._replace(recent=x.recent[:, 1:])])  # fmt: skip
def test_a_life_of_another_learner_is_refused(wrong):
    pair, lives = twins_of()
    for learner, life in zip(pair, lives, strict=True):
        for way in (lambda x, it=learner: it.advance(x, None), learner.rollout):
            with pytest.raises(ValueError, match="life: got"):
                way(wrong(life))


def test_numbers_in_other_orders_and_kinds():
    """Cells by columns, and an actor in float64, are not misread by the compiled loop."""
    pair, lives = twins_of()
    turned = lives[0]._replace(cells=lives[0].cells.t().contiguous().t())
    assert torch.equal(
        pair[0].advance(turned, None)[0].cells, pair[1].advance(lives[1], None)[0].cells
    )
    assert not pair[0].can_compile(lives[0]._replace(actor=[t.double() for t in lives[0].actor]))


@pytest.mark.parametrize("compiled", [0, 1])
def test_bonuses_of_another_shape_are_refused(compiled):
    pair, lives = twins_of()
    for eps in (torch.ones(1), torch.tensor(0.1), torch.ones(5, 1)):
        with pytest.raises(ValueError, match="eps: got"):
            pair[compiled].advance(lives[compiled], eps)


def test_more_bad_input():
    w = torch.ones(1, requires_grad=True)
    other = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    with pytest.raises(ValueError, match="optimiser: does not hold"):
        meta_step(other, w, lambda x, w, k: x - w * x, torch.ones(1), 1, objective=lambda x: x)
    assert w.grad is None
    with pytest.raises(ValueError, match="matching: its result does not depend"):
        coefficient_gradient(torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 2),
                             lambda target, x: target.sum(1))  # fmt: skip
    for bad in (math.nan, -1.0):
        with pytest.raises(ValueError, match="sigma: got"):
            NoisyQuadratic([1.0], sigma=bad)
    for discount in (1.0, 1.5, math.nan, -0.1):
        with pytest.raises(ValueError, match="discount: got"):
            ExactColours(2, discount=discount)
    for name in ("lr", "top"):
        with pytest.raises(ValueError, match=f"{name}: got"):
            ColourLearner(TwoColours(3), 2, seeded(), **{name: torch.ones(4)})


def test_what_a_target_never_does_costs_nothing():
    never = torch.tensor([[[0.0, 0.0, -torch.inf]]])
    assert torch.allclose(policy_kl(never, never), torch.zeros(1))
    assert torch.allclose(policy_kl(never, torch.zeros(1, 1, 3)), torch.tensor([math.log(1.5)]))


def test_counters_are_no_distance():
    learner = ExactLearner(ExactColours(2))
    x = learner.begin(2)
    assert torch.equal(squared_distance(x._replace(time=x.time + 9), x), torch.zeros(2).double())
