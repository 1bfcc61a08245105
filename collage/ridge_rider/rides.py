"""Ridge Rider: diverse solutions by following directions of negative curvature (arXiv 2011.06505).

A ridge at a point is an eigenvector of the Hessian with a negative eigenvalue: a direction in which
the loss bends down. A ride leaves along a ridge and, after each step, turns to the eigenvector that
continues it; it ends where the curvature is no longer negative. From there other ridges leave.

ridges      the most negative eigenpairs at a point
ride        many rides at once, each with a step of its own
descend     plain gradient descent of many points, to polish where rides end

A loss maps one flat point (P,) to a scalar; everything here maps it over many points (torch.func).
"""

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.func import grad, jacrev, vjp, vmap

from collage.common.checks import check_real, check_single, check_whole
from collage.common.curvature import hvp, lanczos
from collage.common.networks import only_looking

DENSE = 256  # up to so many parameters the whole Hessian costs less than products with it


class Ridges(NamedTuple):
    """k directions of negative curvature, most negative first."""

    values: torch.Tensor  # (k,) eigenvalues, all negative
    vectors: torch.Tensor  # (k, P) unit vectors, the largest component positive
    residuals: torch.Tensor  # (k,) ||H e - value e||
    spaces: torch.Tensor  # (k,) 0, 0, 1, ...: the number of the eigenspace each belongs to


@only_looking
def ridges(loss, theta, k=None, *, same=1e-3, tol=1e-6, steps=None, block=1, distinct=False,
           generator=None):  # fmt: skip
    """The k most negative eigenpairs of the Hessian at theta (P,).

    H e_i = lambda_i e_i,  lambda_1 <= lambda_2 <= ... < 0

    Without k all of them, for at most 256 parameters. Up to there the Hessian is computed whole,
    beyond by Lanczos from a block of so many vectors (which finds multiplicities up to `block`).
    distinct=True: one vector of each eigenspace, instead of all.
    An eigenvalue is negative below -tol times the largest magnitude found. Where there is none the
    result is empty, with a RuntimeWarning. Eigenvalues within `same` (relative) share a space:
    within it the vectors are no more than some basis, so compare spaces, never vectors.

    Raises ValueError for a loss that is no scalar, NaN or inf, for a theta of wrong shape, and for
    k beyond P. Lanczos warns of pairs that have not converged.

    >>> found = ridges(lambda t: t[0] ** 2 - t[1] ** 2, torch.zeros(2))
    >>> found.values, found.vectors
    (tensor([-2.]), tensor([[0., 1.]]))
    """
    theta = torch.as_tensor(theta).detach()
    if theta.dim() != 1:
        raise ValueError(f"theta: got {tuple(theta.shape)}, wanted (P,)")
    size = len(theta)
    check_points(loss, theta[None])
    if k is None and size > DENSE:
        raise ValueError(f"k: got None for {size} parameters, wanted a number beyond {DENSE}")
    k = size if k is None else check_whole("k", k)
    if k > size:
        raise ValueError(f"k: got {k}, wanted at most {size}, the number of parameters")
    if size <= DENSE:
        H = jacrev(grad(loss))(theta)
        if not bool(H.isfinite().all()):
            raise ValueError("loss: its Hessian at theta has NaN or inf, wanted finite values")
        size = H.abs().max().clamp(min=torch.finfo(H.dtype).tiny)  # its square may overflow
        H = H / size
        values, vectors = torch.linalg.eigh((H + H.mT) / 2)
        vectors = vectors.mT
        residuals = (vectors @ H - values[:, None] * vectors).norm(dim=1) * size
        values = values * size
    else:
        values, vectors, residuals, _ = lanczos(
            hvp(loss, theta), size, k, "SA", tol=tol, steps=steps, block=block, distinct=distinct,
            generator=generator, dtype=theta.dtype, device=theta.device)  # fmt: skip
    # Beyond DENSE the largest of k values may itself be rounding: the residual says how much it is.
    chosen = (values < -tol * values.abs().max()) & (values < -residuals)
    if not bool(chosen.any()):
        warnings.warn("ridges: no negative curvature here, nothing to ride", RuntimeWarning,
                      stacklevel=2)  # fmt: skip
    new = torch.ones_like(chosen)  # does an eigenspace begin here?
    new[1:] = values[1:] - values[:-1] > same * values[:-1].abs()
    spaces = new.long().cumsum(0) - 1
    if distinct:
        found = int((chosen & new).sum())
        if size > DENSE and found < k and not bool(new[chosen].all()):
            warnings.warn(f"ridges: {found} distinct eigenvalues of {k}, then copies; a larger tol or "
                          "float64 finds more", RuntimeWarning, stacklevel=2)  # fmt: skip
        chosen &= new
    values, vectors, residuals, spaces = (
        t[chosen][:k] for t in (values, vectors, residuals, spaces)
    )
    # One sign for each: the first of its largest components is positive.
    large = vectors.abs() >= (1 - 1e-4) * vectors.abs().amax(1, keepdim=True)
    vectors = vectors * vectors.gather(1, large.int().argmax(1, keepdim=True)).sign()
    return Ridges(values, vectors, residuals, spaces)


