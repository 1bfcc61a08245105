"""What the tests of several files ride on."""

import torch


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def bowl(size=12, seed=0):
    """A smooth function with a saddle at zero, a rotated spectrum without repeats, and a floor.

    Returns it and its Hessian at zero.
    """
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=seeded(seed), dtype=torch.float64))
    values = torch.linspace(-2, 3, size).double() + 0.013
    A = q @ torch.diag(values) @ q.T
    return lambda t: 0.5 * t @ A @ t + (t**4).sum() / 4, A
