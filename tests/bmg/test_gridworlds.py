"""Two colours: cells never meet, roles flip on time, what is fetched comes back anywhere."""

import pytest
import torch

from collage.bmg.gridworlds import ExactColours, TwoColours


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
            reward = 1.0 if at == good else -1.0 if at == bad else -0.04
            after = states[t + 1, b].tolist()
            assert rewards[t, b] == torch.tensor(reward) and after[1] == at
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
    states = TwoColours(5).reset(100, seeded())
    assert bool((places.observe(states).sum(1) == 6).all())


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
    together, rewards = env.step(state, action, seeded(3))
    g = seeded(3)
    first = env.step(state[:3], action[:3], g)
    rest = env.step(state[3:], action[3:], g)
    assert torch.equal(together, torch.cat([first[0], rest[0]]))
    assert torch.equal(rewards, torch.cat([first[1], rest[1]]))


def test_tables_are_steps():
    """Whatever three cells, direction and draw: what is looked up is where `go` goes."""
    for size, see in ((2, "places"), (4, "ways")):
        env = TwoColours(size, see=see)
        tables = env.tables(torch.device("cpu"))
        arrangements, draws = size**6, size**2 - 2
        g = seeded()
        state = env.reset(500, g)
        action = torch.randint(4, (500,), generator=g)
        draw = torch.randint(draws, (500,), generator=g)
        after, fetched = env.go(state, action, draw)
        move = action * arrangements + env.number(state[:, 1:])
        place = tables.after[draw * 4 * arrangements + move]
        assert torch.equal(tables.fetched[move], fetched) and len(fetched.unique()) == 3
        assert torch.equal(tables.cells[place], after[:, 1:])
        assert torch.equal(tables.sights[place], env.observe(after))
        assert env.tables(torch.device("cpu")) is tables


def test_bad_input():
    for bad in ({"size": 1}, {"size": 2.5}, {"period": 0}, {"see": "all"}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}: got"):
            TwoColours(**bad)
    with pytest.raises(ValueError, match="size: got"):
        ExactColours(1)


def world_and_policies(size=3, S=2, seed=0, **settings):
    exact = ExactColours(size, **settings)
    theta = torch.randn(S, len(exact.start), 4, generator=seeded(seed), dtype=torch.float64)
    return exact, theta


@pytest.mark.parametrize("folded", [True, False])
def test_tables_of_chances(folded):
    """Chances add up; as many states as arrangements, or as kinds of them that no symmetry joins."""
    exact = ExactColours(3, folded=folded)
    assert torch.allclose(exact.chances.sum(-1), torch.ones(4, len(exact.start)).double())
    assert len(exact.start) == (66 if folded else 9 * 8 * 7)
    assert torch.allclose(exact.start.sum(), torch.tensor(1.0).double())
    assert len(ExactColours(2, folded=False).start) == 24


@pytest.mark.slow
def test_exact_reward_is_the_mean_of_long_walks():
    """By simulation, with the discount as the chance to go on."""
    exact, theta = world_and_policies(folded=False, S=1)
    env, g = TwoColours(3), seeded(1)
    row = exact.row
    state, total, n = env.reset(100_000, g), 0.0, 100_000
    alive = torch.ones(n, dtype=torch.bool)
    for _ in range(80):
        chance = theta[0].softmax(-1)[row[env.number(state[:, 1:])]]
        action = torch.multinomial(chance, 1, generator=g)[:, 0]
        state, reward = env.step(state, action, g)
        total += (reward * alive).sum().item()
        alive &= torch.rand(n, generator=g) < 0.9
    mean = total * (1 - 0.9) / n
    assert abs(mean - exact.reward(theta, 1).item()) < 0.003


@pytest.mark.parametrize("sign", [1, -1])
def test_exact_slopes(sign):
    """The policy gradient against autograd, the entropy's with the visits held."""
    exact, theta = world_and_policies()
    J, gain, widen = exact.slopes(theta, sign)
    assert torch.allclose(J, exact.reward(theta, sign), atol=1e-15)
    by_autograd = torch.func.grad(lambda t: exact.reward(t, sign).sum())(theta)
    assert torch.allclose(gain, by_autograd, atol=1e-14)
    visits = exact.policy(theta, sign)[2]

    def entropy(t):
        log = t.log_softmax(-1)
        return -(visits * (log.exp() * log).sum(-1)).sum()

    assert torch.allclose(widen, torch.func.grad(entropy)(theta), atol=1e-14)
    assert torch.allclose(gain.sum(-1), torch.zeros_like(visits), atol=1e-14)


def test_folding_loses_nothing():
    """Exact ascent treats like arrangements alike, and so earns the same in both tables."""
    folded, whole = ExactColours(3), ExactColours(3, folded=False)
    place = folded.row[TwoColours(3).number(whole.cells)]
    theta, wide = torch.zeros(1, 66, 4).double(), torch.zeros(1, 504, 4).double()
    # A row of the folded table adds up the slopes of the arrangements that share it.
    sharing = torch.bincount(place).double()[place][:, None]
    for _ in range(30):
        theta = theta + 20 * folded.slopes(theta, 1)[1]
        wide = wide + 20 * sharing * whole.slopes(wide, 1)[1]
    one, other = folded.reward(theta, 1), whole.reward(wide, 1)
    assert abs(one - other) < 1e-9 and one > 0.2


def test_colours_mirror_each_other():
    exact, theta = world_and_policies(folded=False)
    swapped = exact.cells[:, [0, 2, 1]]
    number = {tuple(c): i for i, c in enumerate(exact.cells.tolist())}
    other = theta[:, [number[tuple(c)] for c in swapped.tolist()]]
    assert torch.allclose(exact.reward(theta, 1), exact.reward(other, -1), atol=1e-14)
