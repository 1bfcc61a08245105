"""Learning from recorded trajectories alone: stacks of models, their training, a value method.

Windowed      E models of one shape that see windows of trajectories
fit           train a stack on windows of trajectories
ImplicitQ     implicit Q-learning; at temperature 0 it is plain behaviour cloning
"""

import functools

import torch
import torch.nn.functional as F

from collage import runtime
from collage.common.checkpoint import digest
from collage.common.checks import as_tensor, check_positive, check_whole
from collage.common.stack import Stacked, linear
from collage.common.train import train
from collage.decision_transformer.trajectories import Trajectories, Window


class Windowed(Stacked):
    """A stack of models that see windows of trajectories, in units of its own (see `units`)."""

    def units(self, mean, std, scale):
        """States are seen as (s - mean) / std, returns and rewards in units of `scale`.

        mean, std: (S,), or (E, S) for members with data of their own; 1 takes the place of a std of 0.
        Returns the model.
        """
        mean, std = (as_tensor("mean, std", t).to(self.weights) for t in (mean, std))
        wanted = ((self.state_dim,), (self.members, self.state_dim))
        if mean.shape not in wanted or std.shape != mean.shape:
            raise ValueError(f"mean, std: got {tuple(mean.shape)}, {tuple(std.shape)}, wanted one of "
                             f"{wanted}")  # fmt: skip
        if not bool((mean.isfinite() & std.isfinite() & (std >= 0)).all()):
            raise ValueError("mean, std: got NaN, inf or a negative std")
        check_positive("scale", scale)
        std = torch.where(std > 0, std, 1.0)  # what does not vary
        shift, width = mean.expand(self.members, -1), std.expand(self.members, -1)
        self.shift.copy_(shift[:, None, None])
        self.width.copy_(width[:, None, None])
        self.scale.fill_(scale)
        return self

    def _register_units(self, state_dim):
        self.state_dim = check_whole("state_dim", state_dim)
        self.register_buffer("shift", torch.zeros(self.members, 1, 1, state_dim))
        self.register_buffer("width", torch.ones(self.members, 1, 1, state_dim))
        self.register_buffer("scale", torch.ones(()))

    def _own(self, window):
        """(E, B, K, ...) of each field, from one batch for all or one for each member."""
        shared = window.returns.dim() == 2
        return Window(*(None if t is None else t.expand(self.members, *t.shape) if shared else t
                        for t in window))  # fmt: skip

    def _by_member(self, window):
        """(n, K, ...) -> (E, n / E, K, ...): the first n / E belong to member 0, and so on."""
        n = len(window.returns)
        if n % self.members:
            raise ValueError(f"window: got {n} histories, wanted a multiple of {self.members}")
        return Window(*(t.unflatten(0, (self.members, -1)) for t in window))


def fit(model, data, steps, *, batch=64, lr=1e-4, decay=1e-4, warmup=0.1, anneal=False, clip=0.25,
        weights=None, whole=False, checkpoint=None, every=500, progress=False):  # fmt: skip
    """Train all members of a stack on windows of trajectories; returns the losses (steps, E).

    AdamW, its rate rising over the first `warmup` of the steps and constant from there on, or falling
    to zero with `anneal`; gradients clipped to the norm `clip` for each member on its own. data:
    `Trajectories` for all, or one for each member; weights: of the episodes, (E,) or a list of them
    (see `Trajectories.draw`); whole: windows are the beginnings of episodes. Member i draws from its
    own seed, so that it comes out the same in any company (but for rounding, and for dropout where
    contexts differ). checkpoint: a file, written every so many steps; where it exists,
    training goes on from there, to the same result.

    Raises ValueError for data that does not fit the model, or weights that are no longer finite; the
    weights are then those before the call. Source of the settings: arXiv 2106.01345, appendix A.
    """
    steps, batch, every = (check_whole(n, v) for n, v in (("steps", steps), ("batch", batch),
                                                          ("every", every)))  # fmt: skip
    lr, clip = float(check_positive("lr", lr)), float(check_positive("clip", clip))
    E, device = model.members, model.weights.device
    each = [data] * E if isinstance(data, Trajectories) else list(data)
    drawn = weights if isinstance(weights, list | tuple) else [weights] * E
    if len(each) != E or len(drawn) != E:
        raise ValueError(f"data, weights: got {len(each)}, {len(drawn)}, wanted one for all or {E}")
    for part in each:
        _check_fits(model, part)
    k = model.context + model.ahead
    generators = [
        runtime.generator(runtime.seed_for(model.seed + i, "windows"), device) for i in range(E)
    ]
    before = [t.detach().clone() for t in (model.weights, *model.moving())]
    setting = None if checkpoint is None else {
               "fit": [steps, batch, lr, decay, warmup, anneal, clip, whole],
               "model": [model.settings, list(getattr(model, "contexts", [model.context])), model.seed, list(map(digest, before)),
                         *map(digest, (model.shift, model.width, model.scale))],
               "data": [[digest(t) for t in (p.states, p.actions, p.rewards, p.over, p.ends)]
                        for p in each],
               "weights": [None if w is None else digest(torch.as_tensor(w)) for w in drawn]}  # fmt: skip

    def inputs(i):
        parts = [p.sample(batch, k, g, w, whole)
                 for p, g, w in zip(each, generators, drawn, strict=True)]  # fmt: skip
        return [torch.stack(t) if E > 1 else t[0][None] for t in zip(*parts)]

    def gradient(*window):
        losses = model.loss(Window(*window), generators)
        return losses.detach(), torch.autograd.grad(losses.sum(), model.weights)[0]

    def rate(i):
        rise = min(1.0, (i + 1) / max(1, round(warmup * steps)))
        return lr * rise * ((1 - i / steps) if anneal else 1)

    return train(model.weights, inputs, gradient, steps, rate=rate, clip=clip, after=model.after,
                 optimizer=functools.partial(torch.optim.AdamW, weight_decay=decay),
                 moving=model.moving(), generators=generators, setting=setting,
                 checkpoint=checkpoint, every=every, progress=progress)  # fmt: skip


