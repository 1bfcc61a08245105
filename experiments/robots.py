"""MuJoCo's robots, many at once, and what agents that learn to move them leave behind as data.

Robots    some of gymnasium's environments with the batched interface of `collage`
search    episodes of a linear policy on its way to walking, by augmented random search
career    a soft actor-critic's actors on the way, what each earned, and all that it lived through
data_of   from it the kinds of data of the offline literature: medium, replay, expert
"""

import io

import numpy as np
import torch

from collage import runtime
from collage.common import checkpoint
from collage.common.environments import Step
from collage.decision_transformer import Trajectories, collect


class Robots:
    """A number of gymnasium environments, as one with the batched interface of `collage`."""

    discrete = False

    def __init__(self, name, n, late=False):
        """late: all of the reward comes with the last step of an episode."""
        import gymnasium

        self.each, self.late = [gymnasium.make(name) for _ in range(n)], late
        self.longest = self.each[0].spec.max_episode_steps
        self.observations = self.each[0].observation_space.shape[0]
        self.actions = self.each[0].action_space.shape[0]

    def reset(self, n, generator):
        seeds = torch.randint(2**31, (n,), generator=generator).tolist()
        self.going, self.owed = [True] * n, [0.0] * n
        return torch.tensor(
            np.stack([e.reset(seed=s)[0] for e, s in zip(self.each, seeds)])
        ).float()

    def observe(self, state):
        return state

    def step(self, state, action):
        state, n = state.clone(), len(state)
        reward, out, cut = torch.zeros(n), torch.zeros(n).bool(), torch.zeros(n).bool()
        for i, move in enumerate(action.clamp(-1, 1).double().numpy()):
            if self.going[i]:
                seen, r, out[i], cut[i], _ = self.each[i].step(move)
                state[i] = torch.from_numpy(seen).float()
                self.owed[i] += float(r)
                self.going[i] = not bool(out[i] | cut[i])
                if not (self.late and self.going[i]):
                    reward[i], self.owed[i] = self.owed[i], 0.0
        return Step(state, reward, out, cut)


def search(config, progress=print):
    """`Trajectories` of a linear policy on its way to walking: augmented random search, V2-t.

    Every episode of the search is equally likely to be kept, the clumsy first ones and the last.
    """
    import gymnasium

    env, g = gymnasium.make(config.env), np.random.default_rng(0)
    S, A = env.observation_space.shape[0], env.action_space.shape[0]
    rate, noise, directions, best = config.search
    theta, count, mean, square = np.zeros((A, S)), 0, np.zeros(S), np.ones(S)
    kept, done, rounds = [], 0, 0

    def episode(theta, scale):
        seen, moves, rewards = [env.reset(seed=int(g.integers(2**31)))[0]], [], []
        while True:
            moves.append(np.clip(theta @ ((seen[-1] - mean) * scale), -1, 1))
            state, r, out, late, _ = env.step(moves[-1])
            rewards.append(r)
            if out or late:
                return np.array(seen), np.array(moves), np.array(rewards), out
            seen.append(state)

    while done < config.interactions:
        scale = 1 / np.maximum(np.sqrt(square / max(count, 1)), 1e-6) if count else np.ones(S)
        delta = g.standard_normal((directions, A, S))
        worth, seen = np.zeros((directions, 2)), []
        for i in range(directions):
            for j, sign in enumerate((1, -1)):
                states, moves, rewards, out = episode(theta + sign * noise * delta[i], scale)
                worth[i, j] = (rewards - config.alive).sum()
                done += len(rewards)
                seen.append(states)
                if g.random() < config.kept / config.interactions:
                    kept.append((states, moves, rewards, out))
        for states in seen:  # running mean and sum of squared deviations
            n, away = len(states), states.mean(0) - mean
            square = square * (count > 0) + ((states - states.mean(0)) ** 2).sum(0)
            square = square + away**2 * count * n / (count + n)
            mean, count = mean + away * n / (count + n), count + n
        top = np.argsort(-worth.max(1))[:best]
        lean = (worth[top, 0] - worth[top, 1])[:, None, None] * delta[top]
        theta = theta + rate / (best * (worth[top].std() + 1e-9)) * lean.sum(0)
        rounds += 1
        if rounds % 20 == 0:
            progress(f"search: {done:,} steps, returns {worth.mean():.0f} without the bonus")
    states, moves, rewards = (torch.tensor(np.concatenate(x)).float() for x in list(zip(*kept))[:3])
    lengths = torch.tensor([len(k[2]) for k in kept])
    return Trajectories(states, moves, rewards, lengths, torch.tensor([bool(k[3]) for k in kept]))


