"""Curvature without the Hessian: Hessian-vector products and Lanczos with honest residuals.

hvp       one reusable product v -> H v for a point (or for a stack of K points at once)
lanczos   extreme eigenpairs of a symmetric operator known by its products, batched
"""

import math
import warnings
from typing import NamedTuple

import torch


def hvp(loss, params):
    """A function v -> H v, with H the Hessian of loss at params.

    H v = d/dtheta <grad L(theta), v>

    The gradient's graph is built once here; each product is one backward through it. params: a
    tensor or a list of tensors (module parameters do), loss maps it to a scalar, v is flat (P,).
    With stacked params (K, ...) and loss -> (K,), v is (K, P) and each row has its own Hessian.

    Raises ValueError for a loss that is not finite, not a scalar or (K,), or not differentiable.
    Source: Pearlmutter 1994, Fast exact multiplication by the Hessian.

    >>> product = hvp(lambda t: (t**3).sum(), torch.tensor([1.0, 2.0]))
    >>> product(torch.tensor([1.0, 1.0]))
    tensor([ 6., 12.])
    """
    single = isinstance(params, torch.Tensor)
    leaves = [p.detach().requires_grad_() for p in ([params] if single else params)]
    with torch.enable_grad():
        value = loss(leaves[0] if single else leaves)
        rows = value.shape
        if rows not in ((), leaves[0].shape[:1]):
            raise ValueError(f"loss: got shape {tuple(rows)}, wanted a scalar (or one for each "
                             "network of a stack)")  # fmt: skip
        if not bool(torch.isfinite(value).all()):
            raise ValueError("loss: got inf or NaN, wanted finite values")
        if not value.requires_grad:
            raise ValueError("loss: does not depend on params, wanted a differentiable function")
        grads = torch.autograd.grad(value.sum(), leaves, create_graph=True, allow_unused=True)
    used = [(g, p) for g, p in zip(grads, leaves) if g is not None and g.requires_grad]
    sizes = [math.prod(p.shape[len(rows) :]) for p in leaves]
    total = sum(sizes)

    def product(v):
        if v.shape != (*rows, total):
            raise ValueError(f"v: got {tuple(v.shape)}, wanted {(*rows, total)}")
        pieces = [c.view_as(p) for c, p in zip(v.split(sizes, -1), leaves)]
        seeds = [c for c, g in zip(pieces, grads) if g is not None and g.requires_grad]
        out = [torch.zeros_like(p) for p in leaves]
        if used:  # a loss linear in its parameters has no curvature at all
            found = torch.autograd.grad(
                [g for g, _ in used], leaves, seeds, retain_graph=True, allow_unused=True
            )
            out = [z if f is None else f for f, z in zip(found, out)]
        return torch.cat([o.reshape(*rows, -1) for o in out], -1)

    return product


class Eigenpairs(NamedTuple):
    """k eigenvalues (..., k), unit vectors (..., k, dim), and ||A v - value v|| of each (..., k)."""

    values: torch.Tensor
    vectors: torch.Tensor
    residuals: torch.Tensor
    converged: torch.Tensor


