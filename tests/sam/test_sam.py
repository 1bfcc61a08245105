"""SAM against closed forms, slow twins, and each known defect of popular implementations."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F

from collage.common.networks import forward, mlp
from collage.sam import SAM, Ensemble, ascent, dual, gradient

BOTH = pytest.mark.parametrize("fused", [False, True], ids=["tensors", "fused"])


def net(seed=0, dtype=torch.float32, norm=True):
    torch.manual_seed(seed)
    layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4) if norm else torch.nn.Identity(),
              torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 10)]  # fmt: skip
    return torch.nn.Sequential(*layers).to(dtype)


def batches(n=20, dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 1, 8, 8, generator=g, dtype=dtype),
             torch.randint(10, (16,), generator=g)) for _ in range(n)]  # fmt: skip


def closure(model, opt, x, y):
    def run():
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return run


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def slow_sam(model, data, rho, lr, momentum=0.0, weight_decay=0.0):
    """Algorithm 1, a line a line: the twin of `SAM` with SGD."""
    params = list(model.parameters())
    velocity = [torch.zeros_like(p) for p in params]
    for x, y in data:
        grads = torch.autograd.grad(F.cross_entropy(model(x), y), params)
        norm = torch.stack([(g**2).sum() for g in grads]).sum().sqrt()
        theta = [p.detach().clone() for p in params]
        statistics = copy.deepcopy(list(model.buffers()))
        with torch.no_grad():
            for p, g in zip(params, grads):
                p += rho * g / norm
        grads = torch.autograd.grad(F.cross_entropy(model(x), y), params)
        with torch.no_grad():
            for b, kept in zip(model.buffers(), statistics):
                b.copy_(kept)
            for p, t, g, v in zip(params, theta, grads, velocity):
                v.mul_(momentum).add_(g + weight_decay * t)
                p.copy_(t - lr * v)
    return model


# -- the perturbation ------------------------------------------------------------------------------

G = torch.tensor([3.0, -4.0, 0.0, 12.0], dtype=torch.float64)


@pytest.mark.parametrize("p, q, value, e", [
    (1, math.inf, 12, [0, 0, 0, 1]),
    (1.5, 3, 12.207055, [0.060398, -0.107374, 0, 0.966364]),
    (2, 2, 13, [3 / 13, -4 / 13, 0, 12 / 13]),
    (3, 1.5, 14.421287, [0.456098, -0.526657, 0, 0.912197]),
    (math.inf, 1, 19, [1, -1, 0, 1]),
])  # fmt: skip
def test_dual_norm_closed_forms(p, q, value, e):
    found = dual(G, 1.0, p)
    torch.testing.assert_close(found, torch.tensor(e, dtype=torch.float64), atol=1e-6, rtol=0)
    assert abs((found @ G).item() - value) < 1e-6
    assert abs(torch.linalg.vector_norm(found, p).item() - 1) < 1e-12
    assert abs((found @ G) - torch.linalg.vector_norm(G, q)) < 1e-12


@pytest.mark.parametrize("p", [1.0, 1.001, 1.3, 2.0, 5.0, 100.0, math.inf])
def test_no_feasible_vector_does_better(p):
    g = torch.Generator().manual_seed(0)
    for n in (1, 3, 50):
        grad = torch.randn(n, generator=g, dtype=torch.float64)
        e = dual(grad, 0.3, p)
        others = torch.randn(2000, n, generator=g, dtype=torch.float64)
        others *= 0.3 / torch.linalg.vector_norm(others, p, dim=1, keepdim=True)
        assert (others @ grad).max() <= e @ grad + 1e-12
        assert abs(torch.linalg.vector_norm(e, p) - 0.3) < 1e-9


def test_rho_shares_among_ties_for_p_1():
    torch.testing.assert_close(dual(torch.tensor([2.0, -2.0, 1.0]), 1.0, 1.0),
                               torch.tensor([0.5, -0.5, 0.0]))  # fmt: skip


@pytest.mark.parametrize("p", [1, 1.5, 2, 4, math.inf])
def test_zero_scale_and_partition(p):
    parts = [torch.randn(3, 2), torch.randn(5), torch.randn(())]
    e = ascent(parts, 0.7, p)
    assert [t.shape for t in e] == [t.shape for t in parts]
    whole = dual(torch.cat([t.reshape(-1) for t in parts]), 0.7, p)
    torch.testing.assert_close(torch.cat([t.reshape(-1) for t in e]), whole)
    for c in (1e-12, 1e-16, 1e6, 65536.0):  # gradients may be scaled (AMP) or tiny
        scaled = ascent([t * c for t in parts], 0.7, p)
        for a, b in zip(scaled, e):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert all((t == 0).all() for t in ascent([torch.zeros(3), torch.zeros(2, 2)], 0.7, p))
    assert torch.cat(ascent([torch.tensor([1.0, math.inf])], 0.7, p)).isnan().any()


@pytest.mark.parametrize("p", [1, 1.5, 2, 4, math.inf])
def test_never_longer_than_rho_however_tiny_the_gradient(p):
    g = torch.randn(300, generator=torch.Generator().manual_seed(0))
    for exponent in range(-44, 19, 2):
        e = dual(g * 10.0**exponent, 0.5, p)
        assert torch.linalg.vector_norm(e.double(), p) <= 0.5 * (1 + 1e-4), exponent


def test_banked_gradients_that_were_put_elsewhere():
    ends = []
    for fused in (False, True):
        model, (x, y) = net(norm=False), batches(1)[0]
        opt = SAM(model.parameters(), "SGD", rho=0.3, lr=0.1, fused=fused)

        def chunk(i, model=model, opt=opt, x=x, y=y):
            def run():
                model.zero_grad()  # drops the views into the flat buffer
                return closure(model, opt, x[i::2], y[i::2])()

            return run

        opt.step([chunk(0), chunk(1)])
        ends.append(weights(model))
    assert (ends[0] - ends[1]).abs().max() < 1e-6


@pytest.mark.parametrize("dtype, tol", [(torch.float64, 1e-15), (torch.float32, 1e-6),
                                        (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])  # fmt: skip
def test_precision_follows_the_parameters(dtype, tol):
    g = torch.randn(300, dtype=torch.float64).to(dtype) * (1000 if dtype == torch.float16 else 1)
    (e,) = ascent([g], 1.0)
    assert e.dtype == dtype
    expected = g.double() / g.double().norm()
    assert (e.double() - expected).norm() < tol


def test_bad_input_of_ascent():
    good = torch.ones(3)
    for rho in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="rho"):
            ascent([good], rho)
    for p in (0.5, -1, math.nan):
        with pytest.raises(ValueError, match="p: got"):
            ascent([good], 0.1, p)
    for bad in (None, torch.ones(3, dtype=torch.long), torch.ones(3).to_sparse()):
        with pytest.raises(ValueError, match=r"grads\[1\]"):
            ascent([good, bad], 0.1)
    with pytest.raises(ValueError, match="empty"):
        ascent([], 0.1)


# -- the gradient ----------------------------------------------------------------------------------


def test_quadratic_by_hand():
    curvature = torch.tensor([4.0, 1.0], dtype=torch.float64)
    w = torch.tensor([1.0, 2.0], dtype=torch.float64)

    def loss(t):
        return 0.5 * (curvature * t[0] ** 2).sum()

    value, (g,) = gradient(loss, [w], 0.05)
    assert value == 4
    plain = curvature * w
    torch.testing.assert_close(
        g, plain + 0.05 * curvature * plain / plain.norm(), atol=1e-15, rtol=0
    )
    expected = torch.tensor([0.58211145618, 1.79776393200], dtype=torch.float64)
    torch.testing.assert_close(w - 0.1 * g, expected, atol=1e-10, rtol=0)
    for fused in (False, True):
        p = torch.nn.Parameter(w.clone())
        opt = SAM([p], torch.optim.SGD, rho=0.05, lr=0.1, fused=fused)

        def run(p=p):
            out = loss([p])
            out.backward()
            return out

        assert opt.step(run) == 4
        torch.testing.assert_close(p.detach(), w - 0.1 * g, atol=1e-15, rtol=0)


def test_two_cycle():
    """L = a w^2 / 2 under SAM ends in a 2-cycle of size eta a rho / (2 - eta a), not at zero."""
    a, eta, rho = 4.0, 0.1, 0.05
    w = torch.tensor([1.0], dtype=torch.float64)
    for _ in range(400):
        w = w - eta * gradient(lambda t: (0.5 * a * t[0] ** 2).sum(), [w], rho)[1][0]
    assert abs(w.abs().item() - eta * a * rho / (2 - eta * a)) < 1e-15


def test_exact_gradient_is_the_derivative_of_the_perturbed_loss():
    torch.manual_seed(3)
    x, y = torch.randn(40, 5, dtype=torch.float64), (torch.rand(40) < 0.5).double()
    w, rho = torch.randn(5, dtype=torch.float64), 0.5

    def loss(t):
        return F.binary_cross_entropy_with_logits(x @ t[0], y)

    (dropped,), (exact,) = (gradient(loss, [w], rho, exact=e)[1] for e in (False, True))
    g = torch.func.grad(loss)([w])[0]
    hessian = torch.func.hessian(lambda t: loss([t]))(w)
    u = g / g.norm()
    jacobian = rho / g.norm() * (torch.eye(5) - torch.outer(u, u)) @ hessian
    torch.testing.assert_close(exact, dropped + jacobian.T @ dropped, atol=1e-12, rtol=1e-10)

    def perturbed(t):
        direction = torch.func.grad(loss)([t])[0]
        return loss([t + rho * direction / direction.norm()])

    steps = 1e-5 * torch.eye(5, dtype=torch.float64)
    central = torch.stack([(perturbed(w + s) - perturbed(w - s)) / 2e-5 for s in steps])
    torch.testing.assert_close(exact, central, atol=1e-8, rtol=1e-6)
    assert (exact - dropped).norm() > 1e-4


def test_gradient_under_vmap_with_a_radius_for_each_network():
    target = torch.randn(3, 4)
    theta, rho = torch.randn(3, 4), torch.tensor([0.0, 0.1, 0.4])

    def one(t, goal, r):
        return gradient(lambda s: ((s[0] - goal) ** 4).sum(), [t], r)[1][0]

    together = torch.func.vmap(one)(theta, target, rho)
    apart = torch.stack([one(t, g, r.item()) for t, g, r in zip(theta, target, rho)])
    torch.testing.assert_close(together, apart)


# -- the optimiser ---------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_equals_the_slow_twin(fused, dtype, tol):
    data = batches(dtype=dtype)
    twin = slow_sam(net(dtype=dtype), data, 0.05, 0.1, 0.9, 5e-4)
    model = net(dtype=dtype)
    opt = SAM(model.parameters(), "SGD", rho=0.05, lr=0.1, momentum=0.9, weight_decay=5e-4,
              fused=fused)  # fmt: skip
    for x, y in data:
        opt.step(closure(model, opt, x, y))
    assert (weights(model) - weights(twin)).abs().max() < tol
    for a, b in zip(model.buffers(), twin.buffers()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=tol)
    assert model[1].num_batches_tracked == len(data)  # the popular helper counts 40


@BOTH
@pytest.mark.parametrize("base, settings", [
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}),
    (torch.optim.AdamW, {"lr": 1e-2}),
    ("RMSprop", {"lr": 1e-3}),
])  # fmt: skip
def test_rho_zero_is_the_base_optimiser_bit_for_bit(fused, base, settings):
    plain, model = net(norm=not fused), net(norm=not fused)
    base_class = getattr(torch.optim, base) if isinstance(base, str) else base
    opt = SAM(model.parameters(), base, rho=0.0, fused=fused, **settings)
    reference = base_class(plain.parameters(), **settings)
    for x, y in batches(5):
        loss = opt.step(closure(model, opt, x, y))
        reference.zero_grad()
        expected = F.cross_entropy(plain(x), y)
        expected.backward()
        reference.step()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-4 if fused else 0, atol=0)
    gap = (weights(model) - weights(plain)).abs().max()
    assert gap == 0 if not fused else gap < 1e-4  # the fused kernel rounds differently


@BOTH
def test_returns_the_loss_at_the_unperturbed_weights(fused):
    model, (x, y) = net(norm=False), batches(1)[0]
    before = F.cross_entropy(model(x), y).detach()
    opt = SAM(model.parameters(), "SGD", rho=5.0, lr=0.0, fused=fused)
    assert opt.step(closure(model, opt, x, y)) == before


@BOTH
def test_weights_come_back_bit_for_bit_and_stay_in_place(fused):
    model = net()
    opt = SAM(model.parameters(), "SGD", rho=0.5, lr=0.0, fused=fused)
    before, places = weights(model), [p.data_ptr() for p in model.parameters()]
    for x, y in batches(3):
        opt.step(closure(model, opt, x, y))
    assert torch.equal(weights(model), before)
    assert [p.data_ptr() for p in model.parameters()] == places


@BOTH
@pytest.mark.parametrize("missing_in", [0, 1])
def test_a_gradient_missing_in_one_pass(fused, missing_in):
    """Stochastic depth: the popular code never restores such a tensor (1.0 became 1.2041)."""
    a, b = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    opt = SAM([a, b], "SGD", rho=0.5, lr=0.0, fused=fused)
    calls = []

    def run():
        loss = a.square().sum() + (0 if len(calls) == missing_in else b.square().sum())
        calls.append(loss)
        loss.backward()
        return loss

    opt.step(run)
    assert torch.equal(a, torch.ones(2)) and torch.equal(b, torch.ones(2))


@BOTH
def test_frozen_and_unused_parameters_are_left_alone(fused):
    model = net(norm=False)
    model[0].weight.requires_grad_(False)
    kept = model[0].weight.clone()
    opt = SAM([p for p in model.parameters() if p.requires_grad], "SGD", lr=0.1, fused=fused)
    opt.step(closure(model, opt, *batches(1)[0]))
    assert torch.equal(model[0].weight, kept)


def test_the_norm_is_over_all_groups_and_rho_may_differ():
    a, b = torch.nn.Parameter(torch.tensor([3.0])), torch.nn.Parameter(torch.tensor([4.0]))
    opt = SAM([{"params": [a]}, {"params": [b], "rho": 1.0}], "SGD", rho=0.1, lr=0.0)
    (a.square().sum() / 2 + b.square().sum() / 2).backward()
    opt.ascend()
    torch.testing.assert_close(a.detach(), torch.tensor([3.0 + 0.1 * 0.6]))
    torch.testing.assert_close(b.detach(), torch.tensor([4.0 + 1.0 * 0.8]))
    opt.restore()
    assert a.item() == 3 and b.item() == 4


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("layer", [torch.nn.BatchNorm1d, torch.nn.InstanceNorm1d])
@pytest.mark.parametrize("two_phase", [False, True])
def test_running_statistics_come_from_the_first_pass(momentum, layer, two_phase):
    """The popular helper doubles num_batches_tracked, and breaks the mean with momentum=None."""

    def build():
        torch.manual_seed(0)
        norm = layer(3, momentum=momentum, affine=True, track_running_stats=True)
        return torch.nn.Sequential(torch.nn.Conv1d(3, 3, 1), norm)

    model, plain = build(), build()
    opt = SAM(model.parameters(), "SGD", rho=0.7, lr=0.0)
    for i in range(4):
        x = torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(i)) + i
        plain(x)

        def run(x=x):
            loss = model(x).pow(3).sum()
            loss.backward()
            return loss

        if two_phase:
            run()
            opt.ascend()
            run()
            opt.descend()
        else:
            opt.step(run)
    for a, b in zip(model.buffers(), plain.buffers()):
        assert torch.equal(a, b)
    assert model[1].track_running_stats
    model.eval()
    assert torch.isfinite(model(torch.randn(2, 3, 5))).all()


def test_both_passes_see_the_same_dropout_mask():
    model = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Dropout(0.5))
    outputs = {True: [], False: []}
    for replay, seen in outputs.items():
        opt = SAM(model.parameters(), "SGD", rho=1e-6, lr=0.0, replay=replay)

        def run(seen=seen):
            out = model(torch.ones(1, 4))
            seen.append(out.detach() == 0)
            out.square().sum().backward()
            return out.sum()

        opt.step(run)
        opt.step(run)
    first, again, later, _ = outputs[True]
    assert torch.equal(first, again) and not torch.equal(first, later)
    assert not torch.equal(*outputs[False][:2])


@BOTH
def test_checkpoint_resumes_bit_for_bit(fused, tmp_path):
    """The popular `state_dict` forgets the momentum."""
    data = batches(8)

    def build():
        model = net()
        opt = SAM(model.parameters(), "AdamW", rho=0.1, lr=1e-2, fused=fused)
        return model, opt, torch.optim.lr_scheduler.CosineAnnealingLR(opt, 8)

    def run(model, opt, schedule, part):
        for x, y in part:
            opt.step(closure(model, opt, x, y))
            schedule.step()

    whole = build()
    run(*whole, data)
    first = build()
    run(*first, data[:4])
    torch.save([part.state_dict() for part in first], tmp_path / "checkpoint.pt")
    second = build()
    for part, state in zip(second, torch.load(tmp_path / "checkpoint.pt", weights_only=True)):
        part.load_state_dict(state)
    run(*second, data[4:])
    assert torch.equal(weights(whole[0]), weights(second[0]))


def test_checkpoint_moves_between_the_fused_and_the_plain_path():
    data = batches(6)
    ends = []
    for first, second in ((False, False), (False, True), (True, False), (True, True)):
        model = net()
        opt = SAM(model.parameters(), "SGD", lr=0.1, momentum=0.9, fused=first)
        for x, y in data[:3]:
            opt.step(closure(model, opt, x, y))
        other = net(1)
        other.load_state_dict(model.state_dict())
        resumed = SAM(other.parameters(), "SGD", lr=0.3, momentum=0.0, fused=second)
        resumed.load_state_dict(opt.state_dict())
        for x, y in data[3:]:
            resumed.step(closure(other, resumed, x, y))
        ends.append(weights(other))
    assert all((end - ends[0]).abs().max() < 1e-6 for end in ends)


@BOTH
def test_schedulers_see_the_steps_and_set_the_rate(fused):
    model = net(norm=False)
    opt = SAM(model.parameters(), "SGD", lr=0.1, fused=fused)
    schedule = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "lr_scheduler.step() before optimizer.step()"
        opt.step(closure(model, opt, *batches(1)[0]))
        schedule.step()
        before = weights(model)
        closure(model, opt, *batches(1)[0])()
        opt.ascend()
        closure(model, opt, *batches(1)[0])()
        opt.descend()
    assert torch.equal(weights(model), before)


@BOTH
def test_gradient_accumulation_equals_the_whole_batch(fused):
    x, y = batches(1, torch.float64)[0]
    whole, parts = net(norm=False, dtype=torch.float64), net(norm=False, dtype=torch.float64)
    opt = SAM(whole.parameters(), "SGD", rho=0.1, lr=0.1)
    opt.step(closure(whole, opt, x, y))
    opt = SAM(parts.parameters(), "SGD", rho=0.1, lr=0.1, fused=fused)

    def accumulate():
        for i in range(4):
            (F.cross_entropy(parts(x[i::4]), y[i::4]) / 4).backward()

    opt.zero_grad()
    accumulate()
    opt.ascend()
    accumulate()
    opt.descend()
    torch.testing.assert_close(weights(parts), weights(whole), rtol=0, atol=1e-14)


@BOTH
def test_m_sharpness(fused):
    """One perturbation a chunk; m = B is SAM; the order of the chunks does not matter."""
    x, y = batches(1, torch.float64)[0]

    def chunks(model, opt, m, order=None):
        parts = torch.arange(16).reshape(-1, m)
        parts = parts if order is None else parts[order]
        return [closure(model, opt, x[i], y[i]) for i in parts]

    def after(m, two_phase=False, order=None):
        model = net(norm=False, dtype=torch.float64)
        opt = SAM(model.parameters(), "SGD", rho=0.3, lr=0.1, fused=fused)
        parts = chunks(model, opt, m, order)
        if two_phase:
            for i, part in enumerate(parts):
                part()
                opt.ascend()
                part()
                opt.bank() if i < len(parts) - 1 else opt.descend()
        else:
            loss = opt.step(parts if m < 16 else parts[0])
            torch.testing.assert_close(
                loss, F.cross_entropy(net(norm=False, dtype=torch.float64)(x), y).detach()
            )
        return weights(model)

    slow = net(norm=False, dtype=torch.float64)
    start, moves = weights(slow), []
    for i in torch.arange(16).reshape(-1, 4):
        chunk = net(norm=False, dtype=torch.float64)
        moves.append(weights(slow_sam(chunk, [(x[i], y[i])], 0.3, 0.1)) - start)
    torch.testing.assert_close(after(4), start + torch.stack(moves).mean(0), rtol=0, atol=1e-14)
    torch.testing.assert_close(after(4, two_phase=True), after(4), rtol=0, atol=0)
    torch.testing.assert_close(after(4, order=[2, 0, 3, 1]), after(4), rtol=0, atol=1e-15)
    assert (after(4) - after(16)).abs().max() > 1e-6


def test_m_equal_one_for_a_linear_model():
    """e_i = rho sign(residual_i) x_i / ||x_i||: every logit moves by rho ||x_i||."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0.0, 1, 1, 0, 1, 0]).double()
    w, rho = torch.nn.Parameter(torch.randn(3, dtype=torch.float64)), 0.2
    start = w.detach().clone()
    sign = torch.where(y > 0, -1.0, 1.0).double()
    shifted = x @ start + rho * sign * x.norm(dim=1)
    expected = ((torch.sigmoid(shifted) - y)[:, None] * x).mean(0)
    opt = SAM([w], "SGD", rho=rho, lr=1.0)

    def one(i):
        def run():
            loss = F.binary_cross_entropy_with_logits(x[i] @ w, y[i])
            loss.backward()
            return loss

        return run

    opt.step([one(i) for i in range(6)])
    torch.testing.assert_close(start - w.detach(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_other_norms_reach_the_optimiser(p):
    model = net(norm=False, dtype=torch.float64)
    opt = SAM(model.parameters(), "SGD", rho=0.2, p=p, lr=0.0)
    before = weights(model)
    closure(model, opt, *batches(1, torch.float64)[0])()
    opt.ascend()
    assert abs(torch.linalg.vector_norm(weights(model) - before, p).item() - 0.2) < 1e-12
    opt.restore()


def test_adaptive_is_invariant_to_rescaling_of_layers():
    """w1 -> c w1, w2 -> w2 / c is the same function, also after ASAM's perturbation (eta = 0)."""
    x = torch.randn(7, 5, dtype=torch.float64)
    outputs = {True: [], False: []}
    for adaptive, seen in outputs.items():
        for c in (1.0, 10.0):
            torch.manual_seed(0)
            model = torch.nn.Sequential(
                torch.nn.Linear(5, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)
            ).double()
            with torch.no_grad():
                model[0].weight *= c
                model[0].bias *= c
                model[2].weight /= c
            opt = SAM(model.parameters(), "SGD", rho=0.5, adaptive=adaptive, eta=0.0, lr=0.0)
            model(x).square().sum().backward()
            opt.ascend()
            seen.append(model(x).detach())
            opt.restore()
    torch.testing.assert_close(*outputs[True], rtol=1e-9, atol=1e-12)
    assert (outputs[False][0] - outputs[False][1]).abs().max() > 0.1


@BOTH
@pytest.mark.parametrize("bad_pass", [None, 0, 1])
def test_grad_scaler(fused, bad_pass):
    """A step without overflow equals the unscaled one; an inf in either pass skips the step."""
    x, y = batches(1)[0]
    model, plain = net(), net()
    opt = SAM(model.parameters(), "SGD", rho=0.1, lr=0.1, momentum=0.9, fused=fused)
    reference = SAM(plain.parameters(), "SGD", rho=0.1, lr=0.1, momentum=0.9)
    reference.step(closure(plain, reference, x, y))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = weights(model)
    for i in range(2):
        loss = F.cross_entropy(model(x), y)
        scaler.scale(loss * (math.inf if i == bad_pass else 1)).backward()
        opt.descend(scaler) if i else opt.ascend()
    scaler.update()
    if bad_pass is None:
        assert (weights(model) - weights(plain)).abs().max() < 1e-6
        assert scaler.get_scale() == 1024
    else:
        assert torch.equal(weights(model), before)
        assert scaler.get_scale() == 512
        opt.step(closure(model, opt, x, y))  # and training goes on
        assert (weights(model) - weights(plain)).abs().max() < 1e-6


@BOTH
def test_model_zero_grad_does_not_break_the_flat_buffer(fused):
    data = batches(3)
    model, plain = net(), net()
    opt = SAM(model.parameters(), "SGD", lr=0.1, fused=fused)
    reference = SAM(plain.parameters(), "SGD", lr=0.1)
    for x, y in data:
        reference.step(closure(plain, reference, x, y))
        inner = closure(model, opt, x, y)

        def run(inner=inner):
            model.zero_grad()
            return inner()

        opt.step(run)
    assert (weights(model) - weights(plain)).abs().max() < 1e-6


@BOTH
def test_an_exception_in_either_pass_leaves_everything_as_it_was(fused):
    model, (x, y) = net(), batches(1)[0]
    opt = SAM(model.parameters(), "SGD", rho=0.5, lr=0.1, fused=fused)
    before = weights(model)
    inner = closure(model, opt, x, y)
    for failing in (0, 1):
        calls = []

        def run(calls=calls, failing=failing):
            calls.append(1)
            loss = inner()
            if len(calls) == failing + 1:
                raise KeyError("stop")
            return loss

        with pytest.raises(KeyError):
            opt.step(run)
        assert torch.equal(weights(model), before)
    assert model[1].track_running_stats and model[1].running_mean is not None
    opt.step(inner)
    assert not torch.equal(weights(model), before)


def test_phases_out_of_order():
    model, (x, y) = net(), batches(1)[0]
    opt = SAM(model.parameters(), "SGD", rho=0.5, lr=0.1)
    before = weights(model)
    for call in (opt.step, opt.descend, opt.bank):
        with pytest.raises(RuntimeError, match="ascend"):
            call()
    run = closure(model, opt, x, y)
    run()
    opt.ascend()
    run()
    with pytest.raises(RuntimeError, match="twice"):
        opt.ascend()
    assert torch.equal(weights(model), before)


@BOTH
def test_bad_input_of_the_optimiser(fused):
    def build(params=None, base="SGD", **settings):
        params = [torch.nn.Parameter(torch.ones(3))] if params is None else params
        return SAM(params, base, **{"lr": 0.1, "fused": fused, **settings})

    for rho in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="rho: got"):
            build(rho=rho)
        with pytest.raises(ValueError, match="rho: got"):
            build([{"params": [torch.nn.Parameter(torch.ones(3))], "rho": rho}])
    with pytest.raises(ValueError, match="p: got"):
        build(p=0.9)
    for base in ("Sgd2", "lr_scheduler", 3, torch.nn.Linear, torch.optim.LBFGS, None):
        with pytest.raises(ValueError, match="base_optimizer: got"):
            build(base=base)
    with pytest.raises(ValueError, match="empty"):
        build([])
    p = torch.nn.Parameter(torch.ones(3))
    opt = build([p])
    with pytest.raises(ValueError, match="backward"):
        opt.step(lambda: p.sum())
    with pytest.raises(ValueError, match="backward"):
        opt.ascend()
    with pytest.raises(ValueError, match="returned NoneType"):
        opt.step(lambda: p.sum().backward())
    with pytest.raises(ValueError, match="empty"):
        opt.step([])
    assert torch.equal(p, torch.ones(3))
    table = torch.nn.Embedding(4, 2, sparse=True)
    opt = build(table.parameters())

    def run():
        loss = table(torch.tensor([1])).square().sum()
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="sparse"):
        opt.step(run)


