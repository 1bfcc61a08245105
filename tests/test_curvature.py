"""Hessian products and Lanczos against dense references."""

import pytest
import torch
import torch.nn.functional as F

from collage.curvature import hvp, lanczos


def symmetric(values, seed=0):
    g = torch.Generator().manual_seed(seed)
    n = len(values)
    q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=g))
    return q @ torch.diag(torch.as_tensor(values, dtype=torch.float64)) @ q.T


def small_net():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.Tanh(), torch.nn.Linear(12, 5))
    return net.double(), torch.randn(40, 6).double(), torch.randint(5, (40,))


def test_hvp_on_module_parameters_equals_the_dense_hessian():
    net, x, y = small_net()
    names, params = zip(*net.named_parameters(), strict=True)

    def loss(values):
        out = torch.func.functional_call(net, dict(zip(names, values, strict=True)), (x,))
        return F.cross_entropy(out, y)

    flat = torch.cat([p.detach().reshape(-1) for p in params])

    def flat_loss(t):
        pieces = t.split([p.numel() for p in params])
        return loss([c.view_as(p) for c, p in zip(pieces, params, strict=True)])

    dense = torch.func.hessian(flat_loss)(flat)
    product = hvp(loss, list(params))
    v = torch.randn(len(flat), dtype=torch.float64)
    torch.testing.assert_close(product(v), dense @ v, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(hvp(flat_loss, flat)(v), dense @ v, rtol=1e-10, atol=1e-12)
    top = lanczos(product, len(flat), k=5, dtype=torch.float64, tol=1e-8,
                  generator=torch.Generator().manual_seed(0))  # fmt: skip
    exact = torch.linalg.eigvalsh(dense).flip(0)[:5]
    torch.testing.assert_close(top.values, exact, rtol=1e-10, atol=1e-10)
    assert top.converged.all()


def test_a_stack_has_a_hessian_for_each_row():
    scale = torch.tensor([1.0, 3.0])
    product = hvp(lambda t: scale * (t**4).sum(1), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    v = torch.ones(2, 2)
    torch.testing.assert_close(product(v), torch.tensor([[12.0, 48.0], [144.0, 36.0]]))
    batch = torch.stack([symmetric([5, 1, 0, -3]), symmetric([2, 9, -20, 4], 1)])
    for which, expected in (("LA", [5, 9]), ("SA", [-3, -20]), ("LM", [5, -20])):
        found = lanczos(lambda v: (batch @ v.unsqueeze(-1)).squeeze(-1), 4, which=which,
                        batch=(2,), dtype=torch.float64)  # fmt: skip
        torch.testing.assert_close(found.values[:, 0], torch.tensor(expected).double())


def test_linear_loss_and_unused_parameters_have_no_curvature():
    product = hvp(lambda t: t[0].sum() * 3, [torch.ones(2), torch.ones(3)])
    assert product(torch.ones(5)).tolist() == [0] * 5
    product = hvp(lambda t: (t[1] ** 2).sum(), [torch.ones(2), torch.ones(3)])
    assert product(torch.ones(5)).tolist() == [0, 0, 2, 2, 2]


def test_residuals_are_honest_on_a_near_degenerate_pair():
    a = symmetric([1.0, 1.0 - 1e-7, *torch.linspace(-0.5, 0.9, 58).tolist()])
    found = lanczos(lambda v: a @ v, 60, k=3, dtype=torch.float64, tol=1e-9)
    torch.testing.assert_close(found.values[:2], torch.tensor([1.0, 1 - 1e-7], dtype=torch.float64),
                               rtol=0, atol=1e-9)  # fmt: skip
    true = (a @ found.vectors.mT - found.vectors.mT * found.values).norm(dim=0)
    torch.testing.assert_close(found.residuals, true, rtol=1e-3, atol=1e-14)
    torch.testing.assert_close(found.vectors @ found.vectors.mT, torch.eye(3).double(),
                               rtol=0, atol=1e-8)  # fmt: skip


def test_what_has_not_converged_is_said():
    a = symmetric(torch.linspace(0, 1, 200).tolist())
    with pytest.warns(RuntimeWarning, match="not converged after 6 products"):
        found = lanczos(lambda v: a @ v, 200, k=2, steps=6, dtype=torch.float64, tol=1e-6)
    assert not found.converged.all() and (found.residuals > 1e-6).any()


def test_multiplicities_once_the_krylov_space_closes():
    a = symmetric([4.0, 4.0, 4.0, 1.0, 1.0, -2.0])
    found = lanczos(lambda v: a @ v, 6, k=6, dtype=torch.float64)
    torch.testing.assert_close(found.values, torch.tensor([4.0, 4, 4, 1, 1, -2]).double())
    zero = lanczos(torch.zeros_like, 3, k=3)
    assert zero.values.tolist() == [0, 0, 0] and zero.residuals.tolist() == [0, 0, 0]


def test_bad_input():
    with pytest.raises(ValueError, match="scalar"):
        hvp(lambda t: t**2, torch.ones(3, 2))
    with pytest.raises(ValueError, match="NaN"):
        hvp(lambda t: (t * float("nan")).sum(), torch.ones(3))
    with pytest.raises(ValueError, match="depend"):
        hvp(lambda t: torch.tensor(1.0), torch.ones(3))
    with pytest.raises(ValueError, match="v: got"):
        hvp(lambda t: (t**2).sum(), torch.ones(3))(torch.ones(2))
    for k in (0, 4):
        with pytest.raises(ValueError, match="k: got"):
            lanczos(lambda v: v, 3, k=k)
    with pytest.raises(ValueError, match="which"):
        lanczos(lambda v: v, 3, which="XX")
    with pytest.raises(ValueError, match="start"):
        lanczos(lambda v: v, 3, start=torch.ones(2))
    with pytest.raises(ValueError, match="matvec"):
        lanczos(lambda v: v[:1], 3)
