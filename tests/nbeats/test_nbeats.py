"""N-BEATS: identities, a slow twin, members on their own, checkpoints, bad input."""

import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from collage import nbeats, runtime
from collage.common import checkpoint, train
from collage.nbeats import Ensemble, Gradient, Member, NBeats
from collage.nbeats.ensemble import CHUNK

SMALL = {"stacks": [("trend", 8), ("seasonality", 16)], "layers": 2}
GENERIC = {"kind": "generic", "stacks": [("generic", 8)] * 3, "layers": 2}
MEMBERS = [Member(8, "smape"), Member(12, "mape"), Member(20, "mase", 3), Member(4, "smape", 1)]


def panel(n=12, seed=0):
    """Seasonal series with a trend, of different lengths, all positive."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for length in torch.randint(9, 60, (n,), generator=g).tolist():
        t, (a, b, c) = torch.arange(length), torch.rand(3, generator=g).tolist()
        noise = 0.1 * torch.randn(length, generator=g)
        found.append(10 + 5 * a + b * t / 10 + c * (math.pi * t / 2).sin() + noise)
    return found


def slow(model, x, mask):
    """One member as a loop over blocks and layers, in the paper's words: for one window at a time."""
    e, H = model.ensemble, model.ensemble.horizon
    L, found = e.lookback, []
    for window, seen in zip(x, mask, strict=True):
        rest, seen = window.flip(0) * seen.flip(0), seen.flip(0)
        total = window[-1].repeat(H)
        for (name, _), network in zip(e.stacks, e.tensors(), strict=True):
            for _ in range(e.blocks):
                h = rest
                for w, b in zip(network[:-2:2], network[1:-2:2], strict=True):
                    h = F.relu(F.linear(h, w[0].T, b[0, 0]))
                parameters = F.linear(h, network[-2][0].T, network[-1][0, 0])
                back, ahead = torch.zeros(L).double(), torch.zeros(H).double()
                if name == "generic":
                    ahead, back = parameters[:H], parameters[H:]
                elif name == "trend":
                    for i in range(3):
                        ahead = ahead + parameters[i] * (torch.arange(H).double() / H) ** i
                        back = back + parameters[3 + i] * (torch.arange(L).double() / L) ** i
                else:
                    n = (H + 1) // 2
                    for k in range(n):
                        for points, at in ((H, 0), (L, 2 * n)):
                            turn = 2 * math.pi * k * torch.arange(points).double() / H
                            a, b = parameters[at + k], parameters[at + n + k]
                            wave = a * turn.cos() + b * turn.sin()
                            ahead, back = (ahead + wave, back) if at == 0 else (ahead, back + wave)
                rest, total = (rest - back) * seen, total + ahead
        found.append(total)
    return torch.stack(found)


@pytest.mark.parametrize(("L", "H"), [(12, 6), (26, 13), (8, 8)])
@pytest.mark.parametrize("kind", ["interpretable", "generic"])
def test_slow_twin(L, H, kind):
    stacks = SMALL["stacks"] if kind == "interpretable" else [("generic", 8)] * 3
    model = NBeats(L, H, kind, stacks=stacks, layers=2).double()
    g = torch.Generator().manual_seed(1)
    x = 10 + torch.randn(5, L, generator=g, dtype=torch.float64)
    mask = torch.arange(L) >= torch.tensor([0, 0, 1, L // 2, L - 1])[:, None]
    assert (model(x, mask) - slow(model, x, mask)).abs().max() < 1e-5  # float32 bases


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "L", "H", "wanted"), [
    ("interpretable", 12, 6, 12_842_514), ("interpretable", 42, 6, 12_911_634),
    ("interpretable", 16, 8, 12_859_926), ("interpretable", 36, 18, 12_946_986),
    ("interpretable", 336, 48, 13_761_126), ("generic", 12, 6, 24_115_740),
    ("generic", 42, 6, 25_038_240), ("generic", 336, 48, 34_725_120)])  # fmt: skip
def test_parameter_counts(kind, L, H, wanted):
    assert sum(p.numel() for p in NBeats(L, H, kind).parameters()) == wanted


