"""Full-scale programs: same record for any number of ranks, and after a kill at any moment."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from experiments import sam

ROOT = Path(__file__).parent.parent


def record(folder):
    found = json.loads((folder / "out" / "tiny.json").read_text())
    return found["numbers"]


def command(folder, ranks=1):
    program = [
        "-m",
        "experiments.sam",
        "--tiny",
        "--runs",
        folder / "runs",
        "--out",
        folder / "out",
    ]
    if ranks > 1:
        program = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks),
                   "--master-port", str(random.randint(20_000, 40_000)), *program]  # fmt: skip
    return [sys.executable, *map(str, program)]


def run(folder, ranks=1):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(folder, ranks), cwd=ROOT, env=env, check=True, capture_output=True)
    return record(folder)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return run(tmp_path_factory.mktemp("reference"))


def test_two_ranks_give_the_same_record(reference, tmp_path):
    assert run(tmp_path, ranks=2) == reference


@pytest.mark.parametrize("seed", range(3))
def test_killed_and_resumed(reference, tmp_path, seed):
    """SIGKILL at a random moment, twice; the third run ends with the identical record."""
    rng = random.Random(seed)
    for _ in range(2):
        process = subprocess.Popen(command(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        time.sleep(rng.uniform(1.5, 4.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run(tmp_path) == reference


def test_resumes_from_every_epoch(tmp_path, monkeypatch):
    """Stop after each epoch's checkpoint in turn: the result never changes."""
    config = sam.PRESETS["tiny"]
    x, y, cut = sam.images(config)
    setting, device = {"noise": 0.4, "rho": 0.1, "decay": 0.0}, torch.device("cpu")
    whole = sam.run_job(config, setting, x, y, cut, tmp_path / "whole", device)
    save = sam.runtime.save

    class Stopped(Exception):
        pass

    def stop(*args):
        save(*args)
        raise Stopped

    monkeypatch.setattr(sam.runtime, "save", stop)
    for _ in range(config.epochs):
        with pytest.raises(Stopped):
            sam.run_job(config, setting, x, y, cut, tmp_path / "parts", device)
    assert sam.run_job(config, setting, x, y, cut, tmp_path / "parts", device) == whole


def test_damaged_checkpoint_is_named(tmp_path):
    config = sam.PRESETS["tiny"]
    x, y, cut = sam.images(config)
    setting, device = {"noise": 0.4, "rho": 0.0, "decay": 0.0}, torch.device("cpu")
    sam.run_job(config, setting, x, y, cut, tmp_path, device)
    result = next(tmp_path.glob("*.json"))
    result.unlink()
    result.with_suffix(".ckpt.npz").write_bytes(b"broken")
    with pytest.raises(ValueError, match="damaged checkpoint"):
        sam.run_job(config, setting, x, y, cut, tmp_path, device)


def test_residual_networks_resume(tmp_path):
    """The optimiser route: a stopped state, loaded into fresh networks, goes on identically."""
    config = sam.dataclasses.replace(sam.PRESETS["tiny"], network="resnet32", seeds=1)
    setting, shape = {"rho": 0.1, "decay": 1e-3}, (1, 8, 8)
    g = torch.Generator().manual_seed(0)
    data = [(torch.randn(1, 8, *shape, generator=g), torch.randint(10, (1, 8), generator=g))
            for _ in range(4)]  # fmt: skip
    device = torch.device("cpu")
    whole = sam.ResNets(config, shape, setting, device)
    for x, y in data:
        whole.step(x, y, 1.0)
    first = sam.ResNets(config, shape, setting, device)
    for x, y in data[:2]:
        first.step(x, y, 1.0)
    sam.runtime.save(tmp_path / "c.npz", first.state(), {})
    second = sam.ResNets(config, shape, setting, device)
    second.load(sam.runtime.load(tmp_path / "c.npz")[0])
    for x, y in data[2:]:
        second.step(x, y, 1.0)
    for a, b in zip(whole.state().values(), second.state().values(), strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    assert whole.guess(data[0][0]).shape == (1, 8)
    params = sum(p.numel() for p in sam.resnet32(3).parameters())
    assert 460_000 < params < 470_000
    params = sum(p.numel() for p in sam.resnet32(3, 64, 2, 4).parameters())
    assert 10.5e6 < params < 11.5e6


def test_bad_input():
    with pytest.raises(SystemExit):
        sam.main(["--tiny", "--seeds", "0"])
    with pytest.raises(SystemExit):
        sam.main(["--preset", "imagenet"])
