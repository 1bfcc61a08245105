"""Checkpoints that survive."""

import errno
import os

import pytest
import torch

from collage.common import checkpoint


def test_checkpoint_survives_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "c.npz"
    checkpoint.save(path, {"w": torch.arange(3)}, {"step": 1})

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"c\.npz.*No space left.*untouched"):
        checkpoint.save(path, {"w": torch.zeros(3)}, {"step": 2})
    arrays, meta = checkpoint.load(path)
    assert arrays["w"].tolist() == [0, 1, 2] and meta == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


def test_damaged_checkpoints_are_named(tmp_path):
    path = tmp_path / "c.npz"
    checkpoint.save(path, {"w": torch.arange(1000)}, {"step": 1})
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"not a checkpoint at all"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            checkpoint.load(path)
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "none.npz")


def test_what_cannot_be_read_just_now_is_not_called_damaged(tmp_path, monkeypatch):
    """Nobody shall remove a good checkpoint because the disk or the memory had a bad moment."""
    path = tmp_path / "c.npz"
    checkpoint.save(path, {"w": torch.arange(3)}, {"step": 1})
    for error in (OSError(errno.EIO, "Input/output error"), MemoryError("no room")):

        def fail(*args, error=error, **how):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.np, "load", fail)
            with pytest.raises(type(error)) as raised:
                checkpoint.load(path)
            assert raised.value is error
    assert checkpoint.load(path)[1] == {"step": 1}


def test_what_a_killed_run_left_is_overwritten(tmp_path):
    """A kill in the middle of a write leaves one file, of a known name; the next write takes it."""
    path = tmp_path / "c.npz"
    checkpoint.save(path, {"w": torch.arange(3)}, {"step": 1})
    (tmp_path / "c.npz.0.part").write_bytes(b"half of a checkpoint")
    checkpoint.save(path, {"w": torch.arange(4)}, {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]
    assert checkpoint.load(path)[1] == {"step": 2}
    wanted = tmp_path / "usual"
    wanted.touch()
    assert path.stat().st_mode == wanted.stat().st_mode  # as readable as any file of this user


def test_resume_tells_one_run_from_another(tmp_path):
    path, setting = tmp_path / "a.npz", {"steps": (3, 4), "rate": 0.1}
    assert checkpoint.resume(path, setting) == ({}, 0)
    checkpoint.save(path, {"w": torch.arange(3.0)}, {"setting": setting, "done": 2})
    arrays, done = checkpoint.resume(path, setting)
    assert done == 2 and torch.equal(arrays["w"], torch.arange(3.0))
    with pytest.raises(ValueError, match="with other rate; wanted"):
        checkpoint.resume(path, {**setting, "rate": 0.2})
    checkpoint.save(path, {"w": torch.arange(3.0)}, {"done": 2})
    with pytest.raises(ValueError, match="with other rate, steps"):
        checkpoint.resume(path, setting)