def career(name, steps, path, every=10_000, episodes=10, progress=print):
    """What stable-baselines' soft actor-critic, at its own settings, was like on its way.

    `steps` of experience in stages of `every` or a little more, until an episode ends. Returns a dict:
    actors (stages, P), the weights at the end of a stage; worth (stages,), mean return of `episodes`
    without noise; stages, the steps lived through by then; life, `Trajectories` of them all, in order.
    Whatever stops it: called again with the same path it goes on after the last stage, as if it had not
    been stopped.

    Raises ValueError where the file there is of another robot, or of other stages.
    Source: Haarnoja et al. 2018, arXiv 1801.01290.
    """
    import gymnasium
    from stable_baselines3 import SAC
    from stable_baselines3.common.callbacks import BaseCallback

    class Stage(BaseCallback):
        """Stops learning once an episode has ended after `goal` steps; the step that hears of it is lost."""

        def __init__(self, goal):
            super().__init__()
            self.goal, self.over = goal, False

        def _on_step(self):
            stop, ended = self.over, bool(self.locals["dones"][0])
            self.over = ended and self.num_timesteps >= self.goal
            return not stop

    setting = {"env": name, "every": every, "episodes": episodes}
    fresh = {"setting": setting, "stages": [], "worth": []}
    arrays, meta = checkpoint.load(path) if path.exists() else ({}, fresh)
    if meta["setting"] != setting:
        raise ValueError(f"path: {path} is of a career with {meta['setting']}, wanted {setting}")
    env, room = gymnasium.make(name), steps + every + 1000
    if arrays:
        room = max(room, len(arrays["dones"]))
        agent = SAC.load(
            io.BytesIO(arrays.pop("agent").tobytes()), env, device="cpu", buffer_size=room
        )
        actors = [*arrays.pop("actors")]
        for field, value in arrays.items():  # of the replay buffer
            getattr(agent.replay_buffer, field)[: len(value), 0] = value
        agent.replay_buffer.pos = len(value)
    else:
        agent, actors = SAC("MlpPolicy", env, buffer_size=room, seed=0, device="cpu"), []
    robots, buffer = Robots(name, episodes), agent.replay_buffer
    while not meta["stages"] or meta["stages"][-1] < steps:
        stage = len(actors)
        # Each stage begins with draws and an episode of its own, so that a stop leaves no trace.
        agent.set_random_seed(stage)
        agent._last_obs = None
        agent.learn(room, Stage((stage + 1) * every), reset_num_timesteps=False)
        lived = buffer.pos
        weights = torch.nn.utils.parameters_to_vector(agent.actor.parameters()).detach()
        actors.append(weights.numpy().copy())
        test = collect(robots, behaviour(agent.actor, 0.0), episodes, runtime.generator(stage))
        meta["stages"].append(lived)
        meta["worth"].append(test.totals.mean().item())
        file = io.BytesIO()
        agent.save(file)
        fields = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
        checkpoint.save(path, {"agent": np.frombuffer(file.getvalue(), np.uint8), "actors": actors,
                               **{f: getattr(buffer, f)[:lived, 0] for f in fields}}, meta)  # fmt: skip
        progress(f"actor-critic: {lived:,} steps, return {meta['worth'][-1]:.0f}")
    enough = next(i for i, lived in enumerate(meta["stages"]) if lived >= steps) + 1
    lived = meta["stages"][enough - 1]  # of a longer career only the beginning
    field = {f: torch.from_numpy(getattr(buffer, f)[:lived, 0])
             for f in ("observations", "actions", "rewards", "dones", "timeouts")}  # fmt: skip
    ends = field["dones"].nonzero()[:, 0]
    life = Trajectories(field["observations"].float(), field["actions"], field["rewards"],
                        (ends + 1).diff(prepend=ends.new_zeros(1)), field["timeouts"][ends] == 0)  # fmt: skip
    return {"actors": np.stack(actors[:enough]), "worth": torch.tensor(meta["worth"][:enough]),
            "stages": torch.tensor(meta["stages"][:enough]), "life": life, "actor": agent.actor}  # fmt: skip


def behaviour(actor, noise=1.0):
    """What an actor-critic's actor does: behaviour(state, generator) for `collect`, noise 0 without any."""

    @torch.no_grad()
    def act(state, generator):
        mean, log_scale, _ = actor.get_action_dist_params(state)
        return (
            mean + noise * log_scale.exp() * torch.randn(mean.shape, generator=generator)
        ).tanh()

    return act


def data_of(name, past, level, kept):
    """(`Trajectories` of a level, returns of (random moves, medium, expert)) from a `career`.

    expert: the actor that earned most. medium: the first to earn a third of that, counted from what
    random moves earn. "medium" has `kept` steps or a few more of the medium actor, with its noise,
    "expert" half of them of it and half of the expert, "replay" all that was lived through until the
    medium actor. The returns are of 50 other episodes than those that chose, without noise.

    Source: Fu et al. 2020, arXiv 2004.07219.
    """
    robots, shape = Robots(name, 50), (50, past["life"].actions.shape[1])

    def by(stage, noise, g):
        torch.nn.utils.vector_to_parameters(torch.from_numpy(past["actors"][stage]),
                                            past["actor"].parameters())  # fmt: skip
        return collect(robots, behaviour(past["actor"], noise), 50, g)

    def lived(stage, steps):
        parts, g = [], runtime.generator(runtime.seed_for("lived", stage))
        while sum(len(p) for p in parts) < steps:
            parts.append(by(stage, 1.0, g))
        data = joined(parts)
        return data.pick(data.starts < steps)

    g = runtime.generator(runtime.seed_for("marks"))
    chance = collect(robots, lambda *_: 2 * torch.rand(shape, generator=g) - 1, 50, g).totals.mean()
    best = int(past["worth"].argmax())
    middle = int((past["worth"] >= chance + (past["worth"][best] - chance) / 3).nonzero()[0])
    marks = [chance.item(), *(by(s, 0.0, g).totals.mean().item() for s in (middle, best))]
    if level == "replay":
        return past["life"].pick(past["life"].behind <= past["stages"][middle]), marks
    if level == "medium":
        return lived(middle, kept), marks
    return joined([lived(middle, kept // 2), lived(best, kept // 2)]), marks


def joined(parts):
    """Several `Trajectories` as one."""
    fields = ("states", "actions", "rewards", "lengths", "terminated")
    return Trajectories(*(torch.cat([getattr(p, f) for p in parts]) for f in fields))


def late(data):
    """The same episodes, paid with their last step, which is then the end even of those that were cut off:
    a value method learns nothing from the last reward of an episode that goes on."""
    rewards = torch.zeros_like(data.rewards)
    rewards[data.behind - 1] = data.totals
    return Trajectories(data.states, data.actions, rewards, data.lengths)
