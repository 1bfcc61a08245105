"""Actor-critics that live on in `gridworlds.TwoColours`, many lifetimes at once.

ColourLearner  rollouts and updates, with an entropy bonus that meta-parameters decide
Life, Batch    the state of the lifetimes, and what a rollout saw
ExactLearner   the same without chance: tables, exact policy gradients (`gridworlds.ExactColours`)
Table          the state of such lifetimes
start_meta     weights of the networks that decide the bonus
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from collage.bmg.core import detached, policy_kl
from collage.bmg.gridworlds import ExactColours, TwoColours, rewards_of
from collage.common.checks import check_single, check_whole
from collage.common.networks import forward, mlp
from collage.common.populations import tree_leaves

TOP = 0.5  # no entropy bonus is larger


class Life(NamedTuple):
    """The state of S lifetimes with B walkers each."""

    actor: list[Tensor]  # stacked weights of `networks.mlp`, (S, in, out) and (S, 1, out)
    critic: list[Tensor]
    cells: Tensor  # (S B, 4): states of the environment
    recent: Tensor  # (S, 10): mean rewards of the last ten rollouts, the newest last


class Batch(NamedTuple):
    """What the walkers of a rollout of T steps saw and did."""

    seen: Tensor  # (S, T B, D)
    actions: Tensor  # (S, T B)
    rewards: Tensor  # (S, T, B)
    last: Tensor  # (S, B, D): what is seen in the end


class ColourLearner:
    """An actor-critic in `TwoColours`, S lifetimes at once, its entropy bonus eps a function of w.

    x <- x - lr grad( policy loss - eps H + value loss / 4 ),   eps = sigmoid(MLP_w(recent rewards)) / 2

    Policy loss: - mean (G - V) log pi(a|s), with n-step returns G that end in V; H is the mean entropy.
    walkers B and steps T of a rollout, widths of both networks. With context=False the MLP sees a
    constant, so that eps is one learned number; a tensor (S,) in place of w is eps itself. `update`,
    `ground_truth_step`, `objective` and `matching` are what `bmg.meta_gradient` wants.

    Raises ValueError for counts that are not whole. Source: arXiv 2109.04504, section 5.1, in a small
    setting of our own.

    >>> env = TwoColours(see="ways")
    >>> learner = ColourLearner(env, lifetimes=2, generator=torch.Generator())
    >>> life, w = learner.begin(), learner.start_meta()
    >>> learner.bonus(w, life).shape, learner.update(life, w, 0).recent.shape
    (torch.Size([2]), torch.Size([2, 10]))
    """

    value_weight, discount = 0.25, 0.9

    def __init__(
        self,
        env: TwoColours,
        lifetimes: int,
        generator: Generator,
        *,
        walkers: int = 8,
        steps: int = 16,
        widths: tuple[int, ...] = (32, 32),
        lr: float = 2.0,
        context: bool = True,
    ) -> None:
        self.env, self.generator, self.context = env, generator, context
        self.S = check_whole("lifetimes", lifetimes)
        self.B, self.T = check_whole("walkers", walkers), check_whole("steps", steps)
        self.widths = [check_whole("widths", v) for v in widths]
        self.lr = check_single("lr", lr)
        inputs = env.observations
        self.sizes = {"actor": [inputs, *self.widths, 4], "critic": [inputs, *self.widths, 1]}
        self.shapes: dict[str, list[tuple[int, ...]]] = {  # of a `Life`
            "cells": [(self.S * self.B, 4)], "recent": [(self.S, 10)]}  # fmt: skip
        for name, sizes in self.sizes.items():
            layers = pairwise(sizes)
            self.shapes[name] = [(self.S, *t) for a, b in layers for t in ((a, b), (1, b))]

    def begin(self) -> Life:
        """A `Life` with new weights, its actors indifferent at first."""
        actor, critic = (mlp(sizes, self.S, self.generator) for sizes in self.sizes.values())
        actor[-2], critic[-2] = 0.01 * actor[-2], 0.01 * critic[-2]
        cells = self.env.reset(self.S * self.B, self.generator)
        return Life(actor, critic, cells, actor[0].new_zeros(self.S, 10))

    def start_meta(self, hidden: int = 32) -> list[Tensor]:
        """Weights of the network that gives eps, for each lifetime."""
        return start_meta(self.S, self.generator, hidden)

    def bonus(self, w: list[Tensor] | Tensor, life: Life) -> Tensor:
        """eps (S,) for the recent rewards."""
        return entropy_bonus(w, life.recent, self.context)

    def update(self, life: Life, w: list[Tensor] | Tensor, k: int) -> Life:
        """Roll out, then learn with the learned bonus."""
        batch, moved = self.rollout(life)
        return self.learn(moved, batch, self.bonus(w, life))

    def ground_truth_step(self, life: Life, k: int) -> Life:
        """Roll out, then learn for the reward alone: the last step of the target."""
        batch, moved = self.rollout(life)
        return self.learn(moved, batch, None)

    def objective(self, life: Life, bonus: float = 0.0, batch: Batch | None = None) -> Tensor:
        """- (return + bonus * entropy), (S,), by its slope: the policy loss on a rollout of its own.

        Or on a batch, where one is given.
        """
        batch = self.rollout(detached(life))[0] if batch is None else batch
        policy_loss, entropy, _ = self.losses(life.actor, life.critic, batch)
        return policy_loss - bonus * entropy if bonus else policy_loss

    def matching(self, target: Life, life: Life, seen: Tensor | None = None) -> Tensor:
        """Mean KL of two policies (S,), target first.

        Over states seen (S, N, D); by default over those of a rollout of the student.
        """
        if seen is None:
            seen = self.rollout(detached(life))[0].seen
        return policy_kl(forward(target.actor, seen), forward(life.actor, seen)) / seen.shape[1]

    @torch.no_grad()
    def rollout(self, life: Life) -> tuple[Batch, Life]:
        """T steps of all walkers: a `Batch`, and the life with its cells and rewards moved on.

        Raises ValueError for a life of another learner.
        """
        self.check(life)
        tables = self.env.tables(life.cells.device)
        sights, arrangements = tables.sights.to(life.recent), len(tables.sights)
        noise, draws = self.draw_noise(life.recent)
        draws = 4 * arrangements * draws
        place, seen, actions, moves = self.env.number(life.cells[:, 1:]), [], [], []
        for gumbel, draw in zip(noise.unbind(), draws.unbind(), strict=True):
            seen.append(sights.index_select(0, place).view(self.S, self.B, -1))
            actions.append((forward(life.actor, seen[-1]) + gumbel).argmax(-1))
            moves.append(torch.add(place, actions[-1].flatten(), alpha=arrangements))
            place = tables.after.index_select(0, moves[-1] + draw)
        last = sights.index_select(0, place).view(self.S, self.B, -1)
        time = life.cells[:, 0] + torch.arange(self.T + 1, device=place.device)[:, None]
        fetched = self.env.sign(time[:-1]) * tables.fetched[torch.stack(moves)]
        rewards = rewards_of(fetched).to(life.recent).view(self.T, self.S, self.B)
        rewards = rewards.transpose(0, 1).contiguous()
        cells = torch.cat([time[-1][:, None], tables.cells[place]], 1)
        recent = torch.cat([life.recent[:, 1:], rewards.mean((1, 2))[:, None]], 1)
        batch = Batch(torch.cat(seen, 1), torch.cat(actions, 1), rewards, last)
        return batch, life._replace(cells=cells, recent=recent)

    def draw_noise(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """All the chance of a rollout: Gumbel noise (T, S, B, 4), and where things appear (T, S B).

        The largest sum of logits and such noise is a sample of the policy.
        """
        shape = self.T, self.S, self.B, 4
        noise = torch.rand(shape, generator=self.generator, device=like.device, dtype=like.dtype)
        draws = self.env.draws((self.T, self.S * self.B), self.generator)
        return noise.log_().neg_().log_().neg_(), draws

    def losses(
        self, actor: list[Tensor], critic: list[Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Policy loss, mean entropy and value loss, (S,) each; advantages are constants."""
        values = forward(critic, batch.seen)[..., 0]
        with torch.no_grad():
            ahead, returns = forward(critic, batch.last)[..., 0], []
            for reward in reversed(batch.rewards.unbind(1)):
                ahead = reward + self.discount * ahead
                returns.append(ahead)
            target = torch.cat(returns[::-1], 1)
            advantage = target - values
        log = forward(actor, batch.seen).log_softmax(-1)
        chosen = log.gather(-1, batch.actions[..., None])[..., 0]
        value_loss = (values - target).square().mean(1) / 2
        return -(advantage * chosen).mean(1), mean_entropy(log), value_loss

    def learn(self, life: Life, batch: Batch, eps: Tensor | None) -> Life:
        """The life after one update on a batch, with the bonus eps (S,) or None.

        Where a gradient is wanted, it is a function of the life and of eps.

        Raises ValueError for a life of another learner, or another shape of eps.
        """
        self.check(life, eps)
        count, params = len(life.actor), [*life.actor, *life.critic]
        inputs = params if eps is None else [*params, eps]
        graph = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
        with torch.enable_grad():
            at = [p if graph and p.requires_grad else p.detach().requires_grad_() for p in params]
            loss, entropy, value_loss = self.losses(at[:count], at[count:], batch)
            loss = loss + self.value_weight * value_loss
            loss = loss if eps is None else loss - eps * entropy
            slopes = torch.autograd.grad(loss.sum(), at, create_graph=graph)
        moved = [p.sub(g, alpha=self.lr) for p, g in zip(params, slopes, strict=True)]
        return life._replace(actor=moved[:count], critic=moved[count:])

    def check(self, life: Life, eps: Tensor | None = None) -> None:
        """Raise ValueError where a life or a bonus is not one of this learner's."""
        for name, shapes in self.shapes.items():
            got = [tuple(t.shape) for t in tree_leaves(getattr(life, name))]
            if got != shapes:
                raise ValueError(f"life: got {name} {got}, wanted {shapes}")
        if life.cells.dtype != torch.int64:
            raise ValueError(f"life: got cells {life.cells.dtype}, wanted int64")
        places, count = life.cells[:, 1:], self.env.size**2
        # On a GPU, asking for their numbers costs a wait.
        if places.device.type == "cpu" and not bool(((places >= 0) & (places < count)).all()):
            raise ValueError(f"life: got cells outside 0 ... {count - 1}")
        if eps is not None and eps.shape != (self.S,):
            raise ValueError(f"eps: got {tuple(eps.shape)}, wanted ({self.S},)")


