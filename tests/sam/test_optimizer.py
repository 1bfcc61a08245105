"""The optimiser against a slow twin, and each known defect of popular implementations."""

import copy
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from collage.sam import SAM
from collage.sam.arguments import check_capture

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
    masks = []
    opt = SAM(model.parameters(), "SGD", rho=1e-6, lr=0.0)

    def run():
        out = model(torch.ones(1, 4))
        masks.append(out.detach() == 0)
        out.square().sum().backward()
        return out.sum()

    opt.step(run)
    opt.step(run)
    first, again, later, _ = masks
    assert torch.equal(first, again) and not torch.equal(first, later)


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
    p, flat = [torch.nn.Parameter(torch.ones(2))], SimpleNamespace(device=torch.device("cuda"))
    for base in (torch.optim.SGD(p, 0.1, momentum=0.9), torch.optim.AdamW(p, capturable=True)):
        check_capture(base, [flat])
    for base in (torch.optim.Adam(p), torch.optim.Adagrad(p)):
        with pytest.raises(ValueError, match="capturable"):
            check_capture(base, [flat])


def test_capture_needs_a_gpu():
    with pytest.raises(ValueError, match="capture"):
        SAM([torch.nn.Parameter(torch.ones(2))], "SGD", lr=0.1).capture(lambda: None)


@pytest.mark.cuda
def test_a_failed_capture_changes_nothing():
    model = net(norm=False).cuda()
    opt = SAM(model.parameters(), "SGD", lr=0.1, momentum=0.9, fused=True)
    x, y = (t.cuda() for t in batches(1)[0])
    good = closure(model, opt, x, y)

    def waits():
        loss = good()
        loss.item()
        return loss

    run = opt.capture(waits)
    run()  # a step like any other may wait
    before = weights(model)
    with pytest.raises(RuntimeError):
        run()
    assert torch.equal(before, weights(model))


@pytest.mark.parametrize("base, settings", [
    ("SGD", {"momentum": 0.9, "dampening": 0.3}), ("AdamW", {"capturable": True})])  # fmt: skip
@pytest.mark.cuda
def test_captured_step_equals_the_plain_one(base, settings):
    data = [(x.cuda(), y.cuda()) for x, y in batches(6)]
    models = [net(norm=False).cuda() for _ in range(2)]
    opts = [SAM(m.parameters(), base, lr=0.01, fused=True, **settings) for m in models]
    x, y = (t.clone() for t in data[0])
    run = opts[1].capture(closure(models[1], opts[1], x, y))
    for a, b in data:
        loss = opts[0].step(closure(models[0], opts[0], a, b))
        x.copy_(a), y.copy_(b)
        torch.testing.assert_close(run(), loss, rtol=1e-4, atol=1e-5)
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
