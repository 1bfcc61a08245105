"""Many outer steps of PES on the toy problem in one Triton kernel, particles in registers.

toy_steps    the call; `benchmarks.pes` times it beside `collage.pes.OuterLoop`, which does the same
"""

from typing import Any

import torch
from torch import Tensor

from collage.common.checks import check_whole

try:
    import triton
    import triton.language as tl
except ImportError:  # OuterLoop does the same
    triton = None

if triton is not None:

    @triton.jit
    def _descend(x, y, first, last, t, T, K):
        """K steps of descent from (x, y) at time t, and the sum of the heights after them."""
        total = x * 0
        for k in range(K):
            rate = first + (last - first) * ((t + k) / T)
            wave, dent = tl.sin(y), tl.exp(-5 * x * x)
            side = tl.where(y > 100, 0.25, tl.where(y < 100, -0.25, 0.0))
            slope = 1 / tl.sqrt(x * x + 5) - 10 * dent * wave * wave
            y -= rate * (side + 2 * dent * wave * tl.cos(y))
            x -= rate * x * slope
            wave = tl.sin(y)
            bowl = tl.sqrt(x * x + 5) - 2.23606797749979
            total += bowl + wave * wave * tl.exp(-5 * x * x) + tl.abs(y - 100) / 4
        return x, y, total

    # Numbers that differ from call to call are not specialised, or each kind would be compiled anew.
    @triton.jit(do_not_specialize=["M", "S", "W", "T", "K"])
    def _toy(memory, noise, M, S, W, T, K, sigma, lr, b1, b2, eps, power1, power2,
             BLOCK: tl.constexpr):  # fmt: skip
        # Places are counted in 64 bits: steps x runs x pairs may pass 2^31.
        run, runs = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
        own = memory + 6 * run  # theta, mean, square of this run
        a, b = tl.load(own), tl.load(own + 1)
        ma, mb, va, vb = tl.load(own + 2), tl.load(own + 3), tl.load(own + 4), tl.load(own + 5)
        pair = tl.arange(0, BLOCK)
        here = pair < M
        one = tl.full((BLOCK,), 1.0, tl.float32)
        x, y, u, v, xa, xb = one, one, one, one, one * 0, one * 0
        for s in range(S):
            t = (s % W) * K
            new = t == 0  # a new inner problem: states and accumulators are reset together
            x, y, u, v = (
                tl.where(new, one, x),
                tl.where(new, one, y),
                tl.where(new, one, u),
                tl.where(new, one, v),
            )
            at = ((s * runs + run) * M + pair) * 2
            ea = sigma * tl.load(noise + at, here, 0.0)
            eb = sigma * tl.load(noise + (at + 1), here, 0.0)
            xa, xb = tl.where(new, ea, xa + ea), tl.where(new, eb, xb + eb)
            x, y, plus = _descend(x, y, tl.exp(a + ea), tl.exp(b + eb), t, T, K)
            u, v, minus = _descend(u, v, tl.exp(a - ea), tl.exp(b - eb), t, T, K)
            d = tl.where(here, plus - minus, 0.0) / (2 * M * sigma * sigma)
            ga, gb = tl.sum(xa * d), tl.sum(xb * d)
            ma, mb = b1 * ma + (1 - b1) * ga, b1 * mb + (1 - b1) * gb
            va, vb = b2 * va + (1 - b2) * ga * ga, b2 * vb + (1 - b2) * gb * gb
            power1, power2 = power1 * b1, power2 * b2
            a -= lr * ma / (1 - power1) / (tl.sqrt(va / (1 - power2)) + eps)
            b -= lr * mb / (1 - power1) / (tl.sqrt(vb / (1 - power2)) + eps)
        tl.store(own, a)
        tl.store(own + 1, b)
        tl.store(own + 2, ma)
        tl.store(own + 3, mb)
        tl.store(own + 4, va)
        tl.store(own + 5, vb)


MOST = 1024  # pairs of a run: 4 for each thread of 8 warps


def block(pairs: int) -> dict[str, Any]:
    """How the pairs of a run lie in one program: 64, 256 or 1,024, at most four for a thread.

    >>> block(50), block(300)
    ({'BLOCK': 64, 'num_warps': 1}, {'BLOCK': 1024, 'num_warps': 8})
    """
    size = next(size for size in (64, 256, MOST) if pairs <= size)
    return {"BLOCK": size, "num_warps": max(1, size // 128)}


def toy_steps(
    theta: Tensor,
    mean: Tensor,
    square: Tensor,
    count: int,
    noise: Tensor,
    *,
    sigma: float = 0.3,
    truncation: int = 10,
    horizon: int = 100,
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """S outer steps of `Toy` in one kernel, one program for each run, from a fresh problem on.

    theta, mean, square (R, 2) float32, count of Adam's steps so far, noise (S, R, M, 2)
    standard normal. Returns theta, mean, square and count as S steps of `outer_step` give them.

    Raises ValueError for other shapes or dtypes, for more than 1,024 pairs, and for a horizon that
    is no multiple of the truncation; RuntimeError where there is no Triton.

    >>> toy_steps(*[torch.zeros(1, 2)] * 3, 0, torch.zeros(5, 6, 2))
    Traceback (most recent call last):
    ...
    ValueError: noise: got (5, 6, 2), wanted (S, 1, M, 2)
    """
    runs = len(theta)
    for name, value in (("theta", theta), ("mean", mean), ("square", square)):
        if value.shape != (runs, 2) or value.dtype != torch.float32:
            raise ValueError(f"{name}: got {value.dtype} {tuple(value.shape)}, wanted float32 "
                             f"({runs}, 2)")  # fmt: skip
    if noise.dim() != 4 or noise.shape[1::2] != (runs, 2) or noise.dtype != torch.float32:
        raise ValueError(f"noise: got {tuple(noise.shape)}, wanted (S, {runs}, M, 2)")
    if noise.shape[2] > MOST:
        raise ValueError(f"noise: got {noise.shape[2]} pairs, wanted {MOST} at most")
    if check_whole("horizon", horizon) % check_whole("truncation", truncation):
        raise ValueError(f"horizon: got {horizon}, wanted a multiple of {truncation}")
    if triton is None:
        raise RuntimeError("toy_steps: Triton is not installed; OuterLoop does the same")
    steps, _, pairs, _ = noise.shape
    memory = torch.cat([theta, mean, square], 1).contiguous()
    beta1, beta2 = map(float, betas)  # a whole number would be one throughout the kernel
    with torch.cuda.device_of(
        memory
    ):  # a kernel goes to the current device, wherever its tensors lie
        _toy[(runs,)](memory, noise.contiguous(), pairs, steps, horizon // truncation, horizon,
                      truncation, float(sigma), float(lr), beta1, beta2, float(eps),
                      beta1**count, beta2**count, **block(pairs))  # fmt: skip
    return *memory.split(2, 1), count + steps
