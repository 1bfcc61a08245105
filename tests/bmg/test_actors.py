"""Learners in two colours: rollouts in words, finite differences, lives that do not meet."""

import pytest
import torch

from collage import runtime
from collage.bmg import meta_gradient, unroll
from collage.bmg.actors import ColourLearner, ExactLearner, start_meta
from collage.bmg.core import detached
from collage.bmg.gridworlds import ExactColours, TwoColours
from collage.common.networks import forward
from collage.common.populations import tree_leaves, tree_map


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def doubled(state):
    return tree_map(lambda t: t.double() if t.is_floating_point() else t, state)


def small_learner(S=3, seed=0, **settings):
    """A learner, a life and meta-parameters in float64."""
    env = TwoColours(3, period=200, see="ways")
    learner = ColourLearner(env, S, seeded(seed), walkers=4, steps=6, widths=(8,), **settings)
    return learner, doubled(learner.begin()), doubled(learner.start_meta(hidden=5))


@pytest.mark.parametrize(("see", "walkers"), [("ways", 5), ("places", 1)])
def test_a_rollout_in_words(see, walkers):
    """By tables it goes where single steps of the environment go, across a flip."""
    env = TwoColours(4, period=9, see=see)
    learner = ColourLearner(env, 3, seeded(), walkers=walkers, steps=7, widths=(6, 5))
    life = learner.begin()
    for _ in range(3):
        before = learner.generator.get_state()
        batch, moved = learner.rollout(life)
        after = learner.generator.get_state()
        learner.generator.set_state(before)
        noise, draws = learner.draw_noise(life.recent)
        assert torch.equal(learner.generator.get_state(), after)
        state = life.cells
        for t in range(7):
            seen = env.observe(state).view(3, walkers, -1)
            assert torch.equal(batch.seen.view(3, 7, walkers, -1)[:, t], seen)
            actions = (forward(life.actor, seen) + noise[t]).argmax(-1)
            assert torch.equal(batch.actions.view(3, 7, walkers)[:, t], actions)
            sign = env.sign(state[:, 0])
            state, fetched = env.go(state, actions.flatten(), draws[t])
            rewards = torch.where(fetched == 0, -0.04, sign * fetched)
            assert torch.equal(batch.rewards[:, t], rewards.view(3, walkers))
        assert torch.equal(moved.cells, state)
        assert torch.equal(batch.last, env.observe(state).view(3, walkers, -1))
        assert torch.allclose(moved.recent[:, -1], batch.rewards.mean((1, 2)))
        assert torch.equal(moved.recent[:, :-1], life.recent[:, 1:])
        life = moved


def test_an_update_in_words():
    """Returns in a loop, and the gradient by autograd, one lifetime after the other."""
    learner, life, _ = small_learner()
    eps = torch.tensor([0.0, 0.1, 0.4], dtype=torch.float64)
    batch, _ = learner.rollout(life)
    after = learner.learn(life, batch, eps)
    for s in range(3):
        one = tree_map(
            lambda t, s=s: t[s : s + 1].clone().requires_grad_(), [life.actor, life.critic]
        )
        seen = batch.seen[s : s + 1]
        values = forward(one[1], seen)[0, :, 0]
        future, returns = forward(one[1], batch.last[s : s + 1])[0, :, 0], []
        for t in reversed(range(6)):
            future = batch.rewards[s, t] + 0.9 * future
            returns.insert(0, future)
        error = torch.cat(returns).detach() - values
        log = forward(one[0], seen)[0].log_softmax(-1)
        chosen = log[torch.arange(24), batch.actions[s]]
        loss = -(error.detach() * chosen).mean() + error.square().mean() / 8
        loss = loss + eps[s] * (log.exp() * log).sum(-1).mean()
        slopes = torch.autograd.grad(loss, tree_leaves(one))
        for new, old, slope in zip(
            tree_leaves([after.actor, after.critic]), tree_leaves(one), slopes, strict=True
        ):
            assert torch.allclose(new[s : s + 1], old - 2.0 * slope, rtol=1e-9, atol=1e-14)


