"""Bootstrapped meta-learning: meta-parameters learn from where the learner will be (2109.04504).

A learner x is moved by an update rule with meta-parameters w. Plain meta-gradients (MG) ask what K
updates did for the objective, and differentiate through all of them. Bootstrapping (BMG) runs L updates
more, without a graph, takes the result for a target, and asks how w should have been for the K updates
to come nearer to it (Flennerhag et al., 2021; arXiv 2109.04504).

unroll               K updates, differentiable in w
bootstrap_target     L - 1 updates more and one step on the real objective, all detached
squared_distance     matching in parameter space
policy_kl            matching of policies, the target first
meta_gradient        of w, for MG or BMG with any K and L
coefficient_gradient for K = 1 and an additive term, without a second backward pass
meta_step            the same, and the state to go on from
NoisyQuadratic       gradient descent in a noisy valley, its learning rate learned
objective, match     of an actor-critic in two colours (`actors.ColourLearner`), whose entropy bonus is learned
colour_step          its meta-step for K = 1, in one backward pass through the policy
Captured             many such steps with Adam, on a GPU each of them one CUDA graph

Every tensor has a leading axis of S independent lifetimes. x and w may be nests of tensors (tuples,
lists, dicts).
"""

import warnings
from typing import Any, NamedTuple

import torch

from collage import runtime
from collage.evolution import check_positive, check_single, check_whole, leaves, nest
from collage.networks import forward


def unroll(update, x, w, steps, first=0):
    """States [x_0, x_1, ..., x_K] of K updates: x_{k+1} = update(x_k, w, first + k).

    The third argument tells the update which step it is, so that it can look up its data or its
    noise. The graph is kept: the states are functions of w.

    Raises ValueError for fewer than one step.

    >>> [x.item() for x in unroll(lambda x, w, k: x - w * x, torch.ones(1), torch.full((1,), 0.5), 2)]
    [1.0, 0.5, 0.25]
    """
    states = [x]
    for k in range(check_whole("steps", steps)):
        states.append(update(states[-1], w, first + k))
    return states


class Bootstrap(NamedTuple):
    """Where the learner will be."""

    target: Any  # after L - 1 updates and one step on the real objective
    onward: Any  # after the L - 1 updates: where the lifetime goes on


@torch.no_grad()
def bootstrap_target(update, ground_truth_step, x, w, steps, first=0):
    """The target of x = x^(K): L - 1 updates with the same w, then one step on the real objective.

    x~ = x^(K+L-1) - alpha grad f(x^(K+L-1))

    ground_truth_step(x, k) takes the last step; without it the learner would be asked to match its own
    habits. Nothing of this is differentiated; an update takes its own gradients with `torch.func.grad`,
    which works here, too. Returns a `Bootstrap`; its `onward` is x^(K+L-1), not the target.

    Raises ValueError for L below 1. Source: arXiv 2109.04504, section 3.

    >>> half = lambda x, w, k: x - w * x
    >>> bootstrap_target(half, lambda x, k: x - 0.1 * x, torch.ones(1), torch.full((1,), 0.5), 2)
    Bootstrap(target=tensor([0.4500]), onward=tensor([0.5000]))
    """
    steps = check_whole("L", steps)
    x, w = detached(x), detached(w)
    onward = x
    for k in range(steps - 1):  # not by `unroll`, which keeps every state
        onward = update(onward, w, first + k)
    return Bootstrap(detached(ground_truth_step(onward, first + steps - 1)), detached(onward))


def squared_distance(target, x):
    """Half the squared distance of two states, (S,): 1/2 |x~ - x|^2, over all leaves of floats.

    Raises ValueError for states of different shapes.

    >>> squared_distance(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([2.5000])
    """
    mine, theirs = ([t for t in leaves(state) if t.is_floating_point()] for state in (x, target))
    _check_alike("target", theirs, mine)
    parts = [(a - b).square().reshape(len(a), -1).sum(1) for a, b in zip(theirs, mine, strict=True)]
    return sum(parts) / 2


