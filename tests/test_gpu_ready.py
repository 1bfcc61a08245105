"""GPU code without a GPU: the tests marked `cuda` on a pretended one, in a process of their own."""

import json
import os
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

import pytest

from tests.pretend_cuda import why_not

ROOT = Path(__file__).parents[1]
if (REASON := why_not()) and "g++" in REASON and os.environ.get("CI"):
    raise RuntimeError(REASON)
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


def run(*argv: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    return subprocess.run(
        [sys.executable, *argv], cwd=ROOT, env=env, capture_output=True, text=True
    )


def pretended(*paths: str, marked: str = "cuda") -> str:
    """The summary of pytest on the pretended device, where all passed."""
    done = run("-m", "pytest", "-p", "tests.pretend_cuda.plugin", "-p", "no:cacheprovider", "-q",
               "-m", marked, *paths)  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_cuda_tests_on_a_pretended_gpu():
    """Every test that asks for a GPU; none may be skipped there."""
    files = [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in p.read_text()]
    asked = [str(p.relative_to(ROOT)) for p in files if p != Path(__file__)]
    assert len(asked) > 10
    said = pretended(*asked)
    assert "passed" in said and "skipped" not in said and "failed" not in said


@pytest.mark.slow
def test_compiled_steps_start_no_more_than_the_table_says():
    """What torch's compiler writes for a GPU: within a tenth of the committed counts, and twice the fewest."""
    reason = "Triton is not installed, or older than 3.9 (pip install triton)"
    version = util.find_spec("triton") and metadata.version("triton").split(".")
    if not version or (int(version[0]), int(version[1])) < (3, 9):
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    done = run("-m", "tests.gpu.compiled")
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((ROOT / "results" / "gpu" / "launches.json").read_text())
    table = {row["step"]: row for row in record["numbers"]["table"]}
    rows = json.loads(done.stdout)
    assert {r["step"] for r in rows} == {name for name in table if "compiled" in name}
    for row in rows:
        assert row["waits"] == 0 < row["in graphs"], row
        assert row["in graphs"] <= 1.1 * table[row["step"]]["in graphs"], row
        # Of many small products, each with entries after it, a compiler cannot make less.
        many = any(word in row["step"] for word in ("Implicit", "BMG"))
        assert row["in graphs"] <= (2.5 if many else 2) * row["fewest"], row


def test_a_program_on_a_pretended_gpu():
    """The door for programs: `python -m tests.pretend_cuda`."""
    code = "import torch, sys; print(torch.ones(2, device='cuda').sum().item(), sys.argv[1:])"
    script = ROOT / "_build" / "pretend_cuda" / "program.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(code)
    done = run("-m", "tests.pretend_cuda", str(script), "--tiny")
    assert done.stdout.strip() == "2.0 ['--tiny']", done.stderr
    assert run("-m", "tests.pretend_cuda").returncode, "no program is named"
