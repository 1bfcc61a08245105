"""Where rides start: a saddle and its ridges. And plain descent, for where they end.

ridges       the most negative eigenpairs at a point
saddle       critical points, found from the slope alone
descend      gradient descent of many points
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from collage.common.checks import check_finite, check_single, check_whole
from collage.common.curvature import hvp, lanczos
from collage.common.networks import frozen_batch_statistics
from collage.ridge_rider.core import DENSE, Loss, check_points, eigenpairs, eigenspaces

WEIGHT, RATE = 0.1, 0.05  # of the bonus at first, of Adam
NEWTON = 10  # steps that make the slope of a critical point as small as rounding allows


class Ridges(NamedTuple):
    """k directions of negative curvature, most negative first."""

    values: Tensor  # (k,) eigenvalues, all negative
    vectors: Tensor  # (k, P) unit vectors, the largest component positive
    residuals: Tensor  # (k,) ||H e - value e||
    spaces: Tensor  # (k,) 0, 0, 1, ...: the number of the eigenspace each belongs to


@frozen_batch_statistics()
def ridges(
    loss: Loss,
    theta: Tensor,  # (P,)
    k: int | None = None,
    *,
    tol: float = 1e-6,
    distinct: bool = False,
    generator: torch.Generator | None = None,
) -> Ridges:
    """The k most negative eigenpairs of the Hessian at theta (P,).

    H e_i = lambda_i e_i,  lambda_1 <= lambda_2 <= ... < 0

    Without k all of them, for at most 256 parameters. Up to there the Hessian is computed whole,
    beyond by Lanczos, which sees a repeated eigenvalue once and warns of pairs that have not
    converged. distinct=True: one vector of each eigenspace. Within a space the vectors are no more
    than some basis, so compare spaces, never vectors. An eigenvalue is negative below -tol times
    the largest magnitude found; where there is none the result is empty, with a RuntimeWarning.

    Raises ValueError for a loss that is no scalar, NaN or inf, a theta of wrong shape, and k > P.

    >>> pairs = ridges(lambda t: t[0] ** 2 - t[1] ** 2, torch.zeros(2))
    >>> pairs.values, pairs.vectors
    (tensor([-2.]), tensor([[0., 1.]]))
    """
    theta = torch.as_tensor(theta).detach()
    if theta.dim() != 1:
        raise ValueError(f"theta: got {tuple(theta.shape)}, wanted (P,)")
    check_points(loss, theta[None])
    k = check_whole("k", len(theta) if k is None and len(theta) <= DENSE else k)
    if k > len(theta):
        raise ValueError(f"k: got {k}, wanted at most {len(theta)}, the number of parameters")
    if len(theta) <= DENSE:
        values, vectors, residuals = _whole(loss, theta)
    else:
        like: dict = {"generator": generator, "dtype": theta.dtype, "device": theta.device}
        values, vectors, residuals, _ = lanczos(
            hvp(loss, theta), len(theta), k, "SA", tol=tol, distinct=distinct, **like
        )
    # Beyond DENSE the largest of k values may itself be rounding: the residual says how much it is.
    chosen = (values < -tol * values.abs().max()) & (values < -residuals)
    if not bool(chosen.any()):
        warnings.warn("ridges: no negative curvature here", RuntimeWarning, stacklevel=2)
    spaces = eigenspaces(values)
    if distinct:
        first = spaces.diff(prepend=spaces.new_tensor([-1])) > 0
        if len(theta) > DENSE and bool((chosen & ~first).any()):
            text = f"fewer than {k} distinct eigenvalues; a larger tol or float64 finds more"
            warnings.warn(f"ridges: {text}", RuntimeWarning, stacklevel=2)
        chosen &= first
    vectors = vectors[chosen][:k]
    # One sign for each: the first of its largest components is positive.
    large = vectors.abs() >= (1 - 1e-4) * vectors.abs().amax(1, keepdim=True)
    vectors = vectors * vectors.gather(1, large.int().argmax(1, keepdim=True)).sign()
    return Ridges(values[chosen][:k], vectors, residuals[chosen][:k], spaces[chosen][:k])


def _whole(loss: Loss, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All eigenvalues (P,) at theta (P,), eigenvectors (P, P) as rows, and residuals (P,)."""
    H = jacrev(grad(loss))(theta)
    check_finite("loss: its Hessian at theta", H)
    scale = H.abs().max().clamp(min=torch.finfo(H.dtype).tiny)  # its square may overflow
    values, vectors = eigenpairs(H / scale)
    residuals = vectors.mT @ (H / scale) - values[:, None] * vectors.mT
    return values * scale, vectors.mT, residuals.norm(dim=1) * scale


