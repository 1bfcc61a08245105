"""Largest entries of X W block by block, while the product is in registers: a Triton kernel.

triton_block_max    `prices.block_max` on a GPU
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _block_max(  # type: ignore[no-untyped-def]
    x, w, counts, out, blocks, m, d,
    D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    row, col = tl.program_id(0) * ROWS, tl.program_id(1) * COLS
    columns = col + tl.arange(0, COLS)
    block = row // SIZE + tl.arange(0, ROWS // SIZE)
    wanted = tl.load(counts + col)  # counts fall: no column of the tile wants more
    best = tl.full((ROWS // SIZE, COLS), float("-inf"), tl.float32)
    if row // SIZE < wanted:
        rows = row + tl.arange(0, ROWS)
        price = tl.zeros((ROWS, COLS), tl.float32)
        for first in range(0, d, D):  # of wide points a tile at a time
            k = first + tl.arange(0, D)
            a = tl.load(x + rows[:, None] * d + k[None],
                        (rows[:, None] < blocks * SIZE) & (k[None] < d), 0.0)  # fmt: skip
            b = tl.load(w + k[:, None] * m + columns[None],
                        (k[:, None] < d) & (columns[None] < m), 0.0)  # fmt: skip
            price = tl.dot(a, b, price, input_precision="ieee")
        best = tl.max(tl.reshape(price, (ROWS // SIZE, SIZE, COLS)), 1)
    tl.store(out + block[:, None] * m + columns[None], best,
             (block[:, None] < blocks) & (columns[None] < m))  # fmt: skip


def triton_block_max(
    x: Tensor,  # (size b, d) float32
    w: Tensor,  # (d, m) float32
    size: int,
    counts: Tensor | None = None,  # (m,) falling: how many blocks a column wants
) -> Tensor:  # (b, m); -inf where not wanted
    """Largest entry of each block of `size` rows of x w, for points of any width d."""
    blocks, m, d = len(x) // size, w.shape[1], x.shape[1]
    x, w = x.contiguous(), w.contiguous()
    if counts is None:
        counts = torch.full((m,), blocks, device=x.device)
    out = torch.empty(blocks, m, device=x.device)
    width = min(64, max(16, triton.next_power_of_2(d)))
    rows, cols = 128, 64  # two tiles of 48 KB in all: any GPU has room for them
    grid = (triton.cdiv(blocks * size, rows), triton.cdiv(m, cols))
    _block_max[grid](x, w, counts, out, blocks, m, d,
                     D=width, ROWS=rows, COLS=cols, SIZE=size)  # fmt: skip
    return out
