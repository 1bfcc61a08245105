"""Attention over the patches of an image, whatever their order and number.

PatchNeuron    patches -> a code of M rows
patches        images cut up
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collage.common.checks import check_whole
from collage.sensory_neuron.core import positions


class PatchNeuron(nn.Module):
    """Sensors that see one patch of an image each, in any order and number: a code of M rows.

    m = norm( relu( softmax( Q W_q (K W_k)^T / sqrt(d) ) V W_v ) )

    A row of K: the patch's differences from frame to frame, then the last action. A row of V: its
    pixels, each frame of it brought to mean 0 and variance 1. patch: pixels of a patch's side; frames
    F, actions A, codes M; dim: columns of Q; message: d; values: columns of W_v; affine: the two layer
    norms learn a scale and shift. Attention is torch's fused scaled_dot_product_attention.

    Raises ValueError for patches of another shape. Source: arXiv 2109.02869, section 4.3, and the
    authors' released code.

    >>> eye = PatchNeuron(patch=2, frames=3, actions=1, codes=4, message=8, values=6)
    >>> frames = torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> eye(patches(frames, 2), torch.zeros(7, 1)).shape
    torch.Size([7, 4, 6])
    """

    positions: Tensor

    def __init__(
        self,
        patch: int = 6,
        frames: int = 4,
        actions: int = 3,
        codes: int = 1024,
        dim: int = 8,
        message: int = 16,
        values: int = 16,
        affine: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.frames, self.actions = check_whole("patch", patch) ** 2, frames, actions
        check_whole("frames", frames, 2)
        self.register_buffer("positions", positions(check_whole("codes", codes), dim))
        self.query = nn.Linear(dim, message)
        self.key = nn.Linear((frames - 1) * self.size + actions, message)
        self.value = nn.Linear(frames * self.size, values)
        self.before = nn.LayerNorm(self.size, elementwise_affine=affine)
        self.after = nn.LayerNorm(values, elementwise_affine=affine)

    def forward(self, seen: Tensor, action: Tensor) -> Tensor:
        """Patches (B, P, F, size^2) and the last action (B, A) -> (B, M, values)."""
        B, *shape = seen.shape
        if shape[1:] != [self.frames, self.size] or action.shape != (B, self.actions):
            wanted = f"(B, P, {self.frames}, {self.size}), (B, {self.actions})"
            got = f"{tuple(seen.shape)}, {tuple(action.shape)}"
            raise ValueError(f"seen, action: got {got}, wanted {wanted}")
        moved = seen.diff(dim=2).flatten(2)
        keys = self.key(torch.cat([moved, action[:, None].expand(-1, moved.shape[1], -1)], 2))
        values = self.value(self.before(seen).flatten(2))
        queries = self.query(self.positions).expand(B, -1, -1)
        return self.after(F.scaled_dot_product_attention(queries, keys, values).relu())


def patches(images: Tensor, size: int) -> Tensor:
    """Images (B, F, H, W) as patches (B, P, F, size^2), row by row, without overlap.

    Raises ValueError for images that are not a whole number of patches high and wide.

    >>> patches(torch.arange(16.0).view(1, 1, 4, 4), 2)[0, 1]
    tensor([[2., 3., 6., 7.]])
    """
    B, frames, H, W = images.shape
    if H % size or W % size:
        raise ValueError(f"images: got {H} x {W} pixels, wanted multiples of {size}")
    cut = images.view(B, frames, H // size, size, W // size, size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(B, -1, frames, size * size)