def lanczos(matvec, dim, k=1, which="LA", *, batch=(), tol=1e-4, steps=None, start=None,
            generator=None, dtype=torch.float32, device=None):  # fmt: skip
    """Extreme eigenpairs of a symmetric operator from its products, with their true residuals.

    A Q_m = Q_m T_m + beta_m q_{m+1} e_m^T;  eigenpairs of the small T_m approximate those of A

    matvec maps (*batch, dim) to the same; all operators of a batch run in step. which: "LA"
    largest first, "SA" smallest first, "LM" largest magnitude first. Full reorthogonalisation,
    twice. Stops when every residual is at most tol times the largest |eigenvalue| found, or after
    `steps` products (default 10 k + 100, at most dim); what has not converged by then is reported
    by a RuntimeWarning and in `converged`. When the Krylov space closes, it goes on from a random
    direction, so that small problems show their multiplicities.

    Raises ValueError for k outside 1..dim, an unknown `which`, a start or product of wrong shape.
    Source: Lanczos 1950; Paige 1972 for the residual.

    >>> A = torch.diag(torch.tensor([1.0, 2.0, 5.0]))
    >>> lanczos(lambda v: A @ v, dim=3, k=2, start=torch.ones(3)).values
    tensor([5.0000, 2.0000])
    """
    if not 1 <= k <= dim:
        raise ValueError(f"k: got {k}, wanted 1 <= k <= dim = {dim}")
    if which not in ("LA", "SA", "LM"):
        raise ValueError(f"which: got {which!r}, wanted 'LA', 'SA' or 'LM'")
    if start is None:
        device = device or (generator.device if generator is not None else "cpu")
        start = torch.randn(*batch, dim, dtype=dtype, device=device, generator=generator)
    if start.shape != (*batch, dim):
        raise ValueError(f"start: got {tuple(start.shape)}, wanted {(*batch, dim)}")
    steps = min(dim, steps or 10 * k + 100)
    eps = torch.finfo(start.dtype).eps
    basis, diagonal, off = [_unit(start)], [], []
    while True:
        q = basis[-1]
        w = matvec(q)
        if w.shape != q.shape:
            raise ValueError(f"matvec: returned {tuple(w.shape)}, wanted {tuple(q.shape)}")
        diagonal.append((q * w).sum(-1).double())
        Q = torch.stack(basis, -1)
        for _ in range(2):
            w = w - (Q @ (Q.mT @ w.unsqueeze(-1))).squeeze(-1)
        off.append(w.norm(dim=-1).double())
        size = len(diagonal)
        if size >= k and (size % 5 == 0 or size == steps):
            values, rotation = _tridiagonal(diagonal, off[:-1])
            order = {"LA": -values, "SA": values, "LM": -values.abs()}[which].argsort(-1)[..., :k]
            last = rotation[..., -1, :].gather(-1, order).abs() * off[-1].unsqueeze(-1)
            largest = values.abs().amax(-1, keepdim=True)
            if size == steps or bool((last <= 0.5 * tol * largest).all()):
                break
        closed = off[-1] <= 10 * eps * torch.stack(diagonal).abs().amax(0)
        if bool(closed.any()):  # an invariant subspace: leave it in a fresh direction
            fresh = torch.randn(q.shape, dtype=q.dtype, device=q.device, generator=generator)
            for _ in range(2):
                fresh = fresh - (Q @ (Q.mT @ fresh.unsqueeze(-1))).squeeze(-1)
            w = torch.where(closed.unsqueeze(-1), fresh, w)
            off[-1] = torch.where(closed, 0.0, off[-1])
        basis.append(_unit(w))
    values = values.gather(-1, order).to(start.dtype)
    rotation = rotation.gather(-1, order.unsqueeze(-2).expand(*rotation.shape[:-1], k))
    vectors = _unit((Q @ rotation.to(start.dtype)).mT)
    products = torch.stack([matvec(vectors[..., i, :]) for i in range(k)], -2)
    residuals = (products - values.unsqueeze(-1) * vectors).norm(dim=-1)
    converged = residuals <= tol * largest.to(start.dtype)
    if not bool(converged.all()):
        worst = (residuals / largest).max().item()
        warnings.warn(f"lanczos: {int((~converged).sum())} pairs not converged after {steps} "
                      f"products (worst relative residual {worst:.1e})",
                      RuntimeWarning, stacklevel=2)  # fmt: skip
    return Eigenpairs(values, vectors, residuals, converged)


def _unit(v):
    return v / v.norm(dim=-1, keepdim=True)


def _tridiagonal(diagonal, off):
    """Eigenvalues (..., m) and vectors (..., m, m) of the symmetric tridiagonal matrix, float64."""
    T = torch.diag_embed(torch.stack(diagonal, -1))
    if off:
        beta = torch.stack(off, -1)
        T = T + torch.diag_embed(beta, 1) + torch.diag_embed(beta, -1)
    return torch.linalg.eigh(T)
