"""The exercises of `ridge_rider`."""

import math

import torch

from collage import runtime
from collage.page.exercises.checker import Answer, close, exercise


@exercise("ridge_rider-1")
def lowest_eigenvalue(answer: Answer) -> str | None:
    """A function (n, r) -> the lowest eigenvalue of a lever game of n equal levers."""
    for n, r in ((2, 1.0), (7, 1.0), (5, 3.0)):
        result = float(answer(n, r))
        if not math.isclose(result, -r / n**2, rel_tol=1e-9):
            return (f"For n={n}, r={r:g} you say {result:.4g}. What are p and c, and what are the "
                    "eigenvalues of diag(p) - p p'?")  # fmt: skip
    return None


@exercise("ridge_rider-2")
def followed_eigenvector(answer: Answer) -> str | None:
    """A function (e, H) -> the unit eigenvector of H that overlaps most with e, the same way round."""
    g = runtime.generator(0)
    for size in (2, 5, 9):
        for _ in range(4):
            H = torch.randn(size, size, generator=g, dtype=torch.float64)
            H, e = H + H.T, torch.randn(size, generator=g, dtype=torch.float64)
            e = e / e.norm()
            vectors = torch.linalg.eigh(H)[1].T
            best = vectors[(vectors @ e).abs().argmax()]
            if not close(answer(e.clone(), H.clone()), best * (best @ e).sign(), 1e-9):
                return "Wanted: the eigenvector (a column of eigh's) with the largest |overlap|, turned to e."
    return None


@exercise("ridge_rider-3")
def eigenvalues_at_zero(answer: Answer) -> str | None:
    """A function (K, D, h) -> (negative eigenvalues, distinct ones) of the network of zeros."""
    for K, D, h in ((10, 64, 16), (3, 20, 5), (10, 4, 2), (2, 7, 3)):
        distinct = min(K - 1, D)
        result = tuple(int(n) for n in answer(K, D, h))
        if result != (h * distinct, distinct):
            return (f"For K={K}, D={D}, h={h} you say {result}. What is the rank of C, and how often "
                    "does each singular value count?")  # fmt: skip
    return None


@exercise("ridge_rider-4")
def zero_shot_return(answer: Answer) -> str | None:
    """A function (r, p, q) -> the mean return of pairs from different runs."""
    g = runtime.generator(0)
    for runs, n in ((2, 3), (5, 10)):
        r = torch.rand(n, generator=g, dtype=torch.float64)
        p, q = torch.randn(2, runs, n, generator=g, dtype=torch.float64).softmax(-1)
        solution = [(r * p[i] * q[j]).sum() for i in range(runs) for j in range(runs) if i != j]
        if not close(torch.as_tensor(answer(r, p, q)), torch.stack(solution).mean(), 1e-9):
            return "All ordered pairs of two different runs count, and none of a run with itself."
    return None
