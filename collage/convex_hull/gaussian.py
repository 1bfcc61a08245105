"""Exact probabilities.

gaussian_inside_probability    that a Gaussian point lies in the hull of Gaussian data
wendel                         that symmetric data leave the origin out
"""

import functools
import math

import torch


def gaussian_inside_probability(n: int, d: int, sigma2: float = 1.0) -> float:
    """P(x in the hull of n Gaussian points of R^d), exactly.

    P(x not in hull) = 2 (b_{d-1} + b_{d-3} + ...),  b_k = C(n, k) g_k(-r) g_{n-k}(r),
    g_n(r) = E[Phi(sqrt(r) Z)^n],  r = sigma2 / (1 + k sigma2)

    x_1, ..., x_n ~ N(0, I), x ~ N(0, sigma2 I), all independent; Phi is the normal distribution
    function, Z a normal variable, sqrt(-r) = i sqrt(r). For sigma2 = 0 it is Wendel's theorem.
    d from 1 to 40, any n; milliseconds once the g_k(-r) of a (d, sigma2) have been computed.

    Raises ValueError for n < 1, d outside 1..40, sigma2 < 0.
    Source: Kabluchko and Zaporozhets, arXiv 1704.04968; quoted as theorem 4 in arXiv 2110.09485.

    >>> round(gaussian_inside_probability(2, 1), 12), round(gaussian_inside_probability(1000, 8), 12)
    (0.333333333333, 0.484964676186)
    """
    if n != int(n) or n < 1:
        raise ValueError(f"n: got {n}, wanted a whole number from 1 on")
    if d != int(d) or not 1 <= d <= 40:
        raise ValueError(f"d: got {d}, wanted a whole number from 1 to 40")
    if not (0 <= sigma2 < math.inf):
        raise ValueError(f"sigma2: got {sigma2}, wanted a finite number, not negative")
    n, d = int(n), int(d)
    if n <= d:
        return 0.0
    if (n - d + 1) // 2 <= 12:  # few faces are missing: no cancellation
        return min(1.0, 2 * math.fsum(_faces(n, k, float(sigma2)) for k in range(d + 1, n + 1, 2)))
    out = 2 * math.fsum(_faces(n, k, float(sigma2)) for k in range(d - 1, -1, -2))
    return min(1.0, max(0.0, 1 - out))


def wendel(n: int, d: int) -> float:
    """P(the origin is not in the hull of n symmetric points in R^d) = 2^(1-n) sum_{k<d} C(n-1, k).

    For any distribution that is symmetric about the origin and has a density; one half at n = 2d.
    Raises ValueError for n or d below 1. Source: Wendel 1962, Math. Scand. 11, 109-111.

    >>> wendel(6, 3), wendel(10, 3)
    (0.5, 0.08984375)
    """
    if n != int(n) or d != int(d) or n < 1 or d < 1:
        raise ValueError(f"n, d: got {n}, {d}, wanted whole numbers from 1 on")
    n, d = int(n), int(d)
    return sum(math.comb(n - 1, k) for k in range(min(d, n))) / (1 << (n - 1))


def _faces(n: int, k: int, sigma2: float) -> float:
    """b_k of `gaussian_inside_probability`."""
    r = sigma2 / (1 + k * sigma2)
    choose = math.fsum(math.log(n - i) - math.log(i + 1) for i in range(min(k, n - k)))
    return math.exp(choose + _log_inner(k, sigma2) + _log_outer(n - k, r))


@functools.lru_cache(4096)
def _log_inner(k: int, sigma2: float) -> float:
    """log g_k(-r), an oscillating integral: 50 digits, the trapezoidal rule."""
    from mpmath import mp

    if k < 2 or sigma2 == 0:
        return -k * math.log(2)  # powers 0 and 1 have no odd part left
    with mp.workdps(50):
        root = mp.sqrt(mp.mpf(sigma2) / (1 + k * sigma2) / 2)
        end, nodes = mp.sqrt(80 * mp.log(10) * (1 + k * sigma2)), 400
        total = mp.mpf(2) ** -k / 2
        for i in range(1, nodes + 1):
            x = end * i / nodes
            total += mp.exp(-x * x / 2) * mp.re(mp.mpc(0.5, mp.erfi(root * x) / 2) ** k)
        return float(mp.log(total * 2 * end / nodes / mp.sqrt(2 * mp.pi)))


def _log_outer(n: int, r: float) -> float:
    """log g_n(r): a smooth bump, in logarithms, the trapezoidal rule."""
    end = 12 + math.sqrt(2 * math.log(n + 2.0) / r) if r else 12.0
    x = torch.linspace(-12, end, 64 * int(end + 12), dtype=torch.float64)
    log = float(n) * torch.special.log_ndtr(math.sqrt(r) * x) - x * x / 2
    return float(torch.logsumexp(log, 0)) + math.log(float(x[1] - x[0]) / math.sqrt(2 * math.pi))
