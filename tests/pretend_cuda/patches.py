"""`torch.cuda` as far as collage and its programs use it, for the pretended device."""

import contextlib
import functools
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch._dynamo  # it looks at torch.cuda: before that is changed
from torch.utils._python_dispatch import _disable_current_modes

from tests.pretend_cuda.graphs import Graph, capture, raw
from tests.pretend_cuda.watch import WATCH

GB = 1 << 30
PROPERTIES = SimpleNamespace(name="a pretended GPU", total_memory=80 * GB, major=8, minor=0,
                             multi_processor_count=108)  # fmt: skip


class Stream:
    """Everything runs in order: what streams would be needed for does not show."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, other: "Stream") -> None: ...

    def wait_event(self, event: "Event") -> None: ...

    def synchronize(self) -> None: ...


class Event:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.at = 0.0

    def record(self, *args: Any) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: "Event") -> float:
        """Milliseconds."""
        return 1e3 * (end.at - self.at)


@contextlib.contextmanager
def stream(other: Any) -> Iterator[None]:
    WATCH.side += 1
    try:
        yield
    finally:
        WATCH.side -= 1


def set_device(device: Any) -> None:
    index = device if isinstance(device, int) else torch.device(device).index or 0
    if index >= 1:
        raise RuntimeError("CUDA error: invalid device ordinal")


def get_rng_state(device: Any = "cuda") -> torch.Tensor:
    return torch.default_generator.get_state()


def set_rng_state(state: torch.Tensor, device: Any = "cuda") -> None:
    torch.default_generator.set_state(state)


def nothing(*args: Any, **kwargs: Any) -> None: ...


def apply(traced: bool = True) -> None:
    cuda: Any = torch.cuda
    for name in ("_lazy_init", "init", "synchronize", "empty_cache", "reset_peak_memory_stats"):
        setattr(cuda, name, nothing)
    for name in ("max_memory_reserved", "max_memory_allocated", "memory_allocated",
                 "memory_reserved"):  # fmt: skip
        setattr(cuda, name, lambda *a, **k: 0)
    answers = {"is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
               "_exchange_device": 0, "_maybe_exchange_device": 0, "is_bf16_supported": True,
               "get_device_name": PROPERTIES.name, "get_device_properties": PROPERTIES,
               "get_device_capability": (8, 0), "mem_get_info": (72 * GB, 80 * GB)}  # fmt: skip
    for name, answer in answers.items():
        setattr(cuda, name, lambda *a, answer=answer, **k: answer)
    now = Stream()
    cuda.current_stream = cuda.default_stream = lambda *a: now
    cuda.Stream, cuda.Event, cuda.stream, cuda.set_device = Stream, Event, stream, set_device
    cuda.CUDAGraph, cuda.graph = Graph, capture
    cuda.is_current_stream_capturing = lambda: WATCH.graph is not None
    # The device's own generator is the CPU's, so that torch.manual_seed means both.
    cuda.get_rng_state, cuda.set_rng_state = get_rng_state, set_rng_state
    cuda.manual_seed = cuda.manual_seed_all = torch.default_generator.manual_seed
    _storages()
    torch.compile = functools.partial(_compiled, torch.compile, traced)  # type: ignore[assignment]
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") is seen as a copy


def _compiled(own: Any, traced: bool, function: Any, **settings: Any) -> Any:
    """torch.compile, which is not to see who watches; where it is traced only, without its kernels."""
    if traced and settings.get("backend", "inductor") == "inductor":
        filters = {"guard_filter_fn": lambda guards: [False for _ in guards]}
        settings = {k: settings[k] for k in ("fullgraph", "dynamic") if k in settings}
        settings |= {"backend": "aot_eager", "options": filters}
    made, begun = own(function, **settings), []

    def run(*inputs: Any) -> Any:
        if begun:
            return made(*inputs)
        with _disable_current_modes():
            found = made(*inputs)
        begun.append(1)
        return found

    return run


def _storages() -> None:
    """A storage is copied outside the dispatcher: by way of its bytes as a tensor, which is inside."""
    ways = {"clone": lambda s: raw(s).clone().untyped_storage(),
            "cpu": lambda s: raw(s).cpu().untyped_storage(),
            "copy_": lambda s, o, *a: (raw(s).copy_(raw(o)), s)[1]}  # fmt: skip
    for name, way in ways.items():
        own = getattr(torch.UntypedStorage, name)

        def method(s: Any, *args: Any, own: Any = own, way: Any = way) -> Any:
            there = any(t.device.type == "cuda" for t in (s, *args[:1]) if hasattr(t, "device"))
            return (way if there else own)(s, *args)

        setattr(torch.UntypedStorage, name, method)
