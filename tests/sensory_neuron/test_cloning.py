"""Whole sequences at once, lessons, and what a student learns from them."""

from types import SimpleNamespace

import pytest
import torch

from collage.common.environments import SwingUp
from collage.sensory_neuron import Agent, clone, play
from collage.sensory_neuron.cloning import Lesson, actions_along, error, watch
from tests.sensory_neuron.helpers import Expert, Twin, calm, hard, large, normal, seeded, shaken


@pytest.mark.parametrize("kind, sensors", [(Agent, 5), (large, 28)])
@pytest.mark.parametrize("dtype, close", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_sequences_are_step_by_step(kind, sensors, dtype, close):
    """Actions and their gradients, for each member."""
    agent = shaken(kind(members=2), shake=0.1).to(dtype)
    B, T, A = 3, 12, agent.actions
    readings, before = normal(B, T, sensors, dtype=dtype), normal(B, T, A, seed=1, dtype=dtype)
    memory, actions = agent.begin(B, sensors), []
    for t in range(T):
        action, _, memory = agent.act(
            readings[:, t].T, memory._replace(action=before[:, t].T.expand(2, -1, -1))
        )
        actions.append(action)
    actions = torch.stack(actions, 1).permute(0, 3, 1, 2)
    for i in range(2):
        along = actions_along(agent, readings, before, i)
        assert along.shape == (B, T, A)
        assert torch.allclose(along, actions[i], rtol=0, atol=close)
        slope = normal(*along.shape, seed=2, dtype=dtype)
        fast, slow = (torch.autograd.grad((out * slope).sum(), agent.weights, retain_graph=True)[0]
                      for out in (along, actions[i]))  # fmt: skip
        assert slow[i].norm() > 0.1 and not fast[1 - i].any()
        assert torch.allclose(fast, slow, rtol=0, atol=10 * close * slow.abs().max())


def begin(n, generator):
    return SwingUp().reset(n, generator)


TINY = {"rounds": 2, "updates": 20, "episodes": 16, "length": 25, "batch": 8}


@pytest.mark.slow
def test_a_student_learns_and_comes_out_the_same():
    """The loss falls for every member; the same generator, the same weights; members differ."""
    students = [Agent(members=2), Agent(members=2)]
    starting = students[0].weights.detach().clone()
    curves = [clone(s, Expert(), SwingUp(), begin, seeded(), **TINY) for s in students]
    assert curves[0].shape == (40, 2) and bool(curves[0].isfinite().all())
    assert torch.equal(curves[0], curves[1])
    assert torch.equal(students[0].weights, students[1].weights)
    assert bool((curves[0][15:20].mean(0) < 0.75 * curves[0][:3].mean(0)).all())
    assert bool(((students[0].weights - starting).norm(dim=1) > 0.1).all())
    assert (students[0].weights[0] - students[0].weights[1]).norm() > 1
    other = Agent(members=2)
    assert not torch.equal(clone(other, Expert(), SwingUp(), begin, seeded(1), **TINY), curves[0])


def test_members_learn_as_if_alone():
    """In the round of the teacher, whose episodes are the same for all."""
    tiny = {**TINY, "rounds": 1}
    both = Agent(members=2, seed=3)
    curve = clone(both, Expert(), SwingUp(), begin, seeded(), **tiny)
    for i in range(2):
        alone = Agent(seed=3 + i)
        own = clone(alone, Expert(), SwingUp(), begin, seeded(), **tiny)
        assert torch.allclose(own[:, 0], curve[:, i], rtol=1e-3)
        assert torch.allclose(alone.weights[0], both.weights[i], rtol=0, atol=1e-3)


def test_the_first_update_by_hand():
    """One episode after another in torch's modules: the loss, and Adam's first step with it."""
    student, g = Agent(), seeded()
    curve = clone(student, Expert(), SwingUp(), begin, g, rounds=1, updates=1, episodes=3, length=6,
                  batch=4)  # fmt: skip
    g, flat = seeded(), Agent().weights[0].detach().requires_grad_()
    lesson = watch(Expert(), Expert(), SwingUp(), begin(3, g), 6, 0.2, g)
    rows = torch.randint(3, (4,), generator=g)
    readings, before, expected, counts = (t[rows, 0] for t in lesson)
    assert bool((counts == 1).all()) and not before[:, 0].any()
    twin_actions = Agent()
    with torch.no_grad():
        twin_actions.weights.copy_(flat)
    total = 0
    for r, b, w in zip(readings, before, expected):
        twin = Twin(flat.detach())
        for x, last, label in zip(r, b, w):
            twin.action = last
            total += (twin(x)[0] - label).square().item()
    assert abs(curve.item() - total / 24) < 1e-5
    loss = (actions_along(twin_actions, readings, before) - expected).square().mean()
    slope = torch.autograd.grad(loss, twin_actions.weights)[0][0]
    moved = student.weights[0] - flat  # Adam's first step is the sign of the slope
    clear = slope.abs() > 1e-4
    assert clear.sum() > 300
    assert torch.allclose(moved[clear], -0.015 * slope[clear].sign(), rtol=0, atol=1e-4)


def test_the_teacher_says_what_it_would_have_done():
    """Where it acts itself, its labels are its actions; where a student acts, they are not."""
    env, starts = SwingUp(), torch.cat([calm(6), hard(6)])
    for noise in (0.0, 0.2):
        args = env, starts, 40, noise
        readings, before, expected, counts = watch(Expert(), Expert(), *args, seeded())
        assert readings.shape == (12, 1, 40, 5) and counts.shape == (12, 1, 40, 1)
        assert torch.allclose(expected[:, :, :-1], before[:, :, 1:], rtol=0, atol=1e-10)
        assert not before[:, :, 0].any()
        run = play(Expert(), env, starts, steps=40, trace=True, noise=noise, generator=seeded())
        assert torch.allclose(expected, run.actions.permute(3, 1, 0, 2), rtol=0, atol=1e-10)
        assert torch.equal(counts.sum((2, 3)).long().T, run.lengths) and run.lengths.min() < 40
    student = shaken(Agent(members=2)).double()
    readings, before, expected, _ = watch(student, Expert(), *args, seeded())
    assert (
        readings.shape == (12, 2, 40, 5)
        and (expected[:, :, :-1] - before[:, :, 1:]).abs().max() > 0.1
    )
    for e, t, b in ((0, 0, 0), (1, 13, 5), (1, 39, 7)):
        label = Expert().act(readings[b, e, t][:, None], None)[0]
        assert torch.allclose(label[0, :, 0], expected[b, e, t], rtol=0, atol=1e-10)


def test_steps_after_the_end_do_not_count():
    """Whatever stands there, the loss is the mean over the others."""
    agent = shaken(Agent(2)).double()
    readings, before, expected = normal(3, 9, 5), normal(3, 9, 2, seed=1), normal(3, 9, 2, seed=2)
    counts = (torch.arange(9)[None, :, None] < torch.tensor([9, 4, 1])[:, None, None]).double()
    out = actions_along(agent, readings, before)
    wrong = sum(
        (out[b, t] - expected[b, t]).square().sum() for b in range(3) for t in range([9, 4, 1][b])
    )
    loss = error(agent, 0, Lesson(*(t[:, None] for t in (readings, before, expected, counts))))
    assert torch.allclose(loss, wrong / 28, rtol=1e-12)
    junk = [t + 5 * (1 - counts) for t in (readings, before, expected)]
    junk = Lesson(*(t[:, None] for t in (*junk, counts)))
    assert torch.allclose(error(agent, 0, junk), loss, rtol=1e-12)


def test_lessons_of_episodes_that_all_end_early():
    """As long as any other, so that rounds go together; what lies behind the end does not count."""
    env, lost = SwingUp(), torch.tensor([[2.0, 9, 3, 0, 0], [-2.1, -9, 3, 1, 0]])
    lesson = watch(Expert(), Expert(), env, lost, 25, 0.0, seeded())
    assert [tuple(t.shape) for t in lesson] == [(2, 1, 25, n) for n in (5, 1, 1, 1)]
    lengths = play(Expert(), env, lost, steps=25).lengths[0]
    assert lengths.max() < 25 and torch.equal(lesson[3].sum((1, 2, 3)).long(), lengths)
    assert not any(t[:, :, lengths.max() :].any() for t in lesson)
    calls = []

    def starts(n, generator):  # the first round is lost, the second is not
        calls.append(n)
        return begin(n, generator) if len(calls) == 2 else lost.repeat(n // 2, 1)

    curve = clone(Agent(), Expert(), env, starts, seeded(), **{**TINY, "updates": 2})
    assert calls == [16, 16] and curve.shape == (4, 1) and bool(curve.isfinite().all())


# Bad input.


def test_bad_lessons():
    for name in TINY:
        with pytest.raises(ValueError, match=name):
            clone(Agent(), Expert(), SwingUp(), begin, seeded(), **{**TINY, name: 0})
    nowhere = SimpleNamespace(act=None)
    with pytest.raises(ValueError, match="rounds"):
        clone(Agent(), nowhere, SwingUp(), begin, seeded(), **{**TINY, "rounds": 1.5})


def test_actions_of_another_shape_are_refused():
    for shape in ((2, 3, 2), (2, 2, 1)):
        with pytest.raises(ValueError, match="before: got"):
            actions_along(Agent(), torch.zeros(2, 3, 5), torch.zeros(shape))
