"""Sees every operation on the pretended device: what it launches, and where the host waits or copies.

An operation that is no view counts as one launch: a lower bound of the kernels of a real GPU. Waits
are the places at which a real GPU makes the host wait; each is kept with its line of `collage`.
"""

import collections
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

PACKAGE = str(Path(__file__).parents[2] / "collage") + os.sep
# Operations whose result the host has to read before it can go on.
WAITING = {"_local_scalar_dense": "item", "nonzero": "nonzero", "masked_select": "mask",
           "equal": "equal", "_unique2": "unique", "unique_consecutive": "unique",
           "unique_dim": "unique", "bincount": "bincount", "_linalg_eigh": "eigh",
           "_linalg_svd": "svd", "linalg_lstsq": "lstsq", "linalg_eig": "eig",
           "_linalg_check_errors": "solve"}  # fmt: skip
INDEXING = {"index", "index_put_", "index_put", "_index_put_impl_", "_unsafe_index"}
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}
FREE = ("empty", "new_empty", "set_", "resize", "detach", "_unsafe_view")  # nothing is launched


def on_gpu(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "cuda"


def where() -> str:
    """The innermost line of `collage` that is being run."""
    frame = sys._getframe(1)
    while frame:
        if frame.f_code.co_filename.startswith(PACKAGE):
            return f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def _indexing(name: str, args: tuple) -> str | None:
    places = [i for i in args[1] if i is not None]
    masks = [i for i in places if i.dtype in (torch.bool, torch.uint8)]
    reads = name in ("index", "_unsafe_index")
    if not reads and not on_gpu(args[2]) and args[2].numel() == 1:
        # x[mask] = 0 is a masked_fill; x[places] = 0 sends the number, and waits until it is there
        return None if len(places) == len(masks) == 1 else "H2D number"
    if masks:
        return "mask"
    return None if all(map(on_gpu, places)) else "H2D places"


def _copy(args: tuple, kwargs: dict) -> str | None:
    target, source = args[:2]
    if on_gpu(target) == on_gpu(source):
        return None
    soft = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
    if soft and args[on_gpu(target)].is_pinned():
        return None
    return "H2D" if on_gpu(target) else "D2H"


def waits(name: str, args: tuple, kwargs: dict, flat: list) -> str | None:
    """Why the host waits for a GPU here, or None."""
    if name in WAITING:
        return WAITING[name]
    if name == "repeat_interleave" and kwargs.get("output_size") is None and len(flat) == 1:
        return "repeat_interleave"
    if name in INDEXING and on_gpu(args[0]):
        return _indexing(name, args)
    if name == "copy_":
        return _copy(args, kwargs)
    if name == "_to_copy" and kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == "cuda"
        if there != on_gpu(args[0]):
            return "H2D" if there else "D2H"
    return None


def tf32() -> bool:
    try:  # torch 2.9 and newer, which refuse the older question once this one was answered
        return torch.backends.cuda.matmul.fp32_precision == "tf32"
    except (AttributeError, RuntimeError):
        return torch.get_float32_matmul_precision() != "highest"


def rounded(t: torch.Tensor) -> torch.Tensor:
    """A float32 matrix as tensor cores read it under TF32: ten bits of mantissa."""
    if t.dtype != torch.float32:
        return t
    return ((t.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class Watch(TorchDispatchMode):
    """launches, replays, waits[(why, where)], ops[name] since `clear`; the graph being captured."""

    _should_skip_dynamo = classmethod(lambda cls: False)

    def __init__(self) -> None:
        super().__init__()
        self.graph: Any = None
        self.counts_only = False  # what a compiled kernel would have computed is missing
        self.side = 0  # how deep in streams that are not the default
        self.clear()

    def clear(self) -> None:
        self.launches = self.replays = 0
        self.waits: collections.Counter = collections.Counter()
        self.ops: collections.Counter = collections.Counter()

    @property
    def copies(self) -> int:
        """Copies between host and device that the host waits for; each is one of the waits, too."""
        return sum(n for (why, _), n in self.waits.items() if why[:3] in ("H2D", "D2H"))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func._schema.name.split("::")[1]
        flat = [
            a
            for a in tree_flatten((args, kwargs))[0]
            if isinstance(a, torch.Tensor | torch.Generator)
        ]
        device = kwargs.get("device")
        there = device is not None and torch.device(device).type == "cuda"
        if not there and not any(map(on_gpu, flat)):
            return func(*args, **kwargs)
        if why := waits(name, args, kwargs, flat):
            self.waits[why, where()] += 1
            if self.graph is not None:
                raise RuntimeError(
                    f"operation not permitted when stream is capturing: {func} ({why}) at {where()}"
                )
        if name in PRODUCTS and tf32():
            args = (*args[:-2], *map(rounded, args[-2:]))
        noted = self.graph is not None and name != "set_"  # which the host alone does
        run = self.graph.note(func) if noted else func
        found = run(*args, **kwargs)
        returns = func._schema.returns
        view = returns and all(r.alias_info and not r.alias_info.is_write for r in returns)
        if not view and not name.startswith(FREE):
            self.launches += 1
            self.ops[name] += 1
        return found


WATCH = Watch()