@pytest.mark.parametrize("H", [1, 6, 8, 13, 48])
def test_bases(H):
    waves = nbeats.seasonal_basis(H, H).double()
    n = (H + 1) // 2
    assert waves.shape == (2 * n, H) and not waves[n].any()
    gram = waves @ waves.T
    wanted = torch.tensor([H, *[H / 2] * (n - 1), 0, *[H / 2] * (n - 1)]).double().diag()
    assert (gram - wanted).abs().max() < 1e-5
    nyquist = torch.cos(math.pi * torch.arange(H)).double()
    assert H % 2 or (waves @ nyquist).abs().max() < 1e-5
    assert nbeats.trend_basis(9, 6).double().diff(n=3).abs().max() < 1e-6
    # On the backcast waves count in horizons, powers in lookbacks.
    assert torch.equal(nbeats.seasonal_basis(3 * H, H)[:, H : 2 * H], nbeats.seasonal_basis(H, H))


def test_decomposition_adds_up():
    for settings in (SMALL, {**SMALL, "scale": True}, {**SMALL, "level": False},
                     {"stacks": [("generic", 8)] * 3, "blocks": 2, "share": False}):  # fmt: skip
        e = Ensemble(MEMBERS, 4, **settings)
        g = torch.Generator().manual_seed(2)
        x = 5 + torch.randn(7, 20, generator=g)
        mask = torch.arange(20) >= torch.tensor([0, 1, 5, 19, 10, 0, 0])[:, None]
        for by in ("stack", "block"):
            parts = e.decompose(x, mask, by)
            assert (parts.level + parts.forecasts.sum(0) - e(x, mask)).abs().max() < 1e-5
            first = 20 - torch.tensor([m.lookback for m in MEMBERS])
            own = torch.arange(20) >= first[:, None, None]
            window = parts.backcasts.sum(0) + parts.residual
            assert (window - x * mask * own).abs().max() < 1e-5
        assert len(parts.names) == len(e.plan)


def test_zero_weights_give_the_naive_forecast():
    series = panel()
    for scale in (False, True):
        model = NBeats(8, 4, scale=scale, **SMALL)
        with torch.no_grad():
            for network in model.ensemble.tensors():  # heads only
                network[-2].zero_()
                network[-1].zero_()
        assert torch.allclose(model.forecast(series), nbeats.naive(series, 4))


@pytest.mark.parametrize("shape", [SMALL, GENERIC])
def test_padding_changes_nothing(shape):
    """A member in a longer window, or with more zeros before a short series, says the same."""
    e = Ensemble(MEMBERS, 4, **shape).double()
    x = 3 + torch.randn(6, 20, generator=torch.Generator().manual_seed(3)).double()
    for i, m in enumerate(MEMBERS):
        alone = e.member(i)(x[:, -m.lookback :])
        assert (alone - e(x)[i]).abs().max() < 1e-12
    mask = (torch.arange(20) >= 14).expand_as(x)
    other = torch.where(mask, x, 1e6 * torch.ones_like(x))
    assert torch.equal(e(x, mask), e(other, mask))
    assert torch.equal(e(torch.where(mask, x, torch.nan), mask), e(x, mask))


def test_scaling_is_equivariant():
    model = NBeats(8, 4, scale=True, **SMALL)
    x = panel()[0][-8:][None]
    assert torch.equal(model(4 * x), 4 * model(x))
    assert not torch.allclose(NBeats(8, 4, **SMALL)(4 * x), 4 * NBeats(8, 4, **SMALL)(x))
    assert NBeats(8, 4, scale=True, **SMALL)(torch.zeros(1, 8)).isfinite().all()


@pytest.mark.parametrize("shape", [SMALL, GENERIC])
def test_members_do_not_know_each_other(shape):
    """Fitted together, alone, in another order: the same members."""
    series = panel()
    e = Ensemble(MEMBERS, 4, **shape).double()
    curve = e.fit(series, 40, batch=16, recent=12, period=4)
    whole = e.forecast(series)
    assert (curve[-5:].mean(0) < curve[:5].mean(0)).all()
    for i, m in enumerate(MEMBERS):
        one = NBeats(m.lookback, 4, loss=m.loss, seed=m.seed, **shape).double()
        assert (one.fit(series, 40, batch=16, recent=12, period=4) - curve[:, i]).abs().max() < 1e-9
        assert (one.forecast(series) - whole[i]).abs().max() < 1e-9
    back = Ensemble(MEMBERS[::-1], 4, **shape).double()
    back.fit(series, 40, batch=16, recent=12, period=4)
    assert (back.forecast(series).flip(0) - whole).abs().max() < 1e-9
    shape = dict(shape)
    shared = nbeats.forecast(series, MEMBERS, 4, shape.pop("kind", "interpretable"), steps=40, batch=16,
                             recent=12, period=4, at_once=3, shape=shape)  # fmt: skip
    assert (shared.double() - whole).abs().max() < 1e-2


