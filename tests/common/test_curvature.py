"""Hessian products and Lanczos against dense references."""

import pytest
import torch
import torch.nn.functional as F

from collage.common.curvature import hvp, lanczos


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


def test_a_block_of_products_equals_one_by_one():
    theta = torch.randn(8, dtype=torch.float64)
    product = hvp(lambda t: (t.sin() * t.roll(1) ** 2).sum(), theta)
    V = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(product(V), torch.stack([product(v) for v in V]))
    rows = torch.randn(2, 4, dtype=torch.float64)
    product = hvp(lambda t: (t**4).sum(1), rows)
    V = torch.randn(5, 2, 4, dtype=torch.float64)
    torch.testing.assert_close(product(V), torch.stack([product(v) for v in V]))


@pytest.mark.parametrize("block", [1, 2, 3, 5])
def test_a_block_finds_multiplicities(block):
    """An eigenvalue three times over among 120: one direction from one vector, all from three."""
    values = [-2.0] * 3 + [-1.0] + torch.linspace(0, 3, 116).tolist()
    A = symmetric(values)
    g = torch.Generator().manual_seed(3)
    tol = 1e-3 if block == 1 else 1e-8
    found = lanczos(lambda v: v @ A, 120, 2 if block == 1 else 4, "SA", tol=tol, steps=120,
                    block=block, distinct=block == 1, generator=g, dtype=torch.float64)  # fmt: skip
    if block == 1:
        assert (found.values < -1.9).sum() == 1
        assert found.values[1].item() == pytest.approx(-1, abs=1e-4)
    if block >= 3:
        torch.testing.assert_close(found.values, torch.tensor([-2.0, -2, -2, -1]).double())
        exact = torch.linalg.eigh(A)[1][:, :3]
        mine = found.vectors[:3]
        torch.testing.assert_close(mine.T @ mine, exact @ exact.T, atol=1e-7, rtol=0)
        assert bool(found.converged.all())


def test_blocks_of_a_batch():
    """Blocks and batches together, with a width that does not divide the number of steps."""
    stack = torch.stack([symmetric([-3.0, -3.0, -1.0, *range(8)], s) for s in range(2)])
    found = lanczos(lambda v: torch.einsum("bij,sbj->sbi", stack, v), 11, 3, "SA", batch=(2,), block=2,
                    tol=1e-10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # fmt: skip
    torch.testing.assert_close(found.values, torch.tensor([[-3.0, -3.0, -1.0]] * 2).double())
    assert found.residuals.max() < 1e-9


def test_a_closed_space_ends_a_distinct_search():
    """Three different eigenvalues: three vectors, however many were asked for."""
    A = symmetric([-2.0] * 5 + [1.0] * 6 + [4.0] * 3)
    found = lanczos(lambda v: v @ A, 14, 9, "SA", distinct=True, dtype=torch.float64,
                    generator=torch.Generator().manual_seed(0))  # fmt: skip
    torch.testing.assert_close(found.values, torch.tensor([-2.0, 1.0, 4.0]).double())
    assert bool(found.converged.all())


def test_a_spectrum_that_is_even_closes_too():
    """With a spectrum of +-s the diagonal of T is zero: the scale must not come from it."""
    A = symmetric([-2.0] * 3 + [-1.0] * 3 + [1.0] * 3 + [2.0] * 3)
    found = lanczos(lambda v: v @ A, 12, 4, "SA", distinct=True, dtype=torch.float64,
                    generator=torch.Generator().manual_seed(0))  # fmt: skip
    torch.testing.assert_close(found.values, torch.tensor([-2.0, -1, 1, 2]).double())


def test_bad_blocks():
    with pytest.raises(ValueError, match="distinct: got"):
        lanczos(lambda v: v, 5, block=2, distinct=True)
    with pytest.raises(ValueError, match="start: got zeros"):
        lanczos(lambda v: v, 5, start=torch.zeros(5))
    with pytest.raises(ValueError, match="matvec: returned NaN"):
        lanczos(lambda v: v * float("nan"), 5, generator=torch.Generator())
    with pytest.raises(ValueError, match="block: got 9"):
        lanczos(lambda v: v, 5, block=9)
    with pytest.raises(ValueError, match="start: got"):
        lanczos(lambda v: v, 5, block=2, start=torch.ones(5))
    with pytest.raises(ValueError, match="matvec: returned"):
        lanczos(lambda v: v[0], 5, block=2, generator=torch.Generator())


def test_blocks_of_a_space_that_closes_stay_orthogonal():
    """Few distinct eigenvalues: the block closes again and again, and nothing may come from outside."""
    for seed in range(4):
        for block in (2, 3, 8):
            g = torch.Generator().manual_seed(seed)
            A = symmetric([-1.0] * 12 + [-0.4] * 9 + [0.1] * 10 + [0.5] * 29, seed)
            found = lanczos(lambda v, A=A: v @ A, 60, 12, "SA", block=block, steps=60, tol=1e-8,
                            dtype=torch.float64, generator=g)  # fmt: skip
            true = torch.tensor([-1.0, -0.4, 0.1, 0.5], dtype=torch.float64)
            assert (found.values[:, None] - true).abs().amin(1).max() < 1e-7
            assert (found.values < -0.9).sum() >= block
            inner = found.vectors @ found.vectors.mT
            torch.testing.assert_close(inner, torch.eye(12).double(), atol=1e-8, rtol=0)


def test_a_block_with_a_dependent_start_loses_nothing():
    A = torch.tensor([[1.0, 1, 0], [1, 5, 0], [0, 0, 2]])
    start = torch.tensor([[0.0, 1, 0], [1, 0, 0]])
    found = lanczos(lambda v: v @ A, 3, 1, block=2, start=start)
    assert found.values.item() == pytest.approx(3 + 5**0.5, abs=1e-5)
