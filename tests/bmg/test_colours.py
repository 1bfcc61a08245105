"""Meta-steps in two colours: those of `meta_gradient`, and a loop with Adam."""

import itertools
import math

import pytest
import torch

from collage import runtime
from collage.bmg import colour_step, meta_gradient
from collage.bmg.actors import ColourLearner
from collage.bmg.fast.colours import MetaLoop, memory
from collage.bmg.gridworlds import TwoColours
from collage.common.populations import tree_leaves, tree_map
from tests.bmg.test_actors import doubled, seeded, small_learner


def twins(steps=3):
    """Two learners before the same draws, and what has some rewards to look back on."""
    one, life, w = small_learner()
    other, _, _ = small_learner()
    for k in range(steps):
        life = one.update(life, w, k)
    other.generator.set_state(one.generator.get_state())
    return one, other, life, w


def assert_same(meta, wanted):
    for mine, theirs in zip(meta.gradient, wanted.gradient, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-8, atol=1e-16)
    assert torch.allclose(meta.losses, wanted.losses, rtol=1e-9)
    assert meta.gradient[-1].abs().min() > 0
    for mine, theirs in zip(meta.onward.actor, wanted.onward.actor, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-12)
    assert torch.equal(meta.onward.cells, wanted.onward.cells)


@pytest.mark.parametrize("L", [1, 2, 5])
def test_the_fast_step_is_the_general_one(L):
    fast, slow, life, w = twins()
    meta = colour_step(fast, life, w, L)
    # The states of the first rollout after the update: the same draws give the same ones.
    state = slow.generator.get_state()
    seen = slow.rollout(slow.update(life, w, 0))[0].seen
    slow.generator.set_state(state)
    assert_same(meta, meta_gradient(
        slow.update, life, w, 1, L, ground_truth_step=slow.ground_truth_step,
        matching=lambda target, x: slow.matching(target, x, seen)))  # fmt: skip


@pytest.mark.parametrize("bonus", [0.0, 0.3])
def test_the_fast_plain_meta_gradient_is_the_general_one(bonus):
    fast, slow, life, w = twins()
    meta = colour_step(fast, life, w, bonus=bonus)
    assert_same(meta, meta_gradient(slow.update, life, w, 1,
                                    objective=lambda x: slow.objective(x, bonus)))  # fmt: skip
    assert meta.target is None


def test_with_the_meta_parameters_frozen_it_is_an_actor_critic():
    """L learned updates go on as an ordinary learner with the same bonus would."""
    one, two, life, w = twins(0)
    onward = colour_step(one, life, w, 4).onward
    for k in range(4):
        life = two.update(life, w, k)
    for a, b in zip(onward.actor + onward.critic, life.actor + life.critic, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)
    assert torch.equal(onward.recent, life.recent)


def test_a_batch_of_lives_is_lives_alone():
    def make(S):
        return ColourLearner(TwoColours(3, period=20, see="ways"), S, seeded(), walkers=4, steps=6,
                             widths=(8,))  # fmt: skip

    def run(learner, life, w, cut):
        rollouts = iter(tape)
        learner.draw_noise = lambda like: cut(*next(rollouts))
        return colour_step(learner, life, w, 4)

    whole = make(3)
    life, w = doubled(whole.begin()), doubled(whole.start_meta())
    tape = [whole.draw_noise(life.recent) for _ in range(5)]
    every = run(whole, life, w, lambda noise, draws: (noise, draws))
    for s in range(3):
        one = run(make(1), tree_map(lambda t, s=s: t.unflatten(0, (3, -1))[s], life),
                  [t[s : s + 1] for t in w],
                  lambda n, d, s=s: (n[:, s : s + 1], d[:, 4 * s : 4 * s + 4]))  # fmt: skip
        for a, b in zip(every.gradient, one.gradient, strict=True):
            assert torch.allclose(a[s : s + 1], b, rtol=1e-9, atol=1e-16)
        assert torch.equal(every.onward.cells.view(3, 4, 4)[s], one.onward.cells)


