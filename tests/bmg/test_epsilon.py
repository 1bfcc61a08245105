"""Q(lambda) with a bootstrapped epsilon: the learner beside a plain one, and what the matching wants."""

import doctest

import pytest
import torch

from collage import runtime
from experiments import epsilon


def test_docstrings():
    assert doctest.testmod(epsilon) == (0, 3)


@pytest.mark.parametrize("sign", [1, -1])
def test_walkers_learn_as_one_alone_would(sign):
    """Watkins' Q(lambda), written for a single table and a step at a time, from the same draws."""
    learner = epsilon.Learner(3, 0.3, runtime.generator(0))
    Q, row = learner.Q.clone().double(), learner.row.tolist()
    state = learner.g.get_state()
    eps = torch.tensor([0.0, 0.3, 0.9])
    rewards, rows = learner.walk(eps, sign, 60)
    g = runtime.generator(0)
    g.set_state(state)
    chances, others = torch.rand(60, 3, generator=g), torch.randint(4, (60, 3), generator=g)
    draws, (after, fetched) = torch.randint(7, (60, 3), generator=g), epsilon.tables()
    for life in range(3):
        table, s, traces = Q[life], row[life], {}
        for t in range(60):
            best = int(table[s].argmax())
            explores = chances[t, life] < eps[life]
            a = int(others[t, life]) if explores else best
            thing = sign * int(fetched[a, s])
            reward = thing if thing else -0.04
            assert rows[t, life] == s and abs(rewards[t, life] - reward) < 1e-6
            s2 = int(after[draws[t, life], a, s])
            error = reward + 0.9 * table[s2].max() - table[s, a]
            traces = {k: 0.81 * v for k, v in traces.items()} if a == best else {}
            traces[s, a] = 1.0
            for (i, j), v in traces.items():
                table[i, j] += 0.3 * error * v
            s = s2
    assert (learner.Q - Q).abs().max() < 1e-5


def test_tables_are_the_worlds():
    """What follows a step, averaged over the draws, is the exact table of chances."""
    exact, (after, fetched) = epsilon.ExactColours(3), epsilon.tables()
    chances = torch.nn.functional.one_hot(after, len(exact.start)).double().mean(0)
    assert torch.allclose(chances, exact.chances) and torch.equal(fetched, exact.fetched)


def test_a_share_of_changed_minds_is_what_epsilon_becomes():
    before, after = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    before[..., 0], after[..., 0] = 1, 1
    after[0, :2, 3] = 2  # in two of four rows of the first life another action is best
    rows = torch.tensor([[0, 0], [1, 1], [2, 2], [2, 3]])
    share = epsilon.changed_mind(before, after, rows, torch.arange(2))
    assert share.tolist() == [0.5, 0.0]
    eps = torch.linspace(0.001, 0.999, 999)
    least = [eps[epsilon.matching(eps, torch.tensor(p)).argmin()].item() for p in (0.3, 0.05)]
    assert abs(least[0] - 0.4) < 2e-3 and abs(least[1] - 0.05 / 0.75) < 2e-3


def test_an_epsilon_of_zero_is_no_end():
    """It may vanish in rounding; where learning changes its mind then, it comes back."""
    for share, sign in ((0.0, 1), (0.2, -1)):
        eps = torch.zeros(1, requires_grad=True)
        matching = epsilon.matching(eps, torch.tensor([share]))
        matching.backward()
        assert matching.isfinite() and eps.grad.isfinite() and eps.grad * sign > 0


def test_a_rule_and_what_is_learned():
    recent = torch.tensor([[0.0] * 10, [0.2] * 10])
    w = epsilon.start_meta(2, runtime.generator(0))
    rule = {"high": 0.4, "low": 0.1, "level": 0.1}
    assert torch.allclose(epsilon.chosen(rule, w, recent), torch.tensor([0.4, 0.1]))
    assert torch.equal(epsilon.chosen({"eps": 0.2}, w, recent), torch.full((2,), 0.2))
    seen = epsilon.chosen({"context": True}, w, recent)
    blind = epsilon.chosen({"context": False}, w, recent)
    assert seen[1] != blind[1] and seen[0] == blind[0]
