"""The particles of one estimator, or of several, unrolled as one batch.

unrolled    drives the functions of `core`
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from collage.common.populations import tree_leaves, tree_map
from collage.pes.core import Nest, Outcome, Step, Unroll


def unrolled(steps: Sequence[Step], unroll: Callable[..., Outcome]) -> list:
    """What estimators return, after one call of `unroll` (see `core.Problem`) for all their particles.

    Raises ValueError where they ask for unrolls of different lengths.
    """
    asked = [next(step) for step in steps]
    requests = [request for part in asked for request in part]
    lengths = {request.steps for request in requests}
    if len(lengths) > 1:
        got = f"unrolls of {sorted(lengths)} steps"
        raise ValueError(f"estimators: got {got}, wanted the same number")
    shapes = [_leading(request) for request in requests]
    rows = [_flat(request.theta, shape) for request, shape in zip(requests, shapes)]
    states = [_flat(request.state, shape) for request, shape in zip(requests, shapes)]
    state, losses = unroll(_concat(rows), _concat(states), lengths.pop())
    sizes = [shape.numel() for shape in shapes]
    outcomes = iter(zip(shapes, _split(state, sizes), _split(losses, sizes)))
    returned = []
    for step, part in zip(steps, asked):
        try:
            step.send([_unflat(*next(outcomes)) for _ in part])
        except StopIteration as end:
            returned.append(end.value)
    return returned


def _leading(request: Unroll) -> torch.Size:
    """The axes (R, 2, M) to which theta and the states broadcast."""
    shapes = [t.shape[:3] for t in (request.theta, *tree_leaves(request.state))]
    return torch.Size(map(max, zip(*shapes)))


def _flat(state: Nest, shape: torch.Size) -> Nest:
    def flat(t: Tensor) -> Tensor:
        return (t if t.shape[:3] == shape else t.expand(*shape, *t.shape[3:])).flatten(0, 2)

    return tree_map(flat, state)


def _concat(states: Sequence[Nest]) -> Nest:
    """Several nests as one, along the particle axis."""
    return tree_map(lambda *parts: torch.cat(parts), *states) if len(states) > 1 else states[0]


def _split(state: Nest, sizes: Sequence[int]) -> list[Nest]:
    """The inverse: a nest as several, of so many particles each."""
    if len(sizes) == 1:
        return [state]
    spans = [slice(end - n, end) for end, n in zip(itertools.accumulate(sizes), sizes)]
    return [tree_map(lambda t, span=span: t[span], state) for span in spans]


def _unflat(shape: torch.Size, state: Nest, losses: Tensor) -> Outcome:
    return tree_map(lambda t: t.view(*shape, *t.shape[1:]), state), losses.view(shape)