class Rides(NamedTuple):
    """Where B rides ended, and how they went: t = 0 ... T counts the rounds of the whole batch."""

    thetas: torch.Tensor  # (B, P)
    directions: torch.Tensor  # (B, P), the ridge at the end
    values: torch.Tensor  # (B,), its eigenvalue
    steps: torch.Tensor  # (B,), accepted steps
    tries: torch.Tensor  # (B,), steps with those taken back: each cost one look at the Hessian
    ended: list  # (B,) of str: "curvature", "steps", "overlap" or "loss"
    losses: torch.Tensor  # (T + 1, B); rows where a ride stood still repeat
    curvatures: torch.Tensor  # (T + 1, B), the eigenvalue of the ridge
    overlaps: torch.Tensor  # (T, B), 1 where a ride stood still
    path: torch.Tensor | None  # (T + 1, B, P) with keep=True


@only_looking
def ride(loss, thetas, directions, step=0.1, *, least=0.9, shortest=1e-3, most=1000, same=1e-3,
         tol=1e-3, depth=6, dense=None, keep=False):  # fmt: skip
    """Ride B ridges at once: theta <- theta + step e, and e turns to the ridge that continues it.

    e' = the unit projection of e on the eigenspace of H(theta + step e) that holds most of it

    Eigenvalues within `same` (relative) are one space, so neither the basis nor the signs an
    eigensolver returns matter. Where a space of m equal eigenvalues splits, e goes on along the
    part that holds most of it. A step is taken back and halved when less than `least` of e is left
    in the m eigenvectors nearest to it (m = 1: the plain overlap |<e, e'>|); after good steps the
    step grows again, up to `step`.

    A ride ends when its eigenvalue is above -tol times the first one ("curvature"), after `most`
    steps ("steps"), when a step of step * shortest still turns too far ("overlap"), or when the loss
    is no longer finite ("loss"); it then keeps its last good point.

    loss: (P,) -> scalar. thetas (B, P), or (P,) for all; directions (B, P), turned to the nearest
    ridge at the start. dense: whole Hessians (the default up to 256 parameters); else e turns within
    the space of e, H e, ..., `depth` products with the Hessian of each step. keep=True returns the
    whole path.

    Raises ValueError for shapes that do not match, NaN or inf in the loss or its Hessian, or
    directions of length zero.

    >>> rides = ride(lambda t: t[0] ** 2 - t[1] ** 2 + t[1] ** 4, torch.zeros(2), torch.eye(2)[1:])
    >>> rides.ended, round(rides.thetas[0, 1].item(), 1)
    (['curvature'], 0.5)
    """
    e, x = torch.as_tensor(directions).detach(), torch.as_tensor(thetas).detach()
    if x.is_floating_point():
        e = e.to(x)
    if (
        e.dim() != 2
        or not e.is_floating_point()
        or not bool((e.norm(dim=1) > 0).all() and e.isfinite().all())
    ):
        raise ValueError(
            f"directions: got {tuple(e.shape)}, wanted finite (B, P), none of them zero"
        )
    if x.shape not in (e.shape, e.shape[1:]):
        raise ValueError(f"thetas: got {tuple(x.shape)}, wanted {tuple(e.shape)} or (P,)")
    step, most = check_single("step", step), check_whole("most", most)
    if not 0 < least <= 1:
        raise ValueError(f"least: got {least!r}, wanted a number in (0, 1]")
    x, e = x.expand_as(e).clone(), e / e.norm(dim=1, keepdim=True)
    now = check_points(loss, x.contiguous())
    dense = x.shape[1] <= DENSE if dense is None else dense
    depth = min(check_whole("depth", depth, 2), x.shape[1])
    spectrum = _whole(loss) if dense else _krylov(loss, depth)
    everyone = torch.arange(len(x), device=x.device)
    everything = torch.full_like(everyone, x.shape[1])
    e, value, _, many = _turn(e, *spectrum(x, e), everything, same)
    if not bool(value.isfinite().all()):
        raise ValueError("loss: its Hessian at thetas has NaN or inf, wanted finite values")
    limit = -tol * value.abs()
    ended = ["steps" if bends else "curvature" for bends in (value < limit).tolist()]
    if "curvature" in ended:
        warnings.warn(f"ride: {ended.count('curvature')} of {len(x)} have no negative curvature at "
                      "their start and stay there", RuntimeWarning, stacklevel=2)  # fmt: skip
    alive, size = everyone[value < limit], torch.full_like(value, step)
    count, tries = torch.zeros_like(everyone), torch.ones_like(everyone)
    losses, curvatures, overlaps, path = [now], [value.clone()], [], [x.clone()]
    while len(alive):
        new = x[alive] + size[alive, None] * e[alive]
        now = vmap(loss)(new)
        turned, bent, overlap, split = _turn(e[alive], *spectrum(new, e[alive]), many[alive], same)
        finite = now.isfinite() & turned.isfinite().all(1)
        good = finite & (overlap >= least)
        kept = alive[good]
        x[kept], e[kept], value[kept], many[kept] = new[good], turned[good], bent[good], split[good]
        count[kept] += 1
        tries[alive] += 1
        size[alive] = torch.where(good, (1.5 * size[alive]).clamp(max=step), size[alive] / 2)
        if len(kept):
            losses.append(losses[-1].index_copy(0, kept, now[good]))
            curvatures.append(value.clone())
            overlaps.append(torch.ones_like(value).index_copy(0, kept, overlap[good]))
            path += [x.clone()] if keep else []
        reasons = {"curvature": good & (bent > limit[alive]), "steps": good & (count[alive] >= most),
                   "loss": ~finite, "overlap": ~good & (size[alive] < step * shortest)}  # fmt: skip
        over = torch.zeros_like(good)
        for reason, which in reasons.items():
            for i in alive[which & ~over].tolist():
                ended[i] = reason
            over |= which
        alive = alive[~over]  # finished rides leave the batch
    overlaps = torch.stack(overlaps) if overlaps else x.new_zeros(0, len(x))
    return Rides(x, e, value, count, tries, ended, torch.stack(losses), torch.stack(curvatures),
                 overlaps, torch.stack(path) if keep else None)  # fmt: skip


