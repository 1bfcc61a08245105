"""Rides from rides: a tree, saved as it grows.

search       a level of the tree in each batch
"""

import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from collage.common.checkpoint import digest, resume, save
from collage.common.checks import check_whole
from collage.common.networks import frozen_batch_statistics
from collage.ridge_rider.core import DENSE, Loss, check_points, ride
from collage.ridge_rider.starts import ridges

Print = tuple[int, ...]  # (2, -1): left by ridge 2 forwards, then by ridge 1 backwards


class Tree(NamedTuple):
    """N rides from rides. A fingerprint is the signed numbers of the ridges taken, from 1."""

    prints: list[Print]  # (N,)
    thetas: Tensor  # (N, P), where the ride ended: where the next ones start
    tries: list[int]  # (N,), how often the ride looked at the Hessian
    waiting: list[int]  # rides from whose ends nobody has left yet; -1 is the start of all


@frozen_batch_statistics()
def search(
    loss: Loss,
    start: Tensor,  # (P,)
    *,
    step: float = 0.1,
    levels: int = 3,
    most: int = 1000,
    path: str | Path | None = None,
) -> Tree:
    """Ride from start (P,), then from where rides ended, and so on: a tree, breadth first.

    From each point all ridges leave, one for each eigenvalue, both ways; for at most 256 parameters.
    A level is ridden in one batch; there are `levels` of them. The search ends before the first point
    whose ridges would make more than `most` rides; that point is left waiting. Where rides end,
    gradient descent goes on to solutions. path: a file to which the tree is saved after each batch,
    and from which it goes on if there.

    Raises ValueError for more parameters, and a file written with other settings, for another start or
    another loss. A start without negative curvature gives a tree without rides, with a RuntimeWarning.

    >>> tree = search(lambda t: (t[0] ** 2 - 1) ** 2 + t[1] ** 2, torch.zeros(2), levels=1)
    >>> tree.prints, tree.thetas[:, 0]
    ([(1,), (-1,)], tensor([ 0.6000, -0.6000]))
    """
    most, levels = check_whole("most", most), check_whole("levels", levels)
    start = torch.as_tensor(start).detach()
    if len(start) > DENSE:
        raise ValueError(f"start: got {len(start)} parameters, wanted at most {DENSE}")
    setting: dict = {"step": step, "levels": levels}
    setting["loss"] = check_points(loss, start[None]).item()
    setting["start"] = [str(start.dtype), digest(start)]
    tree, full = _load(path, setting, start), False
    while tree.waiting and not full:
        points, prints = [start, *tree.thetas], [(), *tree.prints]  # number -1 comes first
        depths = [len(prints[i + 1]) for i in tree.waiting]
        batch: list[tuple[Tensor, Tensor, Print]] = []
        for i in tree.waiting[: depths.count(depths[0])]:
            ways = _leave(loss, points[i + 1], i)
            full = len(tree.prints) + len(batch) + len(ways) > most
            if full:  # a point is left along all its ridges or not yet
                break
            batch += [(points[i + 1], e, (*prints[i + 1], number)) for number, e in ways]
            tree = tree._replace(waiting=tree.waiting[1:])
        if batch:
            at, along, new = zip(*batch, strict=True)
            rides = ride(loss, torch.stack(at), torch.stack(along), step)
            deeper = [n for n, p in enumerate(new, len(tree.prints)) if len(p) < levels]
            thetas, tries = torch.cat([tree.thetas, rides.thetas]), rides.tries.tolist()
            tree = Tree([*tree.prints, *new], thetas, tree.tries + tries, tree.waiting + deeper)
        if path is not None:
            _save(path, setting, tree)
    return tree


def _leave(loss: Loss, point: Tensor, i: int) -> list[tuple[int, Tensor]]:
    """The signed numbers of the ridges at the end of ride i, and the directions along them."""
    with warnings.catch_warnings():
        if i >= 0:  # the end of a ride may well have no ridge; a start should
            warnings.filterwarnings("ignore", message="ridges: no negative")
        vectors = ridges(loss, point, distinct=True).vectors
    return [(sign * n, sign * e) for n, e in enumerate(vectors, 1) for sign in (1, -1)]


def _save(path: str | Path, setting: dict, tree: Tree) -> None:
    rows = [[*p, *[0] * (setting["levels"] - len(p))] for p in tree.prints]  # filled with zeros
    lists = {"prints": rows, "tries": tree.tries, "waiting": tree.waiting}
    arrays = {name: torch.tensor(values, dtype=torch.long) for name, values in lists.items()}
    save(path, {"thetas": tree.thetas, **arrays}, {"setting": setting, "done": len(rows)})


def _load(path: str | Path | None, setting: dict, start: Tensor) -> Tree:
    """What `_save` wrote there; without a file a tree that has only its start."""
    arrays, _ = resume(path, setting, start.device)
    if not arrays:
        return Tree([], start.new_zeros(0, len(start)), [], [-1])
    prints, tries, waiting = (arrays[name].tolist() for name in ("prints", "tries", "waiting"))
    return Tree([tuple(n for n in row if n) for row in prints], arrays["thetas"], tries, waiting)