def test_clipping_is_for_each_member():
    """One member's exploding loss leaves the others as they are, to the bit."""
    series = panel()
    e, wild = Ensemble(MEMBERS, 4, **SMALL), Ensemble(MEMBERS, 4, **SMALL)
    wild.losses[0, 3] *= 1e6  # the size of its loss
    e.fit(series, 1, batch=16, clip=0.1)
    wild.fit(series, 1, batch=16, clip=0.1)
    assert torch.equal(e.weights[1:], wild.weights[1:])
    assert torch.allclose(e.weights[0], wild.weights[0], atol=1e-6)  # clipped: only the direction


def test_losses_of_an_ensemble_are_the_papers():
    e = Ensemble(MEMBERS, 4, **SMALL).double()
    g = torch.Generator().manual_seed(4)
    x = (5 + torch.randn(4, 6, 20, generator=g)).double()
    y = (5 + torch.randn(4, 6, 4, generator=g)).double()
    y[:, 0, 0] = 0
    seen = (torch.arange(20) >= torch.tensor([0, 3, 18, 0, 0, 10])[:, None]).expand(4, 6, 20)
    known = (torch.arange(4) < torch.tensor([4, 4, 2, 1, 3, 4])[:, None]).expand(4, 6, 4)
    x = x * seen
    found, f = e.loss(x, seen, y, known, 4), e(x, seen)
    for i, m in enumerate(MEMBERS):
        if m.loss == "mase":
            wanted = nbeats.mase_loss(f[i], y[i], x[i], 4, known[i], seen[i])
        else:
            wanted = getattr(nbeats, f"{m.loss}_loss")(f[i], y[i], known[i])
        assert torch.allclose(found[i], wanted)


def test_loss_values_and_gradients():
    y = torch.tensor([[4.0, 4.0]])
    for loss, value, slope in (
        (nbeats.smape_loss, 66.6667, [-16.6667, 8.3333]), (nbeats.mape_loss, 0.75, [-0.125, 0.125]),
        (lambda f, y: nbeats.mase_loss(f, y, torch.tensor([[1.0, 3.0, 2.0, 5.0]])), 1.5, [-0.25, 0.25]),
    ):  # fmt: skip
        f = torch.tensor([[2.0, 8.0]], requires_grad=True)
        found = loss(f, y)
        (g,) = torch.autograd.grad(found, f)
        assert abs(found.item() - value) < 1e-4 and (g - torch.tensor(slope)).abs().max() < 1e-4
    f = torch.full((1, 2), 2.0, requires_grad=True)
    constant = nbeats.mase_loss(f, y, torch.ones(1, 4))
    assert constant.item() == 0 and torch.autograd.grad(constant, f)[0].isfinite().all()


def test_unused_backcast_has_no_gradient():
    e = Ensemble([Member(8)], 4, "generic", stacks=[("generic", 8)] * 2, layers=1)
    e(torch.ones(3, 8)).sum().backward()
    views = e.weights.grad.split([i * o for i, o in e.shapes], 1)
    assert views[-2].view(8, 12)[:, :4].any() and not views[-2].view(8, 12)[:, 4:].any()


def test_resumes_to_the_same_result(tmp_path, monkeypatch):
    series, setting = panel(), {"batch": 16, "every": 7}
    whole = Ensemble(MEMBERS, 4, **SMALL)
    curve = whole.fit(series, 50, **setting)
    save, name = checkpoint.save, tmp_path / "c.npz"

    class Stopped(Exception):
        pass

    def stop(*args):
        save(*args)
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(train, "save", stop)
        for _ in range(3):
            part = Ensemble(MEMBERS, 4, **SMALL)
            before = part.weights.detach().clone()
            with pytest.raises(Stopped):
                part.fit(series, 50, checkpoint=name, **setting)
            assert torch.equal(part.weights, before)  # a failed call leaves the weights alone
    part = Ensemble(MEMBERS, 4, **SMALL)
    assert torch.equal(part.fit(series, 50, checkpoint=name, **setting), curve)
    assert torch.equal(part.weights, whole.weights)
    with pytest.raises(ValueError, match="other fit"):
        Ensemble(MEMBERS, 4, **SMALL).fit(series, 51, checkpoint=name, **setting)
    name.write_bytes(b"broken")
    with pytest.raises(ValueError, match="damaged checkpoint"):
        Ensemble(MEMBERS, 4, **SMALL).fit(series, 50, checkpoint=name, **setting)