class Table(NamedTuple):
    """The state of S lifetimes with a policy for each row of `ExactColours`."""

    theta: Tensor  # (S, N, 4): logits
    recent: Tensor  # (S, 10): rewards of the last ten policies, the newest last
    time: Tensor  # (S,): updates so far


class ExactLearner:
    """An actor that ascends its exact reward J plus eps times the entropy H, no step being sampled.

    theta <- theta + lr ( grad J + eps grad H ),   H = sum_s d(s) H(pi(.|s)) with d held

    The colours exchange their roles after each `period` updates. eps as in `ColourLearner`, from the
    rewards J of the last ten policies. Nothing is random: whole curves can be repeated, and
    meta-gradients through any number of updates are exact.

    >>> learner = ExactLearner(ExactColours(2), lr=1.0)
    >>> x = learner.begin(1)
    >>> [round(learner.objective(x := learner.update(x, torch.zeros(1), k)).item(), 2) for k in range(3)]
    [0.01, -0.02, -0.04]
    """

    def __init__(
        self, exact: ExactColours, period: int = 100, lr: float = 100.0, context: bool = True
    ) -> None:
        self.exact, self.period = exact, check_whole("period", period)
        self.lr, self.context = check_single("lr", lr), context

    def begin(self, lifetimes: int) -> Table:
        """Indifferent policies at time 0."""
        S = check_whole("lifetimes", lifetimes)
        theta = torch.zeros(S, len(self.exact.start), 4, dtype=torch.float64)
        return Table(theta, theta.new_zeros(S, 10), torch.zeros(S, dtype=torch.long))

    def bonus(self, w: list[Tensor] | Tensor, x: Table) -> Tensor:
        """eps (S,) for the recent rewards."""
        return entropy_bonus(w, x.recent, self.context)

    def sign(self, x: Table) -> Tensor:
        """1 where blue is good, -1 where red is."""
        return 1 - 2 * (x.time // self.period % 2)

    def update(self, x: Table, w: list[Tensor] | Tensor, k: int) -> Table:
        """A step with the learned bonus."""
        return self._ascend(x, self.bonus(w, x).to(x.theta))

    def ground_truth_step(self, x: Table, k: int) -> Table:
        """A step for the reward alone."""
        return self._ascend(x, None)

    def _ascend(self, x: Table, eps: Tensor | None) -> Table:
        J, gain, widening = self.exact.slopes(x.theta, self.sign(x))
        slope = gain if eps is None else gain + eps[:, None, None] * widening
        recent = torch.cat([x.recent[:, 1:], J[:, None]], 1)
        return Table(x.theta + self.lr * slope, recent, x.time + 1)

    def objective(self, x: Table, bonus: float = 0.0) -> Tensor:
        """- (J + bonus * H), (S,), with d held in H as in the update."""
        pi, r, d, _ = self.exact.policy(x.theta, self.sign(x))
        J = (d * (pi * r).sum(-1)).sum(-1)
        if not bonus:
            return -J
        entropy = -(pi * x.theta.log_softmax(-1)).sum(-1)
        return -(J + bonus * (d.detach() * entropy).sum(-1))

    def matching(self, target: Table, x: Table) -> Tensor:
        """KL of two policies (S,), target first, states as often as the student meets them."""
        S, N, A = x.theta.shape
        kl = policy_kl(target.theta.view(-1, 1, A), x.theta.view(-1, 1, A)).view(S, N)
        with torch.no_grad():
            visits = self.exact.policy(x.theta, self.sign(x))[2]
        return (visits * kl).sum(1)


def start_meta(lifetimes: int, generator: Generator, hidden: int = 32) -> list[Tensor]:
    """Weights of the networks that give eps for ten rewards, near TOP / 3 at first."""
    w = mlp([10, hidden, 1], lifetimes, generator)
    w[-2], w[-1] = 0.1 * w[-2], w[-1] - 0.5
    return w


def entropy_bonus(w: list[Tensor] | Tensor, recent: Tensor, context: bool) -> Tensor:
    """eps (S,) between 0 and TOP: what the networks w make of the recent rewards (S, 10)."""
    if isinstance(w, Tensor):
        return w
    recent = (5 * recent if context else torch.zeros_like(recent)).to(w[0])
    return TOP * forward(w, recent[:, None]).flatten().sigmoid()


def mean_entropy(log: Tensor) -> Tensor:
    """Of policies at several states: log probabilities (S, N, A) -> (S,)."""
    return -(log.exp() * log).sum(-1).mean(1)
