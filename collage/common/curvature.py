"""Curvature without the Hessian: Hessian-vector products and Lanczos with honest residuals.

hvp       one reusable product v -> H v for a point (or for a stack of K points at once)
lanczos   extreme eigenpairs of a symmetric operator known by its products, batched
"""

import math
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from collage import runtime
from collage.common.checks import check_real
from collage.common.networks import no_side_effects


def hvp(
    loss: Callable[..., Tensor], params: Tensor | Iterable[Tensor]
) -> Callable[[Tensor], Tensor]:
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
    single = isinstance(params, Tensor)
    points = [params] if isinstance(params, Tensor) else list(params)
    if not points:
        raise ValueError("params: got an empty list, wanted at least one tensor")
    for p in points:
        check_real("params", p.dtype, torch.bfloat16, torch.float16)
    leaves = [p.detach().requires_grad_() for p in points]
    with torch.enable_grad(), no_side_effects(leaves[0].device):
        value = loss(leaves[0] if single else leaves)
        rows = _check_loss(value, leaves[0])
        grads = torch.autograd.grad(value.sum(), leaves, create_graph=True, allow_unused=True)
    used = [(g, p) for g, p in zip(grads, leaves) if g is not None and g.requires_grad]
    sizes = [math.prod(p.shape[len(rows) :]) for p in leaves]
    total = sum(sizes)

    def product(v: Tensor) -> Tensor:
        block = v.shape[: v.dim() - len(rows) - 1]
        if v.shape != (*block, *rows, total) or len(block) > 1:
            raise ValueError(
                f"v: got {tuple(v.shape)}, wanted {(*rows, total)}, or a block of them"
            )
        pieces = [c.reshape(*block, *p.shape) for c, p in zip(v.split(sizes, -1), leaves)]
        seeds = [c for c, g in zip(pieces, grads) if g is not None and g.requires_grad]
        out = [p.new_zeros(*block, *p.shape) for p in leaves]
        if used:  # a loss linear in its parameters has no curvature at all
            curved = torch.autograd.grad([g for g, _ in used], leaves, seeds, retain_graph=True,
                                         allow_unused=True, is_grads_batched=bool(block))  # fmt: skip
            out = [z if c is None else c for c, z in zip(curved, out)]
        return torch.cat([o.reshape(*block, *rows, -1) for o in out], -1)

    return product


def _check_loss(value: object, params: Tensor) -> tuple[int, ...]:
    """The shape of a loss, () or (K,); raises ValueError for one without second derivatives."""
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if not isinstance(value, Tensor) or shape not in ((), tuple(params.shape[:1])):
        raise ValueError(f"loss: returned {shape}, wanted a scalar (or one for each network of a "
                         "stack)")  # fmt: skip
    if not bool(torch.isfinite(value).all()):
        raise ValueError("loss: got inf or NaN, wanted finite values")
    if not value.requires_grad:
        raise ValueError("loss: does not depend on params, wanted a differentiable function")
    return tuple(value.shape)


class Eigenpairs(NamedTuple):
    """k eigenpairs of each operator of a batch (...)."""

    values: Tensor  # (..., k)
    vectors: Tensor  # (..., k, dim), of length 1
    residuals: Tensor  # (..., k): ||A v - value v||
    converged: Tensor  # (..., k)


def lanczos(
    matvec: Callable[[Tensor], Tensor],
    dim: int,
    k: int = 1,
    which: str = "LA",
    *,
    batch: tuple[int, ...] = (),
    tol: float = 1e-4,
    steps: int | None = None,
    start: Tensor | None = None,
    block: int = 1,
    distinct: bool = False,
    generator: Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Eigenpairs:
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
    if which not in ORDERS:
        raise ValueError(f"which: got {which!r}, wanted 'LA', 'SA' or 'LM'")
    if not 1 <= block <= dim:
        raise ValueError(f"block: got {block}, wanted 1 <= block <= dim = {dim}")
    if distinct and (batch or block > 1):
        raise ValueError(
            "distinct: got it with a batch or a block, wanted one operator, one vector"
        )
    if start is None:
        device = torch.device(device or (generator.device if generator is not None else "cpu"))
    else:
        device = start.device
    generator = generator or runtime.generator(0, device)
    start = _start(start, (*batch, dim), block, check_real("dtype", dtype), generator)

    until_closed = not distinct and dim <= 10 * k + 100  # finds multiplicities, too
    steps = min(dim, max(steps or 10 * k + 100, k, block))
    space = _Krylov(matvec, start, block, steps, generator)
    next_look = steps if until_closed else max(k, 5)
    while True:
        closed = space.grow()
        ended = space.size == steps or (distinct and bool(closed.all()))
        if space.size >= next_look or ended:
            pairs = space.ritz(k, which)
            above = (pairs.residuals / (0.5 * tol * pairs.largest)).nan_to_num().max().item()
            if ended or (above <= 1 and not until_closed):
                break
            # A look costs as much as a product or two, and a product rarely takes a third off.
            pause = min(max(3.0, 2.5 * math.log(max(above, 1.0))), space.size)
            next_look = space.size + (1 if distinct else round(pause))
        space.leave(closed)
    return _measured(space, pairs, tol)


# The order in which eigenvalues are wanted: what to sort them by.
ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "LA": lambda values: -values,
    "SA": lambda values: values,
    "LM": lambda values: -values.abs(),
}


