"""Lever games at random: what is drawn, and that the methods earn what the chapter's game says."""

import dataclasses

import pytest
import torch

from collage import runtime
from collage.ridge_rider.landscapes import Levers
from experiments import program, ridge_rider, strangers


def test_games_are_of_the_chapters_kind():
    for seed in range(20):
        pays, best = strangers.game_of(runtime.generator(seed))
        values, sizes = pays.unique(return_counts=True)
        assert len(pays) == 10 and pays.min() >= 0.2 and values[-1] == 1
        assert 2 <= sizes[-1] <= 7 and sorted(sizes.tolist())[0] == 1
        assert best == pytest.approx((values / sizes).max().item())


def test_the_first_ridge_of_the_chapters_game_earns_what_its_lone_lever_pays():
    game, g = Levers(torch.tensor(7 * [1.0] + [0.8, 0.8, 0.6]).double()), runtime.generator(0)
    ends = strangers.riders(game, 8, g, 0.2, (200, 2.0))
    assert ends.shape == (4, 8, 20), "four eigenspaces"
    assert strangers.with_strangers(game, ends[0]) > 0.58
    assert strangers.with_strangers(game, ends[3]) < 0.4
    assert strangers.with_strangers(game, ends[0][:1].expand(5, -1)) == pytest.approx(
        game.cross_play(ends[0][:1]).item())  # fmt: skip


def test_a_record_of_games(tmp_path, monkeypatch):
    small = dataclasses.replace(ridge_rider.PRESETS["levers"], games=2, agents=2, copies=2)
    monkeypatch.setitem(ridge_rider.PRESETS, "levers", small)
    kept = []
    monkeypatch.setattr(
        program, "keep", lambda config, out, numbers, *rest, **more: kept.append(numbers)
    )
    for _ in range(2):  # the second time from what is kept
        ridge_rider.main(["--preset", "levers", "--runs", str(tmp_path), "--out", str(tmp_path)])
    first, again = kept
    assert first == again and set(first["sweeps"]) == {row["method"] for row in first["table"]}
    for row, key in zip(first["table"], strangers.METHODS, strict=True):
        shares = [100 * r[key] / r["best"] for r in first["runs"]]
        assert row["share of the best (%)"]["mean"] == pytest.approx(sum(shares) / 2)
        assert all(0 < share < 101 for share in shares)
