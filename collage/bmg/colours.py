"""Two inner problems of the chapter: a noisy valley, and an actor-critic in two colours.

NoisyQuadratic       gradient descent in a noisy valley, its learning rate learned
objective, match     of an actor-critic in two colours (`actors.ColourLearner`), whose entropy bonus is learned
match_tables         of the same as exact tables (`actors.ExactLearner`)
colour_step          its meta-step for K = 1, in one backward pass through the policy
MetaLoop             many such steps with Adam, on a GPU each of them one CUDA graph
"""

import warnings

import torch

from collage import runtime
from collage.bmg.core import (
    Meta,
    coefficient_gradient,
    detached,
    policy_kl,
)
from collage.common.checks import check_finite, check_positive, check_single, check_whole
from collage.common.networks import forward
from collage.common.populations import leaves, nest


class NoisyQuadratic:
    """Gradient descent on f(x) = 1/2 sum_i h_i x_i^2 with noisy gradients and a learned learning rate.

    x <- x - exp(w) (h x + noise_k),    noise_k ~ N(0, sigma^2)

    h (d,), sigma a number or (d,); x (S, d), w (S,) the logarithm of the rate. The noise of step k is
    drawn from a seed of its own, so that every learner meets the same one and a step can be replayed.
    `plain` takes the last step of a target with the rate `alpha`.

    Raises ValueError for curvatures that are not positive. Source of the problem: Wu et al. 2018
    (arXiv 1803.02021), where its short-sighted learning rates are explained.

    >>> valley = NoisyQuadratic([1.0, 0.01], sigma=0.0)
    >>> valley.update(torch.tensor([[1.0, 1.0]]), torch.zeros(1), 0)
    tensor([[0.0000, 0.9900]])
    """

    def __init__(self, h, sigma=0.0, alpha=0.1, seed=0):
        if not isinstance(check_positive("h", h), torch.Tensor):
            raise ValueError(f"h: got {h!r}, wanted curvatures (d,)")
        self.h = torch.as_tensor(h, dtype=torch.float64)
        self.sigma = torch.as_tensor(sigma, dtype=torch.float64)
        if not bool((self.sigma >= 0).all()):
            raise ValueError(f"sigma: got {sigma!r}, wanted deviations, 0 or more")
        self.alpha = check_single("alpha", alpha)
        self.seed = check_whole("seed", seed, 0)

    def noise(self, x, k):
        """Noise of the gradient at step k, like x."""
        if not bool(self.sigma.any()):
            return torch.zeros_like(x)
        g = runtime.generator(runtime.seed_for(self.seed, k), x.device)
        draw = torch.randn(x.shape, generator=g, device=x.device, dtype=x.dtype)
        return self.sigma.to(x) * draw

    def slope(self, x, k):
        return self.h.to(x) * x + self.noise(x, k)

    def objective(self, x):
        """f (S,), without noise."""
        return (self.h.to(x) * x * x).sum(-1) / 2

    def update(self, x, w, k):
        return x - w.exp()[:, None] * self.slope(x, k)

    def plain(self, x, k):
        return x - self.alpha * self.slope(x, k)


def objective(learner, bonus=0.0):
    """The objective of MG for a `ColourLearner`: life -> (S,), - (return + bonus * entropy) by its slope.

    The policy loss on a rollout of the life's own policy, with a fixed entropy bonus if one is wanted.
    """

    def value(life):
        batch, _ = learner.rollout(detached(life))
        loss = learner.policy_loss(life.actor, life.critic, batch)[0]
        return loss - bonus * learner.entropy(life.actor, batch) if bonus else loss

    return value


def match(learner, seen=None):
    """The matching of two lives of a `ColourLearner`: mean KL of their policies, target first.

    Over states seen (S, N, D); by default over those of a rollout of the student.
    """

    def matching(target, life):
        where = learner.rollout(detached(life))[0].seen if seen is None else seen
        return policy_kl(forward(target.actor, where), forward(life.actor, where)) / where.shape[1]

    return matching


def match_tables(learner):
    """The matching of two `actors.Table`: KL of their policies, target first, states as often as met."""

    def matching(target, x):
        S, N, A = x.theta.shape
        apart = policy_kl(target.theta.view(-1, 1, A), x.theta.view(-1, 1, A)).view(S, N)
        with torch.no_grad():
            often = learner.exact.policy(x.theta, learner.sign(x))[2]
        return (often * apart).sum(1)

    return matching


