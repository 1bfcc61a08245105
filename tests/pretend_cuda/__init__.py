"""A CUDA device that is none, for a CPU build of torch: host memory and CPU kernels behind "cuda".

    why_not()   why it cannot be had here, or ""
    install()   the device, and `torch.cuda` as far as collage uses it; before torch is imported
    installed() whether this process has it

What it finds that a GPU would punish: tensors of two devices in one operation; a generator on the
wrong device; in a captured graph a wait for the device, a copy from or to the host, a generator that
is not registered, memory that was freed since. It counts launches, waits and copies (`watch.Watch`).
It knows nothing of streams, races, speed, and of NVIDIA's libraries only TF32's rounding. Triton's kernels
run where $TRITON_INTERPRET is 1, and elsewhere what stands in for them.

    pytest -p tests.pretend_cuda.plugin -m cuda      tests on it
    python -m tests.pretend_cuda SCRIPT ARGUMENTS    a program on it (-m MODULE, too)
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from tests.pretend_cuda.build import load, why_not

if TYPE_CHECKING:
    from tests.pretend_cuda.watch import Watch

__all__ = ["install", "installed", "why_not"]


def installed() -> bool:
    return "tests.pretend_cuda.watch" in sys.modules


def install(compiler: bool = False) -> Watch:
    """The device, in this process from now on; what watches it.

    compiler: torch.compile writes its kernels, which are counted and compute nothing; without, it
    traces, and runs what it has traced operation by operation.
    """
    if "torch" in sys.modules:
        raise RuntimeError("torch: already imported; the pretended device comes before it")
    load()
    if os.environ.get("TRITON_INTERPRET") != "1" and not compiler:
        sys.modules["triton"] = None  # type: ignore[assignment]  # it would look for a real GPU
    from tests.pretend_cuda import patches, watch  # they import torch, which finds the device now

    patches.apply(traced=not compiler)
    if compiler:
        from tests.pretend_cuda import compiler as made

        made.apply()
    watch.WATCH.__enter__()
    return watch.WATCH
