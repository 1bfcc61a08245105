"""What torch.compile makes for a GPU, without one: its kernels are written, counted, and never run.

With `apply` torch's compiler takes the pretended device for an H100 and writes its program in Triton. A
kernel of it counts as one launch; what it would have computed is missing, so only counts are of use.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch._inductor.async_compile as async_compile
import torch._inductor.config as config
import torch.utils._triton as triton_of_torch
from torch._dynamo.device_interface import CudaInterface
from torch.utils._python_dispatch import _disable_current_modes

from tests.pretend_cuda.patches import GB
from tests.pretend_cuda.watch import WATCH

H100 = SimpleNamespace(
    name="a pretended H100", total_memory=80 * GB, major=9, minor=0, multi_processor_count=132,
    regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, warp_size=32,
    max_threads_per_block=1024, gcnArchName="", L2_cache_size=50 << 20,
    shared_memory_per_block=48 << 10, shared_memory_per_block_optin=227 << 10,
)  # fmt: skip


class Kernel:
    """For a Triton kernel of a compiled program: one launch, and one more node of a graph."""

    def __init__(self, name: str, source: str, device_str: str = "cuda") -> None:
        self.name = name

    def run(self, *args: Any, **kwargs: Any) -> None:
        WATCH.launches += 1
        WATCH.ops["a compiled kernel"] += 1


def empty_strided(size: Any, stride: Any, dtype: torch.dtype) -> torch.Tensor:
    with (
        _disable_current_modes()
    ):  # zeros, so that a place stays a place; on a GPU nothing is launched
        return torch.empty_strided(size, stride, dtype=dtype, device="cuda").zero_()


def apply() -> None:
    WATCH.counts_only = True
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    target = GPUTarget("cuda", 90, 32)
    driver._active = SimpleNamespace(
        get_current_target=lambda: target, get_current_device=lambda: 0
    )
    cuda: Any = torch.cuda
    cuda.get_device_properties = lambda *a, **k: H100
    cuda.get_device_capability = lambda *a, **k: (9, 0)
    answers: dict[str, Any] = {"get_device_properties": H100, "current_device": 0, "get_raw_stream": 0,
                               "get_compute_capability": 90, "is_triton_capable": True,
                               "raise_if_triton_unavailable": None}  # fmt: skip
    for name, answer in answers.items():
        setattr(CudaInterface, name, staticmethod(lambda *a, answer=answer, **k: answer))
    for name in ("get_device_properties", "current_device"):
        setattr(CudaInterface.Worker, name, getattr(CudaInterface, name))
    triton_of_torch.triton_hash_with_backend = lambda: "none"
    core: Any = torch._C
    core._cuda_getCurrentRawStream = lambda index: 0
    core._cuda_synchronize = lambda: None
    core._dynamo.guards._empty_strided_cuda = empty_strided
    config.shape_padding = False  # it would time products with and without
    async_compile.AsyncCompile.triton = Kernel  # type: ignore[assignment,method-assign]
