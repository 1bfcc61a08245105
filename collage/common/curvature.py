"""Curvature without the Hessian: Hessian-vector products and Lanczos with honest residuals.

hvp       one reusable product v -> H v for a point (or for a stack of K points at once)
lanczos   extreme eigenpairs of a symmetric operator known by its products, batched
"""

import math
import warnings
from typing import NamedTuple

import torch

from collage import runtime
from collage.common.checks import check_real
from collage.common.networks import looking


def hvp(loss, params):
    """A function v -> H v, with H the Hessian of loss at params.

    H v = d/dtheta <grad L(theta), v>

    The gradient's graph is built once here; each product is one backward through it. params: a
    tensor or a list of tensors (module parameters do), loss maps it to a scalar, v is flat (P,).
    With stacked params (K, ...) and loss -> (K,), v is (K, P) and each row has its own Hessian.
    A block of b vectors, (b, P) or (b, K, P), goes through in one backward pass. The network is only
    looked at: running statistics and torch's random numbers are afterwards as they were.

    Raises ValueError for a loss that is not finite, not a scalar or (K,), or not differentiable.
    Source: Pearlmutter 1994, Fast exact multiplication by the Hessian.

    >>> product = hvp(lambda t: (t**3).sum(), torch.tensor([1.0, 2.0]))
    >>> product(torch.tensor([1.0, 1.0]))
    tensor([ 6., 12.])
    """
    single = isinstance(params, torch.Tensor)
    params = params if single else list(params)
    if not single and not params:
        raise ValueError("params: got an empty list, wanted at least one tensor")
    for p in [params] if single else params:
        check_real("params", p.dtype, torch.bfloat16, torch.float16)
    leaves = [p.detach().requires_grad_() for p in ([params] if single else params)]
    with torch.enable_grad(), looking(leaves[0].device):
        value = loss(leaves[0] if single else leaves)
        rows = value.shape if isinstance(value, torch.Tensor) else type(value)
        if rows not in ((), leaves[0].shape[:1]):
            rows = tuple(rows) if isinstance(value, torch.Tensor) else rows.__name__
            raise ValueError(f"loss: returned {rows}, wanted a scalar (or one for each network of a "
                             "stack)")  # fmt: skip
        if not bool(torch.isfinite(value).all()):
            raise ValueError("loss: got inf or NaN, wanted finite values")
        if not value.requires_grad:
            raise ValueError("loss: does not depend on params, wanted a differentiable function")
        grads = torch.autograd.grad(value.sum(), leaves, create_graph=True, allow_unused=True)
    used = [(g, p) for g, p in zip(grads, leaves) if g is not None and g.requires_grad]
    sizes = [math.prod(p.shape[len(rows) :]) for p in leaves]
    total = sum(sizes)

    def product(v):
        block = v.shape[: v.dim() - len(rows) - 1]
        if v.shape != (*block, *rows, total) or len(block) > 1:
            raise ValueError(
                f"v: got {tuple(v.shape)}, wanted {(*rows, total)}, or a block of them"
            )
        pieces = [c.reshape(*block, *p.shape) for c, p in zip(v.split(sizes, -1), leaves)]
        seeds = [c for c, g in zip(pieces, grads) if g is not None and g.requires_grad]
        out = [p.new_zeros(*block, *p.shape) for p in leaves]
        if used:  # a loss linear in its parameters has no curvature at all
            found = torch.autograd.grad([g for g, _ in used], leaves, seeds, retain_graph=True,
                                        allow_unused=True, is_grads_batched=bool(block))  # fmt: skip
            out = [z if f is None else f for f, z in zip(found, out)]
        return torch.cat([o.reshape(*block, *rows, -1) for o in out], -1)

    return product


class Eigenpairs(NamedTuple):
    """k eigenvalues (..., k), unit vectors (..., k, dim), and ||A v - value v|| of each (..., k)."""

    values: torch.Tensor
    vectors: torch.Tensor
    residuals: torch.Tensor
    converged: torch.Tensor


