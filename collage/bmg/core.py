"""Bootstrapped meta-learning: meta-parameters learn from where the learner will be.

A learner x is moved by an update rule with meta-parameters w. Plain meta-gradients (MG) ask what K
updates did for the objective, and differentiate through all of them. Bootstrapping (BMG) runs L
updates more, without a graph, takes the result for a target, and asks how w should have been for the
K updates to come nearer to it.

unroll                K updates, differentiable in w
bootstrap_target      L - 1 updates more and one step on the real objective, all detached
squared_distance      matching in parameter space
policy_kl             matching of policies, the target first
meta_gradient         of w, for MG or BMG with any K and L
coefficient_gradient  for K = 1 and an additive term, without a second backward pass

Every tensor has a leading axis of S independent lifetimes. x and w may be nests of tensors (tuples,
lists, dicts). Source: Flennerhag et al. 2021 (arXiv 2109.04504).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from collage.common.checks import check_shape, check_whole
from collage.common.populations import tree_leaves, tree_map

Nest = Any  # a tensor (S, ...), or tuples, lists and dicts of such
Update = Callable[[Nest, Nest, int], Nest]  # (x, w, k) -> x, k being the number of the step
GroundTruthStep = Callable[[Nest, int], Nest]  # (x, k) -> x
Objective = Callable[[Nest], Tensor]  # x -> (S,)
Matching = Callable[[Nest, Nest], Tensor]  # (target, x) -> (S,)


def unroll(update: Update, x: Nest, w: Nest, steps: int) -> list[Nest]:
    """States [x_0, x_1, ..., x_K] of K updates: x_{k+1} = update(x_k, w, k).

    The third argument tells the update which step it is, so that it can look up its data or its
    noise. The states are functions of w, with a graph. Raises ValueError for fewer than one step.

    >>> [x.item() for x in unroll(lambda x, w, k: x - w * x, torch.ones(1), torch.full((1,), 0.5), 2)]
    [1.0, 0.5, 0.25]
    """
    states = [x]
    for k in range(check_whole("steps", steps)):
        states.append(update(states[-1], w, k))
    return states


class Bootstrap(NamedTuple):
    """Where the learner will be."""

    target: Nest  # after L - 1 updates and one step on the real objective
    onward: Nest  # after the L - 1 updates: where the lifetime goes on


@torch.no_grad()
def bootstrap_target(
    update: Update, ground_truth_step: GroundTruthStep, x: Nest, w: Nest, steps: int, first: int = 0
) -> Bootstrap:
    """The target of x = x^(K): L - 1 updates with the same w, then one step on the real objective.

    x~ = x^(K+L-1) - alpha grad f(x^(K+L-1))

    ground_truth_step(x, k) takes the last step; without it the learner would be asked to match its own
    habits. Nothing of this is differentiated; an update may take gradients of its own, with
    `torch.func.grad`, here, too. Returns a `Bootstrap`; its `onward` is x^(K+L-1), not the target.

    Raises ValueError for L below 1. Source: arXiv 2109.04504, section 3.

    >>> half = lambda x, w, k: x - w * x
    >>> bootstrap_target(half, lambda x, k: x - 0.1 * x, torch.ones(1), torch.full((1,), 0.5), 2)
    Bootstrap(target=tensor([0.4500]), onward=tensor([0.5000]))
    """
    last = first + check_whole("L", steps) - 1
    onward, w = detached(x), detached(w)
    for k in range(first, last):  # not by `unroll`, which keeps every state
        onward = update(onward, w, k)
    target = ground_truth_step(onward, last)
    return Bootstrap(detached(target), detached(onward))


def squared_distance(target: Nest, x: Nest) -> Tensor:
    """Half the squared distance of two states, (S,): 1/2 |x~ - x|^2, over all leaves of floats.

    Raises ValueError for states of different shapes.

    >>> squared_distance(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([2.5000])
    """
    a, b = ([t for t in tree_leaves(state) if t.is_floating_point()] for state in (target, x))
    _check_alike("target", a, b)
    parts = [_sum((p - q).square()) for p, q in zip(a, b, strict=True)]
    return sum(parts, torch.zeros(())) / 2


def policy_kl(target: Tensor, logits: Tensor) -> Tensor:
    """KL(target || student) of categorical policies, summed over states: (S, ..., A) -> (S,).

    sum_s sum_a p~(a|s) (log p~(a|s) - log p(a|s)),    p~, p the softmax of target and logits

    The target comes first (arXiv 2109.04504, section 5). The gradient with respect to the student's
    logits is p - p~: where the target is sure, the student is pulled hard. Raises ValueError for
    logits of different shapes.

    >>> policy_kl(torch.zeros(1, 1, 2), torch.tensor([[[0.0, 1.0986123]]]))
    tensor([0.1438])
    """
    _check_alike("target", [target], [logits])
    p, q = target.log_softmax(-1), logits.log_softmax(-1)
    # What the target never does (a logit of -inf) adds nothing.
    gap = torch.where(p == -torch.inf, 0, p - q)
    return _sum(p.exp() * gap)


class Meta(NamedTuple):
    """A meta-gradient, and where the lifetime goes on."""

    gradient: Nest  # like w
    losses: Tensor  # (S,): the matching, or the objective
    onward: Nest  # the state to go on from
    target: Nest  # of BMG; None for MG


def meta_gradient(
    update: Update,
    x: Nest,
    w: Nest,
    K: int,
    L: int | None = None,
    *,
    objective: Objective | None = None,
    ground_truth_step: GroundTruthStep | None = None,
    matching: Matching = squared_distance,
) -> Meta:
    """The gradient of the meta-parameters, for each lifetime.

    MG   (L None):    grad_w f(x^(K)(w))
    BMG  (L >= 1):    grad_w mu(x~, x^(K)(w)),   x~ of `bootstrap_target`, detached

    MG wants an objective; BMG wants ground_truth_step and matching. Backpropagation goes through K
    updates in either case. Nothing that is returned has a graph: neither `x` nor `w` is changed, and
    memory does not grow with meta-steps. With L = 1 and the squared distance, BMG is MG times the step
    size of the last step.

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
    if L is None:
        goal = _given("objective", objective, "a function of the state, for MG (L is None)")
    else:
        goal = _given("ground_truth_step", ground_truth_step, "a step on the objective, for BMG")
    with torch.enable_grad():
        w = tree_map(lambda t: t.detach().requires_grad_(), w)
        student = unroll(update, detached(x), w, K)[-1]
        if L is None:
            target, onward, losses = None, student, goal(student)
        else:
            target, onward = bootstrap_target(update, goal, student, w, L, K)
            losses = matching(target, student)
        name, lifetimes = "objective" if L is None else "matching", len(tree_leaves(student)[0])
        check_shape(name, losses, (lifetimes,))
        gradient = _gradient(losses, w)
    return Meta(gradient, losses.detach(), detached(onward), target)


def coefficient_gradient(
    student: Nest, direction: Nest, target: Nest, matching: Matching = squared_distance
) -> tuple[Tensor, Tensor]:
    """d mu / d eps for one update x^(1) = base + eps * direction: (S,), and the matching (S,).

    d mu(x~, x^(1)) / d eps = < grad_x mu(x~, x)|_{x^(1)}, direction >

    An entropy bonus enters an update like this: direction = alpha grad H(x^(0)), which the update has
    computed anyway. So no graph through the update is needed; the chain rule through eps(w) is the
    caller's. student: x^(1); direction, target: like it, nests of (S, ...).

    Raises ValueError for a direction of other shapes, or a matching that is not (S,).

    >>> x, away, target = torch.ones(1, 2), torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
    >>> coefficient_gradient(x, away, target)
    (tensor([1.]), tensor([1.]))
    """
    _check_alike("direction", tree_leaves(direction), tree_leaves(student))
    with torch.enable_grad():
        student = tree_map(lambda t: t.detach().requires_grad_(), student)
        losses = matching(detached(target), student)
        check_shape("matching", losses, (len(tree_leaves(student)[0]),))
        if not losses.requires_grad:
            raise ValueError("matching: its result does not depend on the student")
        slopes = torch.autograd.grad(losses.sum(), tree_leaves(student), allow_unused=True)
    pairs = zip(slopes, tree_leaves(direction), strict=True)
    parts = [_sum(g * d) for g, d in pairs if g is not None]
    return sum(parts, torch.zeros(())), losses.detach()


def detached(state: Nest) -> Nest:
    """A nest without its graph."""
    return tree_map(torch.Tensor.detach, state)


def _sum(t: Tensor) -> Tensor:
    """Over all but the leading axis: (S, ...) -> (S,)."""
    return t.reshape(len(t), -1).sum(1)


def _gradient(losses: Tensor, w: Nest) -> Nest:
    """Of losses (S,), like w."""
    if not losses.requires_grad:
        raise ValueError("update: its result does not depend on w")
    slopes = torch.autograd.grad(losses.sum(), tree_leaves(w), allow_unused=True)
    if any(g is None for g in slopes):
        raise ValueError("update: its result does not depend on every leaf of w")
    gradients = iter(slopes)
    return tree_map(lambda _: next(gradients), w)


def _given(name: str, function: Callable | None, purpose: str) -> Callable:
    if function is None:
        raise ValueError(f"{name}: got None, wanted {purpose}")
    return function


def _check_alike(name: str, tensors: list[Tensor], student: list[Tensor]) -> None:
    got, wanted = ([tuple(t.shape) for t in side] for side in (tensors, student))
    if got != wanted:
        raise ValueError(f"{name}: got {got}, wanted the shapes of the student, {wanted}")
