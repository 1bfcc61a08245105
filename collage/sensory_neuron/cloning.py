"""What a teacher does that is not permutation invariant, learned by agents that are."""

import torch
import torch.nn.functional as F

from collage.common.checks import check_finite, check_whole
from collage.common.train import steps_from
from collage.sensory_neuron.episodes import play


def clone(agent, teacher, env, starts, generator, *, rounds=5, updates=60, episodes=100, length=200,
          batch=48, lr=0.015, clip=0.5, noise=0.2, progress=False):  # fmt: skip
    """Teach every member of an `Agent` what a teacher does that is not permutation invariant.

    DAgger: in the first round the teacher acts, later the student, and the teacher says at each step
    what it would have done. All of it is kept, and after each round whole episodes are learned by
    least squares, all their steps in parallel. starts(n, generator) -> states (n, S) to begin from.
    length: steps of an episode that are seen; noise: of the actions on their way to the environment.
    Adam, its rate falling to zero like a cosine, gradients clipped to the norm `clip`. Sensors come in
    their usual order: a permutation-invariant student has nothing to learn from others.

    Returns the losses (rounds * updates, E). Raises ValueError for counts that are not whole, and for
    losses that are not finite; the weights are then those before the call. Source:
    Ross, Gordon & Bagnell 2011 (arXiv 1011.0686); arXiv 2109.02869, section 4.2.
    """
    counts = {
        "rounds": rounds,
        "updates": updates,
        "episodes": episodes,
        "length": length,
        "batch": batch,
    }
    rounds, updates, episodes, length, batch = (check_whole(n, v) for n, v in counts.items())
    if not agent.weights.requires_grad:
        raise ValueError("weights: got frozen ones, wanted weights that require a gradient")
    before = agent.weights.detach().clone()
    adam = torch.optim.Adam([agent.weights], lr, fused=True)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(adam, rounds * updates)
    seen, curve = [], []
    try:
        for step in steps_from(0, rounds * updates, progress):
            if step % updates == 0:
                actor = agent if step else teacher
                seen.append(
                    _watch(
                        actor, teacher, env, starts(episodes, generator), length, noise, generator
                    )
                )
                lessons = [torch.cat([t.expand(-1, agent.members, -1, -1) for t in parts])
                           for parts in zip(*seen)]  # fmt: skip
            rows = torch.randint(
                len(lessons[0]), (batch,), generator=generator, device=generator.device
            )
            losses = torch.stack([_lesson(agent, member, [t[rows, member] for t in lessons])
                                  for member in range(agent.members)])  # fmt: skip
            adam.zero_grad()
            losses.sum().backward()
            sizes = agent.weights.grad.norm(dim=1, keepdim=True)
            agent.weights.grad *= (clip / (sizes + 1e-6)).clamp(max=1)
            adam.step(), rates.step()
            curve.append(losses.detach())
        check_finite("losses", torch.stack(curve))
    except BaseException:  # an interrupt, too
        agent.weights.data.copy_(before)
        raise
    finally:
        agent.weights.grad = None
    return torch.stack(curve)


@torch.no_grad()
def _watch(actor, teacher, env, starts, length, noise, generator):
    """Episodes of an actor: readings, what it did before, what the teacher would have done, which steps
    count; (B, E, T, ...) each."""
    run = play(actor, env, starts, steps=length, trace=True, noise=noise, generator=generator)
    readings = run.readings  # (T, E, N, B)
    T, E, N, B = readings.shape
    flat = readings.permute(2, 0, 1, 3).reshape(N, -1)
    wanted = teacher.act(flat, None)[0][0].view(-1, T, E, B).permute(1, 2, 0, 3)
    before = torch.cat([torch.zeros_like(run.actions[:1]), run.actions[:-1]])
    counts = (torch.arange(T, device=starts.device)[:, None, None] < run.lengths)[:, :, None]
    parts = (readings, before, wanted, counts.to(readings))
    # Where all have ended early, the rest is padding that does not count.
    return tuple(F.pad(t.permute(3, 1, 0, 2), (0, 0, 0, length - T)) for t in parts)


def _lesson(agent, member, lesson):
    """The mean squared error of one member on whole episodes."""
    readings, before, wanted, counts = lesson
    wrong = agent.actions_along(readings, before, member) - wanted
    return (wrong.square() * counts).sum() / (counts.sum() * wanted.shape[-1])
