"""CUDA graphs on the pretended device: a capture notes the operations, a replay runs them again.

As on a GPU a capture changes nothing, what it returns is not computed before the first replay, and a
replay knows addresses only: it reads and writes what lies there now.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

from tests.pretend_cuda.watch import WATCH, on_gpu, where

NODES: list[int] = []  # launches of each graph that was captured
WRITES = {
    "native_batch_norm": (3, 4)
}  # arguments that are written, of which the schema says nothing


def key(t: torch.Tensor) -> int:
    return t.untyped_storage()._cdata


def raw(s: torch.UntypedStorage) -> torch.Tensor:
    """All bytes of a storage."""
    return torch.empty(0, dtype=torch.uint8, device=s.device).set_(s, 0, (s.nbytes(),), (1,))


def gpu_leaves(value: Any) -> list[torch.Tensor]:
    return [t for t in tree_flatten(value)[0] if on_gpu(t)]


class Address:
    """A tensor that was there before the capture: the graph does not keep it alive."""

    def __init__(self, t: torch.Tensor) -> None:
        self.ref, self.dtype = StorageWeakRef(t.untyped_storage()), t.dtype
        self.layout = t.storage_offset(), tuple(t.shape), t.stride()

    def tensor(self) -> torch.Tensor:
        if self.ref.expired():
            raise RuntimeError(f"graph: {self.dtype} {self.layout[1]} was freed after the capture")
        storage = torch.UntypedStorage._new_with_weak_ptr(self.ref.cdata)
        return torch.empty(0, dtype=self.dtype, device="cuda").set_(storage, *self.layout)


class Graph:
    """For `torch.cuda.CUDAGraph`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.known: set[int] = set()  # generators
        self.tape: list[tuple] | None = None

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.known.add(generator._cdata)

    def begin(self) -> None:
        if not WATCH.side:
            raise RuntimeError("operation not permitted: capture on the default stream")
        default = torch.default_generator  # registered with every graph
        self.tape, self.made, self.start = [], {}, WATCH.launches
        self.before: dict[int, tuple] = {}
        self.states: dict[int, tuple] = {default._cdata: (default, default.get_state())}

    def note(self, func: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._draws((args, kwargs))
            self._writes(func, args, kwargs)
            old = {key(t) for t in gpu_leaves((args, kwargs))}
            out = func(*args, **kwargs)
            fresh = [t for t in gpu_leaves(out) if key(t) not in old]
            self.made |= {key(t): t for t in fresh if key(t) not in self.made}
            frozen = tree_map(_frozen, (args, kwargs))
            self.tape.append((func, *frozen, [t.detach() for t in fresh]))
            return out

        return run

    def _draws(self, given: Any) -> None:
        for g in tree_flatten(given)[0]:
            if isinstance(g, torch.Generator):
                if g._cdata not in self.known:
                    raise RuntimeError(f"generator: not registered with the graph, at {where()}")
                self.states.setdefault(g._cdata, (g, g.get_state()))

    def _writes(self, func: Any, args: tuple, kwargs: dict) -> None:
        """Keep what it will overwrite: in the end that is put back."""
        arguments = func._schema.arguments
        given = [*zip(arguments, args, strict=False)]
        given += [(a, kwargs[a.name]) for a in arguments if a.name in kwargs]
        written = [v for a, v in given if a.alias_info is not None and a.alias_info.is_write]
        written += [args[i] for i in WRITES.get(func._schema.name.split("::")[1], ())]
        for t in gpu_leaves(written):
            if key(t) not in self.made and key(t) not in self.before:
                whole = raw(t.untyped_storage())
                self.before[key(t)] = whole, whole.clone()

    def end(self) -> None:
        for whole, was in self.before.values():
            whole.copy_(was)
        for g, state in self.states.values():
            g.set_state(state)

        def hold(t: Any) -> Any:
            return Address(t) if on_gpu(t) and key(t) not in self.made else t

        self.tape = [(f, *tree_map(hold, (a, k)), outs) for f, a, k, outs in self.tape or []]
        for t in self.made.values():
            raw(t.untyped_storage()).fill_(255)  # NaN: nothing has run yet
        self.before, self.states = {}, {}
        NODES.append(WATCH.launches - self.start)

    def replay(self) -> None:
        if self.tape is None:
            raise RuntimeError("graph: replayed without a finished capture")
        WATCH.replays += 1
        if WATCH.counts_only:
            return
        with _disable_current_modes(), torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, outs in self.tape:
                args, kwargs = tree_map(_found, (args, kwargs))
                old = {key(t) for t in gpu_leaves((args, kwargs))}
                new = [t for t in gpu_leaves(func(*args, **kwargs)) if key(t) not in old]
                for place, value in zip(outs, new, strict=True):
                    place.copy_(value)

    def reset(self) -> None:
        self.tape = None


def _frozen(value: Any) -> Any:
    """A number of the host is a constant of the graph."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach() if on_gpu(value) else value.clone()


def _found(value: Any) -> Any:
    return value.tensor() if isinstance(value, Address) else value


class capture:
    """For `torch.cuda.graph`, which captures on a stream of its own."""

    def __init__(self, graph: Graph, *args: Any, **kwargs: Any) -> None:
        self.graph = graph

    def __enter__(self) -> None:
        WATCH.side += 1
        self.graph.begin()
        WATCH.graph = self.graph

    def __exit__(self, kind: Any, *error: Any) -> None:
        WATCH.graph = None
        WATCH.side -= 1
        with _disable_current_modes(), torch.no_grad():
            self.graph.end()
        if kind is not None:
            self.graph.reset()
