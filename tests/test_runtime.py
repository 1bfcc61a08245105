"""Devices, seeds, threads, ranks."""

import pytest
import torch

from collage import runtime
from collage.common.checkpoint import digest
from collage.common.train import steps_from


def test_device():
    assert runtime.device("cpu").type == "cpu"
    assert runtime.device().type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="cuda"):
            runtime.device("cuda")


def test_digests_and_seeds_tell_apart():
    x = torch.arange(4.0)
    assert digest(x) == digest(x.clone()) != digest(x + 1)
    assert len({runtime.seed_for(i, kind) for i in range(50) for kind in "ab"}) == 100
    assert list(steps_from(2, 5)) == [2, 3, 4] == list(steps_from(2, 5, bar=True))