def colour_step(learner, life, w, L=None, bonus=0.0):
    """A `Meta` of MG (L None) or BMG with K = 1 for a `ColourLearner`, without a second backward pass.

    What `meta_gradient(learner.update, life, w, 1, L, ...)` gives, from the same draws, with
    `objective(learner, bonus)` or with `match` over the states of the first rollout after the update. w: a list
    of tensors (S, ...).

    >>> from collage.bmg import ColourLearner
    >>> from collage.bmg import TwoColours
    >>> learner = ColourLearner(TwoColours(see="ways"), 2, torch.Generator().manual_seed(0))
    >>> found = colour_step(learner, learner.begin(), learner.start_meta(), L=3)
    >>> [tuple(g.shape) for g in found.gradient], found.losses.shape
    ([(2, 10, 32), (2, 1, 32), (2, 32, 1), (2, 1, 1)], torch.Size([2]))
    """
    L = None if L is None else check_whole("L", L)
    with torch.enable_grad():
        w = [t.detach().requires_grad_() for t in w]
        eps = learner.bonus(w, life)
    student, _, widening = learner.advance(life, eps.detach(), widen=True)
    onward, target = student, None
    if L is None:
        batch, _ = learner.rollout(student)

        def compare(_, actor):
            loss = learner.policy_loss(actor, student.critic, batch)[0]
            return loss - bonus * learner.entropy(actor, batch) if bonus else loss

    else:
        with torch.no_grad():
            ahead = learner.bonus(w, student) if L > 1 else None
            target, where, _ = learner.advance(student, ahead, seen=True)
            if L > 1:
                onward = target
                for k in range(2, L):
                    onward = learner.update(onward, w, k)
                target = learner.plain(onward, L)

        def compare(there, actor):
            return match(learner, where)(
                student._replace(actor=there), student._replace(actor=actor)
            )

    slope, losses = coefficient_gradient(
        student.actor, [learner.lr * t for t in widening],
        student.actor if target is None else target.actor, compare)  # fmt: skip
    found = torch.autograd.grad(eps, w, slope, allow_unused=True)
    found = [torch.zeros_like(t) if g is None else g for g, t in zip(found, w, strict=True)]
    return Meta(found, losses, detached(onward), target)


class MetaLoop:
    """Meta-steps with Adam on buffers of their own; on a GPU a whole one is recorded as a CUDA graph.

    w <- Adam(w, grad_w mu(x~, x^(1)(w))),    life <- onward

    life and w as for `colour_step`, copied, and L and bonus, too; lr of Adam. `run(n)` makes n meta-steps
    and returns nothing. `life`, `w` and the last `losses` (S,) are what it works on: read them between
    runs, write them in place, never replace them. graph: whether to record (None: on a GPU). The
    recording is made at the first run and moves nothing; the same generator gives the same draws as
    without it. It keeps the learner's settings as they are then.

    Raises ValueError for a graph off the GPU, and for a meta-gradient that is not finite: before it
    moves anything, or, from a graph, after the run.

    >>> from collage.bmg import ColourLearner
    >>> from collage.bmg import TwoColours
    >>> learner = ColourLearner(TwoColours(see="ways"), 2, torch.Generator().manual_seed(0))
    >>> steps = MetaLoop(learner, learner.begin(), learner.start_meta(), L=3)
    >>> steps.run(2)
    >>> steps.life.cells[:, 0].unique()  # 2 (K + L - 1) rollouts of 16 steps
    tensor([96])
    """

    def __init__(self, learner, life, w, L=None, lr=3e-3, bonus=0.0, graph=None):
        here = life.recent.device
        self.records = here.type == "cuda" if graph is None else graph
        if self.records and here.type != "cuda":
            raise ValueError(f"graph: got {graph!r} on {here}, wanted a CUDA device")
        self.learner, self.bonus = learner, bonus
        self.L = None if L is None else check_whole("L", L)
        self.life = nest(lambda t: t.detach().clone(), life)
        self.w = [t.detach().clone() for t in w]
        self.losses = torch.zeros_like(self.life.recent[:, 0])
        self.adam = torch.optim.Adam(self.w, check_single("lr", lr), capturable=self.records)
        self.graph = self.kept = None

    def run(self, n=1):
        if self.records and self.graph is None:
            self._record()
        for _ in range(check_whole("n", n, 0)):
            self.graph.replay() if self.records else self._step()
        if self.records:
            check_finite("w", self.w)

    def _step(self):
        found = colour_step(self.learner, self.life, self.w, self.L, self.bonus)
        if not self.records:  # a recording cannot ask
            check_finite("meta-gradient", found.gradient)
        for leaf, gradient in zip(self.w, found.gradient, strict=True):
            leaf.grad = gradient
        self.adam.step()
        self.adam.zero_grad()
        self._put([*leaves(found.onward), found.losses])

    def _put(self, values):
        for buffer, value in zip([*leaves(self.life), self.losses], values, strict=True):
            buffer.copy_(value)

    def _record(self):
        """Warm up, put everything back, and record a step: nothing of it runs before a replay."""
        g, here = self.learner.generator, self.life.recent.device
        held, started = [t.clone() for t in [*leaves(self.life), self.losses]], g.get_state()
        weights = [t.clone() for t in self.w]
        # Tables made during the recording, or dropped after it, would leave the graph without them.
        self.kept = self.learner.env.tables(here)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(side), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Adam wonders that it is not being recorded yet
                for _ in range(2):
                    self._step()
            torch.cuda.current_stream().wait_stream(side)
        finally:
            self._put(held)
            for leaf, value in zip(self.w, weights, strict=True):
                leaf.copy_(value)
            for state in self.adam.state.values():
                for t in state.values():
                    t.zero_()  # in place: the graph counts on these very tensors
            g.set_state(started)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(g)
        with torch.cuda.graph(graph):
            self._step()
        self.graph = graph