def policy_kl(target, logits):
    """KL(target || student) of categorical policies, summed over states: (S, ..., A) -> (S,).

    sum_s sum_a p~(a|s) (log p~(a|s) - log p(a|s)),    p~, p the softmax of target and logits

    Its gradient with respect to the student's logits is p - p~: where the target is sure, the student
    is pulled hard. Raises ValueError for logits of different shapes.

    Source: arXiv 2109.04504, section 5; the target comes first.

    >>> policy_kl(torch.zeros(1, 1, 2), torch.tensor([[[0.0, 1.0986123]]]))
    tensor([0.1438])
    """
    _check_alike("target", [target], [logits])
    p, q = target.log_softmax(-1), logits.log_softmax(-1)
    # What the target never does (a logit of -inf) adds nothing.
    gap = torch.where(p == -torch.inf, 0, p - q)
    return (p.exp() * gap).reshape(len(p), -1).sum(1)


class Meta(NamedTuple):
    """What a meta-gradient found."""

    gradient: Any  # like w
    losses: torch.Tensor  # (S,): the matching, or the objective
    onward: Any  # the state to go on from
    target: Any  # of BMG; None for MG


def meta_gradient(update, x, w, K, L=None, *, objective=None, ground_truth_step=None,
                  matching=squared_distance, first=0):  # fmt: skip
    """The gradient of the meta-parameters, for each lifetime.

    MG   (L None):    grad_w f(x^(K)(w))
    BMG  (L >= 1):    grad_w mu(x~, x^(K)(w)),   x~ of `bootstrap_target`, detached

    update(x, w, k) -> x; objective(x) -> (S,), of MG; ground_truth_step(x, k) -> x and
    matching(target, x) -> (S,), of BMG. Backpropagation goes through K updates in either case. Nothing
    that is returned has a graph: neither `x` nor `w` is changed, and memory does not grow with
    meta-steps. With L = 1 and the squared distance, BMG is MG times the step size of the last step.

    Raises ValueError for K or L below 1, losses that are not (S,), and an update that does not depend
    on w. Source: arXiv 2109.04504, equations 2 and 3.

    >>> update = lambda x, w, k: x - w * x  # gradient descent on x^2 / 2, with the rate w
    >>> x, w = torch.ones(1), torch.full((1,), 0.5)
    >>> meta_gradient(update, x, w, 1, objective=lambda x: x.square() / 2).gradient
    tensor([-0.5000])
    >>> meta_gradient(update, x, w, 1, 1, ground_truth_step=lambda x, k: x - 0.1 * x).gradient
    tensor([-0.0500])
    """
    K = check_whole("K", K)
    if L is None and objective is None:
        raise ValueError("objective: got None, wanted a function of the state for MG (L is None)")
    if L is not None and ground_truth_step is None:
        raise ValueError("ground_truth_step: got None, wanted a step on the real objective for BMG")
    x = detached(x)
    with torch.enable_grad():
        w = nest(lambda t: t.detach().requires_grad_(), w)
        student = unroll(update, x, w, K, first)[-1]
        boot = None
        if L is not None:
            boot = bootstrap_target(update, ground_truth_step, student, w, L, first + K)
        losses = objective(student) if L is None else matching(boot.target, student)
        lifetimes = len(leaves(x)[0])
        if losses.shape != (lifetimes,):
            name = "objective" if L is None else "matching"
            raise ValueError(f"{name}: got losses {tuple(losses.shape)}, wanted ({lifetimes},)")
        if not losses.requires_grad:
            raise ValueError("update: its result does not depend on w")
        found = torch.autograd.grad(losses.sum(), leaves(w), allow_unused=True)
    if any(g is None for g in found):
        raise ValueError("update: its result does not depend on every leaf of w")
    gradients = iter(found)
    onward = detached(student) if boot is None else boot.onward
    return Meta(nest(lambda t: next(gradients), w), losses.detach(), onward,
                None if boot is None else boot.target)  # fmt: skip


