"""Rides from rides: a tree whose leaves are solutions, saved as it grows."""

import warnings
from collections import deque
from pathlib import Path
from typing import NamedTuple

import torch
from torch.func import vmap

from collage.common.checkpoint import load, save
from collage.common.checks import check_whole
from collage.common.networks import only_looking
from collage.ridge_rider.rides import DENSE, check_points, descend, ride, ridges
from collage.runtime import generator


class Tree(NamedTuple):
    """N rides from rides. A fingerprint is the signed numbers of the ridges taken, from 1."""

    prints: list  # (N,) of tuples: (2, -1) left by ridge 2 forwards, then by ridge 1 backwards
    starts: torch.Tensor  # (N, P), where the ride ended: where the next ones start
    ends: torch.Tensor  # (N, P), after the polish: the solution
    losses: torch.Tensor  # (N,), there
    ended: list  # (N,) of str: how the ride ended
    tries: list  # (N,) of int: how often the ride looked at the Hessian
    waiting: list  # numbers of rides from whose ends nobody has left yet


@only_looking
def search(loss, start, *, step=0.1, width=None, levels=3, most=1000, order="breadth", every=False,
           polish=(500, 1.0), path=None, progress=False, **how):  # fmt: skip
    """Ride from start (P,), then from where rides ended, and so on: a tree of solutions.

    From each point the `width` most negative ridges leave, one for each eigenvalue, both ways
    (every=True: one for each vector of a repeated one; else the first of its basis stands for all).
    order: "breadth" takes the points in the order they were found, a level in one batch; "depth"
    takes the latest first. Rides go `levels` deep. The search ends before the first point whose
    ridges would make more than `most` rides; that point is left waiting. polish: steps and
    rate of the gradient descent that turns the end of a ride into a solution; where it diverges,
    that end itself counts. `how` goes to `ride`.

    path: a file to which the tree is saved after each batch, and from which it goes on when it is
    there. progress=True prints a line for each batch.

    Raises ValueError for an unknown order, a width that is not positive, and a file written with
    other settings, for another start or another loss. A start
    without negative curvature gives a tree without rides, with a RuntimeWarning.

    >>> tree = search(lambda t: (t[0] ** 2 - 1) ** 2 + t[1] ** 2, torch.zeros(2), levels=1,
    ...               polish=(100, 0.1))
    >>> tree.prints, tree.ends[:, 0]
    ([(1,), (-1,)], tensor([ 1., -1.]))
    """
    if order not in ("breadth", "depth"):
        raise ValueError(f"order: got {order!r}, wanted 'breadth' or 'depth'")
    most, levels = check_whole("most", most), check_whole("levels", levels)
    start = torch.as_tensor(start).detach()
    if width is not None or len(start) > DENSE:
        width = check_whole("width", width)
    here = check_points(loss, start[None]).item()
    settings = {"step": step, "width": width, "levels": levels, "order": order, "every": every,
                "polish": list(polish), "loss": here, "how": {k: repr(v) for k, v in how.items()}}  # fmt: skip
    tree = Tree([], *[start.new_zeros(0, *start.shape)] * 2, start.new_zeros(0), [], [], [-1])
    if path is not None and Path(path).exists():
        tree = _resume(path, start, settings)
    full = False
    while tree.waiting and not full:
        waiting, leaving, batch = deque(tree.waiting), deque(), []
        depth = [len(tree.prints[i]) if i >= 0 else 0 for i in waiting]
        for _ in range(depth.count(depth[0]) if order == "breadth" else 1):
            leaving.append(waiting.popleft() if order == "breadth" else waiting.pop())
        while leaving and not full:
            i = leaving.popleft()
            point, trace = (tree.starts[i], tree.prints[i]) if i >= 0 else (start, ())
            chosen = _leave(loss, point, width, every, i + 1)
            new = [(point, sign * e, (*trace, sign * number))
                   for number, e in enumerate(chosen, 1) for sign in (1, -1)]  # fmt: skip
            full = len(tree.prints) + len(batch) + len(new) > most
            if full:  # a point is left along all its ridges or not yet
                leaving.appendleft(i)
            else:
                batch += new
        waiting = [*leaving, *waiting] if order == "breadth" else [*waiting, *leaving]
        if batch:
            points, directions, prints = zip(*batch, strict=True)
            rides = ride(loss, torch.stack(points), torch.stack(directions), step, **how)
            ends = descend(loss, rides.thetas, *polish)
            lost = ~ends.isfinite().all(1, keepdim=True)
            ends = torch.where(lost, rides.thetas, ends)  # too large a rate: the ride's own end
            numbers = range(len(tree.prints), len(tree.prints) + len(ends))
            deeper = [n for n, p in zip(numbers, prints, strict=True) if len(p) < levels]
            tree = Tree([*tree.prints, *prints], torch.cat([tree.starts, rides.thetas]),
                        torch.cat([tree.ends, ends]), torch.cat([tree.losses, vmap(loss)(ends)]),
                        tree.ended + rides.ended, tree.tries + rides.tries.tolist(), waiting + deeper)  # fmt: skip
        else:
            tree = tree._replace(waiting=waiting)
        if path is not None:
            _store(path, tree, start, settings)
        if progress and batch:
            print(f"{len(tree.prints)} rides, {len(tree.waiting)} points to leave from, "
                  f"lowest loss {tree.losses.min().item():.4g}")  # fmt: skip
    return tree


def _leave(loss, point, width, every, number):
    """The directions (n, P) to leave a point along: one for each eigenvalue, or every vector."""
    few = width if len(point) > DENSE else None
    g = generator(number, point.device)  # so that a resumed search is the same
    with warnings.catch_warnings():
        if number:  # the end of a ride may well have no ridge; a start should
            warnings.filterwarnings("ignore", message="ridges: no negative")
        found = ridges(loss, point, few, distinct=not every, generator=g)
    return found.vectors[:width]


def _store(path, tree, start, settings):
    arrays = {"start": start, "starts": tree.starts, "ends": tree.ends, "losses": tree.losses}
    lists = {k: getattr(tree, k) for k in ("prints", "ended", "tries", "waiting")}
    save(path, arrays, {"settings": settings, **lists})


def _resume(path, start, settings):
    arrays, meta = load(path)
    tensors = {k: torch.as_tensor(v) for k, v in arrays.items()}
    if tensors["start"].dtype != start.dtype or not torch.equal(tensors["start"], start.cpu()):
        raise ValueError(f"path: {path} was written for another start")
    for name, value in settings.items():
        if meta["settings"].get(name) != value:
            raise ValueError(f"path: {path} was written with {name} = "
                             f"{meta['settings'].get(name)!r}, got {value!r}")  # fmt: skip
    tensors = {k: v.to(start) for k, v in tensors.items()}
    prints = [tuple(p) for p in meta["prints"]]
    return Tree(prints, tensors["starts"], tensors["ends"], tensors["losses"], meta["ended"],
                meta["tries"], meta["waiting"])  # fmt: skip
