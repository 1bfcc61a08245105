"""The exercises of `sensory_neuron`."""

import math

import torch

from collage import runtime
from collage.page.exercises.checker import Answer, close, exercise


@exercise("sensory_neuron-1")
def code(answer: Answer) -> str | None:
    """A function (x (B, N), keys (B, N, H), queries (M, H)) -> the code (B, M) of (4)."""
    g = runtime.generator(0)
    for N, B, H, M in ((5, 7, 8, 16), (3, 4, 2, 6)):
        x = torch.randn(B, N, generator=g, dtype=torch.float64)
        keys = torch.randn(B, N, H, generator=g, dtype=torch.float64)
        queries = torch.randn(M, H, generator=g, dtype=torch.float64)
        solution = torch.zeros(B, M, dtype=torch.float64)
        for i in range(N):
            solution += (keys[:, i] @ queries.T).tanh() * x[:, i, None]
        if not close(answer(x, keys, queries), solution.tanh(), 1e-9):
            return (
                "Wanted: (B, M). Scores of each query and sensor, a tanh, times the sensor's reading, "
                "summed over the sensors, and a last tanh."
            )
    return None


@exercise("sensory_neuron-2")
def mean_and_deviation(answer: Answer) -> str | None:
    """A function (p, R, r) -> mean and standard deviation of a return that is R with chance p, or r."""
    for p, R, r in ((0.653, 910.0, 0.0), (0.3, 5.0, -2.0), (1.0, 4.0, 7.0)):
        solution = (p * R + (1 - p) * r, math.sqrt(p * (1 - p)) * abs(R - r))
        result = torch.as_tensor(answer(p, R, r), dtype=torch.float64)
        if not close(result, solution, 1e-3):
            return f"For p={p:g}, R={R:g}, r={r:g} you say {result.tolist()}. The variance of a coin is p (1 - p)."
    return None


@exercise("sensory_neuron-3")
def share_saved(answer: Answer) -> str | None:
    """A function (X, V, b) -> the share of starts, |x| < X and |v| < V, that a brake b can save."""
    for X, V, b in ((2.4, 5.0, 10.0), (2.4, 10.0, 10.0), (1.0, 20.0, 10.0), (2.0, 3.0, 4.0)):
        fast = min(V, math.sqrt(4 * b * X))
        solution = (fast - fast**3 / (12 * b * X)) / V
        result = float(answer(X, V, b))
        if not math.isclose(result, solution, rel_tol=1e-6):
            hint = "From v the cart needs v^2 / (2 b). What if that is more than the whole track?"
            return f"For X={X:g}, V={V:g}, b={b:g} you say {result:.4g}. {hint}"
    return None


@exercise("sensory_neuron-4")
def reordered_patches(answer: Answer) -> str | None:
    """A function (images (B, H, W), order (B, P), size) -> the images with their patches in that order."""
    g = runtime.generator(0)
    for B, H, W, size in ((3, 6, 6, 2), (2, 4, 8, 4), (2, 6, 9, 3)):
        images = torch.rand(B, H, W, generator=g)
        P, wide = (H // size) * (W // size), W // size
        order = torch.rand(B, P, generator=g).argsort(1)
        solution = torch.empty_like(images)
        for b in range(B):
            for to, source in enumerate(order[b].tolist()):
                (r, c), (y, x) = divmod(to, wide), divmod(source, wide)
                patch = images[b, y * size : (y + 1) * size, x * size : (x + 1) * size]
                solution[b, r * size : (r + 1) * size, c * size : (c + 1) * size] = patch
        if not close(answer(images, order, size), solution):
            return (
                "Wanted: (B, H, W). Place p, counted row by row, shows the patch order[b, p] of "
                "picture b, its pixels unchanged."
            )
    return None
