"""Actor-critics that live on in `gridworlds.TwoColours`, many lifetimes at once.

ColourLearner   rollouts and updates, with an entropy bonus that meta-parameters decide
Life, Batch     the state of the lifetimes, and what a rollout saw
ExactLearner    the same without chance: tables, exact policy gradients (`gridworlds.ExactColours`)
Table           the state of such lifetimes

Two roads lead to the same numbers: batched tensors, which can be differentiated and run on any device,
and one compiled loop (`actors.cpp`) for a CPU where nobody asks for a graph.
"""

import concurrent.futures
import ctypes
import functools
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch

from collage import runtime
from collage.common.checks import check_discount, check_single, check_whole
from collage.common.networks import forward, mlp


class Life(NamedTuple):
    """The state of S lifetimes with B walkers each."""

    actor: list  # stacked weights of `networks.mlp`, (S, in, out) and (S, 1, out)
    critic: list
    cells: torch.Tensor  # (S B, 4): states of the environment
    recent: torch.Tensor  # (S, 10): mean rewards of the last ten rollouts, the newest last


class Batch(NamedTuple):
    """What the walkers of a rollout of T steps saw and did."""

    seen: torch.Tensor  # (S, T B, D)
    actions: torch.Tensor  # (S, T B)
    rewards: torch.Tensor  # (S, T, B)
    last: torch.Tensor  # (S, B, D): what is seen in the end