def lanczos(matvec, dim, k=1, which="LA", *, batch=(), tol=1e-4, steps=None, start=None, block=1,
            distinct=False, generator=None, dtype=torch.float32, device=None):  # fmt: skip
    """Extreme eigenpairs of a symmetric operator from its products, with their true residuals.

    T = Q^T A Q,  Q an orthonormal basis of span{V, A V, A^2 V, ...};  eigenpairs of T approximate A's

    matvec maps (*batch, dim) to the same; all operators of a batch run in step. which: "LA"
    largest first, "SA" smallest first, "LM" largest magnitude first. Full reorthogonalisation,
    twice. Stops when every residual is at most tol times the largest |eigenvalue| found, or after
    `steps` products (default 10 k + 100, at most dim); what has not converged by then is reported
    by a RuntimeWarning and in `converged`. When the Krylov space closes, it goes on from a random
    direction. Up to dim = 10 k + 100 it goes all the way, and repeated eigenvalues are found as often
    as they occur.

    Beyond, mind that from one vector the Krylov space holds a single direction of each eigenspace, and
    that such pairs do converge: repeated eigenvalues are then seen once. A block of b
    starting vectors, start (b, *batch, dim), finds multiplicities up to b; matvec then maps
    (b, *batch, dim) to the same, and `steps` still counts single products. distinct=True asks for
    the opposite, one vector of each eigenspace: it looks after every product, before rounding brings
    copies in, and stops where the space closes, perhaps with fewer than k.

    Raises ValueError for k outside 1..dim, an unknown `which`, a start or product of wrong shape.
    Source: Lanczos 1950; Golub and Underwood 1977 for the block.

    >>> A = torch.diag(torch.tensor([1.0, 2.0, 5.0]))
    >>> lanczos(lambda v: A @ v, dim=3, k=2, start=torch.ones(3)).values.round(decimals=4)
    tensor([5., 2.])
    """
    if not 1 <= k <= dim:
        raise ValueError(f"k: got {k}, wanted 1 <= k <= dim = {dim}")
    if which not in ("LA", "SA", "LM"):
        raise ValueError(f"which: got {which!r}, wanted 'LA', 'SA' or 'LM'")
    if not 1 <= block <= dim:
        raise ValueError(f"block: got {block}, wanted 1 <= block <= dim = {dim}")
    if distinct and (batch or block > 1):
        raise ValueError(
            "distinct: got it with a batch or a block, wanted one operator, one vector"
        )
    shape = (*batch, dim) if block == 1 else (block, *batch, dim)
    if start is None:
        device = torch.device(device or (generator.device if generator is not None else "cpu"))
    else:
        device = start.device
    generator = generator or runtime.generator(0, device)
    check_real("dtype", dtype)
    if start is None:
        start = torch.randn(shape, dtype=dtype, device=device, generator=generator)
    if start.shape != shape:
        raise ValueError(f"start: got {tuple(start.shape)}, wanted {shape}")
    check_real("start", start.dtype)
    if not bool((start.isfinite().all(-1) & (start != 0).any(-1)).all()):
        raise ValueError("start: got zeros, NaN or inf, wanted finite vectors that are not zero")
    start = start / start.abs().amax(-1, keepdim=True)

    unit = start.new_zeros(
        *batch, 1, 1
    )  # a power of two near each operator's size, once it is known

    def multiply(rows):  # (*batch, n, dim) -> the same / unit; in blocks of `block` rows
        nonlocal unit
        out = matvec(rows.squeeze(-2) if block == 1 else rows.movedim(-2, 0))
        if out.shape != shape:
            raise ValueError(f"matvec: returned {tuple(out.shape)}, wanted {shape}")
        out = out.unsqueeze(-2) if block == 1 else out.movedim(0, -2)
        size = out.abs().amax((-2, -1), keepdim=True)
        if not bool(size.isfinite().all()):
            raise ValueError("matvec: returned NaN or inf, wanted finite products")
        larger = size > 2**20 * unit  # the first product, or one that tells of much more
        if bool(larger.any()):
            new = torch.ldexp(torch.ones_like(size), torch.frexp(size).exponent - 1)
            T.mul_(torch.where(larger, unit.double() / new.double(), 1.0))
            unit = torch.where(larger, new, unit)
        return out / torch.where(unit == 0, 1, unit)

    settle = not distinct and dim <= 10 * k + 100  # multiplicities, too
    steps = min(dim, max(steps or 10 * k + 100, k, block))
    eps = torch.finfo(start.dtype).eps
    basis = start.new_empty(*batch, steps, dim)
    T = torch.zeros(*batch, steps, steps, dtype=torch.double, device=start.device)
    fresh, _ = _orthonormal(start.unsqueeze(-2) if block == 1 else start.movedim(0, -2))
    size, check = 0, steps if settle else max(k, 5)
    while True:
        width = min(block, steps - size)
        basis[..., size : size + width, :] = fresh[..., :width, :]
        last, size = size, size + width
        Q = basis[..., :size, :]
        w = multiply(fresh)
        inside, w = _project(w, Q)
        T[..., :size, last:size] = inside[..., :width, :].mT
        T[..., last:size, :last] = inside[..., :width, :last]
        fresh, R = _orthonormal(w)
        if block > 1:  # strongest direction first, so that a weak one cannot hide another
            U, S, Vh = torch.linalg.svd(R)
            fresh, R = U.mT.to(w.dtype) @ fresh, S.unsqueeze(-1) * Vh
            for _ in range(2):
                fresh, again = _orthonormal(_project(fresh, Q)[1])
                R = again @ R
        scale = T[..., :size, :size].abs().amax((-2, -1)).unsqueeze(-1).clamp(min=1e-300)
        closed = R.norm(dim=-1) <= 10 * eps * scale
        R = torch.where(closed.unsqueeze(-1), 0.0, R)
        ended = size == steps or (distinct and bool(closed.all()))
        if size >= check or ended:
            check = size + (1 if distinct else max(5, size // 8))
            values, rotation = torch.linalg.eigh(T[..., :size, :size])
            order = {"LA": -values, "SA": values, "LM": -values.abs()}[which].argsort(-1)[..., :k]
            ahead = (R[..., :width] @ rotation[..., last:size, :]).norm(dim=-2).gather(-1, order)
            largest = values.abs().amax(-1, keepdim=True)
            if ended or (not settle and bool((ahead <= 0.5 * tol * largest).all())):
                break
        if bool(closed.any()):  # an invariant subspace: leave it in a random direction
            noise = torch.randn(w.shape, dtype=w.dtype, device=w.device, generator=generator)
            mixed = torch.where(closed.unsqueeze(-1), noise, fresh)
            fresh, _ = _orthonormal(_project(mixed, Q)[1])
    k = min(k, size)
    values = values.gather(-1, order).to(start.dtype)
    rotation = rotation.gather(-1, order.unsqueeze(-2).expand(*rotation.shape[:-1], k))
    vectors = rotation.mT.to(start.dtype) @ Q
    vectors = vectors / vectors.norm(dim=-1, keepdim=True)
    filled = torch.cat([vectors, vectors.new_zeros(*batch, -k % block, dim)], -2)
    products = torch.cat([multiply(rows) for rows in filled.split(block, -2)], -2)[..., :k, :]
    residuals = (products - values.unsqueeze(-1) * vectors).norm(dim=-1)
    converged = residuals <= tol * largest.to(start.dtype)
    if not bool(converged.all()):
        worst = (residuals / largest).max().item()
        warnings.warn(f"lanczos: {int((~converged).sum())} pairs not converged after {size} "
                      f"products (worst relative residual {worst:.1e})",
                      RuntimeWarning, stacklevel=2)  # fmt: skip
    unit = torch.where(unit == 0, 1, unit).squeeze(-1)
    return Eigenpairs(values * unit, vectors, residuals * unit, converged)


def _project(w, Q):
    """The coefficients of the rows of w (..., b, dim) in the basis Q, and w without them, twice."""
    inside = w @ Q.mT
    w = w - inside @ Q
    again = w @ Q.mT
    return inside + again, w - again @ Q


def _orthonormal(rows):
    """Orthonormal rows (..., b, dim), and R (..., b, b) in float64 with rows = R^T times them."""
    if rows.shape[-2] == 1:
        norm = rows.norm(dim=-1, keepdim=True)
        return rows / norm.clamp(min=torch.finfo(rows.dtype).tiny), norm.double()
    q, R = torch.linalg.qr(rows.mT)
    return q.mT, R.double()