class ImplicitQ(Windowed):
    """Implicit Q-learning: values and a policy from recorded actions only, none invented.

    V <- the tau-expectile of min(Q1', Q2')(h, a) over the recorded a,   Q_i <- r + gamma V(h'),
    pi <- max E[ exp(beta (Q' - V)) log pi(a | h) ],   weights at most 100

    h is the history of up to `context` steps, states and earlier actions side by side: one state for
    context 1. Q' are slow copies. Q, V and pi are networks of two hidden layers of `width`. With
    temperature (beta) 0 the policy is that of behaviour cloning. discrete: actions are whole numbers
    below action_dim, pi a softmax; else pi is a tanh and log pi a squared error. follow: by how much
    the slow copies move at a step; values travel back by one step in about 1 / follow updates.

    Raises ValueError for an expectile or a discount outside of (0, 1), (0, 1]. Source: Kostrikov et al.
    2021 (arXiv 2110.06169).

    >>> model = ImplicitQ(3, 2, discrete=True, width=8)
    >>> model.weights.shape
    torch.Size([1, 525])
    """

    ahead = 1  # windows need the step after

    def __init__(self, state_dim, action_dim, *, context=1, width=256, discrete=False, expectile=0.7,
                 temperature=3.0, discount=0.99, follow=0.005, members=1, seed=0):  # fmt: skip
        self.action_dim, self.discrete = check_whole("action_dim", action_dim), bool(discrete)
        self.context, self.width_ = check_whole("context", context), check_whole("width", width)
        if not 0 < expectile < 1 or not 0 < discount <= 1 or not temperature >= 0:
            raise ValueError(f"expectile, discount, temperature: got {expectile}, {discount}, "
                             f"{temperature}, wanted (0, 1), (0, 1], not negative")  # fmt: skip
        if not 0 < follow <= 1:
            raise ValueError(f"follow: got {follow}, wanted one above 0, at most 1")
        self.expectile, self.discount, self.temperature = expectile, discount, temperature
        self.follow = follow
        self.settings = {"expectile": expectile, "discount": discount, "temperature": temperature,
                         "follow": follow, "context": self.context, "discrete": self.discrete}  # fmt: skip
        seen = self.context * (state_dim + 1) + (self.context - 1) * action_dim
        shapes = {}
        for name, extra, out in (("v", 0, 1), ("pi", 0, action_dim), ("q1", action_dim, 1),
                                 ("q2", action_dim, 1)):  # fmt: skip
            sizes = (seen + extra, width, width, out)
            for i in range(3):
                shapes |= {
                    f"{name}{i} weight": sizes[i : i + 2],
                    f"{name}{i} bias": (1, sizes[i + 1]),
                }
        super().__init__(shapes, members, seed)
        self._register_units(state_dim)
        self.register_buffer("target", self.weights.detach().clone())

    def moving(self):
        return (self.target,)

    @torch.no_grad()
    def after(self):
        """The slow copies follow."""
        self.target.lerp_(self.weights, self.follow)

    def histories(self, window):
        """What is known at each of K steps: (E, B, K, features), from a window (E, B, K)."""
        K = window.mask.shape[2]
        known = window.mask[..., None].float()
        states = torch.cat([(window.states - self.shift) / self.width, known], -1) * known
        parts = [self._past(states, K)]
        if self.context > 1:
            parts.append(
                self._past(self._numbers(window.actions) * known, K)[..., self.action_dim :]
            )
        return torch.cat(parts, -1)

    def _past(self, x, K):
        """(E, B, K, D) -> (E, B, K, context D): the last steps up to each, newest first, else zero."""
        x = F.pad(x, (0, 0, self.context - 1, 0))
        return x.unfold(2, self.context, 1).flip(-1).transpose(-1, -2).flatten(-2)

    def _numbers(self, actions):
        if not self.discrete:
            return actions
        return F.one_hot(actions, self.action_dim).to(self.weights.dtype)

    def _net(self, name, tensors, x):
        for i in range(3):
            x = linear(
                x.relu() if i else x, tensors[f"{name}{i} weight"], tensors[f"{name}{i} bias"]
            )
        return x

    def loss(self, window, generator=None):
        """The three losses together (E,); each reaches its own network only."""
        window = self._own(window)
        h = self.histories(window)
        K = h.shape[2]
        k = K - 1 if self.context < K else K
        now, flat = h[:, :, :k].flatten(1, 2), lambda t: t[:, :, :k].flatten(1, 2)
        mask, action, over = (
            flat(window.mask),
            flat(self._numbers(window.actions)),
            flat(window.over),
        )
        own, slow = self.tensors(), self.tensors(self.target)
        pi = self._net("pi", own, now)
        if self.discrete:
            miss = -(pi.log_softmax(-1) * action).sum(-1)
        else:
            miss = (pi.tanh() - action).square().mean(-1)
        if not self.temperature:  # all weights are one: no value is needed
            return (miss * mask).sum(1) / mask.sum(1).clamp(min=1)
        with torch.no_grad():
            # Nothing is known of what follows the last step of an episode that was cut off.
            follows = F.pad(window.mask[:, :, 1:], (0, 1))
            mask_q = mask & (over | flat(follows))
            later = F.pad(h[:, :, 1:], (0, 0, 0, 1))[:, :, :k].flatten(1, 2)
            value = self._net("v", own, later)[..., 0] * ~over
            goal = flat(window.rewards) / self.scale + self.discount * value
            pair = torch.cat([now, action], -1)
            q = torch.minimum(*(self._net(n, slow, pair)[..., 0] for n in ("q1", "q2")))
        v = self._net("v", own, now)[..., 0]
        gain = q - v
        lean = torch.where(gain > 0, self.expectile, 1 - self.expectile).detach()
        losses = lean * gain.square() * mask
        for name in ("q1", "q2"):
            losses = losses + (self._net(name, own, pair)[..., 0] - goal).square() * mask_q
        weight = (self.temperature * gain.detach()).exp().clamp(max=100.0)
        losses = losses + weight * miss * mask
        return losses.sum(1) / mask.sum(1).clamp(min=1)

    @torch.no_grad()
    def act(self, window, generator=None, sample=False):
        """Actions (n,) or (n, A) after histories (n, K), as `rollout` asks for them."""
        window = self._by_member(window)
        h = self.histories(window)[:, :, -1]
        pi = self._net("pi", self.tensors(), h).flatten(0, 1)
        if not self.discrete:
            return pi.tanh()
        if sample:
            if generator is None:
                raise ValueError("generator: got None, wanted one to draw actions from")
            return torch.multinomial(pi.softmax(-1), 1, generator=generator)[:, 0]
        return pi.argmax(-1)


