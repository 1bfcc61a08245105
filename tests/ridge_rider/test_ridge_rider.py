"""Rides, ridges, saddles and searches: closed forms, slow twins, invariances, resume, bad input."""

import warnings

import pytest
import torch
from torch.func import grad, hessian, vmap

from collage.data import digits
from collage.ridge_rider import (
    Choices,
    Levers,
    Tanh,
    descend,
    ride,
    rides,
    ridges,
    saddle,
    search,
    tree,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def bowl(size=12, seed=0):
    """A smooth function with a saddle at zero, a rotated spectrum without repeats, and a floor."""
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=seeded(seed), dtype=torch.float64))
    values = torch.linspace(-2, 3, size).double() + 0.013
    A = q @ torch.diag(values) @ q.T
    return lambda t: 0.5 * t @ A @ t + (t**4).sum() / 4, A


def loop_rider(loss, theta, e, step, rounds):
    """The slow twin: one ride, a fixed step, whole Hessians, the largest overlap. No frills."""
    for _ in range(rounds):
        theta = theta + step * e
        _, vectors = torch.linalg.eigh(hessian(loss)(theta))
        shares = e @ vectors
        best = shares.abs().argmax()
        e = vectors[:, best] * shares[best].sign()
    return theta, e


def test_ride_equals_a_loop_over_single_rides():
    loss, _ = bowl()
    found = ridges(loss, torch.zeros(12).double(), 3)
    directions = torch.cat([found.vectors, -found.vectors])
    rides = ride(loss, torch.zeros(12).double(), directions, step=0.02, most=15)
    assert rides.ended == ["steps"] * 6 and rides.tries.tolist() == [16] * 6
    for e, theta, last in zip(directions, rides.thetas, rides.directions, strict=True):
        alone, turned = loop_rider(loss, torch.zeros(12).double(), e, 0.02, 15)
        torch.testing.assert_close(theta, alone, atol=1e-10, rtol=0)
        torch.testing.assert_close(last, turned, atol=1e-8, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("dense", [True, False])
def test_a_batch_equals_its_members(dense):
    """Finished rides leave the batch; the others must not notice."""
    loss, _ = bowl()
    starts = torch.zeros(4, 12).double()
    starts[2:] = 0.05 * torch.randn(2, 12, generator=seeded(1), dtype=torch.float64)
    vectors = ridges(loss, starts[0], 2).vectors
    directions = torch.cat([vectors, -vectors])
    whole = ride(loss, starts, directions, step=0.05, dense=dense, most=60)
    assert len(set(whole.steps.tolist())) > 1
    for i in range(4):
        alone = ride(loss, starts[i], directions[i : i + 1], step=0.05, dense=dense, most=60)
        torch.testing.assert_close(whole.thetas[i], alone.thetas[0], atol=1e-8, rtol=0)
        assert whole.ended[i] == alone.ended[0]


def test_products_follow_the_ridge_of_the_whole_hessian():
    loss, _ = bowl(40)
    zero = torch.zeros(40).double()
    vectors = ridges(loss, zero, 3).vectors
    whole = ride(loss, zero, vectors, step=0.02, most=10)
    few = ride(loss, zero, vectors, step=0.02, most=10, dense=False, depth=12)
    for theta, e, value in zip(few.thetas, few.directions, few.values, strict=True):
        H = hessian(loss)(theta)
        assert (H @ e - value * e).norm() / torch.linalg.matrix_norm(H, 2) < 0.02
    torch.testing.assert_close(whole.thetas, few.thetas, atol=5e-3, rtol=0)
    every = ride(loss, zero, vectors, step=0.02, most=10, dense=False, depth=40)
    torch.testing.assert_close(whole.thetas, every.thetas, atol=1e-7, rtol=0)


def test_quadratic_saddle():
    """L = x' A x / 2: the ridge never turns, and after t steps L = lambda (t step)^2 / 2."""
    A = torch.diag(torch.tensor([-3.0, -1.0, 2.0, 5.0], dtype=torch.float64))
    rides = ride(lambda t: 0.5 * t @ A @ t, torch.zeros(4).double(), torch.eye(4).double()[:2], 0.25,
                 most=8)  # fmt: skip
    t = 0.25 * torch.arange(9).double()
    wanted = 0.5 * torch.tensor([-3.0, -1.0]).double() * t[:, None] ** 2
    torch.testing.assert_close(rides.losses, wanted)
    torch.testing.assert_close(rides.directions, torch.eye(4).double()[:2])
    assert rides.ended == ["steps", "steps"] and (rides.overlaps == 1).all()
    assert (rides.curvatures == torch.tensor([-3.0, -1.0])).all()


@pytest.mark.slow
def test_a_ride_ends_where_the_curvature_does():
    """-x^2 + x^4 / 4 in one variable: the second derivative is zero at sqrt(2/3)."""
    rides = ride(lambda t: -(t[0] ** 2) + t[0] ** 4 / 4 + t[1] ** 2, torch.zeros(2).double(),
                 torch.eye(2).double()[:1], 0.001)  # fmt: skip
    assert rides.thetas[0, 0].item() == pytest.approx((2 / 3) ** 0.5, abs=1.5e-3)
    assert rides.ended == ["curvature"]


def test_signs_and_bases_of_the_solver_do_not_matter(monkeypatch):
    """eigh may return any sign, and any basis of a repeated eigenvalue."""
    game = Levers(torch.tensor([1.0] * 4 + [0.7, 0.5], dtype=torch.float64))
    found = ridges(game, game.saddle(), 4)
    before = ride(game, game.saddle(), found.vectors, step=0.1)
    solver, g = torch.linalg.eigh, seeded(5)

    def other(H):
        values, vectors = solver(H)
        flips = torch.randint(2, values.shape, generator=g) * 2 - 1
        vectors = vectors * flips.to(values).unsqueeze(-2)
        for row, out in zip(values.reshape(-1, values.shape[-1]),
                            vectors.view(-1, *vectors.shape[-2:]), strict=True):  # fmt: skip
            for v in row.unique():
                same = (row - v).abs() < 1e-9
                n = int(same.sum())
                turn, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=row.dtype))
                out[:, same] = out[:, same] @ turn
        return values, vectors

    monkeypatch.setattr(torch.linalg, "eigh", other)
    after = ride(game, game.saddle(), found.vectors, step=0.1)
    assert before.ended == after.ended
    torch.testing.assert_close(before.losses, after.losses, atol=1e-8, rtol=0)
    torch.testing.assert_close(before.thetas, after.thetas, atol=1e-6, rtol=0)