def test_learns_a_wave():
    """On noiseless waves of period 4 a few hundred steps beat the naive forecast by far."""
    t = torch.arange(40)
    series = [10 + a * (math.pi * t / 2 + a).sin() for a in torch.linspace(1, 3, 12)]
    history, y = [s[:-4] for s in series], torch.stack([s[-4:] for s in series])
    members = [Member(8, "mape", s) for s in range(3)]
    e = Ensemble(members, 4, stacks=[("seasonality", 32)], layers=2)
    e.fit(history, 300, batch=32)
    found = nbeats.mape(y, nbeats.median(e.forecast(history)))
    assert found < 0.3 * nbeats.mape(y, nbeats.naive(history, 4))


def test_bad_input():
    for settings, word in (({"horizon": 0}, "horizon"), ({"kind": "linear"}, "kind"),
                           ({"stacks": [("wavelet", 4)]}, "stacks"), ({"layers": 0}, "layers"),
                           ({"stacks": [("trend", 0)]}, "width")):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            Ensemble([Member(4)], **{"horizon": 2, **settings})
    wrong = [Member(0)], [Member(4, "l2")], [Member(4, seed=-1)]
    for members in ([], [Member(4), Member(4)], *wrong):
        with pytest.raises(ValueError, match=r"members|lookback|seed"):
            Ensemble(members, 2)
    with pytest.raises(ValueError, match="period: got 20"):
        Ensemble(MEMBERS, 4, **SMALL).fit(panel(), 2, period=20)
    model = NBeats(8, 4, **SMALL)
    x = torch.ones(2, 8)
    for bad in (x[:, :7], x[0], torch.ones(2, 2, 8), x * torch.nan):
        with pytest.raises(ValueError, match="x: got"):
            model(bad)
    for mask in (x[:, :7], torch.zeros(2, 8), torch.ones(8)):
        with pytest.raises(ValueError, match="mask: got"):
            model(x, mask)
    with pytest.raises(ValueError, match="by"):
        model.decompose(x, by="layer")
    for series in ([], [torch.ones(1)], [torch.tensor([1.0, torch.inf])]):
        with pytest.raises(ValueError, match="series"):
            model.fit(series, 2)
    for setting in ({"steps": 0}, {"batch": 0}, {"lr": 0.0}, {"clip": math.nan}, {"recent": 0}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            model.fit(panel(), **{"steps": 2, **setting})
    before = model.ensemble.weights.detach().clone()
    with pytest.raises(ValueError, match="not finite"):
        model.fit([torch.full((20,), 3e38)] * 2, 3, batch=4)
    assert torch.equal(model.ensemble.weights, before)


def test_constant_zero_and_short_series_are_handled():
    series = [torch.ones(20), torch.zeros(20), torch.tensor([1.0, 2.0])]  # the last: half a horizon
    e = Ensemble(MEMBERS, 4, **SMALL)
    assert e.fit(series, 20, batch=16).isfinite().all() and e.forecast(series).isfinite().all()


RANKS = """
import sys
import torch
sys.path.insert(0, {tests!r})
from test_nbeats import MEMBERS, SMALL, panel
from collage import nbeats, runtime
from collage.common import train
with runtime.ranks() as (rank, world, device):
    found = nbeats.forecast(panel(), MEMBERS, 4, steps=20, batch=16, period=4, shape=SMALL)
    checkpoint.save(f"{folder}/{{world}}-{{rank}}.npz", {{"found": found}}, {{}})
"""


@pytest.mark.slow
def test_ranks_share_the_members(tmp_path):
    """Two ranks, or more ranks than members: everybody holds all forecasts, the same ones."""
    program = tmp_path / "program.py"
    program.write_text(RANKS.format(tests=str(Path(__file__).parent), folder=tmp_path))
    wanted = nbeats.forecast(panel(), MEMBERS, 4, steps=20, batch=16, period=4, shape=SMALL)
    for world in (2, 5):
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(world), "--master-port",
                  str(random.randint(20_000, 40_000)), str(program)]  # fmt: skip
        subprocess.run([sys.executable, *launch], check=True, capture_output=True,
                       env={**os.environ, "OMP_NUM_THREADS": "1",
                            "PYTHONPATH": str(Path(__file__).parents[2])})  # fmt: skip
        for rank in range(world):
            found = checkpoint.load(tmp_path / f"{world}-{rank}.npz")[0]["found"]
            assert (torch.from_numpy(found) - wanted).abs().max() < 1e-3


