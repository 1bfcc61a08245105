"""`fit`: in company or alone, interrupted and resumed, and what it converges to."""

import math
import warnings
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from collage.decision_transformer import DecisionTransformer, Trajectories, collect, fit, rollout
from collage.decision_transformer.worlds import Walks
from tests.compiler import require_compiler
from tests.decision_transformer.examples import episodes, seeded, small_model


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_trained_in_company_or_alone(dropout):
    """Member i comes out the same: its own seed, data, context, clipping and dropout."""
    sets = [episodes(seed=s) for s in range(3)]
    weights = [None, torch.arange(1.0, 6.0), None]
    together = small_model(members=3, context=[2, 6, 3], dropout=dropout, shake=0.0)
    start = [together.member(i) for i in range(3)]
    losses = fit(together, sets, 30, batch=16, lr=1e-3, weights=weights)
    for i, one in enumerate(start):
        assert one.seed == i
        alone = fit(one, sets[i], 30, batch=16, lr=1e-3, weights=weights[i])
        # Windows of another length draw nothing else: the first steps decide.
        if one.context == 6 or not dropout:
            assert torch.allclose(losses[:, i], alone[:, 0], atol=1e-4)
            assert torch.allclose(together.weights[i], one.weights[0], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, torch.arange(1.0, 6.0)])
