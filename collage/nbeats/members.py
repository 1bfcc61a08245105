"""Who is in an ensemble, and what its blocks may say.

Member, grid                     what a member has of its own; the paper's ensemble
trend_basis, seasonal_basis      the bases of interpretable blocks
"""

import itertools
import math
from typing import NamedTuple

import torch

from collage.common.checks import check_whole

LOSSES = ("smape", "mape", "mase")


def trend_basis(points, length, degree=2):
    """Powers of time (degree + 1, points): row i is (j / length)^i for j = 0 ... points - 1.

    Source: arXiv 1905.10437, sec. 3.3.

    >>> trend_basis(6, 6).sum(1)
    tensor([6.0000, 2.5000, 1.5278])
    """
    t = torch.arange(points) / length
    return torch.stack([t**i for i in range(degree + 1)])


def seasonal_basis(points, horizon):
    """Waves (2 ceil(H / 2), points): cos and then sin of 2 pi k j / H, k = 0 ... ceil(H / 2) - 1.

    Counted in horizons H on the backcast, too. The sine of k = 0 is a row of zeros.

    >>> basis = seasonal_basis(8, 8).double()
    >>> (basis @ basis.T).diagonal().round().tolist()
    [8.0, 4.0, 4.0, 4.0, 0.0, 4.0, 4.0, 4.0]
    """
    k, j = torch.arange((horizon + 1) // 2).double(), torch.arange(points).double()
    # Whole turns are taken off first: exact zeros stay zeros, far from the origin too.
    angle = 2 * math.pi * (torch.outer(k, j) % horizon) / horizon
    return torch.cat([angle.cos(), angle.sin()]).float()


class Member(NamedTuple):
    """What a member of an ensemble has of its own. Its weights and its windows follow from it."""

    lookback: int
    loss: str = "smape"
    seed: int = 0


def grid(horizon, lookbacks=(2, 3, 4, 5, 6, 7), losses=LOSSES, seeds=10):
    """The paper's ensemble: every lookback (in horizons) with every loss and seed.

    >>> len(grid(6)), grid(6)[0]
    (180, Member(lookback=12, loss='smape', seed=0))
    """
    horizon, losses = (
        check_whole("horizon", horizon),
        [losses] if isinstance(losses, str) else losses,
    )
    lookbacks = [check_whole("lookbacks", l) for l in lookbacks]
    return [Member(l * horizon, loss, seed) for loss, seed, l in
            itertools.product(losses, range(check_whole("seeds", seeds)), lookbacks)]  # fmt: skip


def check_members(members):
    found = []
    for m in [members] if isinstance(members, Member) else members:
        if not isinstance(m, tuple | list) or not 1 <= len(m) <= 3:
            raise ValueError(f"members: got {m!r}, wanted Member(lookback, loss, seed)")
        lookback, loss, seed = Member(*m)
        if loss not in LOSSES:
            raise ValueError(f"members: got the loss {loss!r}, wanted one of {LOSSES}")
        found.append(Member(check_whole("lookback", lookback), loss, check_whole("seed", seed, 0)))
    if not found or len(set(found)) < len(found):
        raise ValueError(f"members: got {len(found)}, {len(set(found))} of them different; wanted at "
                         "least one, and none twice")  # fmt: skip
    return found