@pytest.mark.parametrize(("L", "bonus"), [(None, 0.1), (1, 0.0), (4, 0.0)])
def test_steps_on_buffers_are_a_loop_with_adam(L, bonus):
    one, two, life, w = twins(0)
    before = [t.clone() for t in [*tree_leaves(life), *w]]
    loop = MetaLoop(one, life, w, L, lr=0.01, bonus=bonus, graph=False)
    buffers = [*tree_leaves(loop.life), *loop.w, loop.losses]
    loop.run(0)
    loop.run(3)
    loop.run()
    assert all(torch.equal(a, b) for a, b in zip(before, [*tree_leaves(life), *w], strict=True))
    w = [t.clone() for t in w]
    adam = torch.optim.Adam(w, 0.01)
    for _ in range(4):
        meta = colour_step(two, life, w, L, bonus)
        for leaf, gradient in zip(w, meta.gradient, strict=True):
            leaf.grad = gradient
        adam.step()
        life = meta.onward
    wanted = [*tree_leaves(life), *w, meta.losses]
    assert all(torch.equal(a, b) for a, b in zip(buffers, wanted, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, wanted, strict=False))


def test_a_meta_gradient_that_is_not_finite_moves_nothing():
    learner, life, w = small_learner()
    loop = MetaLoop(learner, life, w, 2)
    loop.w[0][0, 0, 0] = math.nan
    before = [t.clone() for t in [*tree_leaves(loop.life), *loop.w, loop.losses]]
    with pytest.raises(ValueError, match="meta-gradient"):
        loop.run()
    after = [*tree_leaves(loop.life), *loop.w, loop.losses]
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, after, strict=True)
    )
    assert not loop.adam.state and all(t.grad is None for t in loop.w)


def test_bad_input():
    learner, life, w = small_learner()
    with pytest.raises(ValueError, match="graph: got True on cpu"):
        MetaLoop(learner, life, w, 2, graph=True)
    for bad, message in (({"L": 0}, "L: got"), ({"lr": 0.0}, "lr: got")):
        with pytest.raises(ValueError, match=message):
            MetaLoop(learner, life, w, **bad)
    with pytest.raises(ValueError, match="n: got"):
        MetaLoop(learner, life, w, 2).run(-1)


@pytest.mark.cuda
@pytest.mark.parametrize(("L", "see"), [(None, "ways"), (1, "places"), (7, "ways")])
def test_a_recorded_meta_step_is_the_plain_one(L, see):
    """From the same draws, also after other environments have filled the look-up tables' cache."""
    ends = []
    for graph in (False, True):
        generator = torch.Generator("cuda").manual_seed(0)
        learner = ColourLearner(TwoColours(see=see), 3, generator, steps=6, lr=0.5)
        loop = MetaLoop(learner, learner.begin(), learner.start_meta(), L, graph=graph)
        loop.run(2)  # a plain step, and the recorded one
        for size in range(2, 7):
            TwoColours(size).tables(loop.life.recent.device)
        loop.run(3)
        ends.append(loop)
    plain, recorded = ends
    assert torch.equal(plain.life.cells, recorded.life.cells)
    for a, b in zip([*tree_leaves(plain.life), *plain.w, plain.losses],
                    [*tree_leaves(recorded.life), *recorded.w, recorded.losses], strict=True):  # fmt: skip
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("walkers, widths", [(1, (32, 32)), (16, (48, 16))])
def test_memory_is_what_a_meta_step_takes(walkers, widths):
    """At its peak, within a third and never less; what a lifetime more adds."""
    peaks = []
    for lifetimes in (2, 6):
        learner = ColourLearner(TwoColours(3), lifetimes, torch.Generator().manual_seed(0), lr=0.01,
                                walkers=walkers, widths=widths)  # fmt: skip
        learner.rollout(learner.begin())  # its tables
        cpu = torch.profiler.ProfilerActivity.CPU
        with torch.profiler.profile(activities=[cpu], profile_memory=True) as seen:
            MetaLoop(learner, learner.begin(), learner.start_meta(), 2).run(2)
        changes = [(e.start_ns(), e.nbytes()) for e in seen.profiler.kineto_results.events()
                   if e.name() == "[memory]"]  # fmt: skip
        peaks.append(max(itertools.accumulate(size for _, size in sorted(changes))))
    assert 2 / 3 < (peaks[1] - peaks[0]) / 4 / memory(learner) <= 1


@pytest.mark.cuda
def test_lifetimes_for_which_there_is_no_room(monkeypatch):
    """Nothing is begun; the error says how many there is room for."""
    learner = ColourLearner(TwoColours(3), 4, torch.Generator("cuda").manual_seed(0))
    room = 2 * memory(learner) + 7
    monkeypatch.setattr(runtime, "free_memory", lambda device: room)
    with pytest.raises(
        ValueError, match=f"got 4 lifetimes, which need .*, wanted 2 at most: {room:,} b"
    ):
        MetaLoop(learner, learner.begin(), learner.start_meta(), 2)
