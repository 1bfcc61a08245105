"""Checkers for the exercises: they try an answer on inputs of their own."""

from collections.abc import Callable
from typing import Any

import torch

from collage.page.claims import Verdict

Answer = Any  # what a reader has written: a function, a number, a tensor
Checker = Callable[[Answer], str | None]  # a hint, or None where the answer is right
CHECKERS: dict[str, Checker] = {}


def check(name: str, answer: Answer) -> Verdict:
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


def exercise(name: str) -> Callable[[Checker], Checker]:
    """Register the checker of an exercise: it takes the answer, and returns a hint or None."""

    def register(checker: Checker) -> Checker:
        CHECKERS[name] = checker
        return checker

    return register


def close(answer: Answer, solution: Answer, tolerance: float = 1e-6) -> bool:
    """Whether two numbers or arrays have one shape and differ by no more than `tolerance`.

    >>> close([1.0, 2.0], [1.0, 2.0 + 1e-9]), close(1.0, [1.0])
    (True, False)
    """
    a = torch.as_tensor(answer, dtype=torch.float64)
    b = torch.as_tensor(solution, dtype=torch.float64)
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance)


def number(answer: Answer) -> float | None:
    """One number, whether it came as such, in a list or in a tensor; None where it is none.

    >>> number(0.5), number(torch.tensor([2.0])), number([1, 2]), number("more")
    (0.5, 2.0, None, None)
    """
    try:
        found = torch.as_tensor(answer, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        return None
    return found.item() if found.numel() == 1 else None
