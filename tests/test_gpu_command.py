"""`make gpu`: every line of it on a pretended GPU, and what it does where a part fails."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pretend_cuda import why_not
from tools import gpu

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
def test_every_part_on_a_pretended_gpu(tmp_path):
    """Each part is done, and its record is there, provenance and all."""
    line = [sys.executable, "-m", "tools.gpu", "--pretend", "--out", str(tmp_path)]
    run = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    for part in gpu.parts(tmp_path, pretend=True):
        record = json.loads(part.record.read_text())
        assert record["device"] == "a pretended GPU" and record["numbers"]["table"], part.name
        assert any(part.name in row and "done" in row for row in run.stdout.splitlines()), part.name


def test_what_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for words, said in (
        (["--out", str(tmp_path / "file")], "wanted a folder"),
        (["--minutes", "0"], "wanted a positive whole number"),
        ([], "there is no GPU that torch can use"),
    ):
        run = subprocess.run([sys.executable, "-m", "tools.gpu", *words], cwd=ROOT, text=True,
                             capture_output=True, check=False,
                             env={"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})  # fmt: skip
        assert run.returncode == 2 and said in run.stderr.splitlines()[-1], run.stderr
        assert not run.stdout


def test_a_part_that_fails_or_hangs_says_so(tmp_path):
    """The last line of what it says; a process that hangs ends with its children."""
    log = tmp_path / "log.txt"
    assert gpu.run([sys.executable, "-c", "print(1)"], log, 60) == "done"
    assert gpu.run([sys.executable, "-c", "1 / 0"], log, 60) == (
        "failed (1): ZeroDivisionError: division by zero"
    )
    child = "import os, time; pid = os.fork(); pid and print(pid, flush=True); time.sleep(600)"
    assert gpu.run([sys.executable, "-c", child], log, 2) == "stopped after 2 s"
    state, end = Path(f"/proc/{int(log.read_text())}/stat"), time.monotonic() + 10
    while time.monotonic() < end and state.exists() and state.read_text().split()[2] != "Z":
        time.sleep(0.1)  # a kill takes effect when its turn comes
    assert time.monotonic() < end


def test_all_parts_run_whatever_became_of_one(tmp_path, monkeypatch, capsys):
    """In their order; the failure is in the last table, and in the exit status."""
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "machine", lambda pretend: ("a" * 40, "some GPU"))
    monkeypatch.setattr(gpu, "BENCHMARKS", {"first": 9, "second": 9})
    begun = []

    def run(words, log, seconds):
        begun.append(words[2:4])
        return "failed (1): Error" if "first" in words else "done"

    monkeypatch.setattr(gpu, "run", run)
    table = {"table": [{"work": "w"}], "formats": {}}
    mine = {"commit": "a" * 40, "device": "some GPU", "numbers": table}
    (tmp_path / "second.json").write_text(json.dumps(mine | {"commit": "b" * 40}))
    assert gpu.main(["--out", str(tmp_path)]) == 1
    assert [b[-1] for b in begun[:3]] == ["tests", "first", "second"]
    assert len(begun) == 3 + len(gpu.PRESETS)
    assert "benchmark first" in capsys.readouterr().out

    (tmp_path / "second.json").write_text(json.dumps(mine))  # of this commit and GPU: kept
    begun.clear()
    gpu.main(["--out", str(tmp_path)])
    assert ["benchmarks.gpu", "second"] not in begun
    assert not gpu.kept(tmp_path / "second.json", "a" * 40 + "+changes", "some GPU")
    (tmp_path / "second.json").write_text("{")
    assert not gpu.kept(tmp_path / "second.json", "a" * 40, "some GPU")