def _start(
    start: Tensor | None,
    shape: tuple[int, ...],
    block: int,
    dtype: torch.dtype,
    generator: Generator,
) -> Tensor:
    """The first rows (*batch, block, dim), orthonormal."""
    wanted = shape if block == 1 else (block, *shape)
    if start is None:
        start = torch.randn(wanted, dtype=dtype, device=generator.device, generator=generator)
    if start.shape != wanted:
        raise ValueError(f"start: got {tuple(start.shape)}, wanted {wanted}")
    check_real("start", start.dtype)
    if not bool((start.isfinite().all(-1) & (start != 0).any(-1)).all()):
        raise ValueError("start: got zeros, NaN or inf, wanted finite vectors that are not zero")
    start = start / start.abs().amax(-1, keepdim=True)
    return _orthonormal(start.unsqueeze(-2) if block == 1 else start.movedim(0, -2))[0]


class _Ritz(NamedTuple):
    """Eigenpairs within a Krylov space."""

    values: Tensor  # (*batch, k)
    rotation: Tensor  # (*batch, size, k): vectors in the basis
    residuals: Tensor  # (*batch, k): as the recurrence predicts them
    largest: Tensor  # (*batch, 1): the largest |eigenvalue| in the space


class _Krylov:
    """Orthonormal bases Q of the Krylov spaces of a batch of operators A, and T = Q^T A Q.

    T and all products are in units of `unit`, a power of two near each operator's size.
    """

    def __init__(
        self,
        matvec: Callable[[Tensor], Tensor],
        fresh: Tensor,
        block: int,
        steps: int,
        generator: Generator,
    ) -> None:
        *batch, _, dim = fresh.shape
        self.matvec, self.block, self.generator = matvec, block, generator
        self.batch = tuple(batch)
        self.basis = fresh.new_empty(*batch, steps, dim)
        self.T = torch.zeros(
            *batch, steps, steps, dtype=torch.double, device=fresh.device
        )  # its lower half
        self.unit = fresh.new_zeros(*batch, 1, 1)  # zero until the first product
        self.limit = self.divisor = self.unit  # of a product in this unit; what it is divided by
        self.largest = self.T.new_zeros(*batch, 1, 1)  # entry of T, by size
        self.size = self.last = 0  # rows of the basis, and before the last block
        self.fresh = fresh  # (*batch, block, dim): the directions to take next
        self.coupling: (
            Tensor  # (*batch, block, block): A (last block) outside of the basis, in fresh
        )

    @property
    def Q(self) -> Tensor:
        return self.basis[..., : self.size, :]

    def multiply(self, rows: Tensor) -> Tensor:
        """A rows / unit for rows (*batch, block, dim)."""
        vectors = rows.squeeze(-2) if self.block == 1 else rows.movedim(-2, 0)
        out = self.matvec(vectors)
        if out.shape != vectors.shape:
            raise ValueError(f"matvec: returned {tuple(out.shape)}, wanted {tuple(vectors.shape)}")
        out = out.unsqueeze(-2) if self.block == 1 else out.movedim(0, -2)
        size = out.abs().amax((-2, -1), keepdim=True)
        within = size <= self.limit  # not the first product, one that tells of much more, NaN
        if self.limit is self.unit or not bool(within.all()):
            if not bool(size.isfinite().all()):
                raise ValueError("matvec: returned NaN or inf, wanted finite products")
            unit = torch.ldexp(torch.ones_like(size), torch.frexp(size).exponent - 1)
            factor = torch.where(within, 1.0, self.unit.double() / unit.double())
            self.T.mul_(factor)
            self.largest.mul_(factor)
            self.unit = torch.where(within, self.unit, unit)
            self.limit = 2**20 * self.unit
            self.divisor = self.unit.clamp(min=torch.finfo(out.dtype).tiny)  # of zeros: zero
        return out / self.divisor

    def grow(self) -> Tensor:
        """Take the fresh directions in and find the next; returns which of them are none (*batch, block)."""
        steps = self.basis.shape[-2]
        width = min(self.block, steps - self.size)
        self.basis[..., self.size : self.size + width, :] = self.fresh[..., :width, :]
        self.last, self.size = self.size, self.size + width
        inside, outside = _project(self.multiply(self.fresh), self.Q)
        self.T[..., self.last : self.size, : self.size] = inside[..., :width, :]
        fresh, R = _orthonormal(outside)
        if self.block > 1:  # strongest direction first, so that a weak one cannot hide another
            U, S, Vh = torch.linalg.svd(R)
            fresh, R = U.mT.to(fresh.dtype) @ fresh, S.unsqueeze(-1) * Vh
            for _ in range(2):
                fresh, again = _orthonormal(_project(fresh, self.Q)[1])
                R = again @ R
        entry = inside.abs().amax((-2, -1), keepdim=True)
        torch.maximum(self.largest, entry, out=self.largest)
        left = R.norm(dim=-1) if self.block > 1 else R.squeeze(-1)
        closed = left <= (10 * torch.finfo(fresh.dtype).eps * self.largest).squeeze(-1)
        self.fresh, self.coupling, self.any_closed = fresh, R, bool(closed.any())
        if self.any_closed:
            self.coupling = torch.where(closed.unsqueeze(-1), 0.0, R)
        return closed

    def leave(self, closed: Tensor) -> None:
        """Where the space is invariant, go on in a random direction."""
        if self.any_closed:
            noise = torch.randn(self.fresh.shape, dtype=self.fresh.dtype, device=self.fresh.device,
                                generator=self.generator)  # fmt: skip
            mixed = torch.where(closed.unsqueeze(-1), noise, self.fresh)
            self.fresh, _ = _orthonormal(_project(mixed, self.Q)[1])

    def ritz(self, k: int, which: str) -> _Ritz:
        """The k wanted eigenpairs of T; fewer where the space is smaller."""
        values, rotation = torch.linalg.eigh(self.T[..., : self.size, : self.size])
        order = ORDERS[which](values).argsort(-1)[..., :k]
        width = self.size - self.last
        last_rows = rotation[..., self.last : self.size, :]
        residuals = (self.coupling[..., :width] @ last_rows).norm(dim=-2).gather(-1, order)
        columns = order.unsqueeze(-2).expand(*rotation.shape[:-1], -1)
        largest = values.abs().amax(-1, keepdim=True)
        return _Ritz(values.gather(-1, order), rotation.gather(-1, columns), residuals, largest)


