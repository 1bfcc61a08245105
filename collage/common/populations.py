"""Populations of perturbed parameters: antithetic noise, nests of states, losses shared by ranks.

antithetic, estimate    theta + eps and theta - eps, and the gradient from their losses
tree_map, tree_leaves   nests of tensors with a leading particle axis
Shard                   a population spread over the ranks of torch.distributed
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def antithetic(theta: Tensor, noise: Tensor) -> Tensor:
    """Pairs theta + eps_j and theta - eps_j: (R, P), noise (R, M, P) -> (R, 2, M, P).

    >>> antithetic(torch.zeros(1, 2), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])).flatten(0, 2).tolist()
    [[1.0, 2.0], [3.0, 4.0], [-1.0, -2.0], [-3.0, -4.0]]
    """
    centre = theta.unsqueeze(1)
    return torch.stack([centre + noise, centre - noise], 1)


def estimate(losses: Tensor, weights: Tensor, sigma: float | Tensor) -> Tensor:
    """The antithetic estimate of a gradient.

    g = 1 / (2 M sigma^2)  sum_j  w_j (L_j^+ - L_j^-)

    losses (R, 2, M), weights (R, M, P), sigma a number or (R,); returns (R, P). With weights equal
    to the noise this is plain evolution strategies. The divisor counts both members of a pair.

    Source: Salimans et al. 2017 (arXiv 1703.03864); arXiv 2112.13835.

    >>> noise = torch.tensor([[[1.0], [-2.0]]])
    >>> losses = 3 * antithetic(torch.zeros(1, 1), noise).view(1, 2, 2)  # L = 3 theta
    >>> estimate(losses, noise, sigma=1.0)  # 3 times the mean of eps^2
    tensor([[7.5000]])
    """
    plus, minus = losses.unbind(-2)
    difference = plus - minus
    scale = 2 * difference.shape[-1] * sigma**2
    if isinstance(scale, Tensor) and scale.dim():
        scale = scale.unsqueeze(-1)
    return (difference.unsqueeze(-2) @ weights).squeeze(-2) / scale


def tree_leaves(state: Any) -> list[Tensor]:
    """The tensors of a nest (tuples, named tuples, lists and dicts of tensors), as a list."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, (tuple, list)):
        return [leaf for part in state for leaf in tree_leaves(part)]
    if isinstance(state, dict):
        return [leaf for part in state.values() for leaf in tree_leaves(part)]
    return [state]


def tree_map(function: Callable[..., Any], *states: Any) -> Any:
    """A function of tensors, applied to every tensor of a nest, or of several alike.

    >>> tree_map(torch.add, {"a": (torch.ones(1),)}, {"a": (torch.ones(1),)})
    {'a': (tensor([2.]),)}
    """
    first = states[0]
    if isinstance(first, Tensor):  # most often, so it is asked first
        return function(*states)
    if isinstance(first, dict):
        return type(first)((key, tree_map(function, *[s[key] for s in states])) for key in first)
    if isinstance(first, (tuple, list)):
        parts = [tree_map(function, *parts) for parts in zip(*states, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return function(*states)


class Shard:
    """The pairs of this rank, and the losses of all.

    Every rank draws the noise of the whole population from the same generator, runs its own share
    of the pairs, and gives away nothing but its losses. So all ranks know the same gradient, and
    it does not depend on their number.

    group: a process group; None is the default one where torch.distributed is initialised, and a
    single rank elsewhere; False is a single rank in any case.

    >>> shard = Shard(False)
    >>> shard.slice(10), shard.gather(torch.ones(1, 2, 10), 10).shape
    (slice(0, 10, None), torch.Size([1, 2, 10]))
    """

    def __init__(self, group: Any = None) -> None:
        self.group, self.rank, self.world = None, 0, 1
        here = torch.distributed.is_available() and torch.distributed.is_initialized()
        if group is not False and here:
            self.group = group
            self.rank = torch.distributed.get_rank(group)
            self.world = torch.distributed.get_world_size(group)

    def slice(self, pairs: int) -> slice:
        """Which of so many pairs are this rank's; shares differ by one at the most."""
        return slice(self.rank * pairs // self.world, (self.rank + 1) * pairs // self.world)

    def gather(self, losses: Tensor, pairs: int) -> Tensor:
        """Losses (R, 2, m) of this rank's pairs -> (R, 2, pairs) of all ranks'.

        A sum of arrays that are zero outside a rank's own share, so it is exact.
        """
        if self.world == 1:
            return losses
        whole = losses.new_zeros(*losses.shape[:-1], pairs)
        whole[..., self.slice(pairs)] = losses
        torch.distributed.all_reduce(whole, group=self.group)
        return whole

    def check_same(self, generator: torch.Generator) -> None:
        """Raise ValueError where the ranks' generators are not in the same state."""
        if self.world == 1:
            return
        state = generator.get_state().double()
        mine = torch.stack([state.sum(), (state * torch.arange(1.0, len(state) + 1)).sum()])
        mine = mine.to(generator.device)
        every = [torch.empty_like(mine) for _ in range(self.world)]
        torch.distributed.all_gather(every, mine, group=self.group)
        if any(not torch.equal(mine, other) for other in every):
            raise ValueError("generator: its state differs between ranks, wanted the same seed "
                             "on all of them")  # fmt: skip
