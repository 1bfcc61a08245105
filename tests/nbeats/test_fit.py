"""Training beside a plain loop; members on their own; runs that stop and go on."""

import math

import pytest
import torch

from collage import runtime
from collage.common import checkpoint, train
from collage.nbeats import Ensemble, Member, NBeats, classical, core, median
from collage.nbeats.fit import CHUNK, fit
from collage.nbeats.measures import mape
from tests.nbeats.examples import GENERIC, MEMBERS, SMALL, panel, small


def slow_windows(member, series, step, batch, recent):
    """A member's windows at a step, by slicing: x, its mask, y, its mask."""
    x, seen, y, known = (torch.zeros(batch, n, dtype=torch.float64) for n in (20, 20, 4, 4))
    g = runtime.generator(runtime.seed_for(member, "windows", step // CHUNK))
    uniform = torch.rand(CHUNK, batch, 2, dtype=torch.float64, generator=g)[step % CHUNK]
    for k, (first, second) in enumerate(uniform.tolist()):
        s = series[int(first * len(series))].double()
        cuts = list(range(1, len(s)))[-recent:]
        cut = cuts[int(second * len(cuts))]
        past, after = s[max(0, cut - 20) : cut], s[cut : cut + 4]
        x[k, 20 - len(past) :], seen[k, 20 - len(past) :] = past, 1
        y[k, : len(after)], known[k, : len(after)] = after, 1
    return x, seen.bool(), y, known.bool()


def test_fit_is_a_plain_loop():
    """Every setting of fit matters here: windows by slicing, autograd, clipping and Adam in full."""
    series, steps, batch, recent, period, clip = panel(5), 40, 6, 7, 3, 0.01
    e, twin = small(torch.float64), small(torch.float64)
    curve = e.fit(series, steps, batch=batch, lr=0.01, recent=recent, period=period, clip=clip)
    adam = torch.optim.Adam([twin.weights], 0.01)
    clipped = 0
    for i in range(steps):
        windows = [slow_windows(m, series, i, batch, recent) for m in MEMBERS]
        batches = (torch.stack(tensors) for tensors in zip(*windows, strict=True))
        losses = core.loss(twin.networks, twin.weights, *batches, period)
        adam.zero_grad()
        losses.sum().backward()
        for row in twin.weights.grad:
            clipped += float(row.norm()) > clip
            row.mul_(min(1.0, clip / (float(row.norm()) + 1e-6)))
        adam.param_groups[0]["lr"] = 0.01 * 0.5 ** (i // (steps // 3))
        adam.step()
        assert torch.allclose(curve[i], losses.detach(), rtol=1e-6)
    assert torch.allclose(e.weights, twin.weights, atol=1e-8) and clipped > 20


@pytest.mark.parametrize("shape", [SMALL, GENERIC])
def test_members_do_not_know_each_other(shape):
    """Fitted together, alone, in another order: the same members."""
    series, setting = panel(), {"batch": 16, "recent": 12, "period": 4}
    e = small(torch.float64, **shape)
    curve = e.fit(series, 40, **setting)
    whole = e.forecast(series)
    assert (curve[-5:].mean(0) < curve[:5].mean(0)).all()
    for i, m in enumerate(MEMBERS):
        one = NBeats(m.lookback, 4, loss=m.loss, seed=m.seed, **shape).double()
        assert (one.fit(series, 40, **setting) - curve[:, i]).abs().max() < 1e-9
        assert (one.forecast(series) - whole[i]).abs().max() < 1e-9
    back = Ensemble(MEMBERS[::-1], 4, **shape).double()
    back.fit(series, 40, **setting)
    assert (back.forecast(series).flip(0) - whole).abs().max() < 1e-9


def test_clipping_is_for_each_member():
    """One member's exploding loss leaves the others as they are, to the bit."""
    e, wild = small(), small()
    losses = wild.networks.losses.clone()
    losses[0, 3] *= 1e6  # the size of its loss
    networks = wild.networks._replace(losses=losses)
    fit(e.networks, e.weights, panel(), 1, batch=16, clip=0.1)
    fit(networks, wild.weights, panel(), 1, batch=16, clip=0.1)
    assert torch.equal(e.weights[1:], wild.weights[1:])
    assert torch.allclose(e.weights[0], wild.weights[0], atol=1e-6)  # clipped: only the direction


def test_a_stopped_run_goes_on_to_the_same_result(tmp_path, monkeypatch):
    """Also one that is interrupted; the weights are meanwhile those it began with."""
    series, setting = panel(), {"batch": 16, "every": 7}
    whole = small()
    curve = whole.fit(series, 50, **setting)
    save, name = checkpoint.save, tmp_path / "c.npz"

    def stop(*args):
        save(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "save", stop)
        for _ in range(3):
            part = small()
            before = part.weights.detach().clone()
            with pytest.raises(KeyboardInterrupt):
                part.fit(series, 50, checkpoint=name, **setting)
            assert torch.equal(part.weights, before)
    part = small()
    assert torch.equal(part.fit(series, 50, checkpoint=name, **setting), curve)
    assert torch.equal(part.weights, whole.weights)
    with pytest.raises(ValueError, match="other fit"):
        small().fit(series, 51, checkpoint=name, **setting)
    name.write_bytes(b"broken")
    with pytest.raises(ValueError, match="damaged checkpoint"):
        small().fit(series, 50, checkpoint=name, **setting)


def test_the_same_numbers_cut_into_other_series_are_another_panel(tmp_path):
    a, b = ([torch.tensor(s) for s in rows] for rows in
            ([[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]], [[1.0, 2.0], [0.0, 3.0, 4.0, 5.0]]))  # fmt: skip
    NBeats(2, 2, **SMALL).fit(a, 2, batch=4, checkpoint=tmp_path / "c.npz")
    with pytest.raises(ValueError, match="panel"):
        NBeats(2, 2, **SMALL).fit(b, 2, batch=4, checkpoint=tmp_path / "c.npz")


def test_learns_a_wave():
    """On noiseless waves of period 4 a few hundred steps beat the naive forecast by far."""
    t = torch.arange(40)
    series = [10 + a * (math.pi * t / 2 + a).sin() for a in torch.linspace(1, 3, 12)]
    history, y = [s[:-4] for s in series], torch.stack([s[-4:] for s in series])
    members = [Member(8, "mape", s) for s in range(3)]
    e = Ensemble(members, 4, stacks=[("seasonality", 32)], layers=2)
    e.fit(history, 300, batch=32)
    error = mape(y, median(e.forecast(history)))
    assert error < 0.3 * mape(y, classical.naive(history, 4))


def test_constant_zero_and_short_series_are_handled():
    series = [torch.ones(20), torch.zeros(20), torch.tensor([1.0, 2.0])]  # the last: half a horizon
    e = small()
    assert e.fit(series, 20, batch=16).isfinite().all() and e.forecast(series).isfinite().all()


def test_bad_input():
    model = NBeats(8, 4, **SMALL)
    for series in ([], [torch.ones(1)], [torch.tensor([1.0, torch.inf])]):
        with pytest.raises(ValueError, match="series"):
            model.fit(series, 2)
    for setting in ({"steps": 0}, {"batch": 0}, {"lr": 0.0}, {"clip": math.nan}, {"recent": 0},
                    {"every": 0}, {"period": 0}, {"product": torch.int8}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(setting))):
            model.fit(panel(), **{"steps": 2, **setting})
    with pytest.raises(ValueError, match="period: got 20"):
        small().fit(panel(), 2, period=20)
    before = model.ensemble.weights.detach().clone()
    with pytest.raises(ValueError, match="not finite"):
        model.fit([torch.full((20,), 3e38)] * 2, 3, batch=4)
    assert torch.equal(model.ensemble.weights, before)


@pytest.mark.cuda
def test_a_gpu_learns_what_a_cpu_does():
    a, b = (Ensemble(MEMBERS, 4, **SMALL, device=device) for device in ("cpu", "cuda"))
    assert torch.equal(a.weights, b.weights.cpu())
    one, two = (e.fit(panel(), 70, batch=8) for e in (a, b))
    assert torch.allclose(one, two.cpu(), rtol=1e-3)
    assert torch.allclose(a.forecast(panel()), b.forecast(panel()).cpu(), rtol=1e-3, atol=1e-3)
