"""Ridge Rider: diverse solutions by following directions of negative curvature (arXiv 2011.06505).

A ridge at a point is an eigenvector of the Hessian with a negative eigenvalue: a direction in which
the loss bends down. A ride leaves along a ridge and, after each step, turns to the eigenvector that
continues it; it ends where the curvature is no longer negative. From there other ridges leave.

ride         many rides at once, each with a step of its own
turn         the eigenspaces that continue B directions
spectrum     eigenpairs of the Hessian at B points

A loss maps one flat point (P,) to a scalar; everything here maps it over many points (torch.func).
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jacrev, vjp, vmap

from collage.common.checks import check_finite, check_real, check_shape, check_single, check_whole
from collage.common.networks import frozen_batch_statistics

Loss = Callable[[Tensor], Tensor]

DENSE = 256  # up to so many parameters the whole Hessian costs less than products with it
DEPTH = 6  # products with the Hessian in each step of larger problems
SAME = 1e-3  # two eigenvalues are one where they differ by less than this part of the larger
LEAST = 0.9  # a step is taken back where the overlap <e, e'> is less
SHORTEST = 1e-3  # the part of the full step below which a step is not halved again
FLAT = 1e-3  # a ride ends where its eigenvalue is less than this part of the first
ENDED = ("riding", "curvature", "steps", "loss", "overlap")  # how a ride ended
RIDING, CURVATURE, STEPS, LOSS, OVERLAP = range(5)


class Rides(NamedTuple):
    """Where B rides ended, and how they went: t = 0 ... T counts the rounds of the whole batch."""

    thetas: Tensor  # (B, P)
    directions: Tensor  # (B, P), the ridge at the end
    values: Tensor  # (B,), its eigenvalue
    steps: Tensor  # (B,), accepted steps
    tries: Tensor  # (B,), steps with those taken back: each cost one look at the Hessian
    ended: list[str]  # (B,), "curvature", "steps", "loss" or "overlap"; the first that holds
    losses: Tensor  # (T + 1, B); rows where a ride stood still repeat
    overlaps: Tensor  # (T, B), 1 where a ride stood still
    path: Tensor | None  # (T + 1, B, P) with keep=True


@frozen_batch_statistics()
def ride(
    loss: Loss,
    thetas: Tensor,  # (B, P), or (P,) for all
    directions: Tensor,  # (B, P), turned to the nearest ridge at the start
    step: float = 0.1,
    *,
    most: int = 1000,
    keep: bool = False,
) -> Rides:
    """Ride B ridges at once: from thetas along directions.

    theta' = theta + alpha e,  e' = e projected on the eigenspace of H(theta') that holds most of it

    The step length alpha is `step` at first. A step is taken back and alpha halved when the overlap
    <e, e'> is below 0.9; after good steps alpha grows again, up to `step`.
    A ride ends when its eigenvalue is above -0.001 times the first one ("curvature"), after `most`
    steps ("steps"), when a step of 0.001 `step` still turns too far ("overlap"), or when the loss
    is no longer finite ("loss"); it then keeps its last good point. keep=True returns the path.
    Beyond 256 parameters H is seen only through products with it: see `spectrum`.

    Raises ValueError for shapes that do not match, NaN or inf, and directions of length zero.

    >>> rides = ride(lambda t: t[0] ** 2 - t[1] ** 2 + t[1] ** 4, torch.zeros(2), torch.eye(2)[1:])
    >>> rides.ended, round(rides.thetas[0, 1].item(), 1)
    (['curvature'], 0.5)
    """
    theta, e = _check_rides(thetas, directions)
    step, most = check_single("step", step), check_whole("most", most)
    losses, overlaps, path = [check_points(loss, theta)], [], [theta.clone()]
    dimension = torch.full(theta.shape[:1], theta.shape[1], device=theta.device)
    e, value, _, dimension = turn(e, *spectrum(loss, theta, e), dimension)
    check_finite("loss: its Hessian at thetas", value)
    limit, alpha = -FLAT * value.abs(), torch.full_like(value, step)
    ended = torch.where(value < limit, RIDING, CURVATURE)
    steps, tries = torch.zeros_like(ended), torch.ones_like(ended)
    if flat := int((ended == CURVATURE).sum()):
        text = f"ride: {flat} of {len(theta)} have no negative curvature at their start, stay there"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    while len(alive := (ended == RIDING).nonzero()[:, 0]):  # finished rides leave the batch
        # The paper's update: theta', its loss, and e turned to the ridge there.
        new = theta[alive] + alpha[alive, None] * e[alive]
        height, pairs = vmap(loss)(new), spectrum(loss, new, e[alive])
        turned, curvature, overlap, split = turn(e[alive], *pairs, dimension[alive])
        # A step that turns too far is taken back: a shorter one may do.
        finite = height.isfinite() & turned.isfinite().all(1)
        good = finite & (overlap >= LEAST)
        moved = alive[good]
        theta[moved], e[moved], value[moved] = new[good], turned[good], curvature[good]
        dimension[moved] = split[good]
        steps[moved] += 1
        tries[alive] += 1
        alpha[alive] = torch.where(good, (1.5 * alpha[alive]).clamp(max=step), alpha[alive] / 2)
        # Why a ride ends, if it does: the last reason that holds counts.
        reason = torch.where(~good & (alpha[alive] < SHORTEST * step), OVERLAP, RIDING)
        reason = torch.where(~finite, LOSS, reason)
        reason = torch.where(good & (steps[alive] >= most), STEPS, reason)
        ended[alive] = torch.where(good & (curvature > limit[alive]), CURVATURE, reason)
        if len(moved):
            losses.append(losses[-1].index_copy(0, moved, height[good]))
            overlaps.append(torch.ones_like(value).index_copy(0, moved, overlap[good]))
            path += [theta.clone()] if keep else []
    names = [ENDED[code] for code in ended.tolist()]
    turns = torch.stack(overlaps) if overlaps else theta.new_zeros(0, len(theta))
    points = torch.stack(path) if keep else None
    return Rides(theta, e, value, steps, tries, names, torch.stack(losses), turns, points)


def turn(
    e: Tensor,  # (B, P)
    values: Tensor,  # (B, n), ascending
    vectors: Tensor,  # (B, P, n)
    dimension: Tensor,  # (B,), of the eigenspace that e comes from
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Turn unit directions e to the eigenspaces that hold most of them.

    e' = V V^T e / |V V^T e|,  V the eigenvectors of the space with the largest |V^T e|

    With one eigenvector v to a space, as in the paper, e' is the v of the largest |<e, v>|, turned
    to e. Returns e', its eigenvalue, the overlap <e, e'> and the dimension of its space. Where the
    space of m dimensions that e comes from has split, the overlap counts the m vectors nearest to e.

    >>> e, values = torch.tensor([[0.6, 0.8]]), torch.tensor([[-2.0, 1.0]])
    >>> turn(e, values, torch.eye(2)[None], torch.tensor([1]))[:3]
    (tensor([[0., 1.]]), tensor([1.]), tensor([0.8000]))
    """
    shares = torch.einsum("bp,bpn->bn", e, vectors)
    space = eigenspaces(values)
    weights = torch.zeros_like(shares).scatter_add(1, space, shares.square())
    largest, best = weights.max(1, keepdim=True)
    inside = space == best
    turned = torch.einsum("bpn,bn->bp", vectors, shares * inside)
    value = (values * shares.square() * inside).sum(1) / largest[:, 0]
    nearest = shares.square().sort(1, descending=True)[0].cumsum(1)
    pieces = nearest.gather(1, dimension[:, None].clamp(max=nearest.shape[1]) - 1)
    overlap = torch.maximum(pieces, largest).sqrt()[:, 0]
    return turned / turned.norm(dim=1, keepdim=True), value, overlap, inside.sum(1)


def eigenspaces(values: Tensor) -> Tensor:
    """Number the spaces of ascending eigenvalues (..., n): those too close to tell apart share one.

    >>> eigenspaces(torch.tensor([-2.0, -1.0001, -1.0, 3.0]))
    tensor([0, 1, 1, 2])
    """
    size = values.abs()
    close = SAME * torch.maximum(size[..., 1:], size[..., :-1])
    rounding = 10 * torch.finfo(values.dtype).eps * size.amax(-1, keepdim=True)
    return F.pad((values.diff(dim=-1) > torch.maximum(close, rounding)).cumsum(-1), (1, 0))


def spectrum(loss: Loss, thetas: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (B, n), ascending, and eigenvectors (B, P, n) of the Hessians at thetas (B, P).

    All of them up to 256 parameters; beyond, those within the Krylov space of e (B, P), the span of
    e, H e, ..., H^5 e. Of an eigenspace it holds a single direction: that of e.
    """
    if thetas.shape[1] <= DENSE:
        return eigenpairs(vmap(jacrev(grad(loss)))(thetas))
    Q, HQ = vmap(lambda theta, e: _krylov(loss, theta, e))(thetas, e)
    values, rotation = eigenpairs(Q @ HQ.mT)
    return values, Q.mT @ rotation


def _krylov(loss: Loss, theta: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis Q (n, P) of the Krylov space of e at theta (P,), and Q H."""
    product = vjp(grad(loss), theta)[1]  # one graph of the gradient for all products
    rows, images = [e], [product(e)[0]]
    while len(rows) < min(DEPTH, len(theta)):
        Q, w = torch.stack(rows), images[-1]
        for _ in range(2):
            w = w - (Q @ w) @ Q
        rows.append(w / w.norm().clamp(min=torch.finfo(w.dtype).tiny))
        images.append(product(rows[-1])[0])
    return torch.stack(rows), torch.stack(images)


def eigenpairs(H: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenpairs of matrices (..., n, n); NaN where one is not finite, which eigh refuses."""
    finite = H.isfinite().all(-1).all(-1)[..., None, None]
    values, vectors = torch.linalg.eigh(torch.where(finite, (H + H.mT) / 2, 0.0))
    return values.where(finite[..., 0], torch.nan), vectors.where(finite, torch.nan)


def check_points(loss: Loss, thetas: Tensor) -> Tensor:
    """The losses (B,) at thetas (B, P), which must be scalars and finite; else ValueError."""
    if thetas.dim() != 2:
        raise ValueError(f"thetas: got {tuple(thetas.shape)}, wanted (B, P)")
    check_real("thetas", thetas.dtype)
    check_finite("thetas", thetas)
    losses = vmap(loss)(thetas).detach()
    check_shape("loss", losses, thetas.shape[:1])
    check_finite("loss", losses)
    return losses


def _check_rides(thetas: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Points (B, P) and unit directions (B, P); ValueError for those that are none."""
    theta = torch.as_tensor(thetas).detach()
    check_real("thetas", theta.dtype)
    e = torch.as_tensor(directions).detach().to(theta)
    length = e.norm(dim=-1, keepdim=True)
    if e.dim() != 2 or not bool(((length > 0) & length.isfinite()).all()):
        raise ValueError(f"directions: got {tuple(e.shape)}, wanted finite (B, P), none zero")
    if theta.shape not in (e.shape, e.shape[1:]):
        raise ValueError(f"thetas: got {tuple(theta.shape)}, wanted {tuple(e.shape)} or (P,)")
    return theta.expand_as(e).clone(memory_format=torch.contiguous_format), e / length
