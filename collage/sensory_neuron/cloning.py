"""What a teacher does that is not permutation invariant, learned by agents that are.

clone           DAgger: the student acts, the teacher says what it would have done
watch           a round of such lessons
error           how far a student is from them
actions_along   what an agent does all along recorded episodes, all steps at once
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from collage.common.checks import check_whole
from collage.common.train import train
from collage.sensory_neuron.core import Agent
from collage.sensory_neuron.episodes import Policy, World, play

NOISE, CLIP = 0.2, 0.5  # of actions, standard deviation; of gradients, the largest norm


class Lesson(NamedTuple):
    """Whole episodes: what is read, what was done before, and what a teacher would do."""

    readings: Tensor  # (B, E, T, N)
    before: Tensor  # (B, E, T, A): the last actions, zero at first
    labels: Tensor  # (B, E, T, A): the teacher's actions
    counts: Tensor  # (B, E, T, 1): 1 for a step of the episode, 0 after its end


def clone(
    agent: Agent,
    teacher: Policy,
    env: World,
    starts: Callable[[int, Generator], Tensor],
    generator: Generator,
    *,
    rounds: int = 5,
    updates: int = 60,
    episodes: int = 100,
    length: int = 200,
    batch: int = 48,
    lr: float = 0.015,
    progress: bool = False,
) -> Tensor:
    """Teach every member of an `Agent` what a teacher does that is not permutation invariant.

    DAgger: in the first round the teacher acts, later the student, and the teacher says at each step
    what it would have done. All of it is kept, and after each round whole episodes are learned by
    least squares, all their steps in parallel. starts(n, generator) -> states (n, S) to begin from.
    length: steps of an episode that are seen. Actions get noise (sd 0.2) on their way to the
    environment. Adam, its rate falling to zero like a cosine, gradients clipped to the norm 0.5. Sensors
    come in their usual order: a permutation-invariant student has nothing to learn from others.

    Returns the losses (rounds * updates, E). Raises ValueError for counts that are not whole, and for
    losses that are not finite; the weights are then those before the call. Source:
    Ross, Gordon & Bagnell 2011 (arXiv 1011.0686); arXiv 2109.02869, section 4.2.

    >>> from collage.common.environments import SwingUp
    >>> from collage.sensory_neuron.episodes import Plain
    >>> env, g = SwingUp(), torch.Generator().manual_seed(0)
    >>> clone(Agent(), Plain([5, 8, 1]), env, env.reset, g, rounds=2, updates=3, length=9).shape
    torch.Size([6, 1])
    """
    rounds, updates = check_whole("rounds", rounds), check_whole("updates", updates)
    episodes, length = check_whole("episodes", episodes), check_whole("length", length)
    batch, steps = check_whole("batch", batch), rounds * updates
    lessons: Lesson | None = None

    def draw(step: int) -> Lesson:
        """Some of the lessons, to which a round of new ones is added when its time has come."""
        nonlocal lessons
        if step % updates == 0:
            actor = agent if step else teacher
            begin = starts(episodes, generator)
            new = watch(actor, teacher, env, begin, length, NOISE, generator)
            new = Lesson(*(part.expand(-1, agent.members, -1, -1) for part in new))
            lessons = Lesson(*map(torch.cat, zip(lessons, new, strict=True))) if lessons else new
        assert lessons is not None
        n, device = len(lessons.readings), generator.device
        rows = torch.randint(n, (batch,), generator=generator, device=device)
        return Lesson(*(part[rows] for part in lessons))

    def gradient(*lesson: Tensor) -> tuple[Tensor, Tensor]:
        members = range(agent.members)
        losses = torch.stack([error(agent, member, Lesson(*lesson)) for member in members])
        return losses.detach(), torch.autograd.grad(losses.sum(), agent.weights)[0]

    def rate(step: int) -> float:
        return lr * (1 + math.cos(math.pi * step / steps)) / 2

    # Not captured: the student's episodes end when they will.
    return train(agent.weights, draw, gradient, steps, optimizer=torch.optim.Adam, rate=rate,
                 clip=CLIP, progress=progress, capture=False)  # fmt: skip


@torch.no_grad()
def watch(
    actor: Policy,
    teacher: Policy,
    env: World,
    starts: Tensor,  # (B, S)
    length: int,
    noise: float,
    generator: Generator,
) -> Lesson:
    """Episodes of an actor, and at each step what the teacher would have done."""
    run = play(actor, env, starts, steps=length, trace=True, noise=noise, generator=generator)
    assert run.readings is not None and run.actions is not None
    T, E, N, B = run.readings.shape
    flat = run.readings.permute(2, 0, 1, 3).reshape(N, -1)
    nothing: Any = None  # a teacher sees its sensors in order, and needs no memory
    labels = teacher.act(flat, nothing, nothing)[0][0].view(-1, T, E, B).permute(1, 2, 0, 3)
    before = torch.cat([torch.zeros_like(run.actions[:1]), run.actions[:-1]])
    counts = (torch.arange(T, device=starts.device)[:, None, None] < run.lengths)[:, :, None]
    parts = (run.readings, before, labels, counts.to(run.readings))
    # Where all have ended early, the rest is padding that does not count.
    return Lesson(*(F.pad(t.permute(3, 1, 0, 2), (0, 0, 0, length - T)) for t in parts))


def error(agent: Agent, member: int, lesson: Lesson) -> Tensor:
    """The mean squared error of one member, over the steps that count."""
    readings, before, labels, counts = (part[:, member] for part in lesson)
    wrong = actions_along(agent, readings, before, member) - labels
    return (wrong.square() * counts).sum() / (counts.sum() * labels.shape[-1])


def actions_along(
    agent: Agent,
    readings: Tensor,  # (B, T, N)
    before: Tensor,  # (B, T, A): the actions before each step, zero at first
    member: int = 0,
) -> Tensor:  # (B, T, A)
    """Actions of one member all along recorded episodes: `Agent.act` for all steps at once.

    The LSTM is torch's own, run over the whole length with the sensors in the batch; attention
    follows for all steps together. Gradients reach the weights.

    Raises ValueError for actions of another shape.

    >>> actions_along(Agent(), torch.ones(2, 9, 5), torch.zeros(2, 9, 1)).shape
    torch.Size([2, 9, 1])
    """
    B, T, N = readings.shape
    if before.shape != (B, T, agent.actions):
        raise ValueError(f"before: got {tuple(before.shape)}, wanted {(B, T, agent.actions)}")
    weights = {name: w[member] for name, w in agent.tensors().items()}
    matrices = [weights["lstm.weight_ih"], weights["lstm.weight_hh"]]
    biases = [weights["lstm.bias_ih"][:, 0], weights["lstm.bias_hh"][:, 0]]
    x = readings.permute(1, 0, 2)[..., None]  # (T, B, N, 1)
    heard = torch.cat([x, before.transpose(0, 1)[:, :, None].expand(-1, -1, N, -1)], 3)
    zero = readings.new_zeros(1, B * N, agent.hidden)
    keys = torch.lstm(heard.reshape(T, B * N, -1), (zero, zero), [*matrices, *biases],
                      True, 1, 0.0, True, False, False)[0].view(T, B, N, agent.hidden)  # fmt: skip
    queries = agent.fold(agent.weights[member : member + 1]).queries[0]
    scores = (keys @ queries.mT).tanh()
    code = (scores * x).sum(2).tanh().transpose(0, 1)
    return (code @ weights["head.weight"].mT + weights["head.bias"][:, 0]).tanh()
