"""Many environments at once, as `Trajectories`.

Environment         what an environment has to have
rollout             a model, each environment asked for its own return
collect             a behaviour that sees the state
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, Self

import torch
from torch import Generator, Tensor

from collage.common.checks import check_finite, check_whole
from collage.common.environments import Step
from collage.decision_transformer.core import Window
from collage.decision_transformer.training import Windowed
from collage.decision_transformer.trajectories import Trajectories


class Environment(Protocol):
    """n worlds side by side: their states (n, ...) as one tensor, a step a pure function."""

    observations: int  # S
    actions: int  # A
    discrete: bool  # are actions whole numbers (n,) below A, or (n, A)?
    longest: int  # steps of an episode

    def reset(self, n: int, generator: Generator) -> Tensor: ...
    def observe(self, state: Tensor) -> Tensor: ...  # (n, S)
    def step(self, state: Tensor, action: Tensor) -> Step: ...


class Rollout(NamedTuple):
    """What `rollout` saw: the episodes, and the return tokens (N,) that the policy was given."""

    data: Trajectories
    tokens: Tensor


@dataclasses.dataclass
class Tape:
    """n episodes while they are recorded: a `Window` of all their steps, zero where none is yet."""

    window: Window  # (n, longest, ...); its returns are the return tokens
    asked: Tensor  # (n,) the next return token
    steps: int = 0  # that have happened

    @classmethod
    def blank(cls, env: Environment, state: Tensor, targets: Tensor) -> Self:
        """Nothing has happened in these states (n, ...), asked for these returns (n,)."""
        n, longest = len(targets), check_whole("longest", env.longest)
        if len(state) != n:
            raise ValueError(f"start: got {len(state)} states, wanted {n}, one for each episode")
        seen = env.observe(state)
        zeros = seen.new_zeros(n, longest)
        states = seen.new_zeros(n, longest, seen.shape[1])
        actions = zeros.long() if env.discrete else seen.new_zeros(n, longest, env.actions)
        steps = torch.arange(longest, device=seen.device).expand(n, longest)
        over = zeros.bool()
        window = Window(zeros.clone(), states, actions, steps, zeros, over, ~over)
        return cls(window, targets.to(seen))

    def enter(self, before: Trajectories) -> None:
        """Write down what has happened: n episodes of one length."""
        n, longest = self.window.mask.shape
        k, lengths = int(before.lengths[0]), before.lengths
        if len(lengths) != n or bool((lengths != k).any()) or k >= longest:
            got = f"{len(lengths)} episodes of {lengths.min()} to {lengths.max()} steps"
            raise ValueError(f"before: got {got}, wanted {n} of one length below {longest}")
        rewards = before.rewards.view(n, k)
        earned = rewards.cumsum(1) - rewards  # before each step
        self.window.returns[:, :k] = self.asked[:, None] - earned
        self.window.rewards[:, :k] = rewards
        self.window.states[:, :k] = before.states.unflatten(0, (n, k))
        self.window.actions[:, :k] = before.actions.unflatten(0, (n, k))
        self.asked, self.steps = self.asked - self.window.rewards.sum(1), k

    @torch.no_grad()
    def play(
        self,
        act: Callable[[Window, Tensor], Tensor],  # (window, states) -> actions
        env: Environment,
        state: Tensor,
        context: int,
    ) -> Rollout:
        """Go on until all episodes have ended; those that have stand still."""
        tokens, states, actions, times, rewards, _, _ = self.window
        n, longest = tokens.shape
        lengths = torch.full((n,), self.steps, device=times.device)
        going = torch.ones_like(lengths, dtype=torch.bool)
        terminated = torch.zeros_like(going)
        for t in range(self.steps, longest):
            states[:, t], tokens[:, t] = env.observe(state), self.asked
            recent = slice(max(0, t + 1 - context), t + 1)
            action = act(Window(*(field[:, recent] for field in self.window)), state)
            if action.shape != actions[:, t].shape:
                wanted = tuple(actions[:, t].shape)
                raise ValueError(f"model: got actions {tuple(action.shape)}, wanted {wanted}")
            actions[:, t] = action
            step = env.step(state, action)
            state = torch.where(going.view(-1, *[1] * (state.dim() - 1)), step.state, state)
            rewards[:, t] = torch.where(going, step.reward.to(rewards), 0)
            lengths += going
            self.asked = self.asked - rewards[:, t]  # R_{t+1} = R_t - r_t
            terminated |= going & step.terminated
            going = going & ~(step.terminated | step.truncated)
            if not bool(going.any()):
                break
        inside = times < lengths[:, None]
        recorded = states[inside], actions[inside], rewards[inside], lengths, terminated
        return Rollout(Trajectories(*recorded), tokens[inside])


def rollout(
    model: Windowed | Callable[[Window, Generator], Tensor],
    env: Environment,
    target_return: Tensor | Sequence[float],
    generator: Generator,
    *,
    context: int | None = None,
    sample: bool = False,
    start: Tensor | None = None,
    before: Trajectories | None = None,
) -> Rollout:
    """Run one environment for each target return (n,), all at once, until all have ended.

    The first return token is the target; then R_{t+1} = R_t - r_t, all in the unit of the rewards.
    model: a `Windowed`, or a function of window and generator, for a `Window` of the last `context`
    steps in which the actions of the last step are zero; it gives actions (n,) or (n, A). sample: a
    discrete model draws its actions. start: states (n, ...) instead of those of `env.reset`. before:
    what has happened on the way there, n `Trajectories` of one length, which the model completes.

    Raises ValueError for target returns that are not (n,) finite, or actions that do not fit.
    Source: arXiv 2106.01345, algorithm 1.

    >>> from collage.decision_transformer.worlds import Walks
    >>> env = Walks(torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]]), goal=2)
    >>> policy = lambda window, generator: window.states[:, -1].argmax(1) + 1
    >>> data, tokens = rollout(policy, env, [-2.0], torch.Generator(), start=torch.tensor([[0, 0]]))
    >>> data.rewards, tokens
    (tensor([-1., -1.]), tensor([-2., -1.]))
    """
    targets = torch.as_tensor(target_return, dtype=torch.float32, device=generator.device)
    if targets.dim() != 1 or not len(targets):
        raise ValueError(f"target_return: got {tuple(targets.shape)}, wanted (n,), one an episode")
    check_finite("target_return", targets)
    act: Callable[[Window, Generator], Tensor] = model
    seen, longest = 1, None  # steps
    if isinstance(model, Windowed):
        seen, longest = model.context, model.longest
        act = functools.partial(model.act, sample=sample)
    if longest is not None and longest < env.longest:
        wanted = f"at most the {longest} that the model knows"
        raise ValueError(f"longest: got episodes of {env.longest} steps, wanted {wanted}")
    context = check_whole("context", seen if context is None else context)
    state = env.reset(len(targets), generator) if start is None else start
    tape = Tape.blank(env, state, targets)
    if before is not None:
        tape.enter(before)
    return tape.play(lambda window, _: act(window, generator), env, state, context)


def collect(
    env: Environment, behaviour: Callable[[Tensor, Generator], Tensor], n: int, generator: Generator
) -> Trajectories:
    """`Trajectories` of n episodes of a behaviour that sees the state: behaviour(state, generator).

    >>> from collage.decision_transformer.worlds import Walks
    >>> env = Walks(torch.tensor([[0, 1], [1, 0]]), goal=1)
    >>> collect(env, env.wander, 2, torch.Generator()).totals
    tensor([-1., -1.])
    """
    n = check_whole("n", n)
    state = env.reset(n, generator)
    tape = Tape.blank(env, state, torch.zeros(n, device=generator.device))
    return tape.play(lambda _, state: behaviour(state, generator), env, state, context=1).data
