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
meta_step            the same as meta_gradient, and a step of an optimiser

Every tensor has a leading axis of S independent lifetimes. x and w may be nests of tensors (tuples,
lists, dicts). Source: Flennerhag et al. 2021 (arXiv 2109.04504).
"""

from typing import Any, NamedTuple

import torch

from collage.common.checks import check_finite, check_shape, check_whole
from collage.common.populations import leaves, nest


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
    target = ground_truth_step(onward, first + steps - 1)
    return Bootstrap(detached(target), detached(onward))


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
        check_shape("objective" if L is None else "matching", losses, (len(leaves(x)[0]),))
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
        check_shape("matching", losses, (lifetimes,))
        if not losses.requires_grad:
            raise ValueError("matching: its result does not depend on the student")
        slopes = torch.autograd.grad(losses.sum(), leaves(student), allow_unused=True)
    parts = [(g * d).reshape(lifetimes, -1).sum(1)
             for g, d in zip(slopes, leaves(direction), strict=True) if g is not None]  # fmt: skip
    return sum(parts), losses.detach()


def meta_step(optimiser, w, update, x, K, L=None, **settings):
    """One step of a torch optimiser that holds the leaves of w; returns the `Meta` of `meta_gradient`.

    The lifetime goes on from `onward`: x after K + L - 1 updates of BMG, after K of MG.

    Raises ValueError where the optimiser does not hold every leaf of w, and for a meta-gradient that is
    not finite (an inner Adam does that where a coordinate's gradients are all zero: the slope of a
    square root at zero); w and the optimiser's state are then as they were.

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
    check_finite("meta-gradient", leaves(found.gradient))
    for leaf in leaves(w):
        leaf.grad = None
    try:
        for leaf, gradient in zip(leaves(w), leaves(found.gradient), strict=True):
            leaf.grad = (
                gradient if leaf.grad is None else leaf.grad + gradient
            )  # w may hold it twice
        optimiser.step()
    finally:
        optimiser.zero_grad()
    return found


def detached(state):
    """A nest without its graph."""
    return nest(torch.Tensor.detach, state)


def _check_alike(name, target, x):
    got, wanted = [tuple(t.shape) for t in target], [tuple(t.shape) for t in x]
    if got != wanted:
        raise ValueError(f"{name}: got {got}, wanted the shapes of the student, {wanted}")
