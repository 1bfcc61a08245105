"""One query by least squares: slow, and right where vertices depend on each other.

careful    Wolfe's method where the inverse is of no use
"""

import torch
from torch import Tensor

TINY = 1e-12  # what float64 leaves of zero


def careful(
    p: Tensor,  # (k, r)
    scale: Tensor,  # (k,)
    tol: float,
    slack: float,
    room: int,
) -> tuple[bool, list[int], Tensor, Tensor] | None:
    """Wolfe's method for one query by least squares, for vertices that depend on each other.

    Returns whether it is inside, the corral, its weights and its point; None where float64 does
    not decide.
    """
    taken, lam = [int(p.square().sum(1).argmin())], p.new_ones(1)
    inside = False
    for _ in range(50 * room):
        a = _affine(p[taken])
        if (a <= 1e-15).any():
            ratio = torch.where(a <= 1e-15, lam / (lam - a).clamp(min=1e-300), torch.inf)
            lam = (lam + ratio.min().clamp(max=1) * (a - lam)).clamp(min=0)
            lam[ratio.argmin()] = 0.0
            taken = [t for t, keep in zip(taken, (lam > 0).tolist(), strict=True) if keep]
            lam = lam[lam > 0]
            lam = lam / lam.sum()
            continue
        lam, y = a, a @ p[taken]
        if len(taken) > 1:  # short as it may be, y is orthogonal to the corral
            edges = torch.linalg.qr((p[taken][1:] - p[taken][0]).T)[0]
            for _ in range(2):
                y = y - edges @ (edges.T @ y)
        score = p @ y
        square, j = y @ y, int(score.argmin())
        distance = square.sqrt() / (lam @ scale[taken])
        inside = bool(distance <= TINY)
        if inside or score[j] >= slack * square or j in taken:
            break
        taken.append(j)
        lam = torch.cat([lam, lam.new_zeros(1)])
    inside = inside or bool(distance <= tol)
    while len(taken) > room:  # Caratheodory: move along a dependency until a weight is zero
        null = torch.linalg.svd(torch.cat([p[taken].T, p.new_ones(1, len(taken))]))[2][-1]
        ratio = torch.where(null > 0, lam / null, torch.inf)
        lam, gone = (lam - ratio.min() * null).clamp(min=0), int(ratio.argmin())
        taken.pop(gone)
        lam = torch.cat([lam[:gone], lam[gone + 1 :]])
        lam = lam / lam.sum()
        y = lam @ p[taken]
    return (inside, taken, lam, y) if inside or score.min() > 0 else None


def _affine(p: Tensor) -> Tensor:
    """The affine minimiser of a corral (k, r) of any rank: (k,)."""
    system = torch.cat([p.T, p.new_ones(1, len(p))]).cpu()  # a GPU has no driver for any rank
    target = torch.zeros(len(system), 1, dtype=p.dtype)
    target[-1] = 1.0
    a = torch.linalg.lstsq(system, target, driver="gelsd").solution[:, 0]
    return (a / a.sum()).to(p.device)