@pytest.mark.parametrize("stacks", [[("trend", 5), ("seasonality", 7)], [("generic", 6)] * 3,
                                    [("generic", 4), ("trend", 3)]])  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"share": False, "layers": 1}, {"scale": True},
                                     {"level": False, "blocks": 2}, {"blocks": 1, "degree": 1}])  # fmt: skip
def test_the_gradient_is_what_autograd_says(stacks, options):
    """All losses and lookbacks at once, with padded windows and targets; buffers are used again."""
    members = nbeats.grid(4, lookbacks=(1, 2, 3), seeds=1)
    ensemble = Ensemble(members, 4, stacks=stacks, **options).double()
    gradient, g = Gradient(ensemble, 9, at_once=4), torch.Generator().manual_seed(0)
    for _ in range(2):
        x, y = (1 + torch.rand(9, 9, n, generator=g, dtype=torch.float64) for n in (12, 4))
        seen = torch.arange(12) >= torch.randint(0, 12, (9, 9, 1), generator=g)
        known = torch.arange(4) <= torch.randint(0, 4, (9, 9, 1), generator=g)
        x, y = x * seen, y * known
        losses, found = gradient(x, seen, y, known, 2)
        wanted = ensemble.loss(x, seen, y, known, 2)
        (slope,) = torch.autograd.grad(wanted.sum(), ensemble.weights)
        assert torch.allclose(losses, wanted, rtol=1e-12)
        assert slope.abs().max() > 1e-3
        assert (found - slope).abs().max() <= 1e-12 * slope.abs().max()


@pytest.mark.parametrize(("product", "near"), [(torch.float64, 1e-5), (torch.bfloat16, 0.03)])
def test_layers_may_multiply_in_another_dtype(product, near):
    members = nbeats.grid(4, lookbacks=(1, 2, 3), seeds=1)
    ensemble = Ensemble(members, 4, stacks=[("generic", 16), ("trend", 16), ("seasonality", 16)])
    g = torch.Generator().manual_seed(0)
    x, y = (1 + torch.rand(9, 8, n, generator=g) for n in (12, 4))
    seen, known = (torch.ones_like(t, dtype=torch.bool) for t in (x, y))
    exact, wanted = (t.clone() for t in Gradient(ensemble, 8)(x, seen, y, known))
    losses, found = Gradient(ensemble, 8, at_once=4, product=product)(x, seen, y, known)
    assert losses.dtype == found.dtype == torch.float32
    assert torch.allclose(losses, exact, rtol=near)
    if product == torch.bfloat16:  # a slope that turns its sign is another one
        assert torch.cosine_similarity(found, wanted, dim=1).min() > 0.9
    else:
        assert (found - wanted).norm() < near * wanted.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_learns_what_a_cpu_does():
    a, b = (Ensemble(MEMBERS, 4, **SMALL, device=device) for device in ("cpu", "cuda"))
    assert torch.equal(a.weights, b.weights.cpu())
    one, two = (e.fit(panel(), 70, batch=8) for e in (a, b))
    assert torch.allclose(one, two.cpu(), rtol=1e-3)
    assert torch.allclose(a.forecast(panel()), b.forecast(panel()).cpu(), rtol=1e-3, atol=1e-3)


