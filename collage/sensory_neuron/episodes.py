"""Whole episodes of many agents at once, and what may be done to their sensors.

Plain      ordinary networks, which expect their sensors in order
Sensors    sensors that are shuffled, copied, joined by noise, or taken away
play       episodes of a population, the same starts for every agent
"""

from typing import NamedTuple

import torch

from collage import runtime
from collage.common.checks import check_finite, check_single, check_whole
from collage.common.environments import Step
from collage.common.networks import forward, mlp


class Plain:
    """Ordinary ReLU networks that expect their sensors in order: what a shuffle breaks.

    sizes: widths from readings to actions, which pass through tanh; E networks. `fit` clones an expert.

    >>> Plain([5, 8, 1], members=2).act(torch.zeros(5, 3), None)[0].shape
    torch.Size([2, 1, 3])
    """

    def __init__(self, sizes, members=1, seed=0, device="cpu"):
        g = runtime.generator(seed, device)
        self.params = mlp(sizes, check_whole("members", members), g)
        self.members = members

    def begin(self, episodes, sensors, weights=None):
        if sensors != self.params[0].shape[1]:
            raise ValueError(f"sensors: got {sensors}, wanted {self.params[0].shape[1]}: an ordinary "
                             "network has as many inputs as it was made with")  # fmt: skip
        return None

    def fold(self, weights=None):
        if weights is not None:
            raise ValueError("weights: got some, wanted None: an ordinary network brings its own")
        return None

    def act(self, readings, memory, folded=None):
        """As `Agent.act`; there is no code."""
        out = forward(self.params, readings.mT.contiguous())
        return out.tanh().mT, None, None

    def fit(self, readings, actions, steps, generator, *, batch=512, lr=3e-3):
        """Least squares by Adam on readings (n, N) and an expert's actions (n, A); the last losses (E,).

        Raises ValueError for other shapes, and for numbers that are not finite, also on the way; the
        weights are then those before the call.
        """
        steps, batch = check_whole("steps", steps), check_whole("batch", batch)
        n, inputs, outputs = len(readings), self.params[0].shape[1], self.params[-1].shape[2]
        for name, t, wanted in (("readings", readings, inputs), ("actions", actions, outputs)):
            if t.shape != (n, wanted) or not n:
                raise ValueError(f"{name}: got {tuple(t.shape)}, wanted ({n}, {wanted})")
            check_finite(name, t)
        before = [p.detach().clone() for p in self.params]
        try:
            for p in self.params:
                p.requires_grad_()
            adam = torch.optim.Adam(self.params, lr, fused=True)
            rates = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
            for _ in range(steps):
                rows = torch.randint(n, (self.members, batch), generator=generator,
                                     device=generator.device)  # fmt: skip
                wrong = forward(self.params, readings[rows]).tanh() - actions[rows]
                losses = wrong.square().mean((1, 2))
                adam.zero_grad()
                losses.sum().backward()
                adam.step(), rates.step()
            check_finite("weights: after the last step", [p.detach() for p in self.params])
        except BaseException:
            with torch.no_grad():
                torch._foreach_copy_(self.params, before)
            raise
        finally:
            for p in self.params:
                p.grad = None
                p.requires_grad_(False)
        return losses.detach()


class Sensors:
    """What is done to the readings (N, B) of B episodes before an agent sees them.

    copies: each sensor so many times. noise: so many further sensors that read N(0, spread^2), new at
    each step. shuffle: None, "episode" for an order drawn once for each episode, or a whole number of
    steps: they begin in order, and after so many a new one is drawn, again and again. dropped: so many
    of the sensors, drawn for each episode, are taken away. An agent is told none of this, and its
    memory stays where it was when the sensors change places.

    Raises ValueError for numbers that are not whole, or none that is left. Source: arXiv 2109.02869,
    sections 4.1 and 4.2.

    >>> two = Sensors(shuffle="episode", noise=1)
    >>> g = torch.Generator().manual_seed(0)
    >>> two.begin(4, 3, g), two(torch.ones(4, 3), 0).shape
    (5, torch.Size([5, 3]))
    """

    def __init__(self, shuffle=None, noise=0, copies=1, dropped=0, spread=0.1):
        fine = shuffle in (None, "episode") or (isinstance(shuffle, int) and shuffle > 0)
        if isinstance(shuffle, bool) or not fine:
            raise ValueError(
                f"shuffle: got {shuffle!r}, wanted None, 'episode' or a number of steps"
            )
        self.shuffle, self.spread = shuffle, check_single("spread", spread)
        self.noise, self.copies, self.dropped = (
            check_whole(n, v, least) for n, v, least in (("noise", noise, 0), ("copies", copies, 1),
                                                         ("dropped", dropped, 0)))  # fmt: skip

    def begin(self, sensors, episodes, generator):
        """Draw what holds for these episodes; returns how many sensors an agent has then."""
        self.generator = generator
        every = sensors * self.copies + self.noise
        if every <= self.dropped:
            raise ValueError(f"dropped: got {self.dropped}, wanted less than the {every} sensors")
        left = torch.arange(every, device=generator.device)[:, None].expand(every, episodes)
        if self.dropped:
            left = self._mixed(left)[self.dropped :].sort(0).values
        self.order = self._mixed(left) if self.shuffle == "episode" else left
        return every - self.dropped

    def _mixed(self, order):
        g = self.generator
        draw = torch.rand(order.shape, generator=g, device=g.device)
        return order.gather(0, draw.argsort(0))

    def keep(self, which):
        """Go on with some of the episodes."""
        self.order = self.order[:, which]

    def __call__(self, readings, step):
        """Readings (..., N, B) as they arrive at the agent, (..., N', B)."""
        x = torch.cat([readings] * self.copies, -2) if self.copies > 1 else readings
        if self.noise:
            g = self.generator
            draw = torch.randn(self.noise, x.shape[-1], generator=g, device=g.device, dtype=x.dtype)
            x = torch.cat([x, (self.spread * draw).expand(*x.shape[:-2], -1, -1)], -2)
        if self.shuffle not in (None, "episode") and step and step % self.shuffle == 0:
            self.order = self._mixed(self.order)
        if self.shuffle or self.dropped:
            x = x.gather(-2, self.order.expand(*x.shape[:-2], -1, -1))
        return x


