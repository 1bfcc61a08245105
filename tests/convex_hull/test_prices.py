"""Pricing against plain products; the kernel in Triton's interpreter; no Triton without a GPU."""

import importlib.metadata
import os
import subprocess
import sys

import pytest
import torch

from collage.convex_hull.fast import prices
from collage.convex_hull.frame import Cloud
from tests.convex_hull.clouds import normal, rng

try:
    TRITON = tuple(int(n) for n in importlib.metadata.version("triton").split(".")[:2])
except importlib.metadata.PackageNotFoundError:
    TRITON = (0, 0)


def test_block_max_and_points_beyond_against_plain_products(monkeypatch):
    x, w = torch.randn(160, 7, generator=rng()), torch.randn(7, 9, generator=rng(1))
    assert torch.equal(prices.block_max(x, w), torch.stack([(b @ w).amax(0) for b in x.split(16)]))
    cloud = Cloud(normal(5000, 7))
    served = prices.Prices(cloud, prices.fourfold(5000))
    w = torch.nn.functional.normalize(normal(40, 7, seed=2), dim=1)
    price = cloud.x @ w.T
    for small in (0, 1 << 30):
        monkeypatch.setattr(prices, "SMALL", small)
        for h, limit in ((3.0, 5000), (2.0, 3333), (9.0, 5000), (-1.0, 70)):
            best = price[:limit].amax(0)
            beyond, top = torch.zeros(40).bool(), torch.full((40,), -99.0).double()
            for tier in (0, 1):
                asked = prices.Question(w, torch.full((40,), h).double(), top,
                                        torch.zeros(40).long(), torch.full((40,), limit))  # fmt: skip
                answer = served.points_beyond(asked, tier)
                for q in range(40):
                    for i in answer.ids[q][answer.ids[q] >= 0].tolist():
                        assert i < limit and price[i, q] >= h - 1e-9
                beyond |= (answer.ids >= 0).any(1)
                top = torch.maximum(top, answer.top)
                assert answer.whole == bool(small)
            assert torch.equal(beyond, best >= h)
            assert torch.allclose(top[~beyond], best[~beyond], atol=1e-12)


# Sums of a hundred products in float32, in another order on every kind of CPU.
CHECK = """
import torch
from collage.convex_hull.fast import kernel, prices
for n, d, m in ((64, 3, 5), (400, 33, 129), (48, 100, 40), (160, 200, 70)):
    g = torch.Generator().manual_seed(n)
    x, w = torch.randn(n, d, generator=g), torch.randn(d, m, generator=g)
    wanted = prices.block_max(x, w)
    assert (kernel.triton_block_max(x, w, 16) - wanted).abs().max() < 1e-4
    counts = torch.randint(0, n // 16 + 1, (m,), generator=g).sort(descending=True)[0]
    largest = kernel.triton_block_max(x, w, 16, counts)
    asked = torch.arange(n // 16)[:, None] < counts
    assert (largest - wanted)[asked].abs().max() < 1e-4
    assert ((largest == -torch.inf) | ((largest - wanted).abs() < 1e-4)).all()
print("equal")
"""


# Older interpreters cannot loop over a number that is only known in the run.
@pytest.mark.skipif(TRITON < (3, 9), reason="Triton is not installed, or older than 3.9 (pip install triton)")  # fmt: skip
def test_triton_kernel_in_the_interpreter():
    run = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=False,
                         env={**os.environ, "TRITON_INTERPRET": "1"})  # fmt: skip
    assert run.stdout == "equal\n", run.stderr


def test_import_and_answers_without_triton():
    """Triton takes half a second to import: not before the first call on a GPU."""
    code = """
import sys, torch
from collage.convex_hull import membership
membership(torch.randn(3000, 4, generator=torch.Generator()), torch.zeros(200, 4)).entry
print("triton" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
