"""The Decision Transformer against a slow twin, another library, and what can be counted."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from collage.common.environments import SwingUp
from collage.decision_transformer import (
    DecisionTransformer,
    Trajectories,
    Walks,
    Window,
    collect,
    fit,
    rollout,
)
from tools import transplant


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def model(state_dim=5, action_dim=2, *, shake=0.3, **settings):
    """A small model whose weights are large enough for differences to show."""
    shape = {"width": 16, "layers": 2, "heads": 2, "context": 6, "longest": 30, **settings}
    found = DecisionTransformer(state_dim, action_dim, **shape)
    with torch.no_grad():
        found.weights.add_(shake * torch.randn(found.weights.shape, generator=seeded(99)))
    return found


def inputs(m, B=3, K=6, seed=1, members=None):
    g, lead = seeded(seed), (B, K) if members is None else (members, B, K)
    if m.discrete:
        actions = torch.randint(m.action_dim, lead, generator=g)
    else:
        actions = torch.randn(*lead, m.action_dim, generator=g)
    steps = torch.arange(K) + torch.randint(0, m.longest - K, (*lead[:-1], 1), generator=g)
    return [torch.randn(lead, generator=g), torch.randn(*lead, m.state_dim, generator=g), actions,
            steps]  # fmt: skip


def slow(m, returns, states, actions, steps, i=0):
    """One sequence at a time, one head at a time, every token to the end, in float64."""
    p = {name: t[i].detach().double() for name, t in m.tensors().items()}
    shift, width = m.shift[i].double().view(-1), m.width[i].double().view(-1)
    K, d, size = len(returns), m.width_, m.width_ // m.heads

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        return x * p[f"{name} gain"] + p[f"{name} bias"]

    x = []
    for t in range(K):
        time = p["time"][steps[t]]
        r = float(returns[t] / m.scale) * m.conditioned
        x.append(r * p["return weight"][0] + p["return bias"][0] + time)
        s = (states[t].double() - shift) / width
        x.append(s @ p["state weight"] + p["state bias"][0] + time)
        a = p["action weight"][actions[t]] if m.discrete else (
            actions[t].double() @ p["action weight"] + p["action bias"][0])  # fmt: skip
        x.append(a + time)
    x = norm(torch.stack(x), "embed")
    for layer in range(m.layers):
        q, k, v = (norm(x, f"{layer} first") @ p[f"{layer} qkv weight"]
                   + p[f"{layer} qkv bias"]).split(d, 1)  # fmt: skip
        mixed = torch.zeros_like(x)
        for h in range(m.heads):
            part = slice(h * size, (h + 1) * size)
            for token in range(3 * K):
                score = q[token, part] @ k[: token + 1, part].T / math.sqrt(size)
                mixed[token, part] = score.softmax(0) @ v[: token + 1, part]
        x = x + mixed @ p[f"{layer} out weight"] + p[f"{layer} out bias"]
        up = (norm(x, f"{layer} second") @ p[f"{layer} up weight"] + p[f"{layer} up bias"]).relu()
        x = x + up @ p[f"{layer} down weight"] + p[f"{layer} down bias"]
    x = norm(x, "last")[1::3]
    out = x @ p["head weight"] + p["head bias"]
    value = (x @ p["value weight"] + p["value bias"])[:, 0] * m.scale if m.predict_return else None
    return (out if m.discrete else out.tanh()), value


@pytest.mark.parametrize("settings", [
    {}, {"layers": 1}, {"heads": 4, "layers": 3}, {"discrete": True}, {"conditioned": False},
    {"discrete": True, "predict_return": True, "conditioned": False}])  # fmt: skip
def test_slow_twin(settings):
    m = model(**settings).units(
        torch.tensor([1.0, -1, 0, 2, 0]), torch.tensor([1, 2, 0.5, 3, 1]), 7.0
    )
    batch = inputs(m)
    found = m(*batch)
    value = m.predicted_returns(*batch) if m.predict_return else None
    for b in range(3):
        wanted, worth = slow(m, *(t[b] for t in batch))
        assert torch.allclose(found[b].double(), wanted, atol=2e-5)
        if value is not None:
            assert torch.allclose(value[b].double(), worth, atol=1e-4)


def test_parameter_counts():
    """Hopper's, as in the paper's Gym experiments, and another by hand."""
    assert DecisionTransformer(11, 3).weights.numel() == 726_019
    d, S, A, T = 24, 7, 5, 40
    blocks = 2 * (12 * d * d + 13 * d)
    both = 2 * d + (S + 1) * d + T * d + 2 * d + blocks + 2 * d + (d + 1) * A
    m = DecisionTransformer(S, A, width=d, layers=2, heads=3, longest=T, discrete=True)
    assert m.weights.numel() == both + A * d
    m = DecisionTransformer(S, A, width=d, layers=2, heads=3, longest=T, predict_return=True)
    assert m.weights.numel() == both + (A + 1) * d + d + 1


def test_causality_is_exact():
    """What comes later, and the action itself, do not reach a prediction; what came does."""
    m = model()
    batch = inputs(m, K=6)
    before = m(*batch)
    for field, first in ((0, 3), (1, 3), (2, 4)):  # the action a_3 is first seen at step 4
        changed = [t.clone() for t in batch]
        changed[field][:, 3] += 1
        after = m(*changed)
        assert torch.equal(after[:, :first], before[:, :first])
        assert bool((after[:, first:] != before[:, first:]).any(-1).all())


def test_padding_behind_is_exact_and_in_front_masked():
    m = model()
    R, S, A, t = inputs(m, K=6)
    whole = m(R, S, A, t)
    assert torch.allclose(m(R[:, :4], S[:, :4], A[:, :4], t[:, :4]), whole[:, :4], atol=1e-6)
    # The same shapes, other padding behind: the same bits.
    other = [x.clone() for x in (R, S, A, t)]
    for x in other:
        x[:, 4:] = 7
    assert torch.equal(m(*other)[:, :4], whole[:, :4])
    # In front: with the mask it does not matter what is there, without it it does.
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[:, :2] = False
    real = m(R[:, 2:], S[:, 2:], A[:, 2:], t[:, 2:])
    for fill in (0, 9):
        padded = [x.clone() for x in (R, S, A, t)]
        for x in padded:
            x[:, :2] = fill
        assert torch.allclose(m(*padded, mask)[:, 2:], real, atol=1e-6)
        assert (m(*padded)[:, 2:] - real).abs().max() > 1e-3


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_last_layer_for_states_only_is_the_last_layer(dropout):
    m = model(dropout=dropout)
    p, x = m.tensors(), torch.randn(1, 3, 17, 16, generator=seeded(2))
    pruned = m._layer(x, p, 1, None, None, slice(1, None, 3))
    full = m._layer(x, p, 1, None, None)[:, :, 1::3]
    assert torch.allclose(pruned, full, atol=1e-6)
    a, b = (torch.autograd.grad(t.square().sum(), m.weights, retain_graph=True)[0]
            for t in (pruned, full))  # fmt: skip
    assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True])
def test_transplant_from_and_to_transformers(padded):
    transformers = pytest.importorskip("transformers")
    m, other = model(shake=0.0), model(shake=0.2, seed=5)
    theirs = transformers.DecisionTransformerModel(transplant.config(m)).eval()
    with torch.no_grad():
        for t in theirs.parameters():
            t.add_(0.2 * torch.randn(t.shape, generator=seeded(t.numel())))
    R, S, A, t = inputs(m)
    mask = torch.ones(3, 6, dtype=torch.bool)
    if padded:
        mask[0, :3] = mask[1, :1] = False

    def said():
        return theirs(states=S, actions=A, rewards=None, returns_to_go=R[..., None], timesteps=t,
                      attention_mask=mask.long()).action_preds  # fmt: skip

    transplant.from_transformers(theirs, m)
    ours = m(R, S, A, t, mask if padded else None)
    assert torch.allclose(ours[mask], said()[mask], atol=2e-6) and ours.std() > 0.1
    if padded:
        assert (m(R, S, A, t) - said())[0, 3:].abs().max() > 1e-3
    transplant.to_transformers(other, theirs)
    ours = other(R, S, A, t, mask if padded else None)
    assert torch.allclose(ours[mask], said()[mask], atol=2e-6)


@pytest.mark.parametrize("discrete", [False, True])
def test_a_stack_is_its_members(discrete):
    m = model(members=3, context=[2, 6, 4], discrete=discrete)
    mean = torch.randn(3, 5, generator=seeded(3))
    m.units(mean, mean.abs() + 0.5, 4.0)
    own, shared = inputs(m, members=3), inputs(m)
    for i in range(3):
        one = m.member(i)
        assert one.context == [2, 6, 4][i] and one.seed == i
        assert torch.allclose(m(*own)[i], one(*(t[i] for t in own)), atol=1e-6)
        assert torch.allclose(m(*shared)[i], one(*shared), atol=1e-6)
    fresh = DecisionTransformer(5, 2, members=3, width=16, seed=4)
    assert torch.equal(fresh.weights[1:2], DecisionTransformer(5, 2, width=16, seed=5).weights)
    with pytest.raises(ValueError, match="i: got 3"):
        m.member(3)


def data(lengths=(9, 1, 12, 5, 7), seed=7, discrete=False):
    g, n = seeded(seed), sum(lengths)
    actions = torch.randint(2, (n,), generator=g) if discrete else torch.randn(n, 2, generator=g)
    return Trajectories(torch.randn(n, 5, generator=g), actions, torch.randn(n, generator=g),
                        torch.tensor(lengths))  # fmt: skip


@pytest.mark.parametrize("discrete", [False, True])
def test_loss_of_a_loop(discrete):
    m = model(discrete=discrete, members=2, context=[3, 6])
    window = data(discrete=discrete).sample(8, 6, seeded(8))
    found = m.loss(window)
    out = m(*window[:4])
    for i, k in enumerate((3, 6)):
        total, count = 0.0, 0
        for b in range(8):
            for t in range(k):
                if not window.mask[b, t]:
                    continue
                a, count = window.actions[b, t], count + 1
                y = out[i, b, t]
                total += float(F.cross_entropy(y, a) if discrete else (y - a).square().mean())
        assert abs(float(found[i]) - total / count) < 1e-5


def test_the_return_head_learns_in_units_of_the_scale():
    m = model(predict_return=True, conditioned=False).units(torch.zeros(5), torch.ones(5), 10.0)
    window = data().sample(8, 6, seeded(8))
    plain = (m(*window[:4]) - window.actions).square().mean(-1)
    value = (m.predicted_returns(*window[:4]) - window.returns).square() / 100
    wanted = ((plain + value) * window.mask).sum() / window.mask.sum()
    assert torch.allclose(m.loss(window), wanted, atol=1e-5)
    with pytest.raises(ValueError, match="predict_return"):
        model().predicted_returns(*window[:4])


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_trained_in_company_or_alone(dropout):
    """Member i comes out the same: its own seed, data, context, clipping and dropout."""
    sets = [data(seed=s) for s in range(3)]
    weights = [None, torch.arange(1.0, 6.0), None]
    together = model(members=3, context=[2, 6, 3], dropout=dropout, shake=0.0)
    start = [together.member(i) for i in range(3)]
    losses = fit(together, sets, 30, batch=16, lr=1e-3, weights=weights)
    for i, one in enumerate(start):
        assert one.seed == i
        alone = fit(one, sets[i], 30, batch=16, lr=1e-3, weights=weights[i])
        # Windows of another length draw nothing else: the first steps decide.
        if one.context == 6 or not dropout:
            assert torch.allclose(losses[:, i], alone[:, 0], atol=1e-4)
            assert torch.allclose(together.weights[i], one.weights[0], atol=1e-4)


def test_dropout_is_unbiased_and_only_with_a_generator():
    m = model(dropout=0.3, layers=1)
    batch = inputs(m)
    assert torch.equal(m(*batch), m(*batch))
    x = torch.ones(2, 4000)
    kept = m._drop(x, [seeded(1), seeded(2)])
    assert torch.allclose(kept.unique(), torch.tensor([0.0, 1 / 0.7]))
    assert (kept.mean(1) - 1).abs().max() < 0.05 and not torch.equal(kept[0], kept[1])
    assert not torch.equal(m(*batch, generator=seeded(3)), m(*batch, generator=seeded(4)))
    assert torch.equal(m(*batch, generator=seeded(3)), m(*batch, generator=seeded(3)))


def test_attention_with_dropout_is_attention():
    """At a rate close to zero the written-out form with its mask is the fused one."""
    m, n = model(dropout=0.0), model(dropout=1e-12)
    batch = inputs(m)
    assert torch.allclose(m(*batch), n(*batch, generator=seeded()), atol=1e-6)


def test_interrupted_and_resumed(tmp_path):
    wanted = model(dropout=0.1, shake=0.0, members=2)
    curve = fit(wanted, data(), 40, batch=8, every=10)
    path = tmp_path / "run.npz"
    m = model(dropout=0.1, shake=0.0, members=2)
    before, calls, loss = m.weights.clone(), [], m.loss

    def breaks(*args):
        calls.append(1)
        if len(calls) == 27:
            raise KeyboardInterrupt
        return loss(*args)

    m.loss = breaks
    with pytest.raises(KeyboardInterrupt):
        fit(m, data(), 40, batch=8, every=10, checkpoint=path)
    assert torch.equal(m.weights, before)
    calls.clear()
    again = fit(m, data(), 40, batch=8, every=10, checkpoint=path)
    assert len(calls) == 20  # from step 20 on
    assert torch.equal(again, curve) and torch.equal(m.weights, wanted.weights)
    other = {"dropout": 0.2}, {"conditioned": False}, {"context": 5}
    for settings, what in [({}, {"steps": 50}), ({}, {"weights": torch.ones(5)}),
                           ({}, {"data": data(seed=8)}), *((o, {}) for o in other)]:  # fmt: skip
        fresh = model(shake=0.0, members=2, **{"dropout": 0.1, **settings})
        with pytest.raises(ValueError, match="of a run with other"):
            fit(fresh, **{"data": data(), "steps": 40, "batch": 8, "checkpoint": path, **what})


def test_fit_refuses_what_does_not_fit():
    m = model()
    wrong_states = Trajectories(
        torch.zeros(3, 4), torch.zeros(3, 2), torch.zeros(3), torch.tensor([3])
    )
    long = Trajectories(torch.zeros(31, 5), torch.zeros(31, 2), torch.zeros(31), torch.tensor([31]))
    double = Trajectories(*(t.double() for t in (wrong_states.states, wrong_states.actions,
                                                 wrong_states.rewards)), torch.tensor([3]))  # fmt: skip
    for bad in (double, wrong_states, data(discrete=True), long, "data"):
        with pytest.raises(ValueError, match="data"):
            fit(m, bad if bad != "data" else [1], 2)
    for name in ("steps", "batch", "lr", "clip"):
        with pytest.raises(ValueError, match=name):
            fit(m, data(), **{"steps": 2, name: 0})
    with pytest.raises(ValueError, match="one for all or 1"):
        fit(m, [data(), data()], 2)
    d = model(discrete=True)
    high = Trajectories(
        torch.zeros(3, 5), torch.tensor([0, 2, 1]), torch.zeros(3), torch.tensor([3])
    )
    with pytest.raises(ValueError, match="action 2"):
        fit(d, high, 2)
    before = m.weights.clone()
    with pytest.raises(ValueError, match="not finite"):
        fit(m, data(), 5, lr=1e30, clip=1e30)
    assert torch.equal(m.weights, before)


def test_bad_models_and_inputs():
    for settings, match in [({"width": 0}, "width"), ({"width": 10, "heads": 3}, "heads"),
                            ({"dropout": 1.0}, "dropout"), ({"context": 31}, "context"),
                            ({"context": [3, 4]}, "context"), ({"layers": 0}, "layers"),
                            ({"members": 0}, "members|context")]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            model(**settings)
    m = model()
    R, S, A, t = inputs(m)
    for match, batch in [("returns", (R[0], S, A, t)), ("states", (R, S[..., :4], A, t)),
                         ("actions", (R, S, A[:, :5], t)), ("steps", (R, S, A, t + 30)),
                         ("steps", (R, S, A, t[:, :5])), ("steps", (R, S, A, t - 40)),
                         ("mask", (R, S, A, t, torch.ones(3, 5)))]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            m(*batch)
    d = model(discrete=True, members=2)
    R, S, A, t = inputs(d)
    with pytest.raises(ValueError, match="actions: got 0 to 2"):
        d(R, S, A * 0 + torch.tensor([0, 1, 2] * 2), t)
    with pytest.raises(ValueError, match="longest"):
        rollout(DecisionTransformer(5, 1, width=8, longest=20), SwingUp(), torch.zeros(2), seeded())
    with pytest.raises(ValueError, match="float64"):
        fit(m.double(), data(), 2)
    for args in ((torch.zeros(4), torch.ones(5), 1.0), (torch.zeros(5), -torch.ones(5), 1.0),
                 (torch.zeros(5), torch.ones(5), 0.0)):  # fmt: skip
        with pytest.raises(ValueError, match=r"mean|scale"):
            m.units(*args)


def test_acting():
    """The action after a history is the last prediction; a long history is cut; stacks share."""
    m = model(context=4, members=2)
    env = SwingUp(hold=5, longest=60)
    m = DecisionTransformer(5, 1, width=16, layers=2, context=4, longest=12, members=2)
    start = env.reset(6, seeded(3))
    both = rollout(m, env, torch.linspace(0, 5, 6), seeded(), start=start).data
    for i in range(2):
        part = slice(3 * i, 3 * i + 3)
        one = rollout(m.member(i), env, torch.linspace(0, 5, 6)[part], seeded(), start=start[part])
        assert torch.allclose(both.pick(list(range(6)[part])).actions, one.data.actions, atol=1e-5)
    data, tokens = one
    n = int(data.lengths[0])
    k = slice(n - 4, n)
    actions = data.actions[k].clone()
    actions[-1] = 0
    out = m.member(1)(tokens[None, k], data.states[None, k], actions[None], torch.arange(n - 4, n))
    assert torch.allclose(out[0, -1], data.actions[n - 1], atol=1e-6)
    with pytest.raises(ValueError, match="multiple of 2"):
        rollout(m, env, torch.zeros(3), seeded())


def test_a_stack_of_contexts_acts_as_its_members():
    m = model(members=2, context=[2, 5], discrete=True, shake=1.0)
    R, S, A, t = (torch.cat([x, x]) for x in inputs(m, B=40, K=6))
    window = Window(R, S, A, t, R, R > 99, R == R)
    both = m.act(window).view(2, 40)
    for i in range(2):
        half = Window(*(x[:40] for x in window))
        assert torch.equal(both[i], m.member(i).act(half))
    assert not torch.equal(both[0], both[1])


def test_acting_is_the_last_prediction():
    m = model(layers=3, heads=4)
    R, S, A, t = inputs(m)
    window = Window(R, S, A, t, R, R > 99, R == R)
    assert torch.allclose(m.act(window), m(R, S, A, t)[:, -1], atol=1e-6)


def test_sampling_follows_the_probabilities():
    m = model(discrete=True, action_dim=3)
    R, S, A, t = (x[:1].expand(3000, *x.shape[1:]) for x in inputs(m))
    window = Window(R, S, A, t, R, R > 99, R == R)
    drawn = torch.bincount(m.act(window, seeded(), sample=True), minlength=3) / 3000
    wanted = m(R[:1], S[:1], A[:1], t[:1])[0, -1].softmax(0)
    assert (drawn - wanted).abs().max() < 0.04
    assert int(m.act(window)[0]) == int(wanted.argmax())


def tabular(n=4000, seed=11):
    """Two steps, two states, two actions, chance in everything: one-hot states."""
    g = seeded(seed)
    s1 = torch.randint(2, (n,), generator=g)
    a1 = (torch.rand(n, generator=g) < 0.3 + 0.3 * s1).long()
    s2 = (torch.rand(n, generator=g) < 0.2 + 0.6 * a1).long()
    a2 = (torch.rand(n, generator=g) < 0.5 - 0.3 * s2).long()
    r1, r2 = a1 * s1, (torch.rand(n, generator=g) < 0.3 + 0.4 * (a2 == s2)).long()
    states = F.one_hot(torch.stack([s1, s2], 1), 2).float().flatten(0, 1)
    return Trajectories(states, torch.stack([a1, a2], 1).flatten(),
                        torch.stack([r1, r2], 1).flatten().float(),
                        torch.full((n,), 2))  # fmt: skip


def conditional_entropy(keys, actions):
    """H(a | key) of the empirical distribution, in nats."""
    joint, alone = Counter(zip(keys, actions)), Counter(keys)
    return sum(-c * math.log(c / alone[k]) for (k, _), c in joint.items()) / len(keys)


@pytest.mark.slow
@pytest.mark.parametrize("conditioned", [True, False])
def test_the_optimum_is_the_conditional_distribution(conditioned):
    """Trained loss against the empirical H(a | t, s, R), or H(a | t, s) where returns are hidden."""
    table = tabular()
    keys = list(zip(table.steps.tolist(), table.states.argmax(1).tolist(),
                    table.returns.tolist() if conditioned else [0.0] * len(table)))  # fmt: skip
    floor = conditional_entropy(keys, table.actions.tolist())
    m = DecisionTransformer(2, 2, width=32, layers=2, context=1, longest=2, discrete=True,
                            dropout=0.0, conditioned=conditioned)  # fmt: skip
    fit(m, table, 600, batch=256, lr=1e-2, anneal=True, clip=1.0)
    everything = table.windows(torch.arange(len(table)), 1)
    loss = float(m.loss(everything).detach())
    assert floor - 1e-6 <= loss < floor + 0.005
    counts = Counter(zip(keys, table.actions.tolist()))
    for key in set(keys):
        total = counts[key, 0] + counts[key, 1]
        t, s, r = key
        logits = m(torch.tensor([[r]]), F.one_hot(torch.tensor([[s]]), 2).float(),
                   torch.zeros(1, 1, dtype=torch.long), torch.tensor([[t]]))  # fmt: skip
        share = counts[key, 1] / total
        assert abs(float(logits[0, 0].softmax(0)[1]) - share) < 0.05


@pytest.mark.slow
def test_shortest_paths_from_random_walks():
    """The paper's first example: asked for the distance, the shortest path from most nodes, where
    cloning the same walks gets lost."""

    env = Walks.random(10, 0.2, seeded(21), farthest=4)
    walks = collect(env, env.wander, 600, seeded(22))
    shape = {
        "width": 32,
        "layers": 1,
        "context": 1,
        "longest": 10,
        "discrete": True,
        "dropout": 0.0,
    }
    nodes, far = torch.arange(1, 10), env.distances()[1:].float()
    reached = {}
    for conditioned in (True, False):
        m = DecisionTransformer(10, 10, conditioned=conditioned, **shape)
        m.units(torch.zeros(10), torch.ones(10), 10.0)
        fit(m, walks, 400, lr=5e-3, anneal=True, clip=1.0)
        found = rollout(m, env, -far, seeded(), start=env.at(nodes)).data.totals
        assert bool((found <= -far).all())
        reached[conditioned] = (found == -far).float().mean()
    assert reached[True] >= 0.75 and reached[True] > reached[False] + 0.2


def test_the_global_generator_is_not_touched():
    before = torch.random.get_rng_state()
    m = model(discrete=True, dropout=0.1)
    fit(m, data(discrete=True), 2)
    assert torch.equal(torch.random.get_rng_state(), before)
