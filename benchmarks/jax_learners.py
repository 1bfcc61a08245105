"""What benchmarks time in JAX beside our learners, as `benchmarks.jax_peers`.

bmg_step     what `collage.bmg.colour_step` does: scans over steps, vmap over lifetimes
"""

import functools
from collections.abc import Callable

import torch

from benchmarks.jax_peers import array
from collage.bmg.actors import TOP, ColourLearner, Life
from collage.bmg.gridworlds import STEP_COST


def bmg_step(
    learner: ColourLearner, life: Life, w: list[torch.Tensor], L: int
) -> tuple[Callable[[], object], Callable[..., list[torch.Tensor]]]:
    """(a meta-step that goes on from there, drawing for itself; a meta-step with given draws).

    The second takes noise (L + 1, T, S, B, 4) and draws (L + 1, T, S, B) and gives the meta-gradients;
    from the same life as the first began with at its first call, then going on by itself.
    """
    import jax
    import jax.numpy as jnp

    S, B, T, env, lr = learner.S, learner.B, learner.T, learner.env, learner.lr
    dtype = array(life.recent).dtype
    tables = env.tables(torch.device("cpu"))
    whole = [array(t).astype(jnp.int32) for t in (tables.fetched, tables.after)]
    maps = (
        array(tables.sights).astype(dtype),
        *whole,
    )  # arguments: XLA would fold constants for minutes
    A, free = len(tables.sights), env.size**2 - 2

    def net(params, x):
        for i in range(0, len(params), 2):
            x = (jax.nn.relu(x) if i else x) @ params[i] + params[i + 1]
        return x

    def bonus(w, recent):
        return TOP * jax.nn.sigmoid(net(w, 5 * recent[None]))[0, 0]

    def rollout(maps, actor, walkers, chance):
        (sights, fetched, after), (place, time, recent) = maps, walkers

        def step(place, chance):
            noise, draw = chance
            seen = sights[place]
            action = (net(actor, seen) + noise).argmax(-1)
            move = action * A + place
            return after[draw * 4 * A + move], (seen, action, fetched[move])

        place, (seen, actions, found) = jax.lax.scan(step, place, chance)
        sign = 1 - 2 * ((time + jnp.arange(T)[:, None]) // env.period % 2)
        rewards = jnp.where(found == 0, STEP_COST, sign * found).astype(dtype)
        recent = jnp.append(recent[1:], rewards.mean())
        return (seen, actions, rewards, sights[place]), (place, time + T, recent)

    def entropy(log):
        return -(jnp.exp(log) * log).sum(-1).mean()

    def loss(params, batch, eps):
        actor, critic = params
        seen, actions, rewards, last = batch
        values = net(critic, seen)[..., 0]
        ahead = jax.lax.stop_gradient(net(critic, last)[..., 0])

        def back(ahead, reward):
            ahead = reward + learner.discount * ahead
            return ahead, ahead

        _, target = jax.lax.scan(back, ahead, rewards, reverse=True)
        advantage = jax.lax.stop_gradient(target - values)
        log = jax.nn.log_softmax(net(actor, seen))
        chosen = jnp.take_along_axis(log, actions[..., None], -1)[..., 0]
        fit = jnp.square(values - target).mean() / 2
        return learner.value_weight * fit - (advantage * chosen).mean() - eps * entropy(log)

    def learn(params, batch, eps):
        slope = jax.grad(loss)(params, batch, eps)
        return jax.tree.map(lambda p, g: p - lr * g, params, slope)

    def meta(maps, params, walkers, w, noise, draws):  # of a lifetime
        eps, through = jax.vjp(lambda w: bonus(w, walkers[2]), w)
        first, walkers = rollout(maps, params[0], walkers, (noise[0], draws[0]))
        widening = jax.grad(lambda a: entropy(jax.nn.log_softmax(net(a, first[0]))))(params[0])
        student = learn(params, first, eps)
        eps = bonus(w, walkers[2])
        batch, walkers = rollout(maps, student[0], walkers, (noise[1], draws[1]))
        goal = learn(student, batch, eps), walkers

        def update(carry, chance):
            params, (*_, recent) = carry
            batch, walkers = rollout(maps, params[0], carry[1], chance)
            return (learn(params, batch, bonus(w, recent)), walkers), None

        onward, _ = jax.lax.scan(update, goal, (noise[2:-1], draws[2:-1]))
        last, _ = rollout(maps, onward[0][0], onward[1], (noise[-1], draws[-1]))
        target = jax.nn.log_softmax(net(learn(onward[0], last, 0)[0], batch[0]))

        def divergence(actor):
            gap = target - jax.nn.log_softmax(net(actor, batch[0]))
            return (jnp.exp(target) * gap).sum(-1).mean()

        slope = jax.grad(divergence)(student[0])
        pairs = zip(slope, widening, strict=True)
        along = lr * sum((a * b).sum() for a, b in pairs)
        return through(along)[0], *onward

    many = jax.vmap(meta, (None, 0, 0, 0, 2, 2))

    @functools.partial(jax.jit, donate_argnums=(1, 2))
    def alone(maps, params, walkers, w, key):
        key, one, other = jax.random.split(key, 3)
        noise = jax.random.gumbel(one, (L + 1, T, S, B, 4), dtype)
        draws = jax.random.randint(other, (L + 1, T, S, B), 0, free)
        return *many(maps, params, walkers, w, noise, draws), key

    params = [array(t) for t in life.actor], [array(t) for t in life.critic]
    place = env.number(life.cells[:, 1:]).view(S, B)
    walkers = *(array(t).astype(jnp.int32) for t in (place, life.cells[:, 0].view(S, B))), array(life.recent)  # fmt: skip
    w, given = [array(t) for t in w], jax.jit(many)
    copied = jax.tree.map(jnp.copy, (params, walkers))
    alone_carry, given_carry = (*copied, jax.random.key(0, impl="unsafe_rbg")), (params, walkers)

    def step():
        nonlocal alone_carry
        params, walkers, key = alone_carry
        _, *alone_carry = jax.block_until_ready(alone(maps, params, walkers, w, key))

    def step_given(noise, draws):
        nonlocal given_carry
        slopes, *given_carry = given(
            maps, *given_carry, w, array(noise), array(draws).astype(jnp.int32)
        )
        return [torch.tensor(jax.device_get(t)) for t in slopes]

    return step, step_given
