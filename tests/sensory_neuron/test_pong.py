"""The experiment with Pong: the machines, the teacher, what a student sees, and a run that is stopped."""

import dataclasses
import json

import numpy as np
import pytest
import torch

ale_py = pytest.importorskip("ale_py")
from experiments import pong  # noqa: E402

TINY = pong.PRESETS["tiny"]


@pytest.fixture
def screens():
    """Pictures (2, 4, 84, 84) from the middle of two games of the teacher."""
    games, teacher = pong.Games(2), pong.Teacher()
    games.reset(np.random.default_rng(0))
    for _ in range(60):
        games.step(teacher(games.memory))
    return games.frames


def test_games_are_what_the_machine_says():
    """Two at once against machines of our own: points, memory, and the brighter of two frames."""
    games, machines = pong.Games(2), [ale_py.ALEInterface() for _ in range(2)]
    games.reset(np.random.default_rng(5))
    waits = np.random.default_rng(5).integers(1, 31, 2)
    for machine, wait in zip(machines, waits, strict=True):
        machine.setFloat("repeat_action_probability", 0.0)
        machine.loadROM(ale_py.roms.get_rom_path("pong"))
        machine.reset_game()
        [machine.act(0) for _ in range(wait)]
    lost = 0
    for t in range(120):
        moves, seen, wanted = np.array([t // 9 % 3, t // 5 % 3]), [], []
        for machine, move in zip(machines, moves, strict=True):
            frames = []
            wanted.append(0)
            for _ in range(4):
                wanted[-1] += machine.act((0, 3, 4)[move])
                frames.append(machine.getScreenGrayscale())
            seen.append(np.maximum(frames[2], frames[3]))
        before = games.frames
        assert games.step(moves).tolist() == wanted
        lost += sum(w < 0 for w in wanted)
        assert np.array_equal(games.memory, np.stack([m.getRAM() for m in machines]))
        assert torch.equal(games.frames[:, :3], before[:, 1:])
        last = games.frames[:, 3].float()  # of 2.5 x 1.9 pixels each
        assert (last.mean((1, 2)) - torch.tensor([s.mean() for s in seen])).abs().max() < 0.3
    assert lost > 0


def test_the_teacher_steers_and_nothing_else_does():
    """Up where the ball will come above the bat; it holds its own against the machine, luck loses nearly all."""
    config = dataclasses.replace(TINY, games=8, longest=1000)
    teacher, rng = pong.Teacher(), np.random.default_rng(0)
    won, lost = pong.points(config, lambda games, last: torch.from_numpy(teacher(games.memory)))
    assert won.sum() + lost.sum() > 15 and won.sum() > 0.4 * (won.sum() + lost.sum())
    chance = pong.points(config, lambda games, last: torch.from_numpy(rng.integers(0, 3, 8)))
    assert chance[0].sum() < 0.1 * chance[1].sum()
    memory = np.zeros((2, 128), dtype=np.int64)
    memory[:, 51], memory[:, 49], memory[:, 54] = 120, 100, 120
    teacher = pong.Teacher()
    teacher(memory)
    memory[:, 49], memory[:, 54] = 110, (117, 123)  # towards the bat, rising and falling
    assert teacher(memory).tolist() == [1, 2]


def test_what_a_student_sees(screens):
    """Shuffled patches in their order again are the screen; missing ones are left out, or black."""
    g = torch.Generator().manual_seed(0)
    order = pong.orders(2, g)
    assert bool((order.sort(1).values == torch.arange(196)).all()) and not torch.equal(*order)
    whole = pong.seen_through(screens, pong.orders(2, g, False), 0, "patches")
    assert torch.allclose(whole / pong.CONTRAST, pong.patches(screens / 255, 6))
    mixed = pong.seen_through(screens, order, 0, "patches")
    assert torch.equal(mixed, torch.stack([w[o] for w, o in zip(whole, order)]))
    assert torch.equal(pong.seen_through(screens, order, 50, "patches"), mixed[:, 50:])
    hidden = pong.seen_through(screens, pong.orders(2, g, False), 0, "by heart")
    assert not bool(hidden[:, :14].any()) and torch.equal(hidden[:, 28:], whole[:, 28:])
    black = pong.seen_through(screens, order, 50, "ordinary")
    assert torch.allclose(pong.CONTRAST * black[:, 50:], mixed[:, 50:]) and not bool(
        black[:, :50].any()
    )
    paper = pong.seen_through(screens, pong.orders(2, g, False), 0, "papered") - whole
    paper /= pong.CONTRAST
    assert torch.allclose(paper[0], paper[1], atol=1e-6)
    assert torch.allclose(paper[:, :, 0], paper[:, :, 3], atol=1e-6)  # the same in every frame
    looks = torch.nn.functional.layer_norm(
        paper[0, :, 0], (36,)
    )  # and tells the place, brought to variance 1
    place = torch.stack([torch.arange(196) // 14, torch.arange(196) % 14], 1).float()
    place = (place - place.mean(0)) / place.std(0)
    fit = torch.linalg.lstsq(looks.double(), place.double(), driver="gelsd").solution
    assert float((looks.double() @ fit - place).square().mean()) < 0.1


def test_a_new_order_leaves_old_pictures_as_they_were(screens):
    """It comes when it is due, in one picture after another, and three decisions later in all four."""
    g = torch.Generator().manual_seed(0)
    first = pong.orders(2, g)
    flow = pong.renewed(first, 5, g)
    seen = torch.stack([next(flow) for _ in range(11)])
    new = seen[10, :, :, 0]
    assert bool((seen[:5] == first[..., None]).all()) and not torch.equal(new, first)
    for t in range(5, 10):
        fresh = (seen[t] != first[..., None]).any(1)
        assert fresh.tolist() == 2 * [[age >= 8 - t for age in range(4)]]
    assert torch.equal(seen[8], new[..., None].expand_as(seen[8]))
    assert torch.equal(seen[10, ..., :3], seen[9, ..., 1:])
    assert not torch.equal(seen[10, ..., 3], new)
    mixed = pong.seen_through(screens, seen[6], 0, "patches")
    old, late = (pong.seen_through(screens, order, 0, "patches") for order in (first, new))
    assert torch.equal(mixed[:, :, :2], old[:, :, :2])
    assert torch.equal(mixed[:, :, 2:], late[:, :, 2:])
    still = pong.renewed(first, 0, g)
    assert all(bool((next(still) == first[..., None]).all()) for _ in range(9))


@pytest.mark.parametrize("kind", ["patches", "papered", "ordinary"])
def test_who_minds_a_shuffled_screen(screens, kind):
    """Only the ordinary network, which gets its picture as it is when the order is the usual one."""
    torch.manual_seed(0)
    net, g, last = pong.Student(kind).eval(), torch.Generator().manual_seed(0), torch.eye(3)[:2]
    usual, other = (
        net(pong.seen_through(screens, order, 0, kind), last)
        for order in (pong.orders(2, g, False), pong.orders(2, g))
    )
    assert torch.allclose(usual, other, atol=1e-5) == (kind != "ordinary")
    assert not torch.allclose(usual[0], usual[1], atol=1e-5)  # it looks
    if kind == "ordinary":
        field = 4 * (screens.float() - 87) / 255
        assert torch.allclose(usual, net.head(field), atol=1e-5)


def test_lessons_teach():
    """After some updates a student says what the teacher did, on what it was shown."""
    config = dataclasses.replace(TINY, games=3, decisions=40, updates=250, batch=32, lr=5e-4)
    torch.manual_seed(0)
    net, g = pong.Student("ordinary"), torch.Generator().manual_seed(0)
    scene = pong.collect(config, net, 0, 0.0, g)
    assert scene[0].shape == (3, 43, 84, 84) and scene[1].shape == scene[2].shape == (3, 40)
    counts = torch.bincount(scene[2].flatten(), minlength=3) / 120
    plain = -(counts * counts.clamp(min=1e-9).log()).sum()
    adam = torch.optim.Adam(net.parameters(), config.lr)
    early = pong.lessons(dataclasses.replace(config, updates=1), net, adam, [scene], 0.0, g, "cpu")
    late = pong.lessons(config, net, adam, [scene], 0.0, g, "cpu")
    assert early > 0.8 * float(plain) and late < 0.8 * float(plain)


def test_a_share_of_points_and_its_error():
    """Against 20,000 sets of games drawn anew; nothing played is no share."""
    rng = np.random.default_rng(0)
    won, lost = rng.poisson(4, (20_000, 16)), rng.poisson(9, (20_000, 16))
    told = [pong.ratio(w, w + b) for w, b in zip(won[:200], lost[:200])]
    every = won.sum(1) / (won + lost).sum(1)
    assert abs(np.mean([cell["spread"] for cell in told]) / (100 * every.std()) - 1) < 0.05
    assert told[0]["mean"] == pytest.approx(100 * every[0])
    nothing = pong.ratio(np.zeros(2), np.zeros(2))
    assert nothing == {"mean": 0.0, "spread": 0.0, "n": 2}


def test_one_student_plays_the_same_games(monkeypatch):
    """By heart: in each round and in its tests, without a random move; others get new games."""
    config = dataclasses.replace(TINY, games=3, decisions=60)
    torch.manual_seed(0)
    for kind in ("by heart", "patches"):
        net, g = pong.Student(kind).eval(), torch.Generator().manual_seed(0)
        one, two, three = (pong.collect(config, net, number, 0.0, g) for number in (1, 1, 2))
        assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
        assert torch.equal(one[0], three[0]) == (kind == "by heart")
        assert bool((one[1][:, 1:] == three[1][:, 1:]).all()) == (kind == "by heart")
    known, other = pong.learned(config)
    assert sorted([*known, *other]) == list(range(1, 31)) and len(known) == 3
    asked, points = [], pong.points

    def watched(config, player, chance=0.02, waits=None):
        asked.append((config.longest, chance, waits if waits is None else waits.tolist()))
        return points(config, player, chance, waits)

    monkeypatch.setattr(pong, "points", watched)
    tested = pong.tests(config, pong.Student("by heart").eval(), 0.0)
    assert list(tested) == ["in order", pong.STILL, pong.OTHERS, pong.RANDOM, pong.ANEW]
    wanted = [(0.0, known), (0.0, known), (0.0, other), (0.02, known), (0.0, known)]
    assert asked == [(60, chance, waits.tolist()) for chance, waits in wanted]
    assert len(tested[pong.OTHERS]["won"]) == 27
    asked.clear()
    pong.tests(config, pong.Student("ordinary").eval(), 0.0)
    pong.tests(config, pong.Student("patches").eval(), 0.5)
    assert asked == [(15, 0.02, None)] * 5
    asked.clear()
    tested = pong.tests(config, pong.Student("patches").eval(), 0.0)
    assert list(tested)[3:] == [pong.STILL, pong.RANDOM, pong.ANEW]
    assert asked[3:] == [(60, chance, known.tolist()) for chance in (0.0, 0.02, 0.0)]
    config = dataclasses.replace(config, longest=200)
    moves = torch.from_numpy(np.random.default_rng(2).integers(0, 3, (200, 3)))

    def played(chance):
        left = iter(moves)
        return points(config, lambda games, last: next(left), chance, known)

    assert played(0.0)[1].sum() > 0 and np.array_equal(played(0.0), played(0.0))
    assert not np.array_equal(played(0.0), played(0.5))


def test_what_was_met_before():
    """The same games are met whole, others and disturbed ones in part."""
    config = dataclasses.replace(TINY, games=6, decisions=60)
    told = pong.met_before(config)
    assert 0 < told[pong.RANDOM] < 1 and 0 < told[pong.OTHERS] < 1
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pong, "learned", lambda config: (np.arange(1, 4), np.arange(1, 4)))
        assert pong.met_before(config)[pong.OTHERS] == 1


def test_a_run_that_was_stopped_ends_the_same(tmp_path, monkeypatch):
    """Killed after the first round, a student goes on to the same losses and points; the record tells all."""
    config = dataclasses.replace(TINY, students=(("patches", 0.5),), longest=150)
    monkeypatch.setitem(pong.PRESETS, "tiny", config)
    told = []
    for name in ("whole", "stopped"):
        arguments = ["--tiny", "--runs", str(tmp_path / name), "--out", str(tmp_path / name)]
        if name == "stopped":
            lessons, calls = pong.lessons, []

            def once(*given, calls=calls, lessons=lessons):
                calls.append(1)
                if len(calls) == 2:
                    raise KeyboardInterrupt
                return lessons(*given)

            with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
                patched.setattr(pong, "lessons", once)
                pong.main(arguments)
        pong.main(arguments)
        told.append(json.loads((tmp_path / name / "tiny.json").read_text())["numbers"])
    assert told[0] == told[1]
    assert sum(sum(t["lost"]) for t in told[0]["runs"][1]["tests"].values()) > 0
    losses = told[0]["runs"][1]["losses"]
    assert len(losses) == 2 and 0 < losses[0] < 3
    bare, papered = (
        torch.tensor([list(bytes.fromhex(row)) for row in told[0]["screens"][kind]])
        for kind in ("patches", "papered")
    )
    field = bare == 87
    assert bare.shape == papered.shape == (84, 84) and field.float().mean() > 0.7
    paper = pong.paper().view(14, 14, 6, 6).transpose(1, 2).reshape(84, 84)
    assert ((papered - bare - 255 * paper)[field]).abs().max() < 0.6
    screens = [(r["player"], r["screen"]) for r in told[0]["table"]]
    alone = ("in order", "no random move", "2 % of the moves random")
    assert screens == [("teacher", s) for s in alone] + [
        ("patches, 50% missing in its lessons", s) for s in ("in order", "shuffled", "50% missing")
    ]