def test_fit_is_a_plain_loop(monkeypatch):
    """Every setting of fit matters here: windows by slicing, autograd, clipping and Adam in full."""
    series, steps, batch, recent, period, clip = panel(5), 70, 6, 7, 3, 0.01
    e, twin = (Ensemble(MEMBERS, 4, **SMALL).double() for _ in range(2))
    curve = e.fit(series, steps, batch=batch, lr=0.01, recent=recent, period=period, clip=clip)
    adam = torch.optim.Adam([twin.weights], 0.01)
    clipped = 0
    for i in range(steps):
        x, seen, y, known = (torch.zeros(len(MEMBERS), batch, n, dtype=torch.float64)
                             for n in (20, 20, 4, 4))  # fmt: skip
        for j, member in enumerate(MEMBERS):
            g = runtime.generator(runtime.seed_for(member, "windows", i // CHUNK))
            draw = torch.rand(CHUNK, batch, 2, dtype=torch.float64, generator=g)[i % CHUNK]
            for k, (first, second) in enumerate(draw.tolist()):
                s = series[int(first * len(series))].double()
                cuts = list(range(1, len(s)))[-recent:]
                c = cuts[int(second * len(cuts))]
                past, after = s[max(0, c - 20) : c], s[c : c + 4]
                x[j, k, 20 - len(past) :], seen[j, k, 20 - len(past) :] = past, 1
                y[j, k, : len(after)], known[j, k, : len(after)] = after, 1
        losses = twin.loss(x, seen.bool(), y, known.bool(), period)
        adam.zero_grad()
        losses.sum().backward()
        for row in twin.weights.grad:
            clipped += float(row.norm()) > clip
            row.mul_(min(1.0, clip / (float(row.norm()) + 1e-6)))
        adam.param_groups[0]["lr"] = 0.01 * 0.5 ** (i // (steps // 3))
        adam.step()
        assert torch.allclose(curve[i], losses.detach(), rtol=1e-6)
    assert torch.allclose(e.weights, twin.weights, atol=1e-8) and clipped > 20


def test_an_interrupt_leaves_the_weights_and_a_checkpoint_to_go_on_from(tmp_path, monkeypatch):
    e, path = Ensemble(MEMBERS, 4, **SMALL), tmp_path / "c.npz"
    before, save = e.weights.detach().clone(), checkpoint.save
    whole = Ensemble(MEMBERS, 4, **SMALL).fit(panel(), 20, batch=8)

    def stop(*args):
        save(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            e.fit(panel(), 20, batch=8, checkpoint=path, every=7)
    assert torch.equal(e.weights, before)
    assert torch.equal(e.fit(panel(), 20, batch=8, checkpoint=path, every=7), whole)
    # The same numbers, cut into other series, are another panel.
    a, b = ([torch.tensor(s) for s in rows] for rows in
            ([[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]], [[1.0, 2.0], [0.0, 3.0, 4.0, 5.0]]))  # fmt: skip
    model = NBeats(2, 2, **SMALL)
    start = model.ensemble.weights.detach().clone()
    model.fit(a, 2, batch=4, checkpoint=tmp_path / "d.npz")
    model.ensemble.weights.data.copy_(start)
    with pytest.raises(ValueError, match="panel"):
        model.fit(b, 2, batch=4, checkpoint=tmp_path / "d.npz")


def test_more_bad_input():
    for bad in ([], ["trend"], [("trend", 0)], [("wave", 4)]):
        with pytest.raises(ValueError, match=r"stacks|width"):
            Ensemble(MEMBERS, 4, stacks=bad)
    with pytest.raises(ValueError, match="blocks"):
        Ensemble(MEMBERS, 4, blocks=0)
    for bad in ([4], [(4, "smape", 0, 1)]):
        with pytest.raises(ValueError, match="members"):
            Ensemble(bad, 4)
    assert len(Ensemble(Member(4), 2, **SMALL).members) == 1
    assert Ensemble([(4, "mape")], 2, **SMALL).members == [Member(4, "mape")]
    e = Ensemble(MEMBERS, 4, **SMALL)
    assert e.member(-1).ensemble.members == [MEMBERS[-1]]
    with pytest.raises(ValueError, match="i: got 4"):
        e.member(4)
    x = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(e(x.numpy()), e(x))
    for at_once in (-1, 0, 1.5):
        with pytest.raises(ValueError, match="at_once"):
            nbeats.forecast(panel(), MEMBERS, 4, steps=1, shape=SMALL, period=3, at_once=at_once)
    with pytest.raises(ValueError, match="forecasts"):
        nbeats.median(torch.tensor([1.0, torch.nan]))
    assert nbeats.grid(6, (2,), "mape", 1) == [Member(12, "mape", 0)]
    with pytest.raises(ValueError, match="lookbacks"):
        nbeats.grid(6, "ab")