def _check_fits(model, data):
    if not isinstance(data, Trajectories):
        raise ValueError(f"data: got {type(data).__name__}, wanted Trajectories")
    kind = "whole numbers (N,)" if model.discrete else f"(N, {model.action_dim})"
    right = data.actions.dim() == 1 if model.discrete else (
        data.actions.dim() == 2 and data.actions.shape[1] == model.action_dim)  # fmt: skip
    for name, tensor in (
        ("states", data.states),
        ("rewards", data.rewards),
        ("actions", data.actions),
    ):
        mine = model.weights
        if tensor.device != mine.device or (
            tensor.is_floating_point() and tensor.dtype != mine.dtype
        ):
            raise ValueError(f"data: got {name} of {tensor.dtype} on {tensor.device}, wanted "
                             f"{mine.dtype} on {mine.device} as the model")  # fmt: skip
    if data.states.shape[1] != model.state_dim or not right:
        raise ValueError(f"data: got states {tuple(data.states.shape)}, actions "
                         f"{tuple(data.actions.shape)}, wanted (N, {model.state_dim}) and {kind}")  # fmt: skip
    if model.discrete and int(data.actions.max()) >= model.action_dim:
        raise ValueError(f"data: got the action {int(data.actions.max())}, wanted less than "
                         f"{model.action_dim}")  # fmt: skip
    longest = getattr(model, "longest", None)
    if longest is not None and int(data.lengths.max()) > longest:
        raise ValueError(f"data: got an episode of {int(data.lengths.max())} steps, wanted at most "
                         f"the model's longest, {longest}")  # fmt: skip
