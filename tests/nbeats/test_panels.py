"""Windows against slices of the series; panels that are refused."""

import pytest
import torch

from collage.nbeats.classical import naive
from collage.nbeats.panels import Windows


def test_windows_against_slices():
    """Every window is what slicing the padded series gives; draws stay inside."""
    g = torch.Generator().manual_seed(0)
    series = [torch.randn(n, generator=g) for n in (2, 9, 30)]
    windows = Windows(series, 5, 3)
    for i, one in enumerate(series):
        for cut in range(1, len(one) + 1):
            x, seen, y, known = windows.at(torch.tensor(i), torch.tensor(cut))
            real = one[max(0, cut - 5) : cut]
            assert torch.equal(x[5 - len(real) :], real) and seen.sum() == len(real)
            after = one[cut : cut + 3]
            assert torch.equal(y[: len(after)], after) and known.sum() == len(after)
            assert not x[: 5 - len(real)].any() and not y[len(after) :].any()
    uniform = torch.rand(20_000, 2, generator=g, dtype=torch.float64)
    which, cut = windows.draw(uniform, recent=4)
    count = torch.bincount(which, minlength=3).double()
    assert ((count - 20_000 / 3).square() / (20_000 / 3)).sum() < 15  # chi-square, 2 degrees
    for i, n in enumerate((2, 9, 30)):
        assert set(cut[which == i].tolist()) == set(range(max(1, n - 4), n))
    assert torch.equal(windows.last()[0][2], series[2][-5:])


def test_panels_that_are_refused():
    nan = torch.tensor([1.0, torch.nan])
    for bad in ([], [torch.ones(0)], [nan], torch.ones(4), None, {"a": torch.ones(3)},
                torch.ones(()), ["text"], [torch.ones(3) * 1j]):  # fmt: skip
        with pytest.raises(ValueError, match="series"):
            naive(bad, 2)
    with pytest.raises(ValueError, match="series"):
        Windows([torch.ones(1)], 4, 2)
