"""A function of tensors as one compiled program: no Python between its operations."""

import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _options(inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """Nothing is asked before a call (`Program` asks for shapes); on a CPU its caller is C++, too."""
    on_cpu = all(t.device.type == "cpu" for t in inputs)  # on a GPU a recording calls it only once
    return {"cpp_wrapper": on_cpu, "guard_filter_fn": lambda guards: [False for _ in guards]}


class Program:
    """A function that torch.compile makes one program, for the shapes of its first call.

    The first call compiles, which takes seconds to minutes and is kept on disk by torch. Whatever
    the function reads besides the tensors it is given is frozen then. Where that fails, as without
    a C++ compiler or, on a GPU, Triton, a warning says so once and the function runs as it is; so it does with
    compiled=False. Gradients through it are not recorded.

    function(*inputs): tensors, those that it changes in place among them.

    Raises ValueError for tensors of another shape, stride, dtype or device than in the first call.

    >>> double = Program(lambda x: 2 * x, compiled=False)
    >>> double(torch.ones(1))
    tensor([2.])
    """

    def __init__(self, function: Callable, compiled: bool = True) -> None:
        if not isinstance(function, types.FunctionType):
            raise ValueError(f"function: got {type(function).__name__}, wanted a plain function")
        self.function, self.compiled = function, bool(compiled)
        self._forms: list[tuple] | None = None  # of the first call, once it has gone well
        self._run: Callable = function

    def __call__(self, *inputs: Tensor) -> Any:
        with torch.no_grad():
            if self._forms is None:
                forms = [_form(t) for t in inputs]
                result = self._begin(inputs) if self.compiled else self._run(*inputs)
                self._forms = forms
                return result
            if not self._fit(inputs):
                forms = [_form(t) for t in inputs]
                raise ValueError(f"inputs: got {forms}, wanted {self._forms} as in the first call")
            return self._run(*inputs)

    def _fit(self, inputs: tuple[Tensor, ...]) -> bool:
        """Whether they have the forms of the first call; asked at every call, so in few words."""
        assert self._forms is not None
        if len(inputs) != len(self._forms):
            return False
        for t, form in zip(inputs, self._forms, strict=True):
            shape, strides, dtype, device = form
            same = t.shape == shape and t.dtype is dtype and t.device == device
            if not (same and (t.stride() == strides or _form(t) == form)):
                return False
        return True

    def _begin(self, inputs: tuple[Tensor, ...]) -> Any:
        before = [t.clone() for t in inputs]
        try:
            made = torch.compile(
                _apart(self.function), fullgraph=True, dynamic=False, options=_options(inputs)
            )
            result = made(*inputs)
        except RuntimeError as error:
            for t, kept in zip(inputs, before, strict=True):
                t.copy_(kept)
            result = self.function(*inputs)  # which raises, where the fault is the caller's
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            warnings.warn(
                f"compiled: torch.compile could not make the program ({reason}); it runs "
                "operation by operation, with the same result",
                stacklevel=3,
            )
            return result
        self._run = made
        return result


def _form(t: Tensor) -> tuple:
    """What a program depends on: shape, strides (1 where nothing is stridden over), dtype, device."""
    strides = tuple(s if n > 1 else 1 for s, n in zip(t.stride(), t.shape, strict=True))
    return tuple(t.shape), strides, t.dtype, t.device


def _apart(function: types.FunctionType) -> Callable:
    """The function with code of its own: torch keeps programs by code, here without asking whose."""
    code, name = function.__code__.replace(), function.__name__
    apart = types.FunctionType(
        code, function.__globals__, name, function.__defaults__, function.__closure__
    )
    apart.__kwdefaults__ = function.__kwdefaults__
    return apart
