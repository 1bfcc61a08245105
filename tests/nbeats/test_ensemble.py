"""Ensembles as modules: parts that add up, sizes, input that is refused."""

import pytest
import torch

from collage.nbeats import Ensemble, Member, NBeats, classical, grid
from tests.nbeats.examples import GENERIC, MEMBERS, SMALL, panel, small


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "L", "H", "count"), [
    ("interpretable", 12, 6, 12_842_514), ("interpretable", 42, 6, 12_911_634),
    ("interpretable", 16, 8, 12_859_926), ("interpretable", 36, 18, 12_946_986),
    ("interpretable", 336, 48, 13_761_126), ("generic", 12, 6, 24_115_740),
    ("generic", 42, 6, 25_038_240), ("generic", 336, 48, 34_725_120)])  # fmt: skip
def test_parameter_counts(kind, L, H, count):
    assert sum(p.numel() for p in NBeats(L, H, kind).parameters()) == count


@pytest.mark.parametrize("shape", [SMALL, {**GENERIC, "blocks": 2}])
@pytest.mark.parametrize("by", ["stack", "block"])
def test_decomposition_adds_up(shape, by):
    e = Ensemble(MEMBERS, 4, **shape)
    g = torch.Generator().manual_seed(2)
    x = 5 + torch.randn(7, 20, generator=g)
    mask = torch.arange(20) >= torch.tensor([0, 1, 5, 19, 10, 0, 0])[:, None]
    parts = e.decompose(x, mask, by)
    assert (parts.level + parts.forecasts.sum(0) - e(x, mask)).abs().max() < 1e-5
    first = 20 - torch.tensor([m.lookback for m in MEMBERS])
    own = torch.arange(20) >= first[:, None, None]
    window = parts.backcasts.sum(0) + parts.residual
    assert (window - x * mask * own).abs().max() < 1e-5
    stacks = [name for name, _ in shape["stacks"]]
    repeats = 1 if by == "stack" else e.networks.blocks
    assert parts.names == tuple(name for name in stacks for _ in range(repeats))


def test_zero_weights_give_the_naive_forecast():
    series, model = panel(), NBeats(8, 4, **SMALL)
    with torch.no_grad():
        for tensors in model.ensemble.tensors():
            tensors[-2].zero_()
            tensors[-1].zero_()
    assert torch.allclose(model.forecast(series), classical.naive(series, 4))


def test_what_members_may_be():
    assert len(Ensemble(Member(4), 2, **SMALL).members) == 1
    assert Ensemble([(4, "mape")], 2, **SMALL).members == [Member(4, "mape")]
    assert grid(6, (2,), "mape", 1) == [Member(12, "mape", 0)]
    x = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    e = small()
    assert torch.equal(e(x.numpy()), e(x))
    assert torch.equal(e(x.expand(4, 3, 20)), e(x))  # windows of each member's own


def test_bad_settings():
    for setting, word in (({"horizon": 0}, "horizon"), ({"kind": "linear"}, "kind"),
                          ({"layers": 0}, "layers"), ({"blocks": 0}, "blocks"),
                          ({"stacks": []}, "stacks"), ({"stacks": ["trend"]}, "stacks"),
                          ({"stacks": [("wave", 4)]}, "stacks"),
                          ({"stacks": [("trend", 0)]}, "width")):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            Ensemble([Member(4)], **{"horizon": 2, **setting})
    for members in ([], [Member(4), Member(4)], [4], [(4, "smape", 0, 1)], [Member(0)],
                    [Member(4, "l2")], [Member(4, ["l2"])], [Member(4, seed=-1)]):  # fmt: skip
        with pytest.raises(ValueError, match=r"members|lookback|seed"):
            Ensemble(members, 2)
    with pytest.raises(ValueError, match="lookbacks"):
        grid(6, "ab")


def test_bad_windows():
    model, x = NBeats(8, 4, **SMALL), torch.ones(2, 8)
    for bad in (x[:, :7], x[0], torch.ones(2, 2, 8), x * torch.nan, x.double() * 1e300):
        with pytest.raises(ValueError, match="x: got"):
            model(bad)
    for mask in (x[:, :7], torch.zeros(2, 8), torch.ones(8)):
        with pytest.raises(ValueError, match="mask: got"):
            model(x, mask)
    with pytest.raises(ValueError, match="by"):
        model.decompose(x, by="layer")
