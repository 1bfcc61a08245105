"""E models of one shape as one program: their weights as rows of one tensor.

Stacked       models that share nothing but their shape
linear        one layer of them all
"""

import math

import torch
from torch import Generator, Tensor, nn

from collage import runtime
from collage.common.checks import check_whole


class Stacked(nn.Module):
    """E models that share nothing but their shape: weights (E, P), each layer one batched product.

    shapes: {name: (rows, columns)} of one model's tensors. Member i's weights follow from seed + i:
    it is the same in any company. std: of the normal weights, or None for 1 / sqrt(rows); names that
    end in "bias" start at zero, in "gain" at one.

    Raises ValueError for fewer than one member.
    """

    def __init__(
        self, shapes: dict[str, tuple[int, int]], members: int, seed: int, std: float | None = None
    ) -> None:
        super().__init__()
        self.shapes, self.seed = shapes, check_whole("seed", seed, 0)
        rows = [self.start(runtime.generator(runtime.seed_for(self.seed + i, "weights")), std)
                for i in range(check_whole("members", members))]  # fmt: skip
        self.weights = nn.Parameter(torch.stack(rows).to(torch.get_default_device()))

    def start(self, generator: Generator, std: float | None) -> Tensor:
        """Fresh weights (P,) of one model."""
        pieces, here = [], generator.device
        for name, (rows, columns) in self.shapes.items():
            if name.endswith(("bias", "gain")):
                start = float(name.endswith("gain"))
                pieces.append(torch.full((rows * columns,), start, device=here))
            else:
                scale = 1 / math.sqrt(rows) if std is None else std
                pieces.append(torch.randn(rows * columns, generator=generator, device=here) * scale)
        return torch.cat(pieces)

    def tensors(self, weights: Tensor | None = None) -> dict[str, Tensor]:
        """{name: (E, rows, columns)}: views of the weights (E, P), of other ones where given."""
        weights = self.weights if weights is None else weights
        cuts = weights.split([rows * columns for rows, columns in self.shapes.values()], 1)
        return {name: cut.view(-1, *shape)
                for cut, (name, shape) in zip(cuts, self.shapes.items(), strict=True)}  # fmt: skip

    @property
    def members(self) -> int:
        return len(self.weights)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (E, M, in), weights (E, in, out), biases (E, 1, out) -> (E, M, out)."""
    if len(x) == 1:  # one model: a plain product is quicker than a batch of one
        return torch.addmm(bias.view(-1), x.squeeze(0), weight.squeeze(0)).unsqueeze(0)
    return torch.baddbmm(bias, x, weight)
