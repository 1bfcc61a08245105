"""What the compiled rollouts of the swing-up take, on a CPU and on a GPU.

tabled    weights as one table, and starts; checked
rules     the numbers of `SwingUp`
"""

import math

import numpy as np
import torch
from torch import Tensor

from collage.common.checks import check_whole
from collage.common.environments import SwingUp
from collage.common.placed import Placed
from collage.sensory_neuron.core import Agent, fold, positions

QUERIES = Placed(positions(16, 8))  # those of `Agent()`


def tabled(weights: Tensor, starts: Tensor, steps: int) -> tuple[Tensor, Tensor, int]:
    """A table (E, 497) of folded weights, starts (B, 4), both float32, and the number of steps.

    A row: 4 gates of 8 units, which hear the last action, 1, the reading and 8 units; 16 queries of 8
    units; the head's 16 weights and its bias.

    Raises ValueError for other weights, starts or steps than `fused_returns` takes.

    >>> tabled(torch.zeros(3, 913), torch.zeros(2, 5), 10)[0].shape
    torch.Size([3, 497])
    """
    agent, steps = Agent(), check_whole("steps", steps)
    if steps >= 2**31:
        raise ValueError(f"steps: got {steps}, wanted less than 2^31")
    if starts.dim() != 2 or starts.shape[1] not in (4, 5) or not len(starts):
        raise ValueError(f"starts: got {tuple(starts.shape)}, wanted (B, 4)")
    size = agent.weights.shape[1]
    if weights.dim() != 2 or weights.shape[1] != size or not len(weights):
        raise ValueError(f"weights: got {tuple(weights.shape)}, wanted (E, {size})")
    if weights.device != starts.device:
        raise ValueError(f"starts: got them on {starts.device}, wanted {weights.device} as weights")
    weights, begin = weights.detach().float(), starts.float()
    on_track = begin.isfinite().all() & (begin[:, 0].abs() <= SwingUp.track).all()
    if not bool(on_track & (begin[:, 4:] == 0).all() & weights.isfinite().all()):
        raise ValueError("weights, starts: got NaN, inf, or a start off the track or later than 0")
    folded = fold(agent.tensors(weights), QUERIES.like(weights))
    hidden, reading, others = folded.gates.split([8, 1, 2], 2)
    gates = torch.cat([others, reading, hidden], 2)
    table = torch.cat([t.flatten(1) for t in (gates, folded.queries, *folded.head)], 1)
    return table, begin[:, :4].contiguous(), steps


def rules(env: type[SwingUp] = SwingUp) -> tuple[np.float32, ...]:
    """Half the track, the reward's wave, the force, the time step; friction and what the motion needs.

    >>> [round(float(number), 3) for number in rules()[:4]]
    [2.4, 0.654, 10.0, 0.01]
    """
    M, m, g, l = env.cart + env.pole, env.pole, env.gravity, env.length
    steering = (env.track, math.pi / (2 * env.track), env.force, env.dt)
    motion = (env.friction, m * l, l, 4 * M, 3 * m, 3 * m * g, 6 * M * g)
    return tuple(np.float32(number) for number in (*steering, *motion))
