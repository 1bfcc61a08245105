"""Attention over the patches of an image, whatever their order and number.

positions      the table of fixed queries
PatchNeuron    patches -> a code of M rows
patches        images cut up
"""

import torch
import torch.nn.functional as F
from torch import nn

from collage.common.checks import check_whole


def positions(rows, dim, like=None):
    """Sinusoidal positions (rows, dim), the queries: fixed, and no function of the input.

    Q[i, j] = sin(i / 10000^(2 floor(j/2) / dim)) for even j, cos of the same for odd j

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5.

    >>> positions(2, 4)
    tensor([[0.0000, 1.0000, 0.0000, 1.0000],
            [0.8415, 0.5403, 0.0100, 0.9999]])
    """
    i, j = torch.arange(rows, dtype=torch.float64)[:, None], torch.arange(dim)
    angle = i / 10000 ** (2 * (j // 2) / dim)
    table = torch.where(j % 2 == 0, angle.sin(), angle.cos())
    return table.to(like) if like is not None else table.float()


class PatchNeuron(nn.Module):
    """Sensors that see one patch of an image each, in any order and number: a code of M rows.

    m = norm( relu( softmax( Q W_q (K W_k)^T / sqrt(d) ) V W_v ) )

    A row of K: the patch's differences from frame to frame, then the last action. A row of V: its
    pixels, each frame of it brought to mean 0 and variance 1. patch: pixels of a patch's side, frames F,
    actions A, codes M, dim columns of Q, message d, values: columns of W_v; affine: the two layer norms
    learn a scale and shift. Attention is torch's fused scaled_dot_product_attention.

    Raises ValueError for patches of another shape. Source: arXiv 2109.02869, section 4.3, and the
    authors' released code.

    >>> eye = PatchNeuron(patch=2, frames=3, actions=1, codes=4, message=8, values=6)
    >>> frames = torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> eye(patches(frames, 2), torch.zeros(7, 1)).shape
    torch.Size([7, 4, 6])
    """

    def __init__(self, patch=6, frames=4, actions=3, codes=1024, dim=8, message=16, values=16,
                 affine=False):  # fmt: skip
        super().__init__()
        self.size, self.frames, self.actions = check_whole("patch", patch) ** 2, frames, actions
        check_whole("frames", frames, 2)
        self.register_buffer("positions", positions(check_whole("codes", codes), dim))
        self.query = nn.Linear(dim, message)
        self.key = nn.Linear((frames - 1) * self.size + actions, message)
        self.value = nn.Linear(frames * self.size, values)
        self.before = nn.LayerNorm(self.size, elementwise_affine=affine)
        self.after = nn.LayerNorm(values, elementwise_affine=affine)

    def forward(self, seen, action):
        """Patches (B, P, F, size^2), last actions (B, A) -> the code (B, M, values)."""
        B, wanted = len(seen), (self.frames, self.size)
        if seen.dim() != 4 or seen.shape[2:] != wanted or action.shape != (B, self.actions):
            raise ValueError(f"seen, action: got {tuple(seen.shape)}, {tuple(action.shape)}, wanted "
                             f"(B, P, {self.frames}, {self.size}), (B, {self.actions})")  # fmt: skip
        moved = seen.diff(dim=2).flatten(2)
        keys = self.key(torch.cat([moved, action[:, None].expand(-1, moved.shape[1], -1)], 2))
        values = self.value(self.before(seen).flatten(2))
        asked = self.query(self.positions).expand(B, -1, -1)
        return self.after(F.scaled_dot_product_attention(asked, keys, values).relu())


def patches(frames, size):
    """Images (B, F, H, W) as patches (B, P, F, size^2), row by row, without overlap.

    >>> patches(torch.arange(16.0).view(1, 1, 4, 4), 2)[0, 1]
    tensor([[2., 3., 6., 7.]])
    """
    B, frames_, H, W = frames.shape
    if H % size or W % size:
        raise ValueError(f"frames: got {H} x {W} pixels, wanted multiples of {size}")
    cut = frames.view(B, frames_, H // size, size, W // size, size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(B, -1, frames_, size * size)
