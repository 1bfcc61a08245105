"""A function of tensors as one compiled program: no Python between its operations."""

import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# The caller of the operations is C++, too; nothing is asked before a call (`Program` asks for shapes).
OPTIONS: dict[str, Any] = {
    "cpp_wrapper": True,
    "guard_filter_fn": lambda guards: [False for _ in guards],
}


class Program:
    """A function that torch.compile makes one program, for the shapes of its first call.

    The first call compiles, which takes seconds to minutes and is kept on disk by torch. Whatever
    the function reads besides the tensors it is given is frozen then. Where that fails, as without
    a C++ compiler, a warning says so once and the function runs as it is; so it does with
    compiled=False. Gradients through it are not recorded.

    function(*inputs): tensors, those that it changes in place among them.

    Raises ValueError for tensors of another shape or dtype than in the first call.

    >>> double = Program(lambda x: 2 * x, compiled=False)
    >>> double(torch.ones(1))
    tensor([2.])
    """

    def __init__(self, function: Callable, compiled: bool = True) -> None:
        self.function = function
        self._forms: list[tuple] | None = None
        self._run = self.function
        self._first = bool(compiled)

    def __call__(self, *inputs: Tensor) -> Any:
        forms = [(t.shape, t.dtype) for t in inputs]
        if self._forms is None:
            self._forms = forms
        if forms != self._forms:
            raise ValueError(f"inputs: got {forms}, wanted {self._forms} as in the first call")
        with torch.no_grad():
            return self._compile(inputs) if self._first else self._run(*inputs)

    def _compile(self, inputs: tuple[Tensor, ...]) -> Any:
        self._first = False
        try:
            made = torch.compile(
                _apart(self.function), fullgraph=True, dynamic=False, options=OPTIONS
            )
            result = made(*inputs)
        except RuntimeError as error:  # nothing has run: what the function changes is as it was
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            warnings.warn(
                f"compiled: torch.compile could not make the program ({reason}); it runs "
                "operation by operation, with the same result",
                stacklevel=3,
            )
            return self.function(*inputs)
        self._run = made
        return result


def _apart(function: Any) -> Callable:
    """The function with code of its own: torch keeps programs by code, here without asking whose."""
    code, names = function.__code__.replace(), function.__globals__
    return types.FunctionType(code, names, function.__name__, None, function.__closure__)
