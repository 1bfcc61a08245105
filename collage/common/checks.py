"""What a number must be: checked where it comes in, named where it is wrong."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def check_whole(name: str, value: Any, least: int = 1) -> int:
    """A whole number, at least so large, as an int; else ValueError."""
    try:
        whole = int(value)
        good = not isinstance(value, bool | str) and whole == value and whole >= least
    except (TypeError, ValueError, OverflowError):
        good = False
    if not good:
        raise ValueError(f"{name}: got {value!r}, wanted a whole number, at least {least}")
    return whole


def check_positive(name: str, value: Any) -> float | Tensor:
    """A positive finite number as it is, or several (R,) as a tensor; else ValueError."""
    try:
        numbers = torch.as_tensor(value).detach()
        if isinstance(value, float):  # float32 holds no 1e40 and no 1e-50
            numbers = numbers.new_tensor(value, dtype=torch.float64)
        good = numbers.dtype not in (torch.bool, torch.complex64, torch.complex128)
        good = good and numbers.dim() < 2 and bool((numbers > 0).all() and numbers.isfinite().all())
    except (TypeError, ValueError, RuntimeError):
        good = False
    if not good:
        raise ValueError(f"{name}: got {value!r}, wanted positive finite numbers")
    if numbers.dim():
        return numbers
    return float(numbers if isinstance(value, Tensor) else value)  # not by way of float32


def check_single(name: str, value: Any) -> float:
    """One positive finite number, as a float; else ValueError."""
    number = check_positive(name, value)
    if isinstance(number, Tensor):
        raise ValueError(f"{name}: got {value!r}, wanted one positive finite number")
    return number


def as_tensor(name: str, value: Any) -> Tensor:
    """What numpy.asarray takes (arrays, lists, pandas' Series, whose index is ignored) as a tensor.

    Tensors pass as they are. Raises ValueError for what is no array of numbers, or partly masked.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ma.MaskedArray) and value.mask.any():
        raise ValueError(f"{name}: got {int(value.mask.sum())} masked entries, wanted none")
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, LookupError, RuntimeError):
        pass  # strange strides, byte orders, kinds of numbers, or an index that does not begin at 0
    try:
        array = np.asarray(value)
        words = array.dtype.kind == "O" and any(isinstance(v, str | bytes) for v in array.flat)
        if array.dtype.kind in "cMmSU" or words:
            raise ValueError(f"{array.dtype}, of which each may mean several numbers")
        wide = array.dtype.kind not in "biuf" or array.dtype.itemsize > 8
        kind = np.dtype(np.float64) if wide else array.dtype.newbyteorder("=")
        return torch.from_numpy(np.array(array, kind, order="C"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: got what is no array of numbers ({error})") from error


def check_real(name: str, dtype: torch.dtype, *more: torch.dtype) -> torch.dtype:
    """float32, float64 or one of `more`; else ValueError that names them."""
    wanted = (torch.float32, torch.float64, *more)
    if dtype not in wanted:
        raise ValueError(f"{name}: got {dtype}, wanted one of {', '.join(map(str, wanted))}")
    return dtype


def check_finite(name: str, tensors: Tensor | Sequence[Tensor]) -> None:
    """A tensor, or each of several, without NaN and inf; else ValueError."""
    for i, t in enumerate([tensors] if isinstance(tensors, Tensor) else tensors):
        if t.is_floating_point() and not bool(t.isfinite().all()):
            where = "" if t is tensors or len(tensors) == 1 else f"[{i}]"
            raise ValueError(f"{name}{where}: got NaN or inf, wanted finite numbers")


def check_shape(name: str, value: Any, shape: Sequence[int]) -> None:
    """A tensor of that shape, such as a user's function returned it; else ValueError."""
    if not isinstance(value, Tensor) or value.shape != shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: returned {got}, wanted {tuple(shape)}")
