"""Largest entries of X W block by block, while the product is in registers: a Triton kernel.

tiles               the tiles of points of one width: as many compiled forms as there are of these
triton_block_max    `prices.block_max` on a GPU
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLS = 128, 64  # products of one program; with 8 warps they stay in registers
WIDEST = 32  # coordinates of a point read at once
MOST = 65535 * COLS  # columns: the second axis of a grid ends there


# Numbers that differ from call to call are not specialised, or each kind would be compiled anew.
@triton.jit(do_not_specialize=["blocks", "m", "d"])
def _block_max(  # type: ignore[no-untyped-def]
    x, w, counts, out, blocks, m, d,
    D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    # Places in x, w and out are counted in 64 bits: N d, d m and N m / 16 may pass 2^31.
    row, col = tl.program_id(0).to(tl.int64) * ROWS, tl.program_id(1).to(tl.int64) * COLS
    columns = col + tl.arange(0, COLS)
    block = row // SIZE + tl.arange(0, ROWS // SIZE)
    wanted = tl.load(counts + col)  # counts fall: no column of the tile wants more
    best = tl.full((ROWS // SIZE, COLS), float("-inf"), tl.float32)
    if row // SIZE < wanted:
        rows = row + tl.arange(0, ROWS)
        price = tl.zeros((ROWS, COLS), tl.float32)
        for first in range(0, d, D):  # of wide points a tile at a time
            k = first + tl.arange(0, D)
            a = tl.load(x + (rows[:, None] * d + k[None]),
                        (rows[:, None] < blocks * SIZE) & (k[None] < d), 0.0)  # fmt: skip
            b = tl.load(w + k[:, None].to(tl.int64) * m + columns[None],
                        (k[:, None] < d) & (columns[None] < m), 0.0)  # fmt: skip
            price = tl.dot(a, b, price, input_precision="ieee")
        best = tl.max(tl.reshape(price, (ROWS // SIZE, SIZE, COLS)), 1)
    tl.store(out + block[:, None] * m + columns[None], best,
             (block[:, None] < blocks) & (columns[None] < m))  # fmt: skip


def tiles(d: int, size: int = 16) -> dict[str, int]:
    """Tiles and warps for points of width d in blocks of `size` rows.

    One stage: with more, wide tiles spill out of registers and double the shared memory.

    >>> tiles(3)["D"], tiles(500)["D"]
    (16, 32)
    """
    width = min(WIDEST, max(16, triton.next_power_of_2(d)))
    return {"D": width, "ROWS": ROWS, "COLS": COLS, "SIZE": size, "num_warps": 8, "num_stages": 1}


def triton_block_max(
    x: Tensor,  # (size b, d) float32
    w: Tensor,  # (d, m) float32
    size: int,
    counts: Tensor | None = None,  # (m,) falling: how many blocks a column wants
) -> Tensor:  # (b, m); -inf where not wanted
    """Largest entry of each block of `size` rows of x w, for points of any width d.

    Raises ValueError for more columns than a grid has room for, 4,194,240.
    """
    blocks, m, d = len(x) // size, w.shape[1], x.shape[1]
    if m > MOST:
        raise ValueError(f"w: got {m} columns, wanted {MOST} at most")
    x, w = x.contiguous(), w.contiguous()
    if counts is None:
        counts = torch.full((m,), blocks, device=x.device)
    out = torch.empty(blocks, m, device=x.device)
    grid = (triton.cdiv(blocks * size, ROWS), triton.cdiv(m, COLS))
    with torch.cuda.device_of(x):  # a kernel goes to the current device, wherever its tensors lie
        _block_max[grid](x, w, counts, out, blocks, m, d, **tiles(d, size))
    return out