def _turn(e, values, vectors, many, same):
    """e (b, P) turned to the eigenspace that holds most of it, among values (b, j), vectors (b, P, j).

    Returns the new e, its eigenvalue, how much of e is left - in that space, or in the `many` (b,)
    vectors nearest to it, whichever is more - and the dimension of the space.
    """
    shares = torch.einsum("bp,bpj->bj", e, vectors)
    size, rounding = values.abs(), 10 * torch.finfo(e.dtype).eps
    close = torch.maximum(same * torch.maximum(size[:, 1:], size[:, :-1]),
                          rounding * size.amax(1, keepdim=True))  # fmt: skip
    space = F.pad((values.diff(dim=1) > close).cumsum(1), (1, 0))  # 0, 0, 1, ...: its number
    held = torch.zeros_like(shares).scatter_add(1, space, shares.square())
    most, best = held.max(1, keepdim=True)
    near = space == best
    pieces = shares.square().sort(1, descending=True)[0].cumsum(1)
    pieces = pieces.gather(1, many[:, None].clamp(max=pieces.shape[1]) - 1)
    value = (values * shares.square() * near).sum(1) / most[:, 0]
    found = torch.einsum("bpj,bj->bp", vectors, shares * near)
    left = torch.maximum(pieces, most).sqrt()[:, 0]
    return found / found.norm(dim=1, keepdim=True), value, left, near.sum(1)


