"""The perturbation and the gradient, against closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from collage.sam import SAM, ascent, dual, gradient

# -- the perturbation ------------------------------------------------------------------------------

G = torch.tensor([3.0, -4.0, 0.0, 12.0], dtype=torch.float64)


@pytest.mark.parametrize("p, q, value, e", [
    (1, math.inf, 12, [0, 0, 0, 1]),
    (1.5, 3, 12.207055, [0.060398, -0.107374, 0, 0.966364]),
    (2, 2, 13, [3 / 13, -4 / 13, 0, 12 / 13]),
    (3, 1.5, 14.421287, [0.456098, -0.526657, 0, 0.912197]),
    (math.inf, 1, 19, [1, -1, 0, 1]),
])  # fmt: skip
def test_dual_norm_closed_forms(p, q, value, e):
    found = dual(G, 1.0, p)
    torch.testing.assert_close(found, torch.tensor(e, dtype=torch.float64), atol=1e-6, rtol=0)
    assert abs((found @ G).item() - value) < 1e-6
    assert abs(torch.linalg.vector_norm(found, p).item() - 1) < 1e-12
    assert abs((found @ G) - torch.linalg.vector_norm(G, q)) < 1e-12


@pytest.mark.parametrize("p", [1.0, 1.001, 1.3, 2.0, 5.0, 100.0, math.inf])
def test_no_feasible_vector_does_better(p):
    g = torch.Generator().manual_seed(0)
    for n in (1, 3, 50):
        grad = torch.randn(n, generator=g, dtype=torch.float64)
        e = dual(grad, 0.3, p)
        others = torch.randn(2000, n, generator=g, dtype=torch.float64)
        others *= 0.3 / torch.linalg.vector_norm(others, p, dim=1, keepdim=True)
        assert (others @ grad).max() <= e @ grad + 1e-12
        assert abs(torch.linalg.vector_norm(e, p) - 0.3) < 1e-9


def test_rho_shares_among_ties_for_p_1():
    torch.testing.assert_close(dual(torch.tensor([2.0, -2.0, 1.0]), 1.0, 1.0),
                               torch.tensor([0.5, -0.5, 0.0]))  # fmt: skip


@pytest.mark.parametrize("p", [1, 1.5, 2, 4, math.inf])
def test_zero_scale_and_partition(p):
    parts = [torch.randn(3, 2), torch.randn(5), torch.randn(())]
    e = ascent(parts, 0.7, p)
    assert [t.shape for t in e] == [t.shape for t in parts]
    whole = dual(torch.cat([t.reshape(-1) for t in parts]), 0.7, p)
    torch.testing.assert_close(torch.cat([t.reshape(-1) for t in e]), whole)
    for c in (1e-12, 1e-16, 1e6, 65536.0):  # gradients may be scaled (AMP) or tiny
        scaled = ascent([t * c for t in parts], 0.7, p)
        for a, b in zip(scaled, e):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert all((t == 0).all() for t in ascent([torch.zeros(3), torch.zeros(2, 2)], 0.7, p))
    assert torch.cat(ascent([torch.tensor([1.0, math.inf])], 0.7, p)).isnan().any()


@pytest.mark.parametrize("p", [1, 1.5, 2, 4, math.inf])
def test_never_longer_than_rho_however_tiny_the_gradient(p):
    g = torch.randn(300, generator=torch.Generator().manual_seed(0))
    for exponent in range(-44, 19, 2):
        e = dual(g * 10.0**exponent, 0.5, p)
        assert torch.linalg.vector_norm(e.double(), p) <= 0.5 * (1 + 1e-4), exponent


@pytest.mark.parametrize("dtype, tol", [(torch.float64, 1e-15), (torch.float32, 1e-6),
                                        (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])  # fmt: skip
def test_precision_follows_the_parameters(dtype, tol):
    g = torch.randn(300, dtype=torch.float64).to(dtype) * (1000 if dtype == torch.float16 else 1)
    (e,) = ascent([g], 1.0)
    assert e.dtype == dtype
    expected = g.double() / g.double().norm()
    assert (e.double() - expected).norm() < tol


def test_bad_input_of_ascent():
    good = torch.ones(3)
    for rho in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="rho"):
            ascent([good], rho)
    for p in (0.5, -1, math.nan):
        with pytest.raises(ValueError, match="p: got"):
            ascent([good], 0.1, p)
    for bad in (None, torch.ones(3, dtype=torch.long), torch.ones(3).to_sparse()):
        with pytest.raises(ValueError, match=r"grads\[1\]"):
            ascent([good, bad], 0.1)
    with pytest.raises(ValueError, match="empty"):
        ascent([], 0.1)


# -- the gradient ----------------------------------------------------------------------------------


def test_quadratic_by_hand():
    curvature = torch.tensor([4.0, 1.0], dtype=torch.float64)
    w = torch.tensor([1.0, 2.0], dtype=torch.float64)

    def loss(t):
        return 0.5 * (curvature * t[0] ** 2).sum()

    value, (g,) = gradient(loss, [w], 0.05)
    assert value == 4
    plain = curvature * w
    torch.testing.assert_close(
        g, plain + 0.05 * curvature * plain / plain.norm(), atol=1e-15, rtol=0
    )
    expected = torch.tensor([0.58211145618, 1.79776393200], dtype=torch.float64)
    torch.testing.assert_close(w - 0.1 * g, expected, atol=1e-10, rtol=0)
    for fused in (False, True):
        p = torch.nn.Parameter(w.clone())
        opt = SAM([p], torch.optim.SGD, rho=0.05, lr=0.1, fused=fused)

        def run(p=p):
            out = loss([p])
            out.backward()
            return out

        assert opt.step(run) == 4
        torch.testing.assert_close(p.detach(), w - 0.1 * g, atol=1e-15, rtol=0)


def test_two_cycle():
    """L = a w^2 / 2 under SAM ends in a 2-cycle of size eta a rho / (2 - eta a), not at zero."""
    a, eta, rho = 4.0, 0.1, 0.05
    w = torch.tensor([1.0], dtype=torch.float64)
    for _ in range(400):
        w = w - eta * gradient(lambda t: (0.5 * a * t[0] ** 2).sum(), [w], rho)[1][0]
    assert abs(w.abs().item() - eta * a * rho / (2 - eta * a)) < 1e-15


def test_exact_gradient_is_the_derivative_of_the_perturbed_loss():
    torch.manual_seed(3)
    x, y = torch.randn(40, 5, dtype=torch.float64), (torch.rand(40) < 0.5).double()
    w, rho = torch.randn(5, dtype=torch.float64), 0.5

    def loss(t):
        return F.binary_cross_entropy_with_logits(x @ t[0], y)

    (dropped,), (exact,) = (gradient(loss, [w], rho, exact=e)[1] for e in (False, True))
    g = torch.func.grad(loss)([w])[0]
    hessian = torch.func.hessian(lambda t: loss([t]))(w)
    u = g / g.norm()
    jacobian = rho / g.norm() * (torch.eye(5) - torch.outer(u, u)) @ hessian
    torch.testing.assert_close(exact, dropped + jacobian.T @ dropped, atol=1e-12, rtol=1e-10)

    def perturbed(t):
        direction = torch.func.grad(loss)([t])[0]
        return loss([t + rho * direction / direction.norm()])

    steps = 1e-5 * torch.eye(5, dtype=torch.float64)
    central = torch.stack([(perturbed(w + s) - perturbed(w - s)) / 2e-5 for s in steps])
    torch.testing.assert_close(exact, central, atol=1e-8, rtol=1e-6)
    assert (exact - dropped).norm() > 1e-4


def test_gradient_under_vmap_with_a_radius_for_each_network():
    target = torch.randn(3, 4)
    theta, rho = torch.randn(3, 4), torch.tensor([0.0, 0.1, 0.4])

    def one(t, goal, r):
        return gradient(lambda s: ((s[0] - goal) ** 4).sum(), [t], r)[1][0]

    together = torch.func.vmap(one)(theta, target, rho)
    apart = torch.stack([one(t, g, r.item()) for t, g, r in zip(theta, target, rho)])
    torch.testing.assert_close(together, apart)