class ColourLearner:
    """An actor-critic in `TwoColours`, S lifetimes at once, its entropy bonus eps a function of w.

    x <- x - lr grad( policy loss - eps H + critic * value loss ),   eps = top sigmoid(MLP_w(recent rewards))

    Policy loss: - mean (G - V) log pi(a|s), with n-step returns G that end in V; H is the mean entropy.
    walkers B and steps T of a rollout, widths of both networks. With context=False the MLP sees a
    constant, so that eps is one learned number; `bonus` also takes a number for each lifetime instead
    of weights, (S,), which is then eps itself. `update` and `plain` are what `bmg.meta_gradient` wants,
    `advance` is a rollout and an update in one. compiled: whether `advance` may run as one compiled loop (None: where
    there are a CPU, float32 and a C++ compiler).

    Raises ValueError for counts that are not whole. Source: arXiv 2109.04504, section 5.1, in a small
    setting of our own.

    >>> from collage.bmg import TwoColours
    >>> learner = ColourLearner(TwoColours(see="ways"), lifetimes=2, generator=torch.Generator())
    >>> life, w = learner.begin(), learner.start_meta()
    >>> learner.bonus(w, life).shape, learner.update(life, w, 0).recent.shape
    (torch.Size([2]), torch.Size([2, 10]))
    """

    def __init__(self, env, lifetimes, generator, *, walkers=8, steps=16, widths=(32, 32), lr=2.0,
                 discount=0.9, critic=0.25, top=0.5, context=True, compiled=None):  # fmt: skip
        self.env, self.generator = env, generator
        self.S, self.B, self.T = (check_whole(n, v) for n, v in (
            ("lifetimes", lifetimes), ("walkers", walkers), ("steps", steps)))  # fmt: skip
        self.widths = [check_whole("widths", v) for v in widths]
        self.lr, self.top = check_single("lr", lr), check_single("top", top)
        self.discount, self.critic, self.context = check_discount(discount), float(critic), context
        self.compiled = compiled

    def begin(self):
        """A `Life` with new weights, its actors indifferent at first."""
        D = self.env.observations
        actor = mlp([D, *self.widths, 4], self.S, self.generator)
        critic = mlp([D, *self.widths, 1], self.S, self.generator)
        actor[-2], critic[-2] = 0.01 * actor[-2], 0.01 * critic[-2]
        cells = self.env.reset(self.S * self.B, self.generator)
        return Life(actor, critic, cells, actor[0].new_zeros(self.S, 10))

    def start_meta(self, hidden=32, bias=-0.5):
        """Weights of the network that gives eps, for each lifetime."""
        return start_meta(self.S, self.generator, hidden, bias)

    def bonus(self, w, life):
        """eps (S,) for the recent rewards."""
        return w if isinstance(w, torch.Tensor) else bonus(w, life.recent, self.top, self.context)

    def chance(self, like):
        """All the chance of a rollout: Gumbel noise (T, S, B, 4), and where things appear (T, S B).

        The largest sum of logits and such noise is a sample of the policy.
        """
        noise = torch.rand(self.T, self.S, self.B, 4, generator=self.generator,
                           device=like.device, dtype=like.dtype)  # fmt: skip
        shape = (self.S * self.B, 4)
        return noise.log_().neg_().log_().neg_(), self.env.draws(
            like.new_empty(shape), self.generator, (self.T,))  # fmt: skip

    @torch.no_grad()
    def rollout(self, life):
        """T steps of all walkers: a `Batch`, and the life with its cells and rewards moved on."""
        self.check(life)
        if self.can_compile(life):
            cells, saw, actions, rewards = self._roll(life, life.actor)
            sights, shape = self.env.sights(cells.device), (self.S, self.T * self.B)
            seen = sights[saw.flatten().long()].view(self.S, -1, sights.shape[1])
            batch = Batch(seen[:, : shape[1]], actions.view(shape), rewards, seen[:, shape[1] :])
            return batch, life._replace(cells=cells, recent=remember(life.recent, rewards))
        cells, seen, actions, rewards = life.cells, [], [], []
        for noise, draw in zip(*self.chance(life.recent), strict=True):
            seen.append(self.see(cells).to(life.recent))
            actions.append((forward(life.actor, seen[-1]) + noise).argmax(-1))
            cells, reward = self.env.go(cells, actions[-1].flatten(), draw)
            rewards.append(reward.view(self.S, self.B).to(life.recent))
        rewards = torch.stack(rewards, 1)
        batch = Batch(
            torch.cat(seen, 1), torch.cat(actions, 1), rewards, self.see(cells).to(rewards)
        )
        return batch, life._replace(cells=cells, recent=remember(life.recent, rewards))

    def see(self, cells):
        return self.env.observe(cells).view(self.S, self.B, -1)

    def policy_loss(self, actor, critic, batch):
        """(S,) and the returns (S, T B); advantages are constants."""
        with torch.no_grad():
            ahead = forward(critic, batch.last)[..., 0]
            returns = []
            for t in reversed(range(self.T)):
                ahead = batch.rewards[:, t] + self.discount * ahead
                returns.append(ahead)
            returns = torch.cat(returns[::-1], 1)
            advantage = returns - forward(critic, batch.seen)[..., 0]
        chosen = (
            forward(actor, batch.seen).log_softmax(-1).gather(-1, batch.actions[..., None])[..., 0]
        )
        return -(advantage * chosen).mean(1), returns

    def entropy(self, actor, batch):
        """(S,): mean entropy of the policy where it has been."""
        log = forward(actor, batch.seen).log_softmax(-1)
        return -(log.exp() * log).sum(-1).mean(1)

    def value_loss(self, critic, batch, returns):
        return (forward(critic, batch.seen)[..., 0] - returns).square().mean(1) / 2

    def learn(self, life, batch, eps):
        """The life after one update on a batch, with the bonus eps (S,) or None."""
        self.check(life, eps)

        def loss(actor, critic):
            value, returns = self.policy_loss(actor, critic, batch)
            value = value + self.critic * self.value_loss(critic, batch, returns)
            return (value if eps is None else value - eps * self.entropy(actor, batch)).sum()

        slopes = torch.func.grad(loss, argnums=(0, 1))(life.actor, life.critic)
        actor, critic = ([p - self.lr * g for p, g in zip(part, slope, strict=True)]
                         for part, slope in zip((life.actor, life.critic), slopes, strict=True))  # fmt: skip
        return life._replace(actor=actor, critic=critic)

    def update(self, life, w, k):
        """Roll out, then learn with the learned bonus."""
        if torch.is_grad_enabled():
            batch, moved = self.rollout(life)
            return self.learn(moved, batch, self.bonus(w, life))
        return self.advance(life, self.bonus(w, life))[0]

    def plain(self, life, k):
        """Roll out, then learn for the reward alone: the last step of the target."""
        return self.advance(life, None)[0]

    @torch.no_grad()
    def advance(self, life, eps, seen=False, widen=False):
        """(life, where, widening) after a rollout and an update with the bonus eps (S,) or None.

        where (S, T B, D): what was seen on the way, if `seen`; widening: the gradient of the mean
        entropy at the actor before the update, if `widen`.

        Raises ValueError for a life of another learner, or another shape of eps.
        """
        self.check(life, eps)
        if self.can_compile(life):
            return self._advance(life, eps, seen, widen)
        batch, moved = self.rollout(life)
        widening = torch.func.grad(lambda actor: self.entropy(actor, batch).sum())(life.actor) \
            if widen else None  # fmt: skip
        return self.learn(moved, batch, eps), batch.seen if seen else None, widening

    def can_compile(self, life):
        """Whether `advance` runs as one compiled loop."""
        if self.compiled is None:
            try:
                self.compiled = bool(_library())
            except RuntimeError:
                self.compiled = False
        tensors = *life.actor, *life.critic, life.recent
        fits = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
        return self.compiled and fits

    def check(self, life, eps=None):
        """Raises ValueError where a life or a bonus is not one of this learner's."""
        for name, out in (("actor", 4), ("critic", 1)):
            wanted = [(self.S, *shape) for a, b in pairwise([self.env.observations, *self.widths, out])
                      for shape in ((a, b), (1, b))]  # fmt: skip
            got = [tuple(t.shape) for t in getattr(life, name)]
            if got != wanted:
                raise ValueError(f"life: got {name} {got}, wanted {wanted}")
        cells, shape = life.cells, (self.S * self.B, 4)
        if cells.shape != shape or cells.dtype != torch.int64:
            raise ValueError(
                f"life: got cells {tuple(cells.shape)} {cells.dtype}, wanted {shape} int64"
            )
        if cells.device.type == "cpu" and not bool(
                ((cells[:, 1:] >= 0) & (cells[:, 1:] < self.env.size**2)).all()):  # fmt: skip
            raise ValueError(f"life: got cells outside 0 ... {self.env.size**2 - 1}")
        if life.recent.shape != (self.S, 10):
            raise ValueError(f"life: got recent {tuple(life.recent.shape)}, wanted ({self.S}, 10)")
        if eps is not None and eps.shape != (self.S,):
            raise ValueError(f"eps: got {tuple(eps.shape)}, wanted ({self.S},)")

    def _roll(self, life, actor):
        """(cells, arrangements seen (S, T + 1, B), actions, rewards) of a compiled rollout."""
        S, B, T = self.S, self.B, self.T
        noise, draws = (t.contiguous() for t in self.chance(life.recent))
        actor = [p.contiguous() for p in actor]
        cells = life.cells.clone(memory_format=torch.contiguous_format)
        saw = torch.empty(S, T + 1, B, dtype=torch.int32)
        actions, rewards = torch.empty(S, T, B, dtype=torch.int64), torch.empty(S, T, B)
        self._share(lambda start, stop: _library().rollout(
            S, B, T, self.env.size, ctypes.c_int64(self.env.period), *self._look(), self._widths(4),
            _all(actor), _at(cells), _at(noise), _at(draws), _at(saw), _at(actions), _at(rewards),
            start, stop))  # fmt: skip
        return cells, saw, actions, rewards

    def _advance(self, life, eps, seen, widen):
        S, B, T = self.S, self.B, self.T
        actor, critic = ([p.clone(memory_format=torch.contiguous_format) for p in part]
                         for part in (life.actor, life.critic))  # fmt: skip
        cells, saw, actions, rewards = self._roll(life, actor)
        wide = [torch.zeros_like(p) for p in actor] if widen else None
        eps = None if eps is None else eps.detach().float().contiguous()
        settings = [ctypes.c_float(v) for v in (self.lr, self.discount, self.critic)]
        self._share(lambda start, stop: _library().learn(
            S, B, T, *self._look(), self._widths(4), self._widths(1), _all(actor), _all(critic),
            _at(saw), _at(actions), _at(rewards), _at(eps), _all(wide), *settings, start, stop))  # fmt: skip
        after = Life(actor, critic, cells, remember(life.recent, rewards))
        where = self.env.sights(cells.device)[saw[:, :T].reshape(S, -1).long()] if seen else None
        return after, where, wide

    def _share(self, work):
        """work(start, stop) over the lifetimes, which are independent, among torch's threads."""
        n = min(torch.get_num_threads(), self.S)
        if n == 1:
            return work(0, self.S)
        cuts = [i * self.S // n for i in range(n + 1)]
        with concurrent.futures.ThreadPoolExecutor(n) as pool:
            list(pool.map(work, cuts[:-1], cuts[1:]))

    def _look(self):
        return self._hot.shape[1], _at(self._hot), len(self.widths) + 1

    def _widths(self, out):
        sizes = self.env.observations, *self.widths, out
        return (ctypes.c_int * len(sizes))(*sizes)

    @functools.cached_property
    def _hot(self):
        """Where each arrangement shows its ones."""
        ones = self.env.sights(torch.device("cpu"))
        return ones.nonzero()[:, 1].view(len(ones), -1).int().contiguous()


class Table(NamedTuple):
    """The state of S lifetimes whose policies are tables."""

    theta: torch.Tensor  # (S, N, 4): logits
    recent: torch.Tensor  # (S, 10): rewards of the last ten policies, the newest last
    time: torch.Tensor  # (S,): updates so far


class ExactLearner:
    """An actor that ascends its exact reward J plus eps times the entropy H, no step being sampled.

    theta <- theta + lr ( grad J + eps grad H ),   H = sum_s d(s) H(pi(.|s)) with d held

    The colours exchange their roles after each `period` updates. eps as in `ColourLearner`, from the rewards J of the
    last ten policies. Nothing is random: whole curves can be repeated, and meta-gradients through any
    number of updates are exact.

    >>> from collage.bmg import ExactColours
    >>> learner = ExactLearner(ExactColours(2), lr=1.0)
    >>> x = learner.begin(1)
    >>> [round(learner.objective(x := learner.update(x, torch.zeros(1), k)).item(), 2) for k in range(3)]
    [0.01, -0.02, -0.04]
    """

    def __init__(self, exact, period=100, lr=100.0, top=0.5, context=True):
        self.exact, self.period = exact, check_whole("period", period)
        self.lr, self.top, self.context = check_single("lr", lr), check_single("top", top), context

    def begin(self, lifetimes, dtype=torch.float64, device="cpu"):
        """Indifferent policies at time 0."""
        S = check_whole("lifetimes", lifetimes)
        theta = torch.zeros(S, len(self.exact.start), 4, dtype=dtype, device=device)
        return Table(theta, theta.new_zeros(S, 10), torch.zeros(S, dtype=torch.long, device=device))

    def sign(self, x):
        """1 where blue is good, -1 where red is."""
        return 1 - 2 * (x.time // self.period % 2)

    def update(self, x, w, k):
        eps = w if isinstance(w, torch.Tensor) else bonus(w, x.recent, self.top, self.context)
        return self._ascend(x, eps.to(x.theta))

    def plain(self, x, k):
        return self._ascend(x, None)

    def _ascend(self, x, eps):
        J, gain, widen = self.exact.slopes(x.theta, self.sign(x))
        slope = gain if eps is None else gain + eps[:, None, None] * widen
        recent = torch.cat([x.recent[:, 1:], J[:, None]], 1)
        return Table(x.theta + self.lr * slope, recent, x.time + 1)

    def objective(self, x):
        """- J (S,)."""
        return -self.exact.reward(x.theta, self.sign(x))


def bonus(w, recent, top=0.5, context=True):
    """eps (S,) between 0 and top: what the networks w make of the recent rewards (S, 10)."""
    recent = (5 * recent if context else torch.zeros_like(recent)).to(w[0])
    return top * forward(w, recent[:, None]).flatten().sigmoid()


def start_meta(lifetimes, generator, hidden=32, bias=-0.5):
    """Weights of the networks of `bonus`, which give eps near top / 3 at first."""
    w = mlp([10, hidden, 1], lifetimes, generator)
    w[-2], w[-1] = 0.1 * w[-2], w[-1] + bias
    return w


def remember(recent, rewards):
    """The last ten mean rewards (S, 10), with those of a rollout (S, T, B) as the newest."""
    return torch.cat([recent[:, 1:], rewards.mean((1, 2))[:, None]], 1)


@functools.cache
def _library():
    return runtime.compiled(Path(__file__).with_suffix(".cpp"))


def _at(tensor):
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _all(tensors):
    """An array of pointers, or none."""
    return tensors and (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