def _symmetric(H):
    """Eigenpairs of a batch of matrices; NaN where a matrix is not finite, which eigh refuses."""
    fine = H.isfinite().all(-1).all(-1)[:, None, None]
    values, vectors = torch.linalg.eigh(torch.where(fine, (H + H.mT) / 2, 0.0))
    return values.where(fine[:, 0], torch.nan), vectors.where(fine, torch.nan)


def _whole(loss):
    """A function that returns all eigenpairs (values, vectors) of the Hessians at points (b, P)."""
    whole = vmap(jacrev(grad(loss)))
    return lambda x, e: _symmetric(whole(x))


def _krylov(loss, size):
    """The same in the Krylov space of e, `size` products deep, for each of b points and directions.

    Among eigenvalues too close to tell apart, this space holds a single direction: that of e.
    """

    def along(theta, directions):  # one graph of the gradient for all products of a ride
        _, pull = vjp(grad(loss), theta)
        rows, images = [directions], []
        for n in range(size):
            images.append(pull(rows[-1])[0])
            Q, w = torch.stack(rows), images[-1]
            for _ in range(2):
                w = w - (Q @ w) @ Q
            if n + 1 < size:
                rows.append(w / w.norm().clamp(min=torch.finfo(w.dtype).tiny))
        return torch.stack(rows), torch.stack(images)

    basis = vmap(along)

    def spectrum(x, e):
        Q, HQ = basis(x, e)
        values, rotation = _symmetric(Q @ HQ.mT)
        return values, Q.mT @ rotation

    return spectrum


@only_looking
def descend(loss, thetas, steps, lr):
    """Gradient descent of thetas (B, P), all at once: theta <- theta - lr grad L(theta).

    What diverges comes back as NaN. Raises ValueError for shapes, NaN or inf at the start.

    >>> descend(lambda t: (t**2).sum(), torch.ones(1, 2), steps=1, lr=0.25)
    tensor([[0.5000, 0.5000]])
    """
    steps, lr = check_whole("steps", steps, 0), check_single("lr", lr)
    thetas = torch.as_tensor(thetas).detach().clone()
    check_points(loss, thetas)
    slope = traced(vmap(grad(loss)), thetas, steps)
    for _ in range(steps):
        thetas -= lr * slope(thetas)
    return thetas


def traced(function, thetas, calls):
    """The function as the list of tensor operations it comes to, where many calls pay for writing it.

    The transforms of torch.func cost more than what they transform, where tensors are small. What may
    depend on numbers and not on shapes alone, vmap has already refused.
    """
    if calls < 100:
        return function
    from torch.fx.experimental.proxy_tensor import make_fx

    try:
        return make_fx(function)(thetas)
    except Exception:  # not every operation can be written down: then as it is
        return function


def check_points(loss, thetas):
    """The losses (B,) at thetas (B, P), which must be scalars and finite."""
    if thetas.dim() != 2 or not thetas.is_floating_point() or not bool(thetas.isfinite().all()):
        raise ValueError(f"thetas: got {tuple(thetas.shape)} of {thetas.dtype}, wanted finite "
                         "floating-point numbers (B, P)")  # fmt: skip
    check_real("thetas", thetas.dtype)
    values = vmap(loss)(thetas)
    if values.shape != thetas.shape[:1]:
        raise ValueError(f"loss: returned {tuple(values.shape[1:])} for one point, wanted a scalar")
    if not bool(values.isfinite().all()):
        raise ValueError("loss: got NaN or inf, wanted finite values")
    return values.detach()