def test_scaled_and_rotated_losses_have_the_same_rides():
    loss, _ = bowl()
    zero, e = torch.zeros(12).double(), ridges(bowl()[0], torch.zeros(12).double(), 2).vectors
    plain = ride(loss, zero, e, step=0.05, most=40)
    scaled = ride(lambda t: 1e-5 * loss(t), zero, e, step=0.05, most=40)
    assert plain.ended == scaled.ended
    torch.testing.assert_close(plain.thetas, scaled.thetas, atol=1e-9, rtol=0)
    q, _ = torch.linalg.qr(torch.randn(12, 12, generator=seeded(4), dtype=torch.float64))
    turned = ride(lambda t: loss(q @ t), zero, e @ q, step=0.05, most=40)
    torch.testing.assert_close(turned.thetas @ q.T, plain.thetas, atol=1e-8, rtol=0)


def test_rides_of_levers_go_down_all_the_way():
    game = Levers(torch.tensor([1.0] * 7 + [0.8, 0.8, 0.6], dtype=torch.float64))
    vectors = ridges(game, game.saddle()).vectors
    assert len(vectors) == 9
    half = vectors.unflatten(1, (2, 10))
    torch.testing.assert_close(half[:, 0], half[:, 1], atol=1e-9, rtol=0)  # both players alike
    rides = ride(game, game.saddle(), torch.cat([vectors, -vectors]), step=0.1)
    assert set(rides.ended) == {"curvature"}
    assert (rides.losses.diff(dim=0) <= 1e-12).all()
    assert rides.overlaps.min() >= 0.9
    first = int(half[0, 0, 9] < 0)  # which of the two signs raises the lever that pays 0.6
    end = descend(game, rides.thetas[[9 * first]], 1500, 1.0)
    assert game(end[0]).item() == pytest.approx(-0.6, abs=0.005)


