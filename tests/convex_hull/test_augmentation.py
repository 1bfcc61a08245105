"""The recorded experiment on augmentation: what it varies, and that it goes on where it stopped."""

import json

import pytest
import torch

from collage.convex_hull import membership
from experiments import augmentation


def test_mixup_cannot_leave_the_hull_and_shifts_do():
    g = torch.Generator().manual_seed(0)
    x = torch.randint(17, (1, 30, 64), generator=g).double()
    target = torch.eye(10)[torch.arange(30) % 10][None]
    mixed, labels = augmentation.mixup(x, target, g)
    assert membership(x[0], mixed[0]).inside.all()
    assert torch.allclose(labels.sum(2), torch.ones(1, 30)) and (labels > 0).sum() > 30
    moved, same = augmentation.shift(x, target, g)
    assert same is target and not membership(x[0], moved[0]).inside.all()
    nine = augmentation.grown(x[0], "shifts").view(30, 9, 64)
    assert torch.equal(nine[:, 4], x[0])  # the one in the middle is no shift
    assert all((moved[0, i] == nine[i]).all(1).any() for i in range(30))


@pytest.mark.slow
def test_the_program_resumes_and_records(tmp_path):
    words = ["--tiny", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    augmentation.main(words)
    found = json.loads((tmp_path / "out" / "tiny.json").read_text())["numbers"]
    kept = sorted((tmp_path / "runs" / "tiny").glob("*.json"))
    assert len(found["runs"]) == len(kept) == 12
    kept[3].unlink()
    before = kept[0].stat().st_mtime_ns
    augmentation.main(words)
    again = json.loads((tmp_path / "out" / "tiny.json").read_text())["numbers"]
    assert again == found and kept[0].stat().st_mtime_ns == before
    none, mixed = (
        next(r for r in found["runs"] if r["kind"] == kind) for kind in ("none", "mixup")
    )
    assert none["distance"] == pytest.approx(mixed["distance"], abs=1e-6)
