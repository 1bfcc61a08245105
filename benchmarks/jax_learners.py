"""What benchmarks time in JAX beside our learners, as `benchmarks.jax_peers`.

bmg_step     what `collage.bmg.colour_step` does: scans over steps, vmap over lifetimes
dt_steps     what `collage.decision_transformer.fit` does, n updates in one program
"""

import functools
from collections.abc import Callable

import torch

from benchmarks.jax_peers import array, beyond
from collage.bmg.actors import TOP, ColourLearner, Life
from collage.bmg.gridworlds import STEP_COST
from collage.decision_transformer import DecisionTransformer, Trajectories
from collage.decision_transformer.training import DECAY


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

    def memory():
        params, walkers, key = alone_carry
        return beyond(alone, maps, params, walkers, w, key)

    step.memory = memory

    def step_given(noise, draws):
        nonlocal given_carry
        slopes, *given_carry = given(
            maps, *given_carry, w, array(noise), array(draws).astype(jnp.int32)
        )
        return [torch.tensor(jax.device_get(t)) for t in slopes]

    return step, step_given


def dt_steps(
    model: DecisionTransformer,  # of one member, continuous, its units left as they are
    data: Trajectories,
    n: int,
    batch: int = 64,
    lr: float = 1e-4,
    clip: float = 0.25,
) -> tuple[Callable[[], object], Callable[..., torch.Tensor]]:
    """(n updates that go on from the last, drawing for themselves; updates with given draws).

    The second takes the first rows (m, batch) of windows and rates (m,), begins with the model's
    weights, and gives all weights in the order of the model's, one vector. It drops nothing.
    """
    import jax
    import jax.numpy as jnp

    K, heads, chance = model.context, model.heads, model.dropout
    behind = array(data.behind[data.episode])
    recorded = [array(t) for t in (data.returns, data.states, data.actions, data.steps)]
    params = {name: array(t[0]) for name, t in model.tensors().items()}

    def linear(p, name, x):
        return x @ p[f"{name} weight"] + p[f"{name} bias"]

    def norm(p, name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)
        return x * p[f"{name} gain"] + p[f"{name} bias"]

    def attention(p, name, x, drop):
        B, L, d = x.shape
        parts = linear(p, f"{name} qkv", x).reshape(B, L, 3, heads, d // heads)
        q, k, v = (parts[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
        scores = q @ k.swapaxes(-1, -2) / (d // heads) ** 0.5
        scores = jnp.where(jnp.tril(jnp.ones((L, L), bool)), scores, -jnp.inf)
        mixed = (drop(jax.nn.softmax(scores)) @ v).transpose(0, 2, 1, 3).reshape(B, L, d)
        return linear(p, f"{name} out", mixed)

    def predict(p, R, s, a, t, drop):
        time = p["time"][t]
        three = linear(p, "return", R[..., None]), linear(p, "state", s), linear(p, "action", a)
        x = jnp.stack([part + time for part in three], 2).reshape(len(R), 3 * K, -1)[:, :-1]
        x = drop(norm(p, "embed", x))
        for i in range(model.layers):
            x = x + drop(attention(p, i, norm(p, f"{i} first", x), drop))
            h = jax.nn.relu(linear(p, f"{i} up", norm(p, f"{i} second", x)))
            x = x + drop(linear(p, f"{i} down", h))
        return jnp.tanh(linear(p, "head", norm(p, "last", x[:, 1::3])))

    def loss(p, recorded, behind, first, key):
        def drop(x):
            nonlocal key
            if key is None or not chance:
                return x
            key, mine = jax.random.split(key)
            return jnp.where(jax.random.bernoulli(mine, 1 - chance, x.shape), x / (1 - chance), 0)

        rows = first[:, None] + jnp.arange(K)
        mask = rows < behind[first][:, None]
        fields = [t[jnp.where(mask, rows, 0)] for t in recorded]
        R, s, a, t = (f * mask.reshape(*mask.shape, *[1] * (f.ndim - 2)) for f in fields)
        error = jnp.square(predict(p, R, s, a, t, drop) - a).mean(-1)
        return (error * mask).sum() / mask.sum()

    def update(data, carry, now):
        p, mean, square, count = carry
        first, rate, key = now
        g = jax.grad(loss)(p, *data, first, key)
        norm = jnp.sqrt(sum(jnp.square(t).sum() for t in jax.tree.leaves(g)))
        g = jax.tree.map(lambda t: t * jnp.minimum(1, clip / (norm + 1e-6)), g)
        mean = jax.tree.map(lambda m, t: 0.9 * m + 0.1 * t, mean, g)
        square = jax.tree.map(lambda s, t: 0.999 * s + 0.001 * t * t, square, g)
        count = count + 1
        c, d = 1 - 0.9**count, 1 - 0.999**count
        p = jax.tree.map(lambda p, m, s: p * (1 - rate * DECAY)
                         - rate / c * m / (jnp.sqrt(s / d) + 1e-8), p, mean, square)  # fmt: skip
        return (p, mean, square, count), None

    @functools.partial(jax.jit, donate_argnums=1)
    def alone(data, carry, key):
        key, one, other = jax.random.split(key, 3)
        first = jax.random.randint(one, (n, batch), 0, len(data[1]))
        drawn = first, jnp.full(n, lr), jax.random.split(other, n)
        return jax.lax.scan(functools.partial(update, data), carry, drawn)[0], key

    def begin():
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jax.tree.map(jnp.copy, params), zeros, jax.tree.map(jnp.copy, zeros), jnp.zeros(())

    carry, key = begin(), jax.random.key(0, impl="unsafe_rbg")

    def step():
        nonlocal carry, key
        carry, key = jax.block_until_ready(alone((recorded, behind), carry, key))

    def step_given(first, rates):
        given = jax.jit(lambda data, carry, drawn: jax.lax.scan(
            functools.partial(update, data), carry, (*drawn, None))[0])  # fmt: skip
        p = given((recorded, behind), begin(), (array(first), array(rates)))[0]
        return torch.cat([torch.tensor(jax.device_get(p[name])).flatten() for name in params])

    return step, step_given
