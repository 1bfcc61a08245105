"""Rides: against a loop over single rides, closed forms, invariances, and where they end."""

import pytest
import torch
from torch.func import hessian, vmap

from collage.data import digits
from collage.ridge_rider import core, descend, ride, ridges
from collage.ridge_rider.landscapes import Levers, Tanh
from tests.ridge_rider.surfaces import bowl, seeded

ZERO = torch.zeros(12, dtype=torch.float64)


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
    vectors = ridges(loss, ZERO, 2).vectors
    directions = torch.cat([vectors, -vectors])
    rides = ride(loss, ZERO, directions, step=0.02, most=10)
    assert rides.ended == ["steps"] * 4 and rides.tries.tolist() == [11] * 4
    for e, theta, last in zip(directions, rides.thetas, rides.directions, strict=True):
        alone, turned = loop_rider(loss, ZERO, e, 0.02, 10)
        torch.testing.assert_close(theta, alone, atol=1e-10, rtol=0)
        torch.testing.assert_close(last, turned, atol=1e-8, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("dense", [256, 0], ids=["whole Hessian", "products"])
def test_a_batch_equals_its_members(monkeypatch, dense):
    """Finished rides leave the batch; the others must not notice."""
    loss, _ = bowl()
    starts = torch.zeros(4, 12).double()
    starts[2:] = 0.05 * torch.randn(2, 12, generator=seeded(1), dtype=torch.float64)
    vectors = ridges(loss, starts[0], 2).vectors
    directions = torch.cat([vectors, -vectors])
    monkeypatch.setattr(core, "DENSE", dense)
    together = ride(loss, starts, directions, step=0.05, most=60)
    assert len(set(together.steps.tolist())) > 1
    for i in range(4):
        alone = ride(loss, starts[i], directions[i : i + 1], step=0.05, most=60)
        torch.testing.assert_close(together.thetas[i], alone.thetas[0], atol=1e-8, rtol=0)
        assert together.ended[i] == alone.ended[0]


def test_products_follow_the_ridge_of_the_whole_hessian(monkeypatch):
    loss, _ = bowl(40)
    zero = torch.zeros(40).double()
    vectors = ridges(loss, zero, 3).vectors
    whole = ride(loss, zero, vectors, step=0.02, most=10)
    monkeypatch.setattr(core, "DENSE", 0)
    monkeypatch.setattr(core, "DEPTH", 12)
    few = ride(loss, zero, vectors, step=0.02, most=10)
    for theta, e, value in zip(few.thetas, few.directions, few.values, strict=True):
        H = hessian(loss)(theta)
        assert (H @ e - value * e).norm() / torch.linalg.matrix_norm(H, 2) < 0.02
    torch.testing.assert_close(whole.thetas, few.thetas, atol=5e-3, rtol=0)
    monkeypatch.setattr(core, "DEPTH", 40)
    all_products = ride(loss, zero, vectors, step=0.02, most=10)
    torch.testing.assert_close(whole.thetas, all_products.thetas, atol=1e-7, rtol=0)


def test_quadratic_saddle():
    """L = x' A x / 2: the ridge never turns, and after t steps L = lambda (t step)^2 / 2."""
    curvatures = torch.tensor([-3.0, -1.0, 2.0, 5.0], dtype=torch.float64)
    axes = torch.eye(4).double()[:2]
    rides = ride(
        lambda t: 0.5 * (curvatures * t**2).sum(), torch.zeros(4).double(), axes, 0.25, most=8
    )
    t = 0.25 * torch.arange(9).double()
    torch.testing.assert_close(rides.losses, 0.5 * curvatures[:2] * t[:, None] ** 2)
    torch.testing.assert_close(rides.directions, axes)
    assert rides.ended == ["steps", "steps"] and (rides.overlaps == 1).all()
    assert (rides.values == curvatures[:2]).all()


@pytest.mark.slow
def test_a_ride_ends_where_the_curvature_does():
    """-x^2 + x^4 / 4 in one variable: the second derivative is zero at sqrt(2/3)."""
    rides = ride(lambda t: -(t[0] ** 2) + t[0] ** 4 / 4 + t[1] ** 2, ZERO[:2],
                 torch.eye(2).double()[:1], 0.004)  # fmt: skip
    assert rides.thetas[0, 0].item() == pytest.approx((2 / 3) ** 0.5, abs=4.1e-3)
    assert rides.ended == ["curvature"]


def test_signs_and_bases_of_the_solver_do_not_matter(monkeypatch):
    """eigh may return any sign, and any basis of a repeated eigenvalue."""
    game = Levers(torch.tensor([1.0] * 4 + [0.7, 0.5], dtype=torch.float64))
    start = game.saddle()
    vectors = ridges(game, start, 4).vectors
    before = ride(game, start, vectors, step=0.1)
    eigh, generator = torch.linalg.eigh, seeded(5)

    def another_basis(H):
        values, vectors = eigh(H)
        flips = torch.randint(2, values.shape, generator=generator) * 2 - 1
        vectors = vectors * flips.to(values).unsqueeze(-2)
        for row, basis in zip(values.reshape(-1, values.shape[-1]),
                              vectors.view(-1, *vectors.shape[-2:]), strict=True):  # fmt: skip
            for value in row.unique():
                same = (row - value).abs() < 1e-9
                n = int(same.sum())
                noise = torch.randn(n, n, generator=generator, dtype=row.dtype)
                basis[:, same] = basis[:, same] @ torch.linalg.qr(noise)[0]
        return values, vectors

    monkeypatch.setattr(torch.linalg, "eigh", another_basis)
    after = ride(game, start, vectors, step=0.1)
    assert before.ended == after.ended
    torch.testing.assert_close(before.losses, after.losses, atol=1e-8, rtol=0)
    torch.testing.assert_close(before.thetas, after.thetas, atol=1e-6, rtol=0)


def test_scaled_and_rotated_losses_have_the_same_rides():
    loss, _ = bowl()
    e = ridges(loss, ZERO, 2).vectors
    plain = ride(loss, ZERO, e, step=0.05, most=40)
    scaled = ride(lambda t: 1e-5 * loss(t), ZERO, e, step=0.05, most=40)
    assert plain.ended == scaled.ended
    torch.testing.assert_close(plain.thetas, scaled.thetas, atol=1e-9, rtol=0)
    q, _ = torch.linalg.qr(torch.randn(12, 12, generator=seeded(4), dtype=torch.float64))
    rotated = ride(lambda t: loss(q @ t), ZERO, e @ q, step=0.05, most=40)
    torch.testing.assert_close(rotated.thetas @ q.T, plain.thetas, atol=1e-8, rtol=0)


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
    six = ridges(game, game.saddle())
    assert six.spaces.tolist() == [0] * 6
    e = torch.randn(5, 6, generator=seeded(2), dtype=torch.float64) @ six.vectors
    rides = ride(game, game.saddle(), e, step=0.1)
    assert set(rides.ended) == {"curvature"} and (rides.losses.diff(dim=0) <= 1e-12).all()


def test_a_space_counts_as_a_whole():
    """e lies mostly in a tenfold space, though one other vector holds more than any of the ten."""
    values = torch.tensor([[-2.0] + [-1.0] * 10 + [3.0]], dtype=torch.float64)
    e = torch.tensor([[0.2] + [0.08] * 10 + [0.0]], dtype=torch.float64).sqrt()
    turned, value, overlap, dimension = core.turn(
        e, values, torch.eye(12).double()[None], torch.tensor([1])
    )
    assert value.item() == pytest.approx(-1) and dimension.item() == 10
    assert overlap.item() == pytest.approx(0.8**0.5)
    assert (turned * e).sum().item() == pytest.approx(0.8**0.5)


def test_too_long_steps_are_taken_back():
    loss, _ = bowl()
    rides = ride(loss, ZERO, ridges(loss, ZERO, 3).vectors, step=2.0)
    assert (rides.tries > rides.steps + 1).any() and (rides.overlaps >= 0.9).all()


def test_a_ride_that_turns_too_far_in_the_shortest_step_ends():
    """Beyond x = 1 the eigenvectors lie across the old ones, all at once."""

    def kink(t):
        return torch.where(t[0] < 1, t[1] ** 2 - t[0] ** 2, t[0] * t[1])

    rides = ride(kink, ZERO[:2], torch.eye(2).double()[:1], 0.3)
    assert rides.ended == ["overlap"] and (rides.tries > 1 + rides.steps).all()
    assert rides.thetas[0, 0].item() == pytest.approx(1, abs=1e-3) and rides.thetas[0, 0] < 1


def test_a_loss_that_turns_nan_keeps_the_last_good_point():
    def cliff(t):
        return -(t[0] ** 2) + t[1] ** 2 + 0 * torch.sqrt(1 - t[0])

    rides = ride(cliff, ZERO[:2], torch.eye(2).double()[:1], 0.3)
    assert rides.ended == ["loss"]
    assert rides.thetas.isfinite().all() and rides.thetas[0, 0].item() == pytest.approx(0.9)
    assert rides.losses.isfinite().all()


def test_where_nothing_bends_down_a_ride_stays():
    with pytest.warns(RuntimeWarning, match="1 of 2 have no negative curvature"):
        rides = ride(lambda t: t[0] ** 2 - t[1] ** 2, torch.zeros(2), torch.eye(2), most=3)
    assert rides.ended == ["curvature", "steps"] and rides.steps.tolist() == [0, 3]
    assert rides.thetas[0].tolist() == [0, 0]
    with pytest.warns(RuntimeWarning, match="1 of 1 have no negative curvature"):
        rides = ride(lambda t: t.square().sum(), torch.zeros(2), torch.eye(2)[:1])
    assert rides.losses.shape == (1, 1) and rides.overlaps.shape == (0, 1)


def test_float32_and_large_problems_ride_by_products():
    x, y = digits()
    net = Tanh((x[:300, ::2] / 16).float(), y[:300], 16, 10)
    assert net.size > core.DENSE
    vectors = ridges(net, net.saddle(), 1, tol=1e-4, generator=seeded()).vectors
    rides = ride(net, net.saddle(), torch.cat([vectors, -vectors]), 0.2, most=8)
    assert rides.thetas.dtype == torch.float32 and rides.steps.min() > 1
    assert (rides.losses.diff(dim=0) <= 1e-6).all()
    assert rides.losses[-1].max() < rides.losses[0].min() - 0.05
    assert rides.ended[0] == rides.ended[1]  # a hidden layer does not care for the sign


def test_keep_returns_the_path():
    loss, _ = bowl()
    e = ridges(loss, ZERO, 2).vectors
    rides = ride(loss, ZERO, e, 0.05, most=20, keep=True)
    assert rides.path.shape == (len(rides.losses), 2, 12)
    torch.testing.assert_close(vmap(vmap(loss))(rides.path), rides.losses)
    torch.testing.assert_close(rides.path[-1], rides.thetas)
    assert ride(loss, ZERO, e, 0.05, most=2).path is None


@pytest.mark.parametrize("arguments, message", [
    ((torch.zeros(3), torch.zeros(1, 3)), "directions: got"),
    ((torch.zeros(3), torch.ones(3)), "directions: got"),
    ((torch.zeros(3), torch.full((1, 3), torch.nan)), "directions: got"),
    ((torch.zeros(2), torch.ones(1, 3)), "thetas: got"),
    ((torch.full((3,), torch.inf), torch.ones(1, 3)), "thetas: got"),
    ((torch.tensor([1, 2, 3]), torch.ones(1, 3)), "thetas: got torch.int64"),
    ((torch.zeros(3), torch.ones(1, 3), -1), "step: got"),
])  # fmt: skip
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        ride(lambda t: -t.square().sum(), *arguments)


def test_bad_losses():
    for loss, message in ((lambda t: t, "loss: returned"), (lambda t: t.sum() / 0, "loss: got NaN"),
                          (lambda t: t.abs().pow(1.5).sum(), "its Hessian at thetas")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ride(loss, torch.zeros(3), torch.ones(1, 3))
