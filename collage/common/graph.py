"""A function as a CUDA graph: thousands of small kernels, started as one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Captured:
    """A function of tensors that becomes a CUDA graph: run, then recorded, then replayed.

    The first call runs the function as it is, so that libraries settle and whatever keeps a state
    makes it. The second records it, which runs nothing, and replays the recording; so do all later
    ones. Inputs are copied to where the graph reads them, and the next call overwrites what the
    last one returned. On a CPU every call is the function's.

    function must not wait for the GPU, and no shape in it may depend on numbers. generators: those
    that it draws from. device: where it runs; by default where its first input lies. A copy or a
    pickle has no recording and makes its own.

    Raises ValueError for inputs of another shape or dtype than in the first call.

    >>> double = Captured(lambda x: 2 * x)
    >>> double(torch.ones(1)), double(torch.ones(1))
    (tensor([2.]), tensor([2.]))
    """

    def __init__(
        self,
        function: Callable,
        generators: Sequence[torch.Generator] = (),
        device: torch.device | None = None,
    ) -> None:
        self.function, self.generators, self.device = function, generators, device
        self._forget()

    def _forget(self) -> None:
        self._inputs: list[Tensor] | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outputs: Any = None

    def __getstate__(self) -> dict:
        return {name: getattr(self, name) for name in ("function", "generators", "device")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()

    def __call__(self, *inputs: Tensor) -> Any:
        device = self.device or inputs[0].device
        if device.type != "cuda":
            return self.function(*inputs)
        with torch.cuda.device(device):  # which need not be the current one
            return self._on_gpu(inputs)

    def _on_gpu(self, inputs: Sequence[Tensor]) -> Any:
        if self._inputs is None:
            return self._run_once(inputs)
        self._fill(inputs)
        if self._graph is None:
            self._record()
        assert self._graph is not None
        self._graph.replay()
        return self._outputs

    def _run_once(self, inputs: Sequence[Tensor]) -> Any:
        """The function on a stream of its own, as CUDA wants it before a recording."""
        copies = [t.clone() for t in inputs]
        self._stream = torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            outputs = self.function(*copies)
        torch.cuda.current_stream().wait_stream(self._stream)
        self._inputs = copies  # only where nothing was raised
        return outputs

    def _fill(self, inputs: Sequence[Tensor]) -> None:
        assert self._inputs is not None
        for i, (buffer, new) in enumerate(zip(self._inputs, inputs, strict=True)):
            if buffer.shape != new.shape or buffer.dtype != new.dtype:
                got, wanted = (f"{t.dtype} {tuple(t.shape)}" for t in (new, buffer))
                raise ValueError(f"input {i}: got {got}, wanted {wanted} as in the first call")
            buffer.copy_(new)

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, stream=self._stream):
            self._outputs = self.function(*(self._inputs or ()))
        self._graph = graph