def _measured(space: _Krylov, pairs: _Ritz, tol: float) -> Eigenpairs:
    """Eigenpairs of A with their true residuals; a warning where they are too large."""
    Q, block = space.Q, space.block
    values = pairs.values.to(Q.dtype)
    vectors = pairs.rotation.mT.to(Q.dtype) @ Q
    vectors = vectors / vectors.norm(dim=-1, keepdim=True)
    k, dim = vectors.shape[-2:]
    padded = torch.cat([vectors, vectors.new_zeros(*space.batch, -k % block, dim)], -2)
    products = torch.cat([space.multiply(rows) for rows in padded.split(block, -2)], -2)
    residuals = (products[..., :k, :] - values.unsqueeze(-1) * vectors).norm(dim=-1)
    converged = residuals <= tol * pairs.largest.to(Q.dtype)
    if not bool(converged.all()):
        worst = (residuals / pairs.largest).max().item()
        warnings.warn(f"lanczos: {int((~converged).sum())} pairs not converged after {space.size} "
                      f"products (worst relative residual {worst:.1e})",
                      RuntimeWarning, stacklevel=3)  # fmt: skip
    unit = torch.where(space.unit == 0, 1, space.unit).squeeze(-1)
    return Eigenpairs(values * unit, vectors, residuals * unit, converged)


def _project(w: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
    """The coefficients of the rows of w (..., b, dim) in the basis Q, and w without them, twice."""
    inside = w @ Q.mT
    w = _without(w, inside, Q)
    again = w @ Q.mT
    return inside + again, _without(w, again, Q)


def _without(w: Tensor, inside: Tensor, Q: Tensor) -> Tensor:
    return torch.addmm(w, inside, Q, alpha=-1) if w.dim() == 2 else w - inside @ Q


def _orthonormal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal rows (..., b, dim), and R (..., b, b) in float64 with rows = R^T times them."""
    if rows.shape[-2] == 1:
        norm = rows.norm(dim=-1, keepdim=True)
        return rows / norm.clamp(min=torch.finfo(rows.dtype).tiny), norm.double()
    q, R = torch.linalg.qr(rows.mT)
    return q.mT, R.double()
