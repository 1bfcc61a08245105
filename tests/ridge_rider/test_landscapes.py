"""Saddles and spectra in closed form against autograd, for inputs of any kind."""

import itertools

import pytest
import torch
from torch.func import grad, hessian

from collage.data import digits
from collage.ridge_rider.landscapes import Choices, Levers, Tanh, coloured


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "payoffs", [[1.0] * 7 + [0.8, 0.8, 0.6], [3.0, 0.1], [5.0, 2.0, 2.0, 0.5, 9.0]]
)
def test_levers_spectrum_for_any_payoffs(payoffs):
    game = Levers(torch.tensor(payoffs, dtype=torch.float64))
    theta = game.saddle()
    c = 1 / sum(1 / r for r in payoffs)
    assert game(theta).item() == pytest.approx(-c, abs=1e-14)
    assert grad(game)(theta).abs().max() < 1e-14 * max(payoffs)
    H = hessian(game)(theta)
    n = len(payoffs)
    torch.testing.assert_close(torch.linalg.eigvalsh(H), game.spectrum(), atol=1e-13, rtol=0)
    assert H[:n, :n].abs().max() < 1e-14 * max(payoffs)  # no player's own curvature
    p = theta[:n].softmax(0)
    torch.testing.assert_close(H[:n, n:], -c * (torch.diag(p) - torch.outer(p, p)))


def test_levers_of_the_book():
    """Numbers worked out by hand: seven levers pay 1, two 0.8, one 0.6."""
    found = Levers(torch.tensor([1.0] * 7 + [0.8, 0.8, 0.6], dtype=torch.float64)).spectrum()
    wanted = [-0.0126832916, -0.0100245043, -0.0094603896] + [-0.0080196035] * 6 + [0, 0]
    torch.testing.assert_close(
        found[:11], torch.tensor(wanted, dtype=torch.float64), atol=1e-10, rtol=0
    )


def test_cross_play_by_hand():
    game = Levers([1.0, 0.5])
    first, second = torch.tensor([9.0, -9, 9, -9]).double(), torch.tensor([-9.0, 9, -9, 9]).double()
    found = game.cross_play(torch.stack([first, second]))
    torch.testing.assert_close(found, torch.tensor([[1, 0], [0, 0.5]]).double(), atol=1e-7, rtol=0)
    mixed = torch.tensor([9.0, -9, -9, 9]).double()  # the players disagree: nothing in self-play
    assert game.cross_play(torch.stack([mixed, first]))[0].tolist() == pytest.approx(
        [0, 0.5], abs=1e-7
    )


def test_entropy_of_levers():
    assert Levers([1.0, 2.0, 3.0]).entropy(torch.zeros(6)).item() == pytest.approx(
        2 * torch.tensor(3.0).log()
    )


@pytest.mark.parametrize("seed", range(3))
def test_choices_equal_a_walk_through_the_tree(seed):
    """The chance of a leaf is the product along its path, found by walking all plays."""
    game = Choices.random(4, 0.5, 0.4, seeded(seed))
    leaves, nodes = game.turns.shape
    theta = torch.randn(nodes, generator=seeded(9), dtype=torch.float64)
    assert game.chances(theta).sum().item() == pytest.approx(1)
    right = theta.sigmoid().tolist()
    total = [0.0] * leaves
    for play in itertools.product((-1, 1), repeat=nodes):
        odds = 1.0
        for side, p in zip(play, right, strict=True):
            odds *= p if side == 1 else 1 - p
        way = torch.tensor(play).double()
        leaf = [i for i in range(leaves) if not bool((game.turns[i] * way < 0).any())]
        assert len(leaf) == 1
        total[leaf[0]] += odds
    torch.testing.assert_close(game.chances(theta), torch.tensor(total).double())
    assert game(theta).item() == pytest.approx(-(game.rewards * game.chances(theta)).sum())


def test_a_random_tree_has_one_good_path_of_its_depth():
    for seed in range(20):
        game = Choices.random(6, 1.0, 0.0, seeded(seed))
        assert game.turns.shape == (7, 6) and game.rewards.sum() == 1 - 6
        assert game.turns[game.rewards > 0].abs().sum() == 6
    always = Choices.random(3, 0.5, 1.0, seeded())
    assert always.turns.shape == (8, 7)


def test_reached():
    game = Choices(torch.tensor([[-1.0, 0.0], [1.0, -1.0], [1.0, 1.0]]), torch.tensor([-1.0, 1, 1]))
    thetas = torch.tensor([[-5.0, 0.0], [5.0, -5.0], [5.0, 5.0], [5.0, 0.0]])
    assert game.reached(thetas).tolist() == [-1, 1, 2, 1]  # the last splits evenly, and wins