def test_resumes_where_the_first_parameter_is_a_single_number():
    """Momentum of a 0-d parameter is its own, and nobody else's."""
    for base, how in (("SGD", {"momentum": 0.9}), ("AdamW", {})):
        ends = []
        for stop in (False, True):
            params = [torch.nn.Parameter(torch.tensor(1.0)), torch.nn.Parameter(torch.arange(3.0))]
            opt = SAM(params, base, rho=0.05, lr=0.1, fused=True, **how)
            for step in range(4):
                if stop and step == 2:
                    kept = opt.state_dict()
                    opt = SAM(params, base, rho=0.05, lr=0.1, fused=True, **how)
                    opt.load_state_dict(kept)

                def run(params=params, opt=opt):
                    opt.zero_grad()
                    loss = (params[0] - 3) ** 2 + (
                        params[1] * torch.arange(1.0, 4.0)
                    ).square().sum()
                    loss.backward()
                    return loss

                opt.step(run)
            ends.append(torch.cat([p.detach().reshape(-1) for p in params]))
        assert torch.equal(*ends), base


def test_what_can_be_captured():
    from collage.sam.optimizer import _check_recordable

    p = [torch.nn.Parameter(torch.ones(2))]
    for base in (torch.optim.SGD(p, 0.1, momentum=0.9), torch.optim.AdamW(p, capturable=True)):
        _check_recordable(base)
    for base, word in ((torch.optim.Adam(p), "capturable"), (torch.optim.NAdam(p), "NAdam"),
                       (torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.1), "dampening")):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            _check_recordable(base)


