"""Two colours: cells never meet, roles flip on time, what is fetched comes back anywhere."""

import pytest
import torch

from collage.gridworlds import TwoColours


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def walked(env, n, steps, seed=0):
    """States and rewards of random walks, (steps + 1, n, 4) and (steps, n), and the actions."""
    g = seeded(seed)
    state = env.reset(n, g)
    states, rewards, actions = [state], [], []
    for _ in range(steps):
        action = torch.randint(4, (n,), generator=g)
        state, reward = env.step(state, action, g)
        states.append(state), rewards.append(reward), actions.append(action)
    return torch.stack(states), torch.stack(rewards), torch.stack(actions)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_three_cells_at_any_time(size):
    states, _, _ = walked(TwoColours(size, period=7), 300, 60)
    cells = states[..., 1:]
    assert cells.min() == 0 and cells.max() == size**2 - 1
    ordered = cells.sort(-1).values
    assert bool((ordered.diff(dim=-1) > 0).all())
    assert torch.equal(states[:, 0, 0], torch.arange(61))


def test_a_loop_in_words():
    env = TwoColours(4, period=5)
    states, rewards, actions = walked(env, 40, 30)
    moves = ((-1, 0), (1, 0), (0, -1), (0, 1))
    for t in range(30):
        for b in range(40):
            time, agent, blue, red = states[t, b].tolist()
            dr, dc = moves[actions[t, b]]
            r, c = min(max(agent // 4 + dr, 0), 3), min(max(agent % 4 + dc, 0), 3)
            at = 4 * r + c
            good, bad = (blue, red) if time // 5 % 2 == 0 else (red, blue)
            wanted = 1.0 if at == good else -1.0 if at == bad else -0.04
            after = states[t + 1, b].tolist()
            assert rewards[t, b] == torch.tensor(wanted) and after[1] == at
            assert (after[2] == blue) or at == blue
            assert (after[3] == red) or at == red


def test_roles_flip_exactly_on_time():
    env, g = TwoColours(5, period=3), seeded()
    for time in range(13):
        for thing, first in ((1, 1.0), (9, -1.0)):
            state = torch.tensor([[time, 0 if thing == 1 else 4, 1, 9]])
            step = 3 if thing == 1 else 1
            reward = env.step(state, torch.tensor([step]), g)[1].item()
            assert reward == (first if time // 3 % 2 == 0 else -first)


def test_what_is_fetched_comes_back_anywhere():
    """Uniform over the cells that are free, none of the others."""
    env, n = TwoColours(3), 70_000
    state = torch.tensor([[0, 0, 1, 5]]).repeat(n, 1)
    after, reward = env.step(state, torch.full((n,), 3), seeded())
    assert bool((reward == 1).all()) and bool((after[:, 3] == 5).all())
    count = torch.bincount(after[:, 2], minlength=9)
    assert count[[1, 5]].tolist() == [0, 0]
    assert (count[[0, 2, 3, 4, 6, 7, 8]] - n / 7).abs().max() < 5 * (n / 7) ** 0.5


def test_sights():
    places, ways = TwoColours(5), TwoColours(5, see="ways")
    state = torch.tensor([[0, 7, 24, 0]])  # agent (1, 2), blue (4, 4), red (0, 0)
    seen = places.observe(state)[0]
    assert seen.shape == (30,) == (places.observations,)
    assert seen.nonzero()[:, 0].tolist() == [1, 9, 10, 17, 24, 25]
    seen = ways.observe(state)[0].view(2, 2, 9)
    assert ways.observations == 36 and seen.sum() == 4
    assert seen.argmax(-1).tolist() == [[4 + 3, 4 - 1], [4 + 2, 4 - 2]]
    many = TwoColours(5).reset(100, seeded())
    assert bool((places.observe(many).sum(1) == 6).all())


def test_no_colour_is_better_for_one_who_walks_at_random():
    """Mean reward of random moves: the same in both roles, and near the cost of a step."""
    _, rewards, _ = walked(TwoColours(5, period=50), 4000, 100)
    first, second = rewards[:50], rewards[50:]
    error = rewards.std() / (50 * 4000) ** 0.5
    assert (first.mean() - second.mean()).abs() < 6 * error
    hit = (rewards.abs() == 1).float().mean()
    assert abs(rewards.mean() + 0.04 * (1 - hit)) < 6 * error


def test_lifetimes_do_not_meet():
    """A batch is its parts, with the same draws."""
    env = TwoColours(5)
    state = env.reset(6, seeded())
    action = torch.tensor([0, 1, 2, 3, 0, 1])
    every, rewards = env.step(state, action, seeded(3))
    g = seeded(3)
    first = env.step(state[:3], action[:3], g)
    rest = env.step(state[3:], action[3:], g)
    assert torch.equal(every, torch.cat([first[0], rest[0]]))
    assert torch.equal(rewards, torch.cat([first[1], rest[1]]))


def test_bad_input():
    for bad in ({"size": 1}, {"size": 2.5}, {"period": 0}, {"see": "all"}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}: got"):
            TwoColours(**bad)
