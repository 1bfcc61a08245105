"""Where numbers come from: the record of a run, as `results/` wants it."""

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from collage import runtime
from collage.common.checkpoint import write


def record(numbers, *, config, seeds, repeats, peers=None, note="", gpu=None):
    """The provenance of a run around its numbers, as `results/` wants it (JSON-ready).

    numbers: what was measured, "table" and the "formats" of its columns among it (the kinds of cells:
    `collage.page.records`); config: every setting; peers: {name: version} of what it was
    compared with; gpu: whether one was used, where there is one. Command, commit, date, machine and
    library versions are read from the process. Where the files are no git repository, the commit is
    the one named in $COLLAGE_COMMIT (with "+changes" where that is the truth), or "unknown".
    """
    gpu = torch.cuda.is_available() if gpu is None else gpu
    changed = _git("status", "--porcelain", "--", ":/", ":!/results", ":!/chapters", ":!/assets")
    return {
        "command": _command(),
        "config": config,
        "seeds": seeds,
        "commit": (_git("rev-parse", "HEAD") or os.environ.get("COLLAGE_COMMIT") or "unknown")
                  + ("+changes" if changed else ""),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if gpu else _cpu(),
        "driver": _driver() if gpu else "none",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "tf32": bool(gpu and runtime.product_precision() != "ieee"),
        "repeats": repeats,
        "peers": peers or {},
        "note": note,
        "numbers": numbers,
    }  # fmt: skip


def write_record(path, content):
    """Write a record as JSON (see `record`)."""
    write(path, json.dumps(content, indent=1, sort_keys=False, allow_nan=False) + "\n")


def _command():
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"-m {spec.name}" if spec else Path(sys.argv[0]).name
    return " ".join(["python", program, *map(shlex.quote, sys.argv[1:])])


def _git(*words):
    return _said("git", "-C", str(Path(__file__).parent), *words)


def _driver():
    return _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]


def _said(*words):
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""  # no such program, or nothing that it could say here


def _cpu():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"CPU {name}"