def test_an_actor_critic_learns_to_fetch():
    """Well above random moves after 200 updates, while the colours keep their roles."""
    learner = ColourLearner(TwoColours(3, see="ways"), 2, seeded(1), lr=0.5)
    life, w = learner.begin(), learner.start_meta()
    first = learner.update(life, w, 0).recent[:, -1]
    for k in range(200):
        life = learner.update(life, w, k)
    assert bool((life.recent.mean(1) > 0.15).all()) and bool((first < 0.1).all())


def test_an_update_carries_a_graph_only_where_one_is_wanted():
    learner, life, w = small_learner()
    assert not any(t.requires_grad for t in tree_leaves(learner.update(life, w, 0)))
    w = [t.requires_grad_() for t in w]
    assert all(t.requires_grad for t in learner.update(life, w, 0).actor)
    with torch.no_grad():
        assert not any(t.requires_grad for t in tree_leaves(learner.update(life, w, 0)))


def test_without_context_the_bonus_is_one_number():
    for context in (False, True):
        learner, life, w = small_learner(context=context)
        moved = life._replace(recent=life.recent + torch.rand(3, 10, generator=seeded()).double())
        assert torch.equal(learner.bonus(w, life), learner.bonus(w, moved)) is not context


def test_several_updates_with_a_rollout_of_its_own_to_match_over():
    learner, life, w = small_learner()
    meta = meta_gradient(learner.update, life, w, 3, 2, ground_truth_step=learner.ground_truth_step,
                         matching=learner.matching)  # fmt: skip
    assert meta.losses.shape == (3,) and bool((meta.losses > 0).all())
    assert all(bool(g.isfinite().all()) for g in meta.gradient)


def test_finite_differences_through_three_rollouts():
    """With the rollouts held: where the walkers went does not depend smoothly on anything."""
    learner, life, w = small_learner()
    for k in range(3):
        life = learner.update(life, w, k)
    roll, tape = learner.rollout, []

    def record(x):
        tape.append(roll(x))
        return tape[-1]

    def replay():
        rollouts = iter(tape)

        def from_tape(x):
            batch, moved = next(rollouts)
            return batch, x._replace(cells=moved.cells, recent=moved.recent)

        learner.rollout = from_tape

    def find():
        return meta_gradient(learner.update, life, w, 3, 2, matching=learner.matching,
                             ground_truth_step=learner.ground_truth_step)  # fmt: skip

    learner.rollout = record
    find()
    replay()
    meta, seen = find(), tape[-1][0].seen
    for j, slope in enumerate(meta.gradient):
        direction = torch.randn(slope.shape, generator=seeded(j), dtype=torch.float64)
        ends = []
        for h in (1e-5, -1e-5):
            replay()
            v = [t + h * direction if i == j else t for i, t in enumerate(w)]
            student = unroll(learner.update, life, v, 3)[-1]
            ends.append(learner.matching(meta.target, student, seen))
        along = (slope * direction).flatten(1).sum(1)
        assert torch.allclose((ends[0] - ends[1]) / 2e-5, along, rtol=1e-5, atol=1e-10)
        assert along.abs().max() > 1e-6