def test_zero_network_on_digits():
    """The spectrum, for numbers worked out elsewhere: -sigma_k(C), four times each."""
    x, y = digits()
    net = Tanh(x[:600, ::2].double() / 16, y[:600], hidden=4, classes=10)
    theta = net.saddle()
    sigma = [0.2069665046, 0.1762015158, 0.1258393914, 0.0896022492, 0.0842353681, 0.0728284878,
             0.0469611860, 0.0423058176, 0.0279602374, 0]  # fmt: skip
    torch.testing.assert_close(
        net.strengths(), torch.tensor(sigma, dtype=torch.float64), atol=1e-9, rtol=0
    )
    assert grad(net)(theta).abs().max() < 1e-14
    values = torch.linalg.eigvalsh(hessian(net)(theta))
    below = values[values < -1e-8]
    torch.testing.assert_close(below, -net.strengths()[:9].repeat_interleave(4), atol=1e-12, rtol=0)


@pytest.mark.parametrize("hidden", [1, 3])
def test_zero_network_of_one_logit(hidden):
    x = torch.randn(50, 5, generator=seeded(), dtype=torch.float64)
    y = (x[:, 0] + torch.randn(50, generator=seeded(1)) > 0.3).long()
    net = Tanh(x, y, hidden, classes=1)
    theta = net.saddle()
    assert grad(net)(theta).abs().max() < 1e-14
    values = torch.linalg.eigvalsh(hessian(net)(theta))
    assert (values < -1e-9).sum() == hidden
    torch.testing.assert_close(values[:hidden], -net.strengths().expand(hidden), atol=1e-12, rtol=0)


def test_tanh_equals_a_module():
    x, y = torch.randn(7, 3, generator=seeded()), torch.tensor([0, 1, 2, 0, 1, 2, 2])
    net = Tanh(x, y, 4, 3)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
    theta = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
    torch.testing.assert_close(net.logits(theta, x), module(x))
    torch.testing.assert_close(net(theta), torch.nn.functional.cross_entropy(module(x), y))


def test_blind_networks_do_not_see_the_direction():
    x = torch.randn(6, 4, generator=seeded(), dtype=torch.float64)
    net = Tanh(x, torch.tensor([0, 1, 0, 1, 1, 0]), 3, 1)
    theta = torch.randn(net.size, generator=seeded(1), dtype=torch.float64)
    d = torch.tensor([1.0, 2, 0, -1]).double()
    sight = net.blind(theta, d)
    torch.testing.assert_close(net.logits(sight, x), net.logits(sight, x + 3 * d))
    torch.testing.assert_close(net.blind(sight, 7 * d), sight)
    assert (net.logits(theta, x) - net.logits(theta, x + 3 * d)).abs().max() > 0.1


def test_coloured_pictures():
    x = torch.rand(4000, 3, generator=seeded())
    labels = torch.arange(4000) % 2
    seen, y = coloured(x, labels, 0.8, 0.25, seeded(1))
    first, second = seen.chunk(2, 1)
    torch.testing.assert_close(first + second, x)
    colour = (second.abs().sum(1) > 0).long()
    assert ((first * second) == 0).all()
    assert (y == labels).double().mean().item() == pytest.approx(0.75, abs=0.03)
    assert (colour == y).double().mean().item() == pytest.approx(0.8, abs=0.03)


def test_bad_labels_of_coloured_pictures():
    pictures = torch.ones(3, 2)
    for labels, word in ((torch.tensor([0, 1]), r"\(2,\)"), (torch.tensor([5, 7, 1]), "0 and 1"),
                         (torch.zeros(3, 1), "labels")):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            coloured(pictures, labels, 0.8)


def test_bad_input():
    with pytest.raises(ValueError, match="payoffs: got"):
        Levers([1.0])
    with pytest.raises(ValueError, match="payoffs: got"):
        Levers([1.0, -1.0])
    with pytest.raises(ValueError, match="payoffs: got"):
        Levers([1.0, float("nan")])
    with pytest.raises(ValueError, match="turns: got"):
        Choices(torch.tensor([[0.5]]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="turns: got"):
        Choices(torch.ones(2, 1), torch.ones(3))
    with pytest.raises(ValueError, match="depth: got"):
        Choices.random(0)
    with pytest.raises(ValueError, match="x: got"):
        Tanh(torch.ones(2, 3), torch.tensor([0, 1, 1]), 2, 2)
    with pytest.raises(ValueError, match="y: wanted"):
        Tanh(torch.ones(2, 3), torch.tensor([0, 2]), 2, 2)
    with pytest.raises(ValueError, match="agree: got"):
        coloured(torch.ones(1, 2), torch.tensor([0]), agree=1.5)