def coefficient_gradient(student, direction, target, matching=squared_distance):
    """d mu / d eps for one update x^(1) = base + eps * direction: (S,), and the matching (S,).

    d mu(x~, x^(1)) / d eps = < grad_x mu(x~, x)|_{x^(1)}, direction >

    An entropy bonus enters an update like this: direction = - alpha grad L_ent(x^(0)), which the update
    has computed anyway. So no graph through the update is needed; the chain rule through eps(w) is the
    caller's. student: x^(1); direction, target: like it, nests of (S, ...).

    Raises ValueError for a direction of other shapes, or a matching that is not (S,).

    >>> x, away, target = torch.ones(1, 2), torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
    >>> coefficient_gradient(x, away, target)
    (tensor([1.]), tensor([1.]))
    """
    _check_alike("direction", leaves(direction), leaves(student))
    with torch.enable_grad():
        student = nest(lambda t: t.detach().requires_grad_(), student)
        losses = matching(detached(target), student)
        lifetimes = len(leaves(student)[0])
        if losses.shape != (lifetimes,):
            raise ValueError(f"matching: got losses {tuple(losses.shape)}, wanted ({lifetimes},)")
        if not losses.requires_grad:
            raise ValueError("matching: its result does not depend on the student")
        slopes = torch.autograd.grad(losses.sum(), leaves(student), allow_unused=True)
    parts = [(g * d).reshape(lifetimes, -1).sum(1)
             for g, d in zip(slopes, leaves(direction), strict=True) if g is not None]  # fmt: skip
    return sum(parts), losses.detach()


def meta_step(optimiser, w, update, x, K, L=None, **settings):
    """One step of a torch optimiser that holds the leaves of w; returns the `Meta` of `meta_gradient`.

    The lifetime goes on from `onward`: x after K + L - 1 updates of BMG, after K of MG.

    Raises ValueError where the optimiser does not hold every leaf of w.

    >>> w = torch.full((1,), 0.5, requires_grad=True)
    >>> sgd = torch.optim.SGD([w], lr=1.0)
    >>> done = meta_step(sgd, w, lambda x, w, k: x - w * x, torch.ones(1), 1,
    ...                  objective=lambda x: x.square() / 2)
    >>> w, done.onward
    (tensor([1.], requires_grad=True), tensor([0.5000]))
    """
    held = {id(p) for group in optimiser.param_groups for p in group["params"]}
    if not all(id(leaf) in held for leaf in leaves(w)):
        raise ValueError("optimiser: does not hold every leaf of w, wanted one made of them")
    found = meta_gradient(update, x, w, K, L, **settings)
    for leaf, gradient in zip(leaves(w), leaves(found.gradient), strict=True):
        leaf.grad = gradient
    optimiser.step()
    optimiser.zero_grad()
    return found


def detached(state):
    """A nest without its graph."""
    return nest(torch.Tensor.detach, state)


def _check_alike(name, target, x):
    got, wanted = [tuple(t.shape) for t in target], [tuple(t.shape) for t in x]
    if got != wanted:
        raise ValueError(f"{name}: got {got}, wanted the shapes of the student, {wanted}")


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

    >>> from collage.actors import ColourLearner
    >>> from collage.gridworlds import TwoColours
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


class Captured:
    """Meta-steps with Adam on buffers of their own; on a GPU a whole one is recorded as a CUDA graph.

    w <- Adam(w, grad_w mu(x~, x^(1)(w))),    life <- onward

    life and w as for `colour_step`, copied, and L and bonus, too; lr of Adam. `run(n)` makes n meta-steps
    and returns nothing. `life`, `w` and the last `losses` (S,) are what it works on: read them between
    runs, write them in place, never replace them. graph: whether to record (None: on a GPU). The
    recording is made at the first run and moves nothing; the same generator gives the same draws as
    without it. It keeps the learner's settings as they are then.

    Raises ValueError for a graph off the GPU.

    >>> from collage.actors import ColourLearner
    >>> from collage.gridworlds import TwoColours
    >>> learner = ColourLearner(TwoColours(see="ways"), 2, torch.Generator().manual_seed(0))
    >>> steps = Captured(learner, learner.begin(), learner.start_meta(), L=3)
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
        self.adam = torch.optim.Adam(self.w, check_positive("lr", lr), capturable=self.records)
        self.graph = self.kept = None

    def run(self, n=1):
        if self.records and self.graph is None:
            self._record()
        for _ in range(check_whole("n", n, 0)):
            self.graph.replay() if self.records else self._step()

    def _step(self):
        found = colour_step(self.learner, self.life, self.w, self.L, self.bonus)
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
        with torch.cuda.stream(side), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Adam wonders that it is not being recorded yet
            for _ in range(2):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
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
