"""Measures: the scores that M3 published, values by hand, input that is refused."""

import pytest
import torch

from collage.nbeats.measures import mape, mase, smape
from tests.nbeats.examples import NEEDS_DATA, competition


@NEEDS_DATA
@pytest.mark.parametrize(("frequency", "naive2", "theta"), [
    ("Yearly", 17.880, 16.870), ("Quarterly", 9.951, 8.956), ("Monthly", 16.891, 13.928),
    ("Other", 6.302, 4.410)])  # fmt: skip
def test_m3(frequency, naive2, theta):
    """Naive2 and Theta as they were submitted; M3 has y + f in the denominator."""
    m3 = competition("m3", frequency)
    assert round(smape(m3.test, m3.naive2).item(), 3) == naive2
    assert round(smape(m3.test, m3.theta, signed=True).item(), 3) == theta


def test_bad_input():
    y = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"forecast: got \(2, 2\)"):
        smape(y, y[:, :2])
    with pytest.raises(ValueError, match="NaN or inf"):
        mape(y, y / 0)
    with pytest.raises(ValueError, match="real numbers"):
        smape(y, y * 1j)
    with pytest.raises(ValueError, match="6 zeros"):
        mape(y * 0, y)
    assert smape(y * 0, y * 0) == 0
    with pytest.raises(ValueError, match=r"series\[1\]: constant"):
        mase(y, y, [torch.arange(5.0), torch.ones(5)])
    with pytest.raises(ValueError, match=r"series\[0\]"):
        mase(y, y, [torch.ones(2), torch.ones(9)], 4)
    with pytest.raises(ValueError, match="one for each row"):
        mase(y, y, [torch.arange(5.0)])
