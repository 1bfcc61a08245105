"""`colour_step` from compiled programs: the sampled learner, K = 1, the bonus learned."""

from collections.abc import Callable

import torch
from torch import Tensor

from collage.bmg.actors import Batch, ColourLearner, Life, entropy_bonus, mean_entropy
from collage.bmg.core import Meta, policy_kl
from collage.bmg.gridworlds import Tables, rewards_of
from collage.common.checks import check_whole
from collage.common.networks import forward
from collage.common.program import Program


def compiled_step(
    learner: ColourLearner, L: int, compiled: bool = True
) -> Callable[[Life, list[Tensor]], Meta]:
    """BMG's meta-step of `colour_step`: run(life, w) -> `Meta`, from the same draws, to rounding.

    Two programs: a rollout with the update after it, run L + 1 times, and the slope of the matching
    along the bonus. The first run compiles them, which takes a minute (see `Program`); the learner's
    settings are frozen then. compiled=False runs the same operations one by one.

    Raises ValueError for L below 1; in a run for a life of another learner, on another device than
    its generator, or of another dtype than the first. Source: arXiv 2109.04504, equation 3.

    >>> from collage.bmg.gridworlds import TwoColours
    >>> learner = ColourLearner(TwoColours(see="ways"), 2, torch.Generator().manual_seed(0))
    >>> step = compiled_step(learner, L=3, compiled=False)
    >>> meta = step(learner.begin(), learner.start_meta())
    >>> meta.losses.shape, meta.onward.cells[:, 0].unique()  # 3 rollouts of 16 steps
    (torch.Size([2]), tensor([48]))
    """
    L, here = check_whole("L", L), learner.generator.device
    tables, n = learner.env.tables(here), len(learner.sizes["actor"]) - 1
    update = Program(_update(learner, tables), compiled)
    slope = Program(_slope(learner, 2 * n), compiled)

    @torch.no_grad()
    def run(life: Life, w: list[Tensor]) -> Meta:
        learner.check(life)
        if life.recent.device.type != here.type:
            raise ValueError(
                f"life: got it on {life.recent.device}, wanted {here} as the generator"
            )
        place, time = learner.env.number(life.cells[:, 1:]), life.cells[:, 0]
        state = [place, time, life.recent, *life.actor, *life.critic]
        w, states, sights = [t.detach() for t in w], [state], []
        for k in range(L + 1):
            # The last one learns from the reward alone.
            learns = torch.full_like(life.recent[:, 0], float(k < L))
            chance = learner.draw_noise(life.recent)
            # A program is for the strides of its first call, too.
            seen, *state = update(*(t.contiguous() for t in (learns, *chance, *w, *state)))
            states.append(state)
            sights.append(seen)
        actors = [t for state in (states[0], states[1], states[-1]) for t in state[3 : 3 + 2 * n]]
        along, losses = slope(*sights[:2], *actors)
        with torch.enable_grad():
            w = [t.requires_grad_() for t in w]
            eps = learner.bonus(w, life)
        onward, target = (_life(state, tables, 2 * n) for state in states[-2:])
        return Meta(list(torch.autograd.grad(eps, w, along)), losses, onward, target)

    return run


def _life(state: list[Tensor], tables: Tables, n: int) -> Life:
    place, time, recent, *nets = state
    cells = torch.cat([time[:, None], tables.cells[place]], 1)
    return Life(nets[:n], nets[n:], cells, recent)


def _update(learner: ColourLearner, tables: Tables) -> Callable[..., tuple[Tensor, ...]]:
    """A rollout and what is learned from it, as a function of tensors.

    (learns (S,), noise, draws, *w, place (S B,), time (S B,), recent, *actor, *critic) -> what was
    seen (S, T B, D), and the last six of these after it; learns: 1, or 0 for no bonus.
    """
    S, B, T, lr, env = learner.S, learner.B, learner.T, learner.lr, learner.env
    arrangements, n = len(tables.sights), len(learner.sizes["actor"]) - 1

    def rollout(
        actor: list[Tensor], place: Tensor, time: Tensor, noise: Tensor, draws: Tensor
    ) -> tuple[Batch, Tensor]:
        sights, seen, actions, moves = tables.sights.to(noise), [], [], []
        for gumbel, draw in zip(noise.unbind(), draws.unbind(), strict=True):
            seen.append(sights[place].view(S, B, -1))
            actions.append((forward(actor, seen[-1]) + gumbel).argmax(-1))
            moves.append(actions[-1].flatten() * arrangements + place)
            place = tables.after[draw * (4 * arrangements) + moves[-1]].long()
        times = time + torch.arange(T, device=time.device)[:, None]
        rewards = rewards_of(env.sign(times) * tables.fetched[torch.stack(moves)]).to(noise)
        rewards = rewards.view(T, S, B).transpose(0, 1)
        last = sights[place].view(S, B, -1)
        return Batch(torch.cat(seen, 1), torch.cat(actions, 1), rewards, last), place

    def update(learns: Tensor, noise: Tensor, draws: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        w, (place, time, recent), nets = list(rest[:4]), rest[4:7], list(rest[7:])
        eps = learns * entropy_bonus(w, recent, learner.context)
        batch, place = rollout(nets[: 2 * n], place, time, noise, draws)

        def loss(nets: list[Tensor]) -> Tensor:
            policy, entropy, value = learner.losses(nets[: 2 * n], nets[2 * n :], batch)
            return (policy + learner.value_weight * value - eps * entropy).sum()

        nets = [p - lr * g for p, g in zip(nets, torch.func.grad(loss)(nets), strict=True)]
        recent = torch.cat([recent[:, 1:], batch.rewards.mean((1, 2))[:, None]], 1)
        return batch.seen, place, time + T, recent, *nets

    return update


def _slope(learner: ColourLearner, n: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """d mu / d eps (S,), and mu (S,): from what was seen in the first two rollouts, and three actors."""

    def slope(first: Tensor, seen: Tensor, *actors: Tensor) -> tuple[Tensor, Tensor]:
        actor, student, target = (list(actors[i : i + n]) for i in (0, n, 2 * n))
        goal = forward(target, seen)

        def matching(params: list[Tensor]) -> tuple[Tensor, Tensor]:
            losses = policy_kl(goal, forward(params, seen)) / seen.shape[1]
            return losses.sum(), losses

        def entropy(params: list[Tensor]) -> Tensor:
            return mean_entropy(forward(params, first).log_softmax(-1)).sum()

        toward, losses = torch.func.grad(matching, has_aux=True)(student)
        pairs = zip(toward, torch.func.grad(entropy)(actor), strict=True)
        return learner.lr * sum((a * b).flatten(1).sum(1) for a, b in pairs), losses

    return slope
