"""Whole episodes of many agents at once, and what may be done to their sensors.

Plain      ordinary networks, which expect their sensors in order
Sensors    sensors that are shuffled, copied or joined by noise
play       episodes of a population, the same starts for every agent
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from collage import runtime
from collage.common.checks import check_finite, check_single, check_whole
from collage.common.environments import MountainCar, SwingUp
from collage.common.networks import forward, mlp
from collage.sensory_neuron.core import Agent


class Plain:
    """Ordinary ReLU networks that expect their sensors in order: what a shuffle breaks.

    sizes: widths from readings to actions, which pass through tanh; E networks. `fit` clones an expert.

    >>> Plain([5, 8, 1], members=2).act(torch.zeros(5, 3), None)[0].shape
    torch.Size([2, 1, 3])
    """

    def __init__(self, sizes: Sequence[int], members: int = 1, seed: int = 0) -> None:
        self.members = check_whole("members", members)
        self.params = mlp(sizes, self.members, runtime.generator(seed))

    def begin(self, episodes: int, sensors: int, weights: Tensor | None = None) -> None:
        if sensors != (inputs := self.params[0].shape[1]):
            wanted = f"{inputs}: an ordinary network has as many inputs as it was made with"
            raise ValueError(f"sensors: got {sensors}, wanted {wanted}")

    def fold(self, weights: Tensor | None = None) -> None:
        if weights is not None:
            raise ValueError("weights: got some, wanted None: an ordinary network brings its own")

    def act(self, readings: Tensor, memory: None, folded: None = None) -> tuple[Tensor, None, None]:
        """As `Agent.act`; there is no code, and no memory."""
        out = forward(self.params, readings.mT.contiguous())
        return out.tanh().mT, None, None

    def fit(
        self,
        readings: Tensor,  # (n, N)
        actions: Tensor,  # (n, A): an expert's
        steps: int,
        generator: Generator,
        *,
        batch: int = 512,
        lr: float = 3e-3,
    ) -> Tensor:
        """Least squares by Adam, its rate falling to zero like a cosine; the last losses (E,).

        Raises ValueError for other shapes, and for numbers that are not finite, also on the way; the
        weights are then those before the call.
        """
        steps, batch = check_whole("steps", steps), check_whole("batch", batch)
        n, inputs, outputs = len(readings), self.params[0].shape[1], self.params[-1].shape[2]
        for name, t, width in (("readings", readings, inputs), ("actions", actions, outputs)):
            if t.shape != (n, width) or not n:
                raise ValueError(f"{name}: got {tuple(t.shape)}, wanted ({n}, {width})")
            check_finite(name, t)
        size = (self.members, batch)
        params = [p.clone().requires_grad_() for p in self.params]
        adam = torch.optim.Adam(params, lr, fused=True)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for _ in range(steps):
            rows = torch.randint(n, size, generator=generator, device=generator.device)
            wrong = forward(params, readings[rows]).tanh() - actions[rows]
            losses = wrong.square().mean((1, 2))
            adam.zero_grad()
            losses.sum().backward()
            adam.step()
            rates.step()
        check_finite("weights: after the last step", [p.detach() for p in params])
        for old, new in zip(self.params, params, strict=True):
            old.copy_(new.detach())
        return losses.detach()


class Sensors:
    """What is done to the readings (N, B) of B episodes before an agent sees them.

    copies: each sensor so many times. noise: so many further sensors that read N(0, spread^2), new at
    each step. shuffle: None, "episode" for an order drawn once for each episode, or a whole number of
    steps: they begin in order, and after so many a new one is drawn, again and again. An agent is told
    none of this, and its memory stays where it was when the sensors change places.

    Raises ValueError for numbers that are not whole. Source: arXiv 2109.02869, sections 4.1 and 4.2.

    >>> two = Sensors(shuffle="episode", noise=1)
    >>> g = torch.Generator().manual_seed(0)
    >>> two.begin(4, 3, g), two(torch.ones(4, 3), 0).shape
    (5, torch.Size([5, 3]))
    """

    spread = 0.1

    def __init__(self, shuffle: str | int | None = None, noise: int = 0, copies: int = 1) -> None:
        steps = isinstance(shuffle, int) and not isinstance(shuffle, bool) and shuffle > 0
        if shuffle not in (None, "episode") and not steps:
            wanted = "None, 'episode' or a number of steps"
            raise ValueError(f"shuffle: got {shuffle!r}, wanted {wanted}")
        self.shuffle = shuffle
        self.noise, self.copies = check_whole("noise", noise, 0), check_whole("copies", copies)

    def begin(self, sensors: int, episodes: int, generator: Generator) -> int:
        """Draw what holds for these episodes; returns how many sensors an agent has then."""
        self.generator = generator
        N = sensors * self.copies + self.noise
        order = torch.arange(N, device=generator.device)[:, None].expand(N, episodes)
        self.order = shuffled(order, generator) if self.shuffle == "episode" else order
        return N

    def keep(self, which: Tensor) -> None:
        """Go on with some of the episodes."""
        self.order = self.order[:, which]

    def __call__(self, readings: Tensor, step: int) -> Tensor:
        """Readings (..., N, B) as they arrive at the agent, (..., N', B)."""
        x, g = readings, self.generator
        if self.copies > 1:
            x = torch.cat([x] * self.copies, -2)
        if self.noise:
            draw = torch.randn(self.noise, x.shape[-1], generator=g, device=g.device, dtype=x.dtype)
            x = torch.cat([x, (self.spread * draw).expand(*x.shape[:-2], -1, -1)], -2)
        if isinstance(self.shuffle, int) and step and step % self.shuffle == 0:
            self.order = shuffled(self.order, g)
        if self.shuffle:
            x = x.gather(-2, self.order.expand(*x.shape[:-2], -1, -1))
        return x


def shuffled(order: Tensor, generator: Generator) -> Tensor:
    """Each column (N,) of an order (N, B) in a new one."""
    draw = torch.rand(order.shape, generator=generator, device=generator.device)
    return order.gather(0, draw.argsort(0))


class Played(NamedTuple):
    """What `play` saw: returns and lengths; with trace, also what happened on the way."""

    returns: Tensor  # (E, B)
    lengths: Tensor  # (E, B)
    states: Tensor | None = None  # (T + 1, E, B, S)
    readings: Tensor | None = None  # (T, E, N, B)
    actions: Tensor | None = None  # (T, E, A, B)
    codes: Tensor | None = None  # (T, E, M, B)


Policy = Agent | Plain  # or whatever has their `members`, `fold`, `begin` and `act`
World = SwingUp | MountainCar  # or whatever has their `reset`, `observe` and `step`


@torch.no_grad()
def play(
    policy: Policy,
    env: World,
    starts: Tensor,  # (B, S)
    *,
    weights: Tensor | None = None,  # (E, P)
    sensors: Sensors | None = None,
    generator: Generator | None = None,
    steps: int | None = None,
    trace: bool = False,
    noise: float = 0.0,
) -> Played:
    """Episodes from the states `starts`, the same for all E agents of a population, at once.

    weights: others than the policy's own. sensors: what is done to them, drawn from `generator`.
    steps: at most so many. noise: standard deviation of what is added to actions on the way to the
    environment, the agent remembering what it meant to do. Episodes that have ended for every agent
    are taken out of the batch, unless their `trace` is wanted; there they stand still.

    Raises ValueError for starts that are not finite or not (B, S), and where a draw has no generator.

    >>> from collage.common.environments import SwingUp
    >>> play(Plain([5, 8, 1]), SwingUp(), torch.zeros(2, 5), steps=10).lengths
    tensor([[10, 10]])
    """
    check_play(env, starts, sensors, generator, noise)
    steps = check_whole("steps", getattr(env, "longest", 0) if steps is None else steps)
    folded: Any = policy.fold(weights)
    E, B = policy.members if weights is None else len(weights), len(starts)
    N = env.observe(starts[:1]).shape[1]
    if sensors is not None and generator is not None:
        N = sensors.begin(N, B, generator)
    memory: Any = policy.begin(B, N, weights)  # an ordinary network has none
    state = starts.repeat(E, 1, 1)  # (E, B, S)
    returns = starts.new_zeros(E, B)
    lengths = torch.zeros(E, B, dtype=torch.long, device=starts.device)
    # Of the episodes that are left, and where they stand among all:
    total, length, where = returns.clone(), lengths.clone(), torch.arange(B, device=starts.device)
    going, seen = torch.ones_like(total, dtype=torch.bool), []
    for t in range(steps):
        readings = env.observe(state.flatten(0, 1)).view(E, len(where), -1).mT.contiguous()
        readings = sensors(readings, t) if sensors else readings
        action, code, memory = policy.act(readings, memory, folded)
        if trace:
            seen.append((state, readings, action, code))
        push = action.mT.flatten(0, 1)
        if noise:
            push = push + noise * torch.randn(push.shape, generator=generator, device=push.device)
        out = env.step(state.flatten(0, 1), push)
        new = out.state.view(state.shape)
        state = torch.where(going[..., None], new, state) if trace else new
        total += torch.where(going, out.reward.view(total.shape), 0)
        length += going
        going &= ~(out.terminated | out.truncated).view(going.shape)
        if not trace and t % 25 < 24:
            continue  # to ask costs a wait on a GPU
        left = going.any(0)
        if not bool(left.any()):
            break
        if not trace and bool((~left).sum() > 0.02 * len(left)):
            returns[:, where], lengths[:, where] = total, length
            keep = left.nonzero()[:, 0]
            state, total, length, going = (part[:, keep] for part in (state, total, length, going))
            where, memory = where[keep], None if memory is None else memory.keep(keep)
            if sensors:
                sensors.keep(keep)
    returns[:, where], lengths[:, where] = total, length
    if not trace:
        return Played(returns, lengths)
    states, *parts = zip(*seen, strict=True)
    stacks = (torch.stack(part) if part[0] is not None else None for part in parts)
    return Played(returns, lengths, torch.stack([*states, state]), *stacks)


def check_play(
    env: World, starts: Tensor, sensors: Sensors | None, generator: Generator | None, noise: float
) -> None:
    """Raise ValueError for starts that are no states, and for draws without a generator."""
    shape = env.reset(1, Generator(starts.device)).shape[1:]
    if starts.shape[1:] != shape or not len(starts) or not bool(starts.isfinite().all()):
        raise ValueError(f"starts: got {tuple(starts.shape)}, wanted finite states (B, {shape[0]})")
    if noise:
        check_single("noise", noise)
    place = generator.device.type if isinstance(generator, Generator) else None
    if (noise or sensors is not None) and place != starts.device.type:
        wanted = f"one on {starts.device} for the sensors and the noise"
        raise ValueError(f"generator: got {generator}, wanted {wanted}")
