"""A panel, members, shapes and the competitions' files, which the tests share."""

import itertools
import math
import os
from typing import NamedTuple

import pytest
import torch

from collage import data
from collage.nbeats import Ensemble, Member, NBeats

SMALL = {"stacks": [("trend", 8), ("seasonality", 16)], "layers": 2}
GENERIC = {"kind": "generic", "stacks": [("generic", 8)] * 3, "layers": 2}
MEMBERS = [Member(8, "smape"), Member(12, "mape"), Member(20, "mase", 3), Member(4, "smape", 1)]


def panel(n=12, seed=0):
    """Seasonal series with a trend, of different lengths, all positive."""
    g = torch.Generator().manual_seed(seed)
    series = []
    for length in torch.randint(9, 60, (n,), generator=g).tolist():
        t, (a, b, c) = torch.arange(length), torch.rand(3, generator=g).tolist()
        noise = 0.1 * torch.randn(length, generator=g)
        series.append(10 + 5 * a + b * t / 10 + c * (math.pi * t / 2).sin() + noise)
    return series


def alone(ensemble, i, **shape):
    """Member i as an `NBeats` of its own, its weights cut to its lookback."""
    member = ensemble.members[i]
    network = NBeats(
        member.lookback, ensemble.horizon, **shape, loss=member.loss, seed=member.seed
    ).to(ensemble.weights)
    with torch.no_grad():
        for own, padded in zip(network.ensemble.tensors(), ensemble.tensors(), strict=True):
            for to, w in zip(own, padded, strict=True):
                to.copy_(w[i : i + 1, : to.shape[1], : to.shape[2]])
    return network


def small(dtype=torch.float32, **shape):
    return Ensemble(MEMBERS, 4, **(shape or SMALL)).to(dtype)


NEEDS_DATA = pytest.mark.skipif(
    "COLLAGE_DATA" not in os.environ, reason="the competitions' files are not in $COLLAGE_DATA"
)


class Competition(NamedTuple):
    train: list  # of series
    test: torch.Tensor  # (N, H)
    period: int
    naive2: torch.Tensor | None  # as submitted
    theta: torch.Tensor | None


def competition(name, frequency):
    files = data.load(name)[frequency]
    cuts = itertools.pairwise(files["offsets"].tolist())
    train = [torch.as_tensor(files["train"][a:b]).double() for a, b in cuts]
    test, *submitted = (
        torch.as_tensor(files[key]).double() if key in files else None
        for key in ("test", "naive2", "theta")
    )
    return Competition(train, test, int(files["frequency"]), *submitted)
