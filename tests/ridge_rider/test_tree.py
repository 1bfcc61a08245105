"""Searches: whole levels, fingerprints that lead back, a file from which they go on."""

import pytest
import torch

from collage.ridge_rider import ride, ridges, saddle, search, tree
from collage.ridge_rider.landscapes import Choices
from tests.ridge_rider.surfaces import seeded

SETTING = {"step": 0.3, "levels": 3}


@pytest.fixture(scope="module")
def choices():
    """A tree of five choices and a point to leave from."""
    game = Choices.random(5, 0.5, 0.3, seeded(1))
    zero = torch.zeros(1, game.turns.shape[1]).double()
    return game, saddle(game, zero, game.entropy, floor=0.01, steps=300).thetas[0]


@pytest.fixture(scope="module")
def searched(choices):
    """A search that ends with points still waiting, and the same with more rides."""
    game, point = choices
    return search(game, point, most=20, **SETTING), search(game, point, most=30, **SETTING)


@pytest.mark.slow
def test_search_covers_whole_levels_and_knows_where_it_came_from(choices):
    game, point = choices
    two = search(game, point, step=0.3, levels=2)
    assert len(set(two.prints)) == len(two.prints) and two.waiting == []
    assert max(map(len, two.prints)) == 2 and {p[0] for p in two.prints} >= {1, -1, 2, -2}
    for i, fingerprint in enumerate(two.prints):  # ridden again, by hand
        *above, last = fingerprint
        start = two.thetas[two.prints.index(tuple(above))] if above else point
        ridge = ridges(game, start).vectors[abs(last) - 1] * (1 if last > 0 else -1)
        again = ride(game, start, ridge[None], 0.3)
        torch.testing.assert_close(again.thetas[0], two.thetas[i], atol=1e-8, rtol=0)


@pytest.mark.slow
def test_a_search_ends_before_it_makes_too_many_rides(searched):
    few, more = searched
    assert len(few.prints) <= 20 < len(more.prints) <= 30 and few.waiting and more.waiting
    assert more.prints[: len(few.prints)] == few.prints
    lengths = list(map(len, more.prints))
    assert lengths == sorted(lengths) and lengths[-1] == 3


class StoppedError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_stopped_search_goes_on(tmp_path, monkeypatch, choices, searched, after):
    game, point = choices
    file, save, count = tmp_path / "tree.npz", tree.save, 0

    def stop(*arguments):
        nonlocal count
        save(*arguments)
        count += 1
        if count == after:
            raise StoppedError

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(tree, "save", stop)
        search(game, point, path=file, most=20, **SETTING)
    for most, whole in zip((20, 30), searched, strict=True):
        again = search(game, point, path=file, most=most, **SETTING)
        for name, value in whole._asdict().items():
            same = torch.equal if isinstance(value, torch.Tensor) else list.__eq__
            assert same(getattr(again, name), value), name


def test_a_file_of_another_search_is_refused(tmp_path):
    def loss(t):
        return t[0] ** 4 - t[0] ** 2 + t[1] ** 2

    zero = torch.zeros(2)
    setting = {"levels": 1, "path": tmp_path / "tree.npz"}
    once = search(loss, zero, **setting)
    again = search(loss, zero, **setting)
    assert again.prints == once.prints == [(1,), (-1,)] and torch.equal(again.thetas, once.thetas)
    for changed, message in (({"step": 0.2}, "other step"), ({"levels": 2}, "other levels"),
                             ({"start": zero + 1}, "start"), ({"start": zero.double()}, "start"),
                             ({"loss": lambda t: 1 + loss(t)}, "other loss")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            search(**({"loss": loss, "start": zero} | setting | changed))


def test_a_start_without_ridges_gives_a_tree_without_rides(tmp_path):
    file = tmp_path / "tree.npz"
    with pytest.warns(RuntimeWarning, match="no negative curvature here"):
        bare = search(lambda t: (t**2).sum(), torch.zeros(2), path=file)
    again = search(lambda t: (t**2).sum(), torch.zeros(2), path=file)
    for empty in (bare, again):
        assert empty.prints == [] and empty.thetas.shape == (0, 2)


def test_bad_input():
    with pytest.raises(ValueError, match="start: got 300 parameters"):
        search(lambda t: t.sum(), torch.zeros(300))
