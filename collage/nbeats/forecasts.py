"""The forecast of many networks.

median      over members
forecast    fit an ensemble, of any size and on any number of ranks, and forecast a panel
"""

import torch

from collage.common.checks import as_tensor, check_whole
from collage.common.populations import Shard
from collage.nbeats.ensemble import Ensemble
from collage.nbeats.fast.gradient import Gradient
from collage.nbeats.members import check_members
from collage.nbeats.panels import check_panel


def median(forecasts, dim=0):
    """The median over members; for an even number the mean of the two in the middle.

    (`torch.median` takes the lower of the two.)

    >>> median(torch.tensor([1.0, 2.0, 4.0, 9.0]))
    tensor(3.)
    """
    forecasts = as_tensor("forecasts", forecasts)
    if not forecasts.numel() or bool(forecasts.isnan().any()):
        raise ValueError(
            f"forecasts: got {tuple(forecasts.shape)} with NaN or empty, wanted numbers"
        )
    ordered, n = forecasts.sort(dim)[0], forecasts.shape[dim]
    low, high = ordered.select(dim, (n - 1) // 2), ordered.select(dim, n // 2)
    return (low + high) / 2


def forecast(series, members, horizon, kind="interpretable", *, steps, shape=None, at_once=None,
             group=None, checkpoint=None, device=None, **fit):  # fmt: skip
    """Fit an ensemble and forecast a panel: (E, N, H) in float32, the same on every rank.

    shape: settings of `Ensemble`, such as {"stacks": ..., "layers": 2}; fit: those of `Ensemble.fit`.
    Ranks share the members out among them (see `Shard`). at_once: so many members are trained in one
    stack; without it all of a GPU's, and on a CPU as many as its cache holds. Each stack has its own
    checkpoint, `checkpoint` with its first and last member in the name: on another number of ranks, or
    with another `at_once`, it begins anew. device: that of the series.
    """
    series, members = check_panel(list(series), 2), check_members(members)
    device = torch.device(device or series[0].device)
    series, shard = [s.to(device) for s in series], Shard(group)
    share = shard.slice(len(members))
    mine, shape, found = range(len(members))[share], shape or {}, []
    if at_once is None and device.type == "cpu":
        longest = max(members, key=lambda m: m.lookback)
        batch = check_whole("batch", fit.get("batch", 1024))
        at_once = Gradient(Ensemble([longest], horizon, kind, **shape), batch).cached
    size = len(members) if at_once is None else check_whole("at_once", at_once)
    for i in range(mine.start, mine.stop, size):
        part = members[i : min(i + size, mine.stop)]
        ensemble = Ensemble(part, horizon, kind, device=device, **shape)
        name = None if checkpoint is None else f"{checkpoint}.{i}-{i + len(part) - 1}.npz"
        ensemble.fit(series, steps, checkpoint=name, **fit)
        found.append(ensemble.forecast(series))
    # More ranks than members: some have nothing to add.
    whole = torch.cat(found or [torch.zeros(0, len(series), horizon, device=device)])
    return shard.gather(whole.movedim(0, -1).contiguous(), len(members)).movedim(-1, 0)
