"""Devices, generators, records, and checkpoints that survive."""

import errno
import json
import os

import pytest
import torch

from collage import runtime


def test_device():
    assert runtime.device("cpu").type == "cpu"
    assert runtime.device().type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="cuda"):
            runtime.device("cuda")


def test_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    torch.rand(3, generator=runtime.generator(5))
    assert torch.equal(before, torch.get_rng_state())


def test_record_is_complete_and_json(tmp_path):
    made = runtime.record({"a": 1.5}, config={"n": 3}, seeds=[0], repeats=2, peers={"x": "1"})
    runtime.write_record(tmp_path / "deep" / "r.json", made)
    back = json.loads((tmp_path / "deep" / "r.json").read_text())
    assert back == made and back["torch"] == torch.__version__ and back["device"]
    with pytest.raises(ValueError):
        runtime.write_record(tmp_path / "r.json", {"x": float("nan")})


def test_commit_where_there_is_no_repository(monkeypatch):
    settings = {"config": {}, "seeds": [0], "repeats": 1}
    monkeypatch.setattr(runtime, "_git", lambda *words: "")
    monkeypatch.setenv("COLLAGE_COMMIT", "c" * 40)
    assert runtime.record({}, **settings)["commit"] == "c" * 40
    monkeypatch.delenv("COLLAGE_COMMIT")
    assert runtime.record({}, **settings)["commit"] == "unknown"
    assert runtime._said("no such program") == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_captured_function_reads_new_inputs():
    total = torch.zeros(3, device="cuda")
    add = runtime.Captured(lambda x: total.add_(x) * 2)
    found = [add(torch.full((3,), float(i), device="cuda")).tolist()[0] for i in range(4)]
    assert found == [0.0, 2.0, 6.0, 12.0] and total.tolist() == [6.0] * 3


def test_checkpoint_survives_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "c.npz"
    runtime.save(path, {"w": torch.arange(3)}, {"step": 1})

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"c\.npz.*No space left.*untouched"):
        runtime.save(path, {"w": torch.zeros(3)}, {"step": 2})
    arrays, meta = runtime.load(path)
    assert arrays["w"].tolist() == [0, 1, 2] and meta == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


def test_damaged_checkpoints_are_named(tmp_path):
    path = tmp_path / "c.npz"
    runtime.save(path, {"w": torch.arange(1000)}, {"step": 1})
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"not a checkpoint at all"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            runtime.load(path)
    with pytest.raises(FileNotFoundError):
        runtime.load(tmp_path / "none.npz")


def test_what_cannot_be_read_just_now_is_not_called_damaged(tmp_path, monkeypatch):
    """Nobody shall remove a good checkpoint because the disk or the memory had a bad moment."""
    path = tmp_path / "c.npz"
    runtime.save(path, {"w": torch.arange(3)}, {"step": 1})
    for error in (OSError(errno.EIO, "Input/output error"), MemoryError("no room")):

        def fail(*args, error=error, **how):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(runtime.np, "load", fail)
            with pytest.raises(type(error)) as raised:
                runtime.load(path)
            assert raised.value is error
    assert runtime.load(path)[1] == {"step": 1}


def test_what_a_killed_run_left_is_overwritten(tmp_path):
    """A kill in the middle of a write leaves one file, of a known name; the next write takes it."""
    path = tmp_path / "c.npz"
    runtime.save(path, {"w": torch.arange(3)}, {"step": 1})
    (tmp_path / "c.npz.0.part").write_bytes(b"half of a checkpoint")
    runtime.save(path, {"w": torch.arange(4)}, {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]
    assert runtime.load(path)[1] == {"step": 2}
    wanted = tmp_path / "usual"
    wanted.touch()
    assert path.stat().st_mode == wanted.stat().st_mode  # as readable as any file of this user


def test_captured_function_off_the_gpu_is_the_function():
    double = runtime.Captured(lambda x: 2 * x)
    assert double(torch.ones(2)).tolist() == [2, 2] and double(torch.ones(1)).tolist() == [2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_captured_function_refuses_another_shape():
    double = runtime.Captured(lambda x: 2 * x)
    double(torch.ones(4, device="cuda"))
    for other in (torch.ones(1, device="cuda"), torch.ones(4, device="cuda").double()):
        with pytest.raises(ValueError, match="as in the first call"):
            double(other)


def test_resume_tells_one_run_from_another(tmp_path):
    path, setting = tmp_path / "a.npz", {"steps": (3, 4), "rate": 0.1}
    assert runtime.resume(path, setting) == ({}, 0)
    runtime.save(path, {"w": torch.arange(3.0)}, {"setting": setting, "done": 2})
    arrays, done = runtime.resume(path, setting)
    assert done == 2 and torch.equal(arrays["w"], torch.arange(3.0))
    with pytest.raises(ValueError, match="with other rate; wanted"):
        runtime.resume(path, {**setting, "rate": 0.2})
    runtime.save(path, {"w": torch.arange(3.0)}, {"done": 2})
    with pytest.raises(ValueError, match="with other rate, steps"):
        runtime.resume(path, setting)


def test_digests_and_seeds_tell_apart():
    x = torch.arange(4.0)
    assert runtime.digest(x) == runtime.digest(x.clone()) != runtime.digest(x + 1)
    assert len({runtime.seed_for(i, kind) for i in range(50) for kind in "ab"}) == 100
    assert list(runtime.steps_from(2, 5)) == [2, 3, 4] == list(runtime.steps_from(2, 5, bar=True))
