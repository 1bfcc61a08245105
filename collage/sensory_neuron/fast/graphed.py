"""Whole episodes of a population on a GPU, so many steps at a time as one CUDA graph.

graphed_returns    any number of steps of `play` as one
rollout_kernel     all of them at once, where Triton is
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from collage.common.checks import check_whole
from collage.common.environments import SwingUp
from collage.common.graph import Captured
from collage.common.populations import tree_leaves
from collage.sensory_neuron.core import Agent, Folded, Memory, fold
from collage.sensory_neuron.fast.inputs import QUERIES


def graphed_returns(
    weights: Tensor,  # (E, 913)
    starts: Tensor,  # (B, 5), as `SwingUp` makes them
    steps: int = 1000,
    inner: int = 25,
) -> Callable[..., Tensor]:
    """A function () -> returns (E, B) of `Agent()`s in `SwingUp`: the steps of `play`, captured.

    A graph holds `inner` steps, which run without a word from the CPU; episodes that have ended stay
    in the batch and earn nothing. On a CPU the same steps run one by one. The function takes other
    weights and starts of the same shapes, for which it needs no other graph.

    Raises ValueError for weights of another shape, and steps that are no multiple of `inner`.

    >>> graphed_returns(torch.zeros(2, 913), torch.zeros(1, 5), steps=10, inner=5)()
    tensor([[10.],
            [10.]])
    """
    if check_whole("steps", steps) % check_whole("inner", inner):
        raise ValueError(f"steps: got {steps}, wanted a multiple of the {inner} of a graph")
    agent, env = Agent(), SwingUp(longest=steps)
    agent.fold(weights)  # of another shape they are refused here

    def some(state: Tensor, total: Tensor, going: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        (E, B), recalled = going.shape, Memory(*parts[:3])
        folded = Folded(parts[3], parts[4], parts[5:])
        for _ in range(inner):
            readings = env.observe(state).view(E, B, -1).mT.contiguous()
            action, _, recalled = agent.act(readings, recalled, folded)
            out = env.step(state, action.mT.flatten(0, 1))
            total = total + out.reward.view(E, B) * going
            state, going = out.state, going & ~(out.terminated | out.truncated).view(E, B)
        return state, total, going, *recalled

    advance = Captured(some)

    @torch.no_grad()
    def run(weights: Tensor = weights, starts: Tensor = starts) -> Tensor:
        E, B = len(weights), len(starts)
        folded = tree_leaves(fold(agent.tensors(weights), QUERIES.like(weights)))
        going = starts.new_ones(E, B, dtype=torch.bool)
        now = (starts.repeat(E, 1), starts.new_zeros(E, B), going, *agent.begin(B, 5, weights))
        for _ in range(steps // inner):
            now = advance(*now, *folded)
        return now[1].clone()

    return run


@functools.cache
def rollout_kernel() -> Callable[..., tuple[Tensor, Tensor]] | None:
    """`kernel.kernel_returns`, imported on the first call; None without Triton: the graph does the same."""
    try:
        from collage.sensory_neuron.fast.kernel import kernel_returns
    except ImportError:
        return None
    return kernel_returns
