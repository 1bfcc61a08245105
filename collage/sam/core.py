"""Sharpness-aware minimisation (Foret, Kleiner, Mobahi & Neyshabur, 2021; arXiv 2010.01412).

Minimise the loss of the worst neighbour instead of the loss itself:

    min_theta  max_{||e||_p <= rho}  L(theta + e)

The inner maximum is taken to first order, which the dual norm solves exactly (`ascent`, Eq. 2);
the outer step goes along the gradient found there (Eq. 3, Algorithm 1).

dual, ascent    the perturbation, for one vector and for a list of gradients
gradient        value and SAM gradient of any function of tensors
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def dual(g: Tensor, rho: float | Tensor, p: float = 2.0) -> Tensor:
    """The vector of p-norm rho that has the largest inner product with g, over the last axis.

    e = rho sign(g) |g|^(q-1) / ||g||_q^(q-1),   1/p + 1/q = 1,   <e, g> = rho ||g||_q

    g (..., P); rho a number or (...,); returns (..., P) in g's precision. For p = 1 all of rho
    goes to the largest entry (shared among exact ties, the limit of the formula); for p = inf it
    is rho sign(g). A zero g gives zero; an inf or NaN in g leaves a NaN in e. For p = 2 the norm is a
    sum of squares: in float32 it holds for norms of 1e-18 to 1e18, and e gets shorter beyond.

    Source: arXiv 2010.01412, Eq. 2.

    >>> dual(torch.tensor([3.0, -4.0, 0.0, 12.0]), rho=13.0)
    tensor([ 3., -4.,  0., 12.])
    """
    rho = rho.unsqueeze(-1) if isinstance(rho, Tensor) else rho
    if p == 2:
        norm = torch.linalg.vector_norm(g, dim=-1, keepdim=g.dim() > 1)
        tiny = 10 * torch.finfo(g.dtype).tiny ** 0.5  # below it squares underflow: e gets shorter
        return g * (rho / norm.clamp(min=tiny))
    largest = g.abs().amax(-1, keepdim=True)
    unit = g / torch.where(largest == 0, 1.0, largest)  # entries in [-1, 1]: powers are safe
    if p == math.inf:
        return rho * torch.sign(unit) + 0 * unit
    if p == 1:
        top = (unit.abs() == 1).to(g.dtype)
        return rho * torch.sign(unit) * top / top.sum(-1, keepdim=True).clamp(min=1) + 0 * unit
    q = p / (p - 1)
    norm = torch.linalg.vector_norm(unit, q, dim=-1, keepdim=True)
    ratio = unit.abs() / torch.where(norm == 0, 1.0, norm)
    return rho * torch.sign(unit) * ratio ** (q - 1)


def ascent(grads: Iterable[Tensor], rho: float | Tensor, p: float = 2.0) -> list[Tensor]:
    """The steepest perturbation of p-norm rho, over all tensors together.

    e = argmax_{||e||_p <= rho} <e, g>, with g all of `grads` as one vector

    grads: a list of tensors of any shapes, whose norm is one norm (in the tensors' precision, at
    least float32); rho >= 0; p in [1, inf]. Returns one tensor for each, same shape and dtype.
    Multiplying the gradients by a constant c > 0 changes nothing (see `dual`). Works under `torch.func`.

    Raises ValueError for an empty list, a missing or sparse gradient, rho < 0 or p < 1.
    Source: arXiv 2010.01412, Eq. 2.

    >>> ascent([torch.tensor([3.0]), torch.tensor([-4.0, 0.0])], rho=0.5)
    [tensor([0.3000]), tensor([-0.4000,  0.0000])]
    """
    rho, p = check_radius(rho), check_order(p)
    grads = list(grads)
    if not grads:
        raise ValueError("grads: got an empty list, wanted at least one gradient")
    for i, g in enumerate(grads):
        if not isinstance(g, Tensor) or g.layout != torch.strided or not g.is_floating_point():
            raise ValueError(f"grads[{i}]: got {_name(g)}, wanted a dense floating-point tensor")
    return shaped_like(dual(joined(grads), rho, p), grads)


def gradient(
    loss: Callable[[list[Tensor]], Tensor],
    params: Iterable[Tensor],
    rho: float | Tensor,
    p: float = 2.0,
    exact: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Loss at params, and the SAM gradient there.

    g_SAM = grad L(theta + e(theta)),  e detached           (the paper, Eq. 3)
    exact:  d/dtheta L(theta + e(theta)) = (I + de/dtheta)^T g_SAM      (keeps the Hessian term)

    loss maps a list of tensors to a scalar; params is that list; returns (value, list). A pure
    function: it composes with `torch.func.vmap`, with a tensor rho for one radius per network.

    Raises ValueError as `ascent` does. Source: arXiv 2010.01412, Eqs. 1-3.

    >>> value, (g,) = gradient(lambda t: 2 * (t[0] ** 2).sum(), [torch.tensor([1.0])], rho=0.5)
    >>> value, g
    (tensor(2.), tensor([6.]))
    """
    params = list(params)
    g, value = torch.func.grad_and_value(loss)(params)

    def perturbed(theta: list[Tensor]) -> Tensor:
        e = ascent(torch.func.grad(loss)(theta) if exact else g, rho, p)
        return loss([t + d for t, d in zip(theta, e, strict=True)])

    return value, torch.func.grad(perturbed)(params)


def check_radius(rho: float | Tensor) -> float | Tensor:
    if not isinstance(rho, Tensor) and not (rho >= 0 and rho < math.inf):
        raise ValueError(f"rho: got {rho}, wanted a finite number >= 0")
    return rho


def check_order(p: float) -> float:
    if not p >= 1:
        raise ValueError(f"p: got {p}, wanted a norm's order in [1, inf]")
    return float(p)


def _name(value: object) -> str:
    return f"{value.layout} {value.dtype}" if isinstance(value, Tensor) else repr(value)


def joined(tensors: list[Tensor]) -> Tensor:
    """All entries as one vector, in their common precision but at least float32."""
    dtype = torch.float32
    for t in tensors:
        dtype = torch.promote_types(dtype, t.dtype)
    vectors = [t.reshape(-1).to(tensors[0].device, dtype) for t in tensors]
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors)


def shaped_like(vector: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """The inverse of `joined`: the entries of a vector in the shapes and dtypes of `tensors`."""
    if len(tensors) == 1:
        return [vector.view_as(tensors[0]).to(tensors[0].dtype)]
    pieces = vector.split([t.numel() for t in tensors])
    return [c.view_as(t).to(t) for c, t in zip(pieces, tensors, strict=True)]