def test_capture_needs_a_gpu():
    with pytest.raises(ValueError, match="capture"):
        SAM([torch.nn.Parameter(torch.ones(2))], "SGD", lr=0.1).capture(lambda: None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_failed_capture_changes_nothing():
    model = net(norm=False).cuda()
    opt = SAM(model.parameters(), "SGD", lr=0.1, momentum=0.9, fused=True)
    x, y = (t.cuda() for t in batches(1)[0])
    before, replay, good = weights(model), opt.replay, closure(model, opt, x, y)

    def waits():
        loss = good()
        loss.item()
        return loss

    with pytest.raises(RuntimeError):
        opt.capture(waits)
    assert torch.equal(before, weights(model)) and opt.replay == replay


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captured_step_equals_the_plain_one():
    data = [(x.cuda(), y.cuda()) for x, y in batches(6)]
    models = [net(norm=False).cuda() for _ in range(2)]
    opts = [SAM(m.parameters(), "SGD", lr=0.1, momentum=0.9, fused=True) for m in models]
    x, y = (t.clone() for t in data[0])
    replay = opts[1].capture(closure(models[1], opts[1], x, y))
    for a, b in data:
        opts[0].step(closure(models[0], opts[0], a, b))
        x.copy_(a), y.copy_(b)
        replay()
    torch.testing.assert_close(weights(models[0]), weights(models[1]), rtol=1e-4, atol=1e-5)


# -- distributed -----------------------------------------------------------------------------------


def _ddp_rank(rank, path, out):
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=2
    )
    x, y = batches(1, torch.float64)[0]
    results = {}
    for name, local in (("global", False), ("local", True)):
        model = DistributedDataParallel(net(norm=False, dtype=torch.float64))
        opt = SAM(model.parameters(), "SGD", rho=0.3, lr=0.1)
        run = closure(model, opt, x[rank::2], y[rank::2])
        opt.step(run, first_pass=model.no_sync if local else None)
        results[name] = weights(model)
    torch.save(results, f"{out}{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ddp_perturbation_is_global_or_local_by_choice(tmp_path):
    torch.multiprocessing.spawn(_ddp_rank, (tmp_path / "store", tmp_path / "rank"), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{r}", weights_only=True) for r in (0, 1))
    x, y = batches(1, torch.float64)[0]
    whole = slow_sam(net(norm=False, dtype=torch.float64), [(x, y)], 0.3, 0.1)
    model = net(norm=False, dtype=torch.float64)
    opt = SAM(model.parameters(), "SGD", rho=0.3, lr=0.1)
    opt.step([closure(model, opt, x[r::2], y[r::2]) for r in (0, 1)])  # m = half the batch
    for name, expected in (("global", weights(whole)), ("local", weights(model))):
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
        torch.testing.assert_close(first[name], expected, rtol=0, atol=1e-13)


# -- the ensemble ----------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_ensemble_equals_a_loop_over_networks(p):
    g = torch.Generator().manual_seed(0)
    rho = torch.tensor([0.0, 0.1, 0.5])
    start = [t.double() for t in mlp([6, 8, 3], 3, g)]
    x = torch.randn(5, 3, 10, 6, generator=g, dtype=torch.float64)
    y = torch.randint(3, (5, 3, 10), generator=g)
    nets = Ensemble(start, rho=rho, p=p, lr=torch.tensor([0.1, 0.2, 0.3]), weight_decay=1e-2)
    for t in range(5):

        def losses(params, t=t):
            out = forward(params, x[t]).transpose(1, 2)
            return F.cross_entropy(out, y[t], reduction="none").mean(1)

        values = nets.step(losses, scale=1 - t / 5)
        assert values.shape == (3,)
    for k in range(3):
        alone = [torch.nn.Parameter(t[k : k + 1].clone()) for t in start]
        opt = SAM(alone, "SGD", rho=rho[k].item(), p=p, lr=0.1, momentum=0.9, weight_decay=1e-2)
        for t in range(5):
            opt.param_groups[0]["lr"] = 0.1 * (k + 1) * (1 - t / 5)

            def run(t=t, k=k, alone=alone):
                loss = F.cross_entropy(forward(alone, x[t, k : k + 1])[0], y[t, k])
                loss.backward()
                return loss

            opt.step(run)
        for a, b in zip(alone, nets.params):
            torch.testing.assert_close(a[0].detach(), b[k].detach(), rtol=0, atol=1e-7)


def test_ensemble_m_sharpness_and_plain_sgd():
    x = torch.randn(8, 4, dtype=torch.float64)
    start = [torch.randn(2, 4, dtype=torch.float64)]

    def chunk(i):
        return lambda params: ((x[i] @ params[0].T) ** 2).mean(0)

    def after(rho, chunks):
        nets = Ensemble(start, rho=rho, lr=0.1, momentum=0.0)
        nets.step(chunks)
        return nets.flat

    half = [chunk(slice(0, 4)), chunk(slice(4, 8))]
    torch.testing.assert_close(after(0.0, half), after(0.0, chunk(slice(None))))
    halves = sum(after(0.3, h) for h in half) / 2
    torch.testing.assert_close(after(0.3, half), halves)
    assert (after(0.3, half) - after(0.3, chunk(slice(None)))).abs().max() > 1e-3


def test_bad_input_of_the_ensemble():
    good = [torch.ones(2, 3), torch.ones(2, 1)]
    with pytest.raises(ValueError, match="params"):
        Ensemble([torch.ones(2, 3), torch.ones(3, 1)])
    with pytest.raises(ValueError, match="rho"):
        Ensemble(good, rho=torch.ones(3))
    with pytest.raises(ValueError, match="rho"):
        Ensemble(good, rho=-1.0)
    with pytest.raises(ValueError, match="rho"):
        Ensemble(good, rho=math.nan)
    with pytest.raises(ValueError, match="p: got"):
        Ensemble(good, p=0.0)
    with pytest.raises(ValueError, match="losses"):
        Ensemble(good).step(lambda params: params[0].sum())
