"""What a number must be: checked where it comes in, named where it is wrong."""

import torch


def check_whole(name, value, least=1):
    """A whole number, at least so large, as an int; else ValueError."""
    try:
        whole = int(value)
        fine = not isinstance(value, bool | str) and whole == value and whole >= least
    except (TypeError, ValueError, OverflowError):
        fine = False
    if not fine:
        raise ValueError(f"{name}: got {value!r}, wanted a whole number, at least {least}")
    return whole


def check_positive(name, value):
    """A positive finite number as it is, or several (R,) as a tensor; else ValueError."""
    try:
        numbers = torch.as_tensor(value).detach()
        fine = numbers.dtype not in (torch.bool, torch.complex64, torch.complex128)
        fine = fine and numbers.dim() < 2 and bool((numbers > 0).all() and numbers.isfinite().all())
    except (TypeError, ValueError, RuntimeError):
        fine = False
    if not fine:
        raise ValueError(f"{name}: got {value!r}, wanted positive finite numbers")
    if numbers.dim():
        return numbers
    return float(numbers if isinstance(value, torch.Tensor) else value)  # not by way of float32


def check_single(name, value):
    """One positive finite number, as a float; else ValueError."""
    number = check_positive(name, value)
    if isinstance(number, torch.Tensor):
        raise ValueError(f"{name}: got {value!r}, wanted one positive finite number")
    return number


def check_discount(value):
    """A discount from 0 up to, but not, 1."""
    if not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"discount: got {value!r}, wanted a number from 0 up to, but not, 1")
    return float(value)


def check_finite(name, tensor):
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise ValueError(f"{name}: got NaN or inf, wanted finite numbers")