@pytest.mark.parametrize("L", [None, 3])
def test_exact_meta_gradients_across_a_flip(L):
    learner = ExactLearner(ExactColours(2, folded=False), period=4, lr=20.0)
    x = learner.begin(2)
    x = x._replace(theta=torch.randn(x.theta.shape, generator=seeded(), dtype=torch.float64))
    w = torch.tensor([0.1, 0.3], dtype=torch.float64)
    meta = meta_gradient(learner.update, x, w, 6, L, objective=learner.objective,
                         ground_truth_step=learner.ground_truth_step, matching=learner.matching)  # fmt: skip
    states = unroll(learner.update, x, w, 6)
    assert [int(learner.sign(s)[0]) for s in states] == [1] * 4 + [-1] * 3
    visits = learner.exact.policy(states[-1].theta, learner.sign(states[-1]))[2]

    def loss(w):
        student = unroll(learner.update, x, w, 6)[-1]
        if L is None:
            return learner.objective(student)
        p, q = meta.target.theta.log_softmax(-1), student.theta.log_softmax(-1)
        return (visits * (p.exp() * (p - q)).sum(-1)).sum(1)

    slope = (loss(w + 1e-6) - loss(w - 1e-6)) / 2e-6
    assert torch.allclose(meta.gradient, slope, rtol=1e-6, atol=1e-12) and slope.abs().min() > 1e-6
    assert torch.allclose(meta.losses, loss(w), rtol=1e-12)
    assert meta.onward.time.tolist() == [6 if L is None else 8] * 2


def test_exact_gradients_through_the_context():
    """The rewards that a later bonus looks at depend on earlier bonuses, too."""
    learner = ExactLearner(ExactColours(2), lr=20.0)
    x = learner.begin(1)
    x = x._replace(theta=torch.randn(x.theta.shape, generator=seeded(), dtype=torch.float64))
    w = [t.double() for t in start_meta(1, seeded(1))]
    w[-2] = 10 * w[-2]
    for k in range(12):
        x = detached(learner.update(x, w, k))
    slopes = meta_gradient(learner.update, x, w, 3, objective=learner.objective).gradient
    direction = [torch.randn(t.shape, generator=seeded(3), dtype=torch.float64) for t in w]

    def value(h):
        v = [a + h * b for a, b in zip(w, direction, strict=True)]
        return learner.objective(unroll(learner.update, x, v, 3)[-1])

    along = sum((a * b).sum() for a, b in zip(slopes, direction, strict=True))
    assert torch.allclose((value(1e-5) - value(-1e-5)) / 2e-5, along[None], rtol=1e-6)


@pytest.mark.parametrize("wrong", [
    lambda x: x._replace(cells=x.cells[:8]), lambda x: x._replace(cells=x.cells.int()),
    lambda x: x._replace(actor=[t[:2] for t in x.actor]), lambda x: x._replace(critic=x.actor),
    lambda x: x._replace(cells=x.cells + torch.tensor([0, 99, 0, 0])),
    lambda x: x._replace(recent=x.recent[:, 1:])])  # fmt: skip
def test_a_life_of_another_learner_is_refused(wrong):
    learner, life, w = small_learner()
    batch, _ = learner.rollout(life)
    for use in (learner.rollout, lambda x: learner.update(x, w, 0),
                lambda x: learner.learn(x, batch, None)):  # fmt: skip
        with pytest.raises(ValueError, match="life: got"):
            use(wrong(life))


def test_bad_input():
    learner, life, _ = small_learner()
    for eps in (torch.ones(1), torch.tensor(0.1), torch.ones(3, 1)):
        with pytest.raises(ValueError, match="eps: got"):
            learner.update(life, eps, 0)
    for name, bad in (
        ("lr", torch.ones(4)),
        ("walkers", 0),
        ("steps", 1.5),
    ):
        with pytest.raises(ValueError, match=f"{name}: got"):
            ColourLearner(TwoColours(3), 2, seeded(), **{name: bad})


def test_outer_objective_without_chance_is_reward_plus_bonus():
    """Its slope is that of the update: J's, and the bonus times the entropy's."""
    learner = ExactLearner(ExactColours(2), lr=20.0)
    x = learner.begin(2)
    x = x._replace(theta=torch.randn(x.theta.shape, generator=runtime.generator(3)).double())
    found = torch.func.grad(lambda t: learner.objective(x._replace(theta=t), 0.3).sum())(x.theta)
    _, gain, widen = learner.exact.slopes(x.theta, learner.sign(x))
    assert torch.allclose(found, -(gain + 0.3 * widen), atol=1e-12)
    assert torch.equal(learner.objective(x), -learner.exact.reward(x.theta, learner.sign(x)))