def test_a_mixture_of_a_repeated_ridge_goes_on():
    """Inside a sixfold space any direction is a ridge; where the space splits, the ride chooses."""
    game = Levers(torch.ones(7, dtype=torch.float64))
    found = ridges(game, game.saddle())
    assert found.spaces.tolist() == [0] * 6
    e = torch.randn(5, 6, generator=seeded(2), dtype=torch.float64) @ found.vectors
    rides = ride(game, game.saddle(), e, step=0.1)
    assert set(rides.ended) == {"curvature"} and (rides.losses.diff(dim=0) <= 1e-12).all()


def test_too_long_steps_are_taken_back():
    loss, _ = bowl()
    e = ridges(loss, torch.zeros(12).double(), 3).vectors
    rides = ride(loss, torch.zeros(12).double(), e, step=2.0, least=0.95)
    assert (rides.tries > rides.steps + 1).any() and (rides.overlaps >= 0.95).all()
    wild = ride(loss, torch.zeros(12).double(), e, step=2.0, least=1e-6)
    assert wild.overlaps.min() < 0.95


def test_a_loss_that_turns_nan_keeps_the_last_good_point():
    def cliff(t):
        return -(t[0] ** 2) + t[1] ** 2 + 0 * torch.sqrt(1 - t[0])

    rides = ride(cliff, torch.zeros(2).double(), torch.eye(2).double()[:1], 0.3)
    assert rides.ended == ["loss"]
    assert rides.thetas.isfinite().all() and rides.thetas[0, 0].item() == pytest.approx(0.9)
    assert rides.losses.isfinite().all()


def test_no_negative_curvature_is_said():
    with pytest.warns(RuntimeWarning, match="no negative curvature here"):
        found = ridges(lambda t: (t**2).sum(), torch.ones(3))
    assert found.values.shape == (0,) and found.vectors.shape == (0, 3)
    with pytest.warns(RuntimeWarning, match="1 of 2 have no negative curvature"):
        rides = ride(lambda t: t[0] ** 2 - t[1] ** 2, torch.zeros(2), torch.eye(2), most=3)
    assert rides.ended == ["curvature", "steps"] and rides.steps.tolist() == [0, 3]
    assert rides.thetas[0].tolist() == [0, 0]
    with pytest.warns(RuntimeWarning, match="no negative curvature here"):
        tree = search(lambda t: (t**2).sum(), torch.zeros(2))
    assert tree.prints == [] and tree.ends.shape == (0, 2)


def test_ridges_by_lanczos_and_by_the_whole_hessian(monkeypatch):
    loss, A = bowl(30)
    wanted = ridges(loss, torch.zeros(30).double(), 4)
    monkeypatch.setattr(rides, "DENSE", 5)
    found = ridges(loss, torch.zeros(30).double(), 4, tol=1e-9, generator=seeded())
    torch.testing.assert_close(found.values, wanted.values)
    torch.testing.assert_close(found.vectors, wanted.vectors, atol=1e-6, rtol=0)  # the same signs
    true = (found.vectors @ A - found.values[:, None] * found.vectors).norm(dim=1)
    torch.testing.assert_close(found.residuals, true, atol=1e-12, rtol=1e-3)
    with pytest.raises(ValueError, match="k: got None"):
        ridges(loss, torch.zeros(30).double())


