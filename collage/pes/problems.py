"""Inner problems to unroll (see `core.Problem`): what is random in one is drawn by its reset.

Toy                  gradient descent on a wiggly function, its schedule tuned
Influence            a linear recurrence in which short horizons point the wrong way
Classifier           what the next one trains
Schedule             the learning-rate schedule of a small classifier
Control              a linear policy in a batched environment
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from collage.common.placed import Placed
from collage.pes.core import Nest

State = tuple[Tensor, ...]  # of n particles each


def check_width(theta: Tensor, size: int) -> None:
    if theta.dim() != 2 or theta.shape[1] != size:
        raise ValueError(f"theta: got {tuple(theta.shape)}, wanted (n, {size})")


class Toy:
    """Gradient descent on a function of two variables, under a learning rate that theta schedules.

    f(x) = sqrt(x_0^2 + 5) - sqrt 5 + sin^2(x_1) exp(-5 x_0^2) + |x_1 - 100| / 4
    x <- x - a_t grad f(x),  a_t = (1 - t/T) e^theta_0 + (t/T) e^theta_1,  x_0 = (1, 1)

    theta (n, 2); the loss is the sum of f after each of the steps. State: (x_0, x_1, t), each (n,).

    Source: arXiv 2112.13835; the function is that of Metz et al. 2019 (arXiv 1810.10180).

    >>> print(f"{Toy().loss(torch.zeros(1, 2).double()).item():.6f}")
    2423.468299
    """

    def __init__(self, horizon: int = 100, dtype: torch.dtype = torch.float64) -> None:
        self.horizon, self.dtype = horizon, dtype

    def reset(self, n: int, generator: Generator | None = None) -> State:
        device = "cpu" if generator is None else generator.device
        one = torch.ones(n, dtype=self.dtype, device=device)
        return one, one, torch.zeros_like(one)

    def unroll(self, theta: Tensor, state: State, steps: int) -> tuple[State, Tensor]:
        check_width(theta, 2)
        x, y, t = state
        first, last = theta.exp().unbind(1)
        clock = torch.arange(steps, dtype=t.dtype, device=t.device)[:, None] + t
        rates = torch.addcmul(first, (last - first) / self.horizon, clock)
        # Full tensors in place of numbers: on small tensors that halves the time of an operation.
        constants = [torch.full_like(t, c) for c in (5.0, -5.0, 100.0)]
        lifted, root, wave, dent, away, side = self._parts(x, y, *constants)
        near, far = torch.full_like(t, -math.sqrt(5) * steps), torch.zeros_like(t)
        for rate, quarter in zip(rates.unbind(0), (rates / 4).unbind(0)):
            x = torch.addcmul(x, rate, x * torch.addcmul(root, dent, wave, value=-10), value=-1)
            y = torch.addcmul(y, quarter, torch.addcmul(side, dent, y.cos(), value=8), value=-1)
            lifted, root, wave, dent, away, side = self._parts(x, y, *constants)
            near = torch.addcmul(torch.addcmul(near, lifted, root), dent, wave)
            far = torch.addcmul(far, away, side)
        return (x, y, t + steps), near + far / 4

    @staticmethod
    def _parts(x: Tensor, y: Tensor, five: Tensor, minus_five: Tensor, hundred: Tensor) -> State:
        """What height and slope at a point have in common (torch's sqrt is slow on CPUs)."""
        square, wave, away = x * x, y.sin(), y - hundred
        lifted, dent = square + five, torch.exp(square * minus_five) * wave
        return lifted, lifted.rsqrt(), wave, dent, away, away.sign()

    @staticmethod
    def f(x: Tensor, y: Tensor) -> Tensor:
        """The function that is descended."""
        dent = y.sin().square() * torch.exp(-5 * x * x)
        return (x * x + 5).sqrt() - math.sqrt(5) + dent + (y - 100).abs() / 4

    def loss(self, theta: Tensor) -> Tensor:
        """The whole loss (n,) of theta (n, 2)."""
        state = tuple(t.to(theta) for t in self.reset(len(theta)))
        return self.unroll(theta, state, self.horizon)[1]


class Influence:
    """Influence balancing: a long-term effect of theta that outweighs an opposite short-term one.

    s <- A s + theta v,  A = (I + shift) / 2,  v = (1, ..., 1, -1, ..., -1),  loss (s_0 - 1)^2 / 2

    theta (n, 1); state (n, 23), at first all ones. The influence of the ones reaches s_0 first, that
    of the more numerous minus ones last. The loss is that of the last step of an unroll.

    Source: arXiv 2112.13835 and its released code (in the text the loss is summed over the steps); the
    task is that of Tallec & Ollivier (arXiv 1702.05043).

    >>> problem = Influence()
    >>> state, loss = problem.unroll(torch.tensor([[0.5]]), problem.reset(1), 500)
    >>> state[0, 0], loss  # s_0 = -6 theta in the long run
    (tensor(-3.), tensor([8.]))
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.matrix = (torch.eye(23, dtype=dtype) + torch.ones(22, dtype=dtype).diag(1)) / 2
        self.drive = torch.where(torch.arange(23) < 10, 1.0, -1.0).to(dtype)
        self._turned, self._drive = Placed(self.matrix.T), Placed(self.drive)

    def reset(self, n: int, generator: Generator | None = None) -> Tensor:
        device = "cpu" if generator is None else generator.device
        return torch.ones(n, len(self.drive), dtype=self.dtype, device=device)

    def unroll(self, theta: Tensor, state: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        check_width(theta, 1)
        matrix, push = self._turned.like(state), theta * self._drive.like(state)
        for _ in range(steps):
            state = torch.addmm(push, state, matrix)
        return state, (state[:, 0] - 1).square() / 2


class Classifier:
    """A small ReLU network for each particle, all in one flat tensor, with gradients by hand.

    x (S, D), y (S,): training samples; each problem walks through them in batches from an offset
    of its own, so that its data follow from its state. State: (w (n, W), offset (n,), t (n,), v), with
    v the momenta of the rule that trains it.
    """

    def __init__(
        self, x: Tensor, y: Tensor, *, horizon: int = 200, hidden: int = 16, batch: int = 32
    ) -> None:
        if x.dim() != 2 or y.shape != x.shape[:1]:
            shapes = f"{tuple(y.shape)} for x {tuple(x.shape)}"
            raise ValueError(f"y: got {shapes}, wanted (S,) for (S, D)")
        self.x, self.y, self.horizon, self.batch = x, y, horizon, batch
        self.sizes = (x.shape[1], hidden, int(y.max()) + 1)
        self.spread = math.sqrt(2 / self.sizes[0]), math.sqrt(2 / hidden)

    def initial(self, n: int, generator: Generator) -> State:
        """He-normal weights (n, W), zero biases, offsets and clocks."""
        d, h, c = self.sizes
        like: dict[str, Any] = {"device": generator.device, "dtype": self.x.dtype}
        first = torch.randn(n, d * h, generator=generator, **like) * self.spread[0]
        second = torch.randn(n, h * c, generator=generator, **like) * self.spread[1]
        offset = torch.randint(len(self.x), (n,), generator=generator, device=generator.device)
        w = torch.cat([first, first.new_zeros(n, h), second, first.new_zeros(n, c)], 1)
        return w, offset, torch.zeros_like(offset)

    def layers(self, w: Tensor) -> State:
        """Weights and biases: (n, D, H), (n, 1, H), (n, H, C), (n, 1, C)."""
        d, h, c = self.sizes
        first, bias, second, shift = w.split([d * h, h, h * c, c], 1)
        return first.view(-1, d, h), bias.unsqueeze(1), second.view(-1, h, c), shift.unsqueeze(1)

    def data(self, offset: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The batches (n, B, D) and (n, B) of step t."""
        rows = torch.arange(self.batch, device=offset.device) + (offset + t * self.batch)[:, None]
        rows = rows % len(self.x)
        return self.x[rows], self.y[rows]

    def gradient(self, w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (n,) and gradients (n, W) of the mean cross-entropy on x (n, B, D), y (n, B)."""
        first, bias, second, shift = self.layers(w)
        inner = torch.baddbmm(bias, x, first)
        h = inner.relu()
        log = torch.baddbmm(shift, h, second).log_softmax(-1)
        hot = F.one_hot(y, self.sizes[-1]).to(log)
        losses = -(log * hot).sum((1, 2)) / y.shape[1]
        dz = (log.exp() - hot) / y.shape[1]
        dh = (dz @ second.mT) * (inner > 0)
        parts = [x.mT @ dh, dh.sum(1), h.mT @ dz, dz.sum(1)]
        return losses, torch.cat([p.flatten(1) for p in parts], 1)

    def train(self, rule: Callable, state: State, steps: int) -> tuple[State, Tensor]:
        """So many steps of a rule (w, v, t, g) -> (w, v); the losses summed, each clamped at 10."""
        w, offset, t, v = state
        total = w.new_zeros(len(w))
        for _ in range(steps):
            losses, g = self.gradient(w, *self.data(offset, t))
            w, v = rule(w, v, t, g)
            t = t + 1
            total = total + losses.nan_to_num(10, 10).clamp(max=10)
        return (w, offset, t, v), total


class Schedule(Classifier):
    """The learning-rate schedule of a classifier trained by SGD with momentum 0.9.

    lr_t = e^theta_0 / (1 + t / T)^(e^theta_1),    v <- 0.9 v + g,    w <- w - lr_t v

    theta (n, 2). The loss is the sum over steps of the training loss, each on a fresh batch before it
    is used, clamped at 10. settings: as in `Classifier`.

    Source: arXiv 2112.13835 (with larger networks on MNIST).
    """

    def reset(self, n: int, generator: Generator) -> State:
        w, offset, t = self.initial(n, generator)
        return w, offset, t, torch.zeros_like(w)

    def rates(self, theta: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        """First rate, power of the decay and momentum, for each weight or for all."""
        check_width(theta, 2)
        rate, power = theta.exp().split(1, 1)
        return rate, power, 0.9

    def unroll(self, theta: Tensor, state: State, steps: int) -> tuple[State, Tensor]:
        rate, power, momentum = self.rates(theta)

        def rule(w: Tensor, v: Tensor, t: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
            v = g + momentum * v
            decay = (1 + t.unsqueeze(1) / self.horizon) ** -power
            return torch.addcmul(w, rate * decay, v, value=-1), v

        return self.train(rule, state, steps)


class Control:
    """A linear policy in a batched environment; the loss is minus the sum of rewards.

    action = tanh(W o + b),  theta = (W, b) flattened

    env: `reset(n, generator)`, `observe(state)`, `step(state, action)` -> `Step`, `observations`,
    `actions`; one that does not end.
    """

    def __init__(self, env: Any) -> None:
        self.env, self.reset = env, env.reset
        self.size = env.actions * (env.observations + 1)

    def unroll(self, theta: Tensor, state: Nest, steps: int) -> tuple[Nest, Tensor]:
        check_width(theta, self.size)
        weights = theta.reshape(-1, self.env.actions, self.env.observations + 1)
        w, b = weights[..., :-1], weights[..., -1:]
        total = theta.new_zeros(len(theta))
        for _ in range(steps):
            observation = self.env.observe(state).unsqueeze(2)
            action = torch.baddbmm(b, w, observation).squeeze(2).tanh()
            step = self.env.step(state, action)
            state, total = step.state, total - step.reward
        return state, total
