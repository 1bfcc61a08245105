"""Checkers for the exercises: they try an answer on inputs of their own."""

import torch

from collage.page.claims import Verdict

CHECKERS = {}


def check(name, answer):
    """Try an answer to an exercise, e.g. check("sam-1", my_function).

    Returns a verdict that shows itself; it is true where the answer is right. `...` counts as not
    answered yet. Raises ValueError for an exercise that does not exist.

    >>> check("sam-1", ...)
    ✎ sam-1: not answered yet
    """
    if name not in CHECKERS:
        raise ValueError(f"name: got {name!r}, wanted one of {sorted(CHECKERS)}")
    if answer is ...:
        return Verdict("✎", f"{name}: not answered yet", "open")
    try:
        hint = CHECKERS[name](answer)
    except Exception as error:  # an answer may fail in any way
        hint = f"it raised {type(error).__name__}: {error}"
    if hint:
        return Verdict("✗", f"{name}: not yet. {hint}", "bad")
    return Verdict("✓", f"{name}: right", "good")


def exercise(name):
    """Register a checker: it takes the answer, and returns a hint, or None where it is right."""

    def register(function):
        CHECKERS[name] = function
        return function

    return register


def close(found, wanted, tolerance=1e-6):
    found = torch.as_tensor(found, dtype=torch.float64)
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= tolerance)