class Played(NamedTuple):
    """What `play` saw: returns and lengths (E, B); with trace, also what happened on the way."""

    returns: torch.Tensor
    lengths: torch.Tensor
    states: torch.Tensor | None = None  # (T + 1, E, B, S)
    readings: torch.Tensor | None = None  # (T, E, N, B)
    actions: torch.Tensor | None = None  # (T, E, A, B)
    codes: torch.Tensor | None = None  # (T, E, M, B)


@torch.no_grad()
def play(policy, env, starts, *, weights=None, sensors=None, generator=None, steps=None, trace=False,
         noise=0.0):  # fmt: skip
    """Episodes from the states starts (B, S), the same for all E agents of a population, at once.

    policy: `Plain`, or anything with its `begin`, `fold` and `act`. weights (E, P) instead of an agent's own. sensors: `Sensors`, drawn
    from `generator`. steps: at most so many. noise: standard deviation of what is added to actions on
    the way to the environment, the agent remembering what it meant to do. Episodes that have ended for
    every agent are taken out of the batch, unless their `trace` is wanted; there they stand still.

    Raises ValueError for starts that are not finite or not (B, S), and where a draw has no generator.

    >>> from collage.common.environments import SwingUp
    >>> play(Plain([5, 8, 1]), SwingUp(), torch.zeros(2, 5), steps=10).lengths
    tensor([[10, 10]])
    """
    wanted = env.reset(1, torch.Generator(starts.device)).shape[1:]
    if starts.shape[1:] != wanted or not len(starts) or not bool(starts.isfinite().all()):
        raise ValueError(
            f"starts: got {tuple(starts.shape)}, wanted finite states (B, {wanted[0]})"
        )
    if noise:
        check_single("noise", noise)
    place = getattr(getattr(generator, "device", None), "type", None)
    if (noise or sensors is not None) and place != starts.device.type:
        raise ValueError(f"generator: got {generator}, wanted one on {starts.device} for the sensors "
                         "and the noise")  # fmt: skip
    folded = policy.fold(weights)
    E = policy.members if weights is None else len(weights)
    B = len(starts)
    steps = check_whole("steps", getattr(env, "longest", 0) if steps is None else steps)
    N = env.observe(starts[:1]).shape[1]
    N = sensors.begin(N, B, generator) if sensors else N
    memory = policy.begin(B, N, weights)
    state = starts.repeat(E, 1, 1)  # (E, B, S)
    returns = starts.new_zeros(E, B)
    lengths = torch.zeros(E, B, dtype=torch.long, device=starts.device)
    total, length, where = returns.clone(), lengths.clone(), torch.arange(B, device=starts.device)
    going, seen = torch.ones_like(total, dtype=torch.bool), {k: [] for k in Played._fields[2:]}
    for t in range(steps):
        readings = env.observe(state.flatten(0, 1)).view(E, state.shape[1], -1).mT.contiguous()
        readings = sensors(readings, t) if sensors else readings
        action, code, memory = policy.act(readings, memory, folded)
        if trace:
            for name, value in zip(seen, (state, readings, action, code)):
                seen[name].append(value)
        push = action.mT.flatten(0, 1)
        if noise:
            push = push + noise * torch.randn(push.shape, generator=generator, device=push.device)
        out = env.step(state.flatten(0, 1), push)
        out = out if isinstance(out, Step) else Step(*out, *2 * [torch.zeros_like(out[1]).bool()])
        new = out.state.view(state.shape)
        state = torch.where(going[..., None], new, state) if trace else new
        total += torch.where(going, out.reward.view(total.shape), 0)
        length += going
        going &= ~(out.terminated | out.truncated).view(going.shape)
        if t % 25 == 24 or t == steps - 1 or trace:
            left = going.any(0)
            if t == steps - 1 or not bool(left.any()):
                break
            if not trace and bool((~left).sum() > 0.02 * len(left)):
                returns[:, where], lengths[:, where] = total, length
                keep = left.nonzero()[:, 0]
                state, total, length = state[:, keep], total[:, keep], length[:, keep]
                going, where = going[:, keep], where[keep]
                memory = memory.keep(keep) if memory is not None else None
                if sensors:
                    sensors.keep(keep)
    returns[:, where], lengths[:, where] = total, length
    if not trace:
        return Played(returns, lengths)
    seen["states"].append(state)
    return Played(
        returns, lengths, *(torch.stack(v) if v[0] is not None else None for v in seen.values())
    )
