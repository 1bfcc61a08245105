"""Many environments at once, as `Trajectories`.

rollout             a model, each environment asked for its own return
collect             a behaviour that sees the state
"""

import functools
from typing import NamedTuple

import torch

from collage.common.checks import check_finite, check_whole
from collage.decision_transformer.trajectories import Trajectories, Window


class Rollout(NamedTuple):
    """What `rollout` saw: the episodes, and the return tokens (N,) that the policy was given."""

    data: Trajectories
    tokens: torch.Tensor


def rollout(model, env, target_return, generator, *, context=None, delayed=False, sample=False,
            start=None, before=None, longest=None):  # fmt: skip
    """Run one environment for each target return (n,), all at once, until all have ended.

    The first return token is the target; then R_{t+1} = R_t - r_t, or, where rewards are `delayed`
    to the end of the episode, R_{t+1} = R_t, all in the unit of the rewards. model: something with
    act(window, generator, sample), or a function of window and generator, for a `Window` of the last
    `context` steps in which the actions of the last step are zero; it gives actions (n,) or (n, A). start: states (n, ...) instead of those of `env.reset`. before: what has happened on the way there,
    n `Trajectories` of one length, which the model sees and completes. longest: a limit of the steps,
    that of the environment without it.

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
    act = functools.partial(model.act, sample=sample) if hasattr(model, "act") else model
    context = check_whole("context", getattr(model, "context", 1) if context is None else context)
    known = getattr(model, "longest", None)
    if known is not None and known < (env.longest if longest is None else longest):
        raise ValueError(f"longest: got episodes of {longest or env.longest} steps, wanted at most the "
                         f"{known} that the model knows")  # fmt: skip
    return _run(lambda window, state: act(window, generator), env, targets, generator, context,
                delayed, start, longest, before)  # fmt: skip


def collect(env, behaviour, n, generator, start=None):
    """`Trajectories` of n episodes of a behaviour that sees the state: behaviour(state, generator).

    >>> from collage.decision_transformer.worlds import Walks
    >>> env = Walks(torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]]), goal=2)
    >>> collect(env, env.wander, 2, torch.Generator(), start=env.at(torch.tensor([0, 1]))).totals
    tensor([-2., -1.])
    """
    nothing = torch.zeros(check_whole("n", n), device=generator.device)
    run = _run(lambda window, state: behaviour(state, generator), env, nothing, generator, 1, True,
               start, None)  # fmt: skip
    return run.data


@torch.no_grad()
def _run(act, env, targets, generator, context, delayed, start, longest, before=None):
    """All episodes at once; act(window, state) -> actions."""
    n = len(targets)
    longest = check_whole("longest", env.longest if longest is None else longest)
    state = env.reset(n, generator) if start is None else start
    if len(state) != n:
        raise ValueError(f"start: got {len(state)} states, wanted {n}, one for each episode")
    seen = env.observe(state)
    kind = {"device": seen.device, "dtype": seen.dtype}
    states = torch.zeros(n, longest, seen.shape[1], **kind)
    actions = (torch.zeros(n, longest, dtype=torch.long, device=seen.device) if env.discrete
               else torch.zeros(n, longest, env.actions, **kind))  # fmt: skip
    tokens, rewards = torch.zeros(n, longest, **kind), torch.zeros(n, longest, **kind)
    steps = torch.arange(longest, device=seen.device).expand(n, longest)
    here = torch.ones(n, longest, dtype=torch.bool, device=seen.device)
    over, ended = ~here, ~here[:, 0]
    token, going = targets.to(**kind), torch.ones(n, dtype=torch.bool, device=seen.device)
    lengths = torch.zeros(n, dtype=torch.long, device=seen.device)
    done = _enter(before, n, longest, token, delayed, states, actions, rewards, tokens)
    token, lengths = token - (0 if delayed else rewards.sum(1)), lengths + done
    for t in range(done, longest):
        states[:, t], tokens[:, t] = env.observe(state), token
        part = slice(max(0, t + 1 - context), t + 1)
        window = (x[:, part] for x in (tokens, states, actions, steps, rewards, over, here))
        action = act(Window(*window), state)
        if action.shape != actions[:, t].shape:
            raise ValueError(f"model: got actions {tuple(action.shape)}, wanted "
                             f"{tuple(actions[:, t].shape)}")  # fmt: skip
        actions[:, t] = action
        step = env.step(state, action)
        # Those that have ended stand still.
        alive = going.view(-1, *[1] * (state.dim() - 1))
        state = torch.where(alive, step.state, state)
        rewards[:, t] = torch.where(going, step.reward.to(**kind), 0)
        lengths += going
        if not delayed:
            token = token - rewards[:, t]
        ended = ended | (going & step.terminated)
        going = going & ~(step.terminated | step.truncated)
        if not bool(going.any()):
            break
    inside = torch.arange(longest, device=seen.device) < lengths[:, None]
    data = Trajectories(states[inside], actions[inside], rewards[inside], lengths, ended)
    return Rollout(data, tokens[inside])


def _enter(before, n, longest, token, delayed, *rows):
    """Write what has happened into the rows (n, longest, ...); how many steps that were."""
    if before is None:
        return 0
    k = int(before.lengths[0])
    if len(before.lengths) != n or bool((before.lengths != k).any()) or k >= longest:
        raise ValueError(f"before: got {len(before.lengths)} episodes of {before.lengths.min()} to "
                         f"{before.lengths.max()} steps, wanted {n} of one length below {longest}")  # fmt: skip
    earned = before.rewards.view(n, k).cumsum(1) - before.rewards.view(n, k)
    asked = token[:, None] - (earned * 0 if delayed else earned)
    parts = (before.states, before.actions, before.rewards, asked.reshape(-1))
    for row, part in zip(rows, parts, strict=True):
        row[:, :k] = part.view(n, k, *part.shape[1:])
    return k
