"""The few points that a query looks at in every step.

WorkingSet    those of many queries
take          some rows of a record
"""

import dataclasses
from typing import TypeVar

import torch
from torch import Tensor

from collage.convex_hull.fast.careful import TINY

Record = TypeVar("Record")


def take(record: Record, k: Tensor) -> Record:
    """Rows k of all tensors of a dataclass."""
    chosen = {}
    for field in dataclasses.fields(record):  # type: ignore[arg-type]
        value = getattr(record, field.name)
        chosen[field.name] = value.index_select(0, k) if isinstance(value, Tensor) else value
    return type(record)(**chosen)


@dataclasses.dataclass
class WorkingSet:
    """Up to k points for each of m queries z; the corral is among them."""

    index: Tensor  # (m, k) numbers of points; -1 where free
    near: Tensor  # (m, k, r) vertices p = x - z, of length one if `unit`
    scale: Tensor  # (m, k) 1 / |x - z| if `unit`, or 1
    barred: Tensor  # (m, k) infinite where a vertex may not join, or zero
    unit: bool

    @staticmethod
    def empty(z: Tensor, k: int, unit: bool) -> "WorkingSet":
        """Room for k points for each query (m, r)."""
        m, r = z.shape
        return WorkingSet(torch.full((m, k), -1, device=z.device), z.new_zeros(m, k, r),
                          z.new_ones(m, k), z.new_full((m, k), torch.inf), unit)  # fmt: skip

    def best(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest <p, y> (m,) and where it is, of those that may join."""
        score, place = (torch.bmm(self.near, y[..., None])[..., 0] + self.barred).min(1)
        return score, place

    def holds(self, k: Tensor, ids: Tensor) -> Tensor:
        """For which of the queries k all points found, ids (len(k), s), are here already."""
        here = (ids[:, :, None] == self.index[k][:, None]).any(2)
        return (ids >= 0).any(1) & (here | (ids < 0)).all(1)

    def put(
        self, k: Tensor, places: Tensor, ids: Tensor, x: Tensor, z: Tensor, limit: Tensor
    ) -> None:
        """Points x[ids] (len(k), s) at these places, for queries z (len(k), r)."""
        rows = k[:, None]
        p = x.index_select(0, ids.clamp(min=0).flatten()).view(*ids.shape, x.shape[1]) - z[:, None]
        if self.unit:
            length = p.norm(dim=2)
            # of a point that is the query itself, float64 leaves no direction
            p = torch.where(length[..., None] > TINY, p / length[..., None], 0.0)
            self.scale[rows, places] = 1 / length.clamp(min=1e-300)
        self.index[rows, places], self.near[rows, places] = ids, p
        counts = (ids >= 0) & (ids < limit[:, None])
        self.barred[rows, places] = torch.where(counts, 0.0, torch.inf).to(p)

    def add(
        self, k: Tensor, ids: Tensor, y: Tensor, members: Tensor, x: Tensor, z: Tensor,
        limit: Tensor,
    ) -> None:  # fmt: skip
        """Points x[ids] in place of those that lie deepest in the hull; members stay."""
        ids = ids.sort(1, descending=True)[0][:, : int((ids >= 0).sum(1).max())]
        index = self.index[k]
        depth = torch.bmm(self.near[k], y[..., None])[..., 0]
        depth = torch.where(index < 0, torch.inf, depth)
        taken = torch.zeros_like(depth)
        taken.scatter_add_(1, members.clamp(min=0), (members >= 0).to(depth))
        places = torch.where(taken > 0, -torch.inf, depth).topk(ids.shape[1], 1)[1]
        ids = torch.where(ids >= 0, ids, index.gather(1, places))
        self.put(k, places, ids, x, z, limit)