@pytest.mark.slow
def test_one_of_each_space():
    x, y = digits()
    net = Tanh(x[:400].double() / 16, y[:400], 8, 10)
    found = ridges(net, net.saddle(), 9, tol=1e-4, distinct=True, generator=seeded())
    assert net.size > 256
    torch.testing.assert_close(found.values, -net.strengths()[:9], atol=1e-6, rtol=0)
    block = ridges(net, net.saddle(), 12, tol=1e-6, block=8, steps=400, generator=seeded())
    assert block.spaces.tolist() == [0] * 8 + [1] * 4
    small = Tanh(x[:400, ::8].double() / 16, y[:400], 4, 10)
    assert small.size < 256
    every = ridges(small, small.saddle())
    few = ridges(small, small.saddle(), distinct=True)
    torch.testing.assert_close(few.values, every.values[::4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_descent_is_the_plain_loop(dtype):
    """Many steps are written down once and replayed; few are not: the same points either way."""
    loss, _ = bowl(8)
    start = torch.randn(5, 8, generator=seeded(3), dtype=torch.float64).to(dtype)
    loss_here = lambda t: loss(t.double()).to(t)  # noqa: E731
    theta = start.clone()
    for _ in range(130):
        theta = theta - 0.05 * torch.stack([torch.func.grad(loss_here)(t) for t in theta])
    found = descend(loss_here, start, 130, 0.05)
    parts = descend(loss_here, descend(loss_here, start, 65, 0.05), 65, 0.05)
    close = (
        {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
    )
    assert torch.allclose(found, theta, **close) and torch.allclose(parts, theta, **close)
    assert torch.equal(start, torch.randn(5, 8, generator=seeded(3), dtype=torch.float64).to(dtype))


def test_a_loss_that_cannot_be_written_down_descends_all_the_same():
    class Cube(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x**3

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, slope):
            return 3 * ctx.saved_tensors[0] ** 2 * slope

    start = torch.tensor([[0.5], [0.3]])
    found = descend(lambda t: Cube.apply(t.abs()).sum(), start, 120, 0.1)
    wanted = descend(lambda t: (t.abs() ** 3).sum(), start, 120, 0.1)
    assert torch.allclose(found, wanted)
    assert not descend(lambda t: -(t**4).sum(), start * 9, 120, 0.5).isfinite().any()


@pytest.mark.slow
def test_saddles():
    game = Levers(torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64))
    start = 0.3 * torch.randn(3, 6, generator=seeded(), dtype=torch.float64)
    found = saddle(game, start, game.entropy, steps=500)
    assert found.slopes.max() < 1e-10
    shares = found.thetas.unflatten(1, (2, 3)).softmax(-1)
    wanted = game.saddle().view(2, 3).softmax(-1)
    torch.testing.assert_close(shares, wanted.expand_as(shares), atol=1e-6, rtol=0)
    pushed = saddle(game, start, game.entropy, floor=0.1, steps=500)
    assert pushed.slopes.min() > 1e-3  # with the bonus on it is no critical point


def tree_of(seed=1, depth=5):
    game = Choices.random(depth, 0.5, 0.3, seeded(seed))
    point = saddle(game, torch.zeros(1, game.turns.shape[1]).double(), game.entropy, floor=0.01,
                   steps=300).thetas[0]  # fmt: skip
    return game, point


@pytest.mark.slow
@pytest.mark.parametrize("order", ["breadth", "depth"])
def test_search_covers_whole_levels_and_knows_where_it_came_from(order):
    game, point = tree_of()
    tree = search(game, point, step=0.3, levels=2, order=order, polish=(100, 1.0), width=2)
    assert len(set(tree.prints)) == len(tree.prints) and tree.waiting == []
    assert max(map(len, tree.prints)) == 2 and {p[0] for p in tree.prints} == {1, -1, 2, -2}
    for i, p in enumerate(tree.prints):  # ridden again, by hand
        here = point if len(p) == 1 else tree.starts[tree.prints.index(p[:-1])]
        ridge = ridges(game, here).vectors[abs(p[-1]) - 1] * (1 if p[-1] > 0 else -1)
        again = ride(game, here, ridge[None], 0.3)
        torch.testing.assert_close(again.thetas[0], tree.starts[i], atol=1e-8, rtol=0)
    torch.testing.assert_close(tree.ends, descend(game, tree.starts, 100, 1.0), atol=1e-10, rtol=0)
    torch.testing.assert_close(tree.losses, vmap(game)(tree.ends))


@pytest.mark.slow
def test_orders_and_their_limits():
    game, point = tree_of()
    breadth = search(game, point, step=0.3, levels=3, most=20, polish=(10, 1.0))
    depth = search(game, point, step=0.3, levels=3, most=20, polish=(10, 1.0), order="depth")
    assert len(breadth.prints) <= 20 and len(depth.prints) <= 20
    assert breadth.waiting and depth.waiting
    lengths = list(map(len, breadth.prints))
    assert lengths == sorted(lengths)
    assert max(map(len, depth.prints)) == 3
    assert set(depth.prints) != set(breadth.prints)


class Stopped(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("order", ["breadth", "depth"])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_stopped_search_goes_on(tmp_path, monkeypatch, order, after):
    game, point = tree_of()
    how = {"step": 0.3, "levels": 3, "most": 60, "polish": (20, 1.0), "order": order}
    whole = search(game, point, **how)
    file, save, count = tmp_path / "tree.npz", tree.save, 0

    def stop(*args):
        nonlocal count
        save(*args)
        count += 1
        if count == after:
            raise Stopped

    monkeypatch.setattr(tree, "save", stop)
    with pytest.raises(Stopped):
        search(game, point, path=file, **how)
    monkeypatch.setattr(tree, "save", save)
    again = search(game, point, path=file, **how)
    assert again.prints == whole.prints and again.waiting == whole.waiting
    assert again.ended == whole.ended and again.tries == whole.tries
    assert torch.equal(again.ends, whole.ends) and torch.equal(again.losses, whole.losses)
    more = search(game, point, path=file, **{**how, "most": 100})
    assert more.prints == search(game, point, **{**how, "most": 100}).prints
    with pytest.raises(ValueError, match=r"was written with step = 0\.3, got 0\.2"):
        search(game, point, path=file, **{**how, "step": 0.2})
    with pytest.raises(ValueError, match="another start"):
        search(game, point + 1, path=file, **how)


def test_float32_and_large_problems_ride_by_products():
    x, y = digits()
    net = Tanh((x[:300] / 16).float(), y[:300], 16, 10)
    found = ridges(net, net.saddle(), 1, tol=1e-4, generator=seeded())
    rides = ride(net, net.saddle(), torch.cat([found.vectors, -found.vectors]), 0.2, most=8)
    assert rides.thetas.dtype == torch.float32 and rides.steps.min() > 1
    assert (rides.losses.diff(dim=0) <= 1e-6).all()
    assert rides.losses[-1].max() < rides.losses[0].min() - 0.05
    assert rides.ended[0] == rides.ended[1]  # a hidden layer does not care for the sign


def test_keep_returns_the_path():
    loss, _ = bowl()
    e = ridges(loss, torch.zeros(12).double(), 2).vectors
    rides = ride(loss, torch.zeros(12).double(), e, 0.05, most=20, keep=True)
    assert rides.path.shape == (len(rides.losses), 2, 12)
    torch.testing.assert_close(vmap(vmap(loss))(rides.path), rides.losses)
    torch.testing.assert_close(rides.path[-1], rides.thetas)
    assert ride(loss, torch.zeros(12).double(), e, 0.05, most=2).path is None


def test_descend_equals_torch_optim():
    loss, _ = bowl()
    start = torch.randn(3, 12, generator=seeded(3), dtype=torch.float64)
    theta = start.clone().requires_grad_()
    sgd = torch.optim.SGD([theta], lr=0.01)
    for _ in range(20):
        sgd.zero_grad()
        sum(map(loss, theta)).backward()
        sgd.step()
    torch.testing.assert_close(descend(loss, start, 20, 0.01), theta.detach())
    assert torch.equal(descend(loss, start, 0, 0.01), start)
    assert grad(loss)(start[0]).norm() > 1


@pytest.mark.parametrize("call, message", [
    (lambda: ridges(lambda t: t, torch.zeros(3)), "loss: returned"),
    (lambda: ridges(lambda t: t.sum() * float("nan"), torch.zeros(3)), "loss: got NaN"),
    (lambda: ridges(lambda t: t.sum(), torch.zeros(2, 3)), "theta: got"),
    (lambda: ridges(lambda t: t.sum(), torch.zeros(3), 4), "k: got 4"),
    (lambda: ridges(lambda t: t.sum(), torch.zeros(3), 0), "k: got 0"),
    (lambda: ridges(lambda t: t.sum(), torch.tensor([1, 2])), "floating-point"),
    (lambda: ride(lambda t: t.sum(), torch.zeros(3), torch.zeros(1, 3)), "directions: got"),
    (lambda: ride(lambda t: t.sum(), torch.zeros(3), torch.ones(3)), "directions: got"),
    (lambda: ride(lambda t: t.sum(), torch.zeros(2), torch.ones(1, 3)), "thetas: got"),
    (lambda: ride(lambda t: t.sum(), torch.zeros(3), torch.ones(1, 3), -1), "step: got"),
    (lambda: ride(lambda t: t.sum(), torch.zeros(3), torch.ones(1, 3), least=0), "least: got"),
    (lambda: ride(lambda t: t, torch.zeros(3), torch.ones(1, 3)), "loss: returned"),
    (lambda: search(lambda t: t.sum(), torch.zeros(3), order="best"), "order: got"),
    (lambda: descend(lambda t: t.sum(), torch.zeros(1, 3), 5, 0), "lr: got"),
    (lambda: saddle(lambda t: t.sum(), torch.zeros(3)), "thetas: got"),
    (lambda: descend(lambda t: t.sum(), torch.zeros(1, 2), 5, [0.1, 0.2]), "lr: got"),
    (lambda: search(lambda t: t.sum(), torch.zeros(3), width=0), "width: got"),
    (lambda: search(lambda t: t.sum(), torch.zeros(300)), "width: got None"),
    (lambda: ridges(lambda t: t.abs().pow(1.5).sum(), torch.zeros(3)), "its Hessian at theta"),
    (lambda: ride(lambda t: t.abs().pow(1.5).sum(), torch.zeros(3), torch.ones(1, 3)),
     "its Hessian at thetas"),
])  # fmt: skip
def test_bad_input(call, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message):
            call()


def test_flat_directions_of_a_large_minimum_are_no_ridges():
    g = seeded(3)
    q, _ = torch.linalg.qr(torch.randn(300, 300, generator=g, dtype=torch.float64))
    A = q @ torch.diag(torch.cat([torch.zeros(40), torch.linspace(0.1, 1, 260)]).double()) @ q.T
    for seed in range(4):
        with pytest.warns(RuntimeWarning, match="no negative curvature"):
            found = ridges(lambda t: 0.5 * t @ A @ t, torch.zeros(300).double(), 2,
                           generator=seeded(seed))  # fmt: skip
        assert len(found.values) == 0


def test_a_space_counts_as_a_whole():
    """e lies mostly in a tenfold space, though one other vector holds more than any of the ten."""
    values = torch.tensor([[-2.0] + [-1.0] * 10 + [3.0]], dtype=torch.float64)
    e = (
        torch.cat([torch.tensor([0.2]), torch.full((10,), 0.08), torch.zeros(1)])
        .sqrt()
        .double()[None]
    )
    many = torch.tensor([1])
    turned, value, left, size = rides._turn(e, values, torch.eye(12).double()[None], many, 1e-3)
    assert value.item() == pytest.approx(-1) and size.item() == 10
    assert left.item() == pytest.approx(0.8**0.5) and (turned * e).sum().item() == pytest.approx(
        0.8**0.5
    )


def test_a_polish_that_diverges_leaves_the_end_of_the_ride():
    def steep(t):
        return 50 * (t[0] ** 4) - t[0] ** 2 + t[1] ** 2

    tree = search(steep, torch.zeros(2).double(), levels=1, step=0.01, polish=(50, 30.0))
    assert torch.equal(tree.ends, tree.starts) and tree.losses.isfinite().all()


def test_a_file_of_another_loss_is_refused(tmp_path):
    file = tmp_path / "tree.npz"
    how = {"levels": 1, "polish": (5, 0.1), "path": file}
    search(lambda t: t[0] ** 4 - t[0] ** 2 + t[1] ** 2, torch.zeros(2), **how)
    with pytest.raises(ValueError, match="was written with loss"):
        search(lambda t: 1 + t[0] ** 4 - t[0] ** 2, torch.zeros(2), **how)
