"""Captured functions."""

import pytest
import torch

from collage.common.graph import Captured


@pytest.mark.cuda
def test_captured_function_reads_new_inputs():
    total = torch.zeros(3, device="cuda")
    add = Captured(lambda x: total.add_(x) * 2)
    found = [add(torch.full((3,), float(i), device="cuda")).tolist()[0] for i in range(4)]
    assert found == [0.0, 2.0, 6.0, 12.0] and total.tolist() == [6.0] * 3


def test_captured_function_off_the_gpu_is_the_function():
    double = Captured(lambda x: 2 * x)
    assert double(torch.ones(2)).tolist() == [2, 2] and double(torch.ones(1)).tolist() == [2]


@pytest.mark.cuda
def test_captured_function_refuses_another_shape():
    double = Captured(lambda x: 2 * x)
    double(torch.ones(4, device="cuda"))
    for other in (torch.ones(1, device="cuda"), torch.ones(4, device="cuda").double()):
        with pytest.raises(ValueError, match="as in the first call"):
            double(other)