def test_compiled(weights):
    """With dropout, contexts of two lengths and weighted episodes: the same draws, the same run."""
    require_compiler()
    ends = []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "compiled: ")
        for compiled in (False, True):
            model = small_model(members=2, context=[2, 6], dropout=0.1, shake=0.0)
            losses = fit(
                model, episodes(), 20, batch=8, lr=1e-3, weights=weights, compiled=compiled
            )
            ends.append((losses, model.weights.detach()))
    for one, other in zip(*ends, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_interrupted_and_resumed(tmp_path):
    wanted = small_model(dropout=0.1, shake=0.0, members=2)
    curve = fit(wanted, episodes(), 40, batch=8, every=10)
    path = tmp_path / "run.npz"
    model = small_model(dropout=0.1, shake=0.0, members=2)
    before, calls, loss = model.weights.clone(), [], model.loss

    def breaks(*args):
        calls.append(1)
        if len(calls) == 27:
            raise KeyboardInterrupt
        return loss(*args)

    model.loss = breaks
    with pytest.raises(KeyboardInterrupt):
        fit(model, episodes(), 40, batch=8, every=10, checkpoint=path)
    assert torch.equal(model.weights, before)
    calls.clear()
    again = fit(model, episodes(), 40, batch=8, every=10, checkpoint=path)
    assert len(calls) == 20  # from step 20 on
    assert torch.equal(again, curve) and torch.equal(model.weights, wanted.weights)
    other = {"dropout": 0.2}, {"conditioned": False}, {"context": 5}
    for settings, options in [({}, {"steps": 50}), ({}, {"weights": torch.ones(5)}),
                              ({}, {"data": episodes(seed=8)}), *((o, {}) for o in other)]:  # fmt: skip
        fresh = small_model(shake=0.0, members=2, **{"dropout": 0.1, **settings})
        same = {"data": episodes(), "steps": 40, "batch": 8, "checkpoint": path}
        with pytest.raises(ValueError, match="of a run with other"):
            fit(fresh, **{**same, **options})


def test_fit_refuses_what_does_not_fit():
    def zeros(n, states, actions=None, dtype=torch.float32):
        moves = torch.zeros(n, 2, dtype=dtype) if actions is None else actions
        kind = {"dtype": dtype}
        return Trajectories(torch.zeros(n, states, **kind), moves, torch.zeros(n, **kind), [n])

    model = small_model()
    wrong = zeros(3, 4), zeros(31, 5), zeros(3, 5, dtype=torch.float64), episodes(discrete=True)
    for data in (*wrong, [1]):
        with pytest.raises(ValueError, match="data"):
            fit(model, data, 2)
    for name in ("steps", "batch", "lr", "clip", "every"):
        with pytest.raises(ValueError, match=name):
            fit(model, episodes(), **{"steps": 2, name: 0})
    with pytest.raises(ValueError, match="one for all or 1"):
        fit(model, [episodes(), episodes()], 2)
    with pytest.raises(ValueError, match="action 2"):
        fit(small_model(discrete=True), zeros(3, 5, torch.tensor([0, 2, 1])), 2)
    before = model.weights.clone()
    with pytest.raises(ValueError, match="not finite"):
        fit(model, episodes(), 5, lr=1e30, clip=1e30)
    assert torch.equal(model.weights, before)
    with pytest.raises(ValueError, match="float64"):
        fit(model.double(), episodes(), 2)


def test_the_global_generator_is_not_touched():
    before = torch.random.get_rng_state()
    fit(small_model(discrete=True, dropout=0.1), episodes(discrete=True), 2)
    assert torch.equal(torch.random.get_rng_state(), before)


def two_steps(n=4000, seed=11):
    """Two steps, two states, two actions, chance in everything: one-hot states."""
    g = seeded(seed)
    s1 = torch.randint(2, (n,), generator=g)
    a1 = (torch.rand(n, generator=g) < 0.3 + 0.3 * s1).long()
    s2 = (torch.rand(n, generator=g) < 0.2 + 0.6 * a1).long()
    a2 = (torch.rand(n, generator=g) < 0.5 - 0.3 * s2).long()
    r1, r2 = a1 * s1, (torch.rand(n, generator=g) < 0.3 + 0.4 * (a2 == s2)).long()
    states = F.one_hot(torch.stack([s1, s2], 1), 2).float().flatten(0, 1)
    actions, rewards = torch.stack([a1, a2], 1).flatten(), torch.stack([r1, r2], 1).flatten()
    return Trajectories(states, actions, rewards.float(), torch.full((n,), 2))


def conditional_entropy(keys, actions):
    """H(a | key) of the empirical distribution, in nats."""
    joint, alone = Counter(zip(keys, actions)), Counter(keys)
    return sum(-c * math.log(c / alone[k]) for (k, _), c in joint.items()) / len(keys)


@pytest.mark.slow
@pytest.mark.parametrize("conditioned", [True, False])
def test_the_optimum_is_the_conditional_distribution(conditioned):
    """Trained loss against the empirical H(a | t, s, R), or H(a | t, s) where returns are hidden."""
    table = two_steps()
    keys = list(zip(table.steps.tolist(), table.states.argmax(1).tolist(),
                    table.returns.tolist() if conditioned else [0.0] * len(table)))  # fmt: skip
    floor = conditional_entropy(keys, table.actions.tolist())
    shape = {"width": 32, "layers": 2, "context": 1, "longest": 2, "dropout": 0.0}
    model = DecisionTransformer(2, 2, discrete=True, conditioned=conditioned, **shape)
    fit(model, table, 600, batch=256, lr=1e-2, anneal=True, clip=1.0)
    loss = float(model.loss(table.windows(torch.arange(len(table)), 1)).detach())
    assert floor - 1e-6 <= loss < floor + 0.005
    counts = Counter(zip(keys, table.actions.tolist()))
    for key in set(keys):
        total = counts[key, 0] + counts[key, 1]
        t, s, r = key
        logits = model(torch.tensor([[r]]), F.one_hot(torch.tensor([[s]]), 2).float(),
                       torch.zeros(1, 1, dtype=torch.long), torch.tensor([[t]]))  # fmt: skip
        assert abs(float(logits[0, 0].softmax(0)[1]) - counts[key, 1] / total) < 0.05


@pytest.mark.slow
def test_shortest_paths_from_random_walks():
    """The paper's first example: asked for the distance, the shortest path from most nodes, where
    cloning the same walks gets lost."""
    env = Walks.random(10, 0.2, seeded(21), farthest=4)
    walks = collect(env, env.wander, 600, seeded(22))
    shape = {"width": 32, "layers": 1, "context": 1, "longest": 10, "dropout": 0.0}
    nodes, far = torch.arange(1, 10), env.distances()[1:].float()
    reached = {}
    for conditioned in (True, False):
        model = DecisionTransformer(10, 10, discrete=True, conditioned=conditioned, **shape)
        model.units(torch.zeros(10), torch.ones(10), 10.0)
        fit(model, walks, 400, lr=5e-3, anneal=True, clip=1.0)
        totals = rollout(model, env, -far, seeded(), start=env.at(nodes)).data.totals
        assert bool((totals <= -far).all())
        reached[conditioned] = (totals == -far).float().mean()
    assert reached[True] >= 0.75 and reached[True] > reached[False] + 0.2
