"""Walks and keys against plain loops."""

import pytest
import torch

from collage.decision_transformer.worlds import KeyToDoor, Walks
from tests.decision_transformer.examples import seeded


def test_walks_against_a_loop():
    env = Walks.random(12, 0.2, seeded(1), farthest=5)
    distances = env.distances()
    # Breadth first from the goal, backwards.
    wanted, front = {0: 0}, [0]
    while front:
        front = [i for i in range(12) if i not in wanted and any(env.edges[i, j] for j in front)]
        wanted |= dict.fromkeys(front, max(wanted.values()) + 1)
    assert distances.tolist() == [wanted[i] for i in range(12)] and distances.max() == 5
    state = env.reset(500, seeded(2))
    assert bool((state[:, 0] > 0).all()) and set(state[:, 0].tolist()) == set(range(1, 12))
    going, totals = torch.ones(500, dtype=torch.bool), torch.zeros(500)
    for t in range(env.longest):
        before, action = state, torch.randint(12, (500,), generator=seeded(t))
        step = env.step(state, action)
        for i in range(0, 500, 37):
            node = int(action[i]) if env.edges[before[i, 0], action[i]] else int(before[i, 0])
            assert step.state[i].tolist() == [node, t + 1]
            assert bool(step.terminated[i]) == (node == 0)
            late = t == 9 and node != 0
            assert bool(step.truncated[i]) == late and step.reward[i] == (-11 if late else -1)
        totals += step.reward * going
        going &= ~(step.terminated | step.truncated)
        state = step.state
    assert not going.any() and set(totals.unique().tolist()) <= {
        -20.0,
        *(-float(i) for i in range(11)),
    }


def test_no_walk_is_shorter_than_the_distance():
    env = Walks.random(15, 0.15, seeded(3))
    nodes = torch.arange(1, 15).repeat(200)
    state, length = env.at(nodes), torch.zeros(len(nodes))
    going = length == 0
    for _ in range(env.longest):
        step = env.step(state, env.wander(state, seeded(int(length.sum()))))
        length += going
        going &= ~step.terminated
        state = step.state
    assert bool((length >= env.distances()[nodes].clamp(max=env.longest)).all())


def test_bad_walks():
    for edges in (torch.ones(2, 3), torch.zeros(3, 3), torch.full((2, 2), 2), torch.ones(1, 1)):
        with pytest.raises(ValueError, match="edges"):
            Walks(edges, 0)
    for goal in (3, -1, 1.0, True):
        with pytest.raises(ValueError, match="goal"):
            Walks(torch.ones(3, 3), goal)
    with pytest.raises(ValueError, match="longest"):
        Walks(torch.ones(3, 3), 0, longest=0)
    with pytest.raises(ValueError, match="chance"):
        Walks.random(20, 0.01, seeded())


@pytest.mark.parametrize(("size", "stay"), [(4, 8), (3, 5), (2, 1)])
def test_key_to_door_against_a_loop(size, stay):
    env = KeyToDoor(size, stay)
    start = env.reset(60, seeded(4))
    assert bool((start[:, 1] != start[:, 3]).all()) and bool((start[:, 6] != start[:, 4]).all())
    moves = torch.randint(4, (3 * stay, 60), generator=seeded(5))
    for i in range(60):
        _, cell, _, key, door, second, third = start[i].tolist()
        state, taken = start[i : i + 1], 0
        for t in range(3 * stay):
            room = t // stay
            seen = env.observe(state)[0]
            assert seen[:3].argmax() == room and len(seen) == env.observations
            assert (
                seen[3 : 3 + size].argmax() * size + seen[3 + size : 3 + 2 * size].argmax() == cell
            )
            visible = room == 2 or (room == 0 and not taken)
            thing = door if room == 2 else key
            way = [(thing // size - cell // size) / size, (thing % size - cell % size) / size]
            assert torch.allclose(seen[-3:], torch.tensor([1.0, *way] if visible else [0.0, 0, 0]))
            row, column = divmod(cell, size)
            a = int(moves[t, i])
            row = min(max(row + (a == 1) - (a == 0), 0), size - 1)
            column = min(max(column + (a == 3) - (a == 2), 0), size - 1)
            cell = row * size + column
            taken |= room == 0 and cell == key
            done = room == 2 and cell == door
            step = env.step(state, moves[t, i : i + 1])
            assert bool(step.terminated) == done and float(step.reward) == float(done and taken)
            assert bool(step.truncated) == (t + 1 == 3 * stay and not done)
            if done:
                break
            cell = {stay: second, 2 * stay: third}.get(t + 1, cell)
            state = step.state
            assert state[0, :3].tolist() == [t + 1, cell, int(taken)]


def test_the_odds_of_random_moves():
    """Exact chances against simulation, at the start and half-way, key in hand or not."""
    env, n = KeyToDoor(3, 4), 40_000
    state = env.reset(n, seeded(6))
    odds, going, won = [], torch.ones(n, dtype=torch.bool), torch.zeros(n)
    kept = []
    for t in range(env.longest):
        if t in (0, 2, 5, 9):
            odds.append(env.odds(state))
            kept.append((going.clone(), state[:, 2] == 1))
        step = env.step(state, env.wander(state, seeded(100 + t)))
        won += step.reward * going
        going &= ~(step.terminated | step.truncated)
        state = torch.where(going[:, None], step.state, state)
    for chance, (alive, key) in zip(odds, kept):
        for part in (alive & key, alive & ~key):
            if part.sum() > 500:
                assert abs(won[part].mean() - chance[part].mean()) < 4 / part.sum() ** 0.5
                high = part & (chance > chance[part].median())
                if high.sum() > 500:
                    assert abs(won[high].mean() - chance[high].mean()) < 4 / high.sum() ** 0.5