class Saddles(NamedTuple):
    """Points (B, P) and what is left of the slope there, ||grad L|| (B,)."""

    thetas: Tensor
    slopes: Tensor


@frozen_batch_statistics()
def saddle(
    loss: Loss,
    thetas: Tensor,  # (B, P)
    bonus: Loss | None = None,
    *,
    floor: float = 0.0,
    steps: int = 2000,
) -> Saddles:
    """Critical points near thetas (B, P), the most symmetric ones with the right bonus.

    min |grad L(theta)|^2 - w_t bonus(theta),  w_t from 0.1 down to floor,  then Newton steps

    A loss that treats actions alike has its most symmetric critical point where the policy is as
    even as the loss allows, so the entropy is the usual bonus: (P,) -> scalar. It only chooses
    between critical points while w_t is large. Left on (floor > 0) it moves the point away from
    where the slope is zero; there are no Newton steps then, nor beyond 256 parameters.

    Raises ValueError for shapes, NaN or inf. Look at `slopes`: there may be no critical point.

    >>> found = saddle(lambda t: t[0] * t[1], torch.tensor([[0.3, -0.2]]), steps=10)
    >>> found.slopes.item() < 1e-6
    True
    """
    steps = check_whole("steps", steps, 0)
    theta = torch.as_tensor(thetas).detach().clone()
    check_points(loss, theta)
    slope = vmap(grad(loss))
    uphill = _traced(grad(lambda x: slope(x).square().sum()), theta, steps)
    even = _traced(grad(lambda x: vmap(bonus)(x).sum()), theta, steps) if bonus else None
    adam = torch.optim.Adam([theta.requires_grad_()], RATE)
    for t in range(steps):
        left = 1 - t / steps
        theta.grad = uphill(theta.detach())
        if even:
            # The bonus has faded after three quarters of the steps; the rest finds the slope's zero.
            w = floor + (WEIGHT - floor) * max(0, 4 * left - 1) / 3
            theta.grad -= w * even(theta.detach())
        adam.param_groups[0]["lr"] = RATE * min(1, 4 * left)
        adam.step()
    theta = theta.detach()
    check_finite("thetas: on the way to a critical point", theta)
    if theta.shape[1] <= DENSE and not (bonus and floor):
        theta = _newton(loss, theta)
    slopes = slope(theta).norm(dim=1)
    check_finite("loss: its slope", slopes)
    return Saddles(theta, slopes)


def _newton(loss: Loss, theta: Tensor) -> Tensor:
    """theta <- theta - H^+ grad L for points (B, P), wherever that lowers the slope."""
    slope, hessian = vmap(grad(loss)), vmap(jacrev(grad(loss)))
    for _ in range(NEWTON):
        g = slope(theta)
        check_finite("loss: its slope", g)
        new = theta - (torch.linalg.pinv(hessian(theta), rtol=1e-6) @ g[:, :, None])[..., 0]
        lower = slope(new).norm(dim=1) < g.norm(dim=1)
        theta = torch.where(lower[:, None], new, theta)
    return theta


@frozen_batch_statistics()
def descend(loss: Loss, thetas: Tensor, steps: int, lr: float) -> Tensor:
    """Gradient descent of thetas (B, P), all at once: theta <- theta - lr grad L(theta).

    What diverges comes back as NaN. Raises ValueError for shapes, NaN or inf at the start.

    >>> descend(lambda t: (t**2).sum(), torch.ones(1, 2), steps=1, lr=0.25)
    tensor([[0.5000, 0.5000]])
    """
    steps, lr = check_whole("steps", steps, 0), check_single("lr", lr)
    theta = torch.as_tensor(thetas).detach().clone()
    check_points(loss, theta)
    slope = _traced(vmap(grad(loss)), theta, steps)
    for _ in range(steps):
        theta -= lr * slope(theta)
    return theta


def _traced(function: Loss, theta: Tensor, calls: int) -> Loss:
    """The function as the tensor operations it comes to, where many calls pay for writing them down.

    The transforms of torch.func cost more than what they transform, where tensors are small. What
    may depend on numbers and not on shapes alone, vmap has already refused.
    """
    if calls < 100:
        return function
    from torch.fx.experimental.proxy_tensor import make_fx

    try:
        return make_fx(function)(theta)
    except Exception:  # not every operation can be written down: then as it is
        return function
