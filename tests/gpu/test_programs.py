"""Programs that are said to want a GPU step by their CUDA graphs there, and find what a CPU finds."""

import dataclasses
import json

import pytest
import torch

from collage import runtime
from collage.common.graph import Captured
from experiments import pes, sam, sensory_neuron
from tests.pretend_cuda import installed

pytestmark = pytest.mark.cuda
ALIKE = pytest.mark.skipif(
    torch.cuda.is_available() and not installed(), reason="other draws there"
)


@pytest.fixture
def recorded(monkeypatch):
    """The captured functions of which a graph was recorded, one entry for each graph."""
    found, record = [], Captured._record

    def noted(self):
        found.append(self)
        record(self)

    monkeypatch.setattr(Captured, "_record", noted)
    return found


def ran(program, folder, device, monkeypatch):
    """The numbers of a program's tiny preset on a device."""
    ranks = runtime.ranks
    with monkeypatch.context() as here:
        here.setattr(runtime, "ranks", lambda kind=None: ranks("cpu" if device == "cpu" else kind))
        program.main(
            ["--tiny", "--runs", str(folder / device), "--out", str(folder / device / "out")]
        )
    return json.loads((folder / device / "out" / "tiny.json").read_text())


def close(a, b, tolerance):
    torch.testing.assert_close(*map(torch.tensor, (a, b)), rtol=0, atol=tolerance)


@pytest.mark.parametrize("network", ["mlp", "resnet32"])
def test_label_noise(network, tmp_path, monkeypatch, recorded):
    """A graph for each setting, or for each seed of it; resumed from a checkpoint, too."""
    own = {"mlp": {}, "resnet32": {"train": 8, "batch": 4, "epochs": 2, "validation": 4}}[network]
    config = dataclasses.replace(sam.PRESETS["tiny"], network=network, **own)
    monkeypatch.setitem(sam.PRESETS, "tiny", config)
    if network == "resnet32":  # the same code with three layers
        small = sam.resnet32
        monkeypatch.setattr(sam, "resnet32", lambda channels: small(channels, 4, 1, 2))
    here = ran(sam, tmp_path, "cpu", monkeypatch)["numbers"]["runs"]
    assert not recorded
    there = ran(sam, tmp_path, "cuda", monkeypatch)["numbers"]["runs"]
    assert len(recorded) == len(here) * (1 if network == "mlp" else config.seeds)
    for a, b in zip(here, there, strict=True):
        close(a["test"], b["test"], 0.5)


def test_a_job_of_label_noise_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    config, device = sam.PRESETS["tiny"], torch.device("cuda")
    images = [t.to(device) if isinstance(t, torch.Tensor) else t for t in sam.images(config)]
    setting = {"noise": 0.4, "rho": 0.1, "decay": 1e-3, "mixup": 0.0}
    whole = sam.run_job(config, setting, *images, tmp_path / "whole", device)
    save = sam.program.Job.save

    def stop(job, *what):
        save(job, *what)
        raise KeyboardInterrupt

    monkeypatch.setattr(sam.program.Job, "save", stop)
    for _ in range(config.epochs):
        with pytest.raises(KeyboardInterrupt):
            sam.run_job(config, setting, *images, tmp_path / "parts", device)
    parts = sam.run_job(config, setting, *images, tmp_path / "parts", device)
    close(whole["test"], parts["test"], 0.0 if installed() else 0.5)  # cuBLAS may round otherwise


@ALIKE
@pytest.mark.parametrize("method", list(pes.KINDS))
def test_outer_training(method, tmp_path, monkeypatch, recorded):
    """PES is a graph of a whole inner problem; the unrolls of the others are graphs."""
    config = dataclasses.replace(pes.PRESETS["tiny"], methods=(method,), unrolls=9, particles=4)
    monkeypatch.setitem(pes.PRESETS, "tiny", config)
    here = ran(pes, tmp_path, "cpu", monkeypatch)["numbers"]["runs"]
    assert not recorded
    there = ran(pes, tmp_path, "cuda", monkeypatch)["numbers"]["runs"]
    whole = [graph for graph in recorded if graph.generators]
    assert len(whole) == 2 * (method == "PES") and len(recorded) > len(whole)
    for a, b in zip(here, there, strict=True):
        close(a["mean"], b["mean"], 1e-4)


@ALIKE
def test_outer_training_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    """Adam's moments are those of the CPU's: a job can change its device on the way."""
    config = dataclasses.replace(pes.PRESETS["tiny"], unrolls=9)
    setting, cpu = {"method": "PES", "sigma": 0.3, "rate": 0.1}, torch.device("cpu")
    whole = pes.run_job(config, setting, tmp_path / "whole", cpu)
    save = pes.program.Job.save

    def stop(job, *what):
        save(job, *what)
        raise KeyboardInterrupt

    for device in ("cuda", "cpu"):
        with monkeypatch.context() as here, pytest.raises(KeyboardInterrupt):
            here.setattr(pes.program.Job, "save", stop)
            pes.run_job(config, setting, tmp_path / "parts", torch.device(device))
    parts = pes.run_job(config, setting, tmp_path / "parts", torch.device("cuda"))
    close(whole["curve"], parts["curve"], 1e-4)


def test_a_search_for_the_swing_up(tmp_path, monkeypatch, recorded):
    """Its generations are rollouts on the GPU; without Triton no new graph is made for each."""
    config = sensory_neuron.PRESETS["tiny"]
    stages = tuple(dataclasses.replace(s, generations=3, population=4) for s in config.stages)
    config = dataclasses.replace(config, stages=stages, steps=20, every=3)
    monkeypatch.setitem(sensory_neuron.PRESETS, "tiny", config)
    monkeypatch.setattr(sensory_neuron, "TESTS", {"5 sensors": {}})
    record = ran(sensory_neuron, tmp_path, "cuda", monkeypatch)
    assert record["device"] == torch.cuda.get_device_name()
    sizes = [[t.shape for t in graph._inputs] for graph in recorded]
    assert bool(sizes) == (sensory_neuron.rollout_kernel() is None)
    assert all(size not in sizes[:i] for i, size in enumerate(sizes))
    there = record["numbers"]["runs"][0]["curve"]
    monkeypatch.setattr(sensory_neuron, "place", lambda: torch.device("cpu"))
    here = ran(sensory_neuron, tmp_path, "cpu", monkeypatch)["numbers"]["runs"][0]["curve"]
    close(here[0], there[0], 1e-2)
