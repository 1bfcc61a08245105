"""GPU code without a GPU: the tests marked `cuda` on a pretended one, in a process of their own."""

import os
import subprocess
import sys
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


def test_cuda_tests_on_a_pretended_gpu():
    """Every test that asks for a GPU; none may be skipped there."""
    files = [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in p.read_text()]
    asked = [str(p.relative_to(ROOT)) for p in files if p != Path(__file__)]
    assert len(asked) > 10
    said = pretended(*asked)
    assert "passed" in said and "skipped" not in said and "failed" not in said


def test_a_program_on_a_pretended_gpu():
    """The door for programs: `python -m tests.pretend_cuda`."""
    code = "import torch, sys; print(torch.ones(2, device='cuda').sum().item(), sys.argv[1:])"
    script = ROOT / "_build" / "pretend_cuda" / "program.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(code)
    done = run("-m", "tests.pretend_cuda", str(script), "--tiny")
    assert done.stdout.strip() == "2.0 ['--tiny']", done.stderr
    assert run("-m", "tests.pretend_cuda").returncode, "no program is named"
