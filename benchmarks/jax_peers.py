"""What benchmarks time in JAX beside ours: short ports, compiled by XLA as a whole.

usable        the version of a JAX that is here and has a GPU, or None
sam_step      a step of SAM with heavy-ball SGD on a network of the layers that `port` knows
nbeats_step   a step of Adam on members of N-BEATS, gradients clipped, windows ready
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import torch

from tools.peers import peer

# One thread on a CPU, as ours; it shares the GPU with torch.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def usable(anywhere: bool = False) -> str | None:
    """The version; why there is none is said in a line. anywhere: a JAX for the CPU will do."""
    found = peer("jax")
    if found is None:
        return None
    if not anywhere and found[0].default_backend() != "gpu":
        print("not run: jax has no GPU here", flush=True)
        return None
    return found[1]


def array(t: torch.Tensor) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(t.detach().cpu().numpy())


def port(module: torch.nn.Module) -> Callable:
    """The module in JAX: (iterator over its parameters, input) -> output."""
    import jax
    import jax.numpy as jnp

    def linear(p, x):
        return x @ next(p).T + next(p)

    def convolution(p, x):
        how = {"dimension_numbers": ("NCHW", "OIHW", "NCHW"), "padding": ((1, 1), (1, 1))}
        return jax.lax.conv_general_dilated(x, next(p), (1, 1), **how) + next(p)[:, None, None]

    def pool(p, x):
        size = (1, 1, 2, 2)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, size, size, "VALID")

    def block(p, x):  # of benchmarks.sam
        h = linear(p, x)
        h = h - h.mean(-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-5)
        return x + jax.nn.relu(h * next(p) + next(p))

    if isinstance(module, torch.nn.Sequential):
        parts = [port(part) for part in module]
        return lambda p, x: functools.reduce(lambda x, part: part(p, x), parts, x)
    return {"Linear": linear, "Conv2d": convolution, "MaxPool2d": pool, "Block": block,
            "ReLU": lambda p, x: jax.nn.relu(x),
            "Flatten": lambda p, x: x.reshape(len(x), -1)}[type(module).__name__]  # fmt: skip


def beyond(program: Callable, *inputs: object) -> float:
    """MB that a call of a jitted program needs beyond what it is given, as XLA plans it."""
    plan = program.lower(*inputs).compile().memory_analysis()
    needed = plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return needed / 2**20


def sam_step(
    model: torch.nn.Sequential,
    x: torch.Tensor,  # (n, D)
    y: torch.Tensor,  # (n,)
    rho: float,
    lr: float,
    momentum: float,
) -> tuple[Callable[[], object], Callable[[], torch.Tensor]]:
    """(a step from the model's weights, which changes no model; its weights so far, as one vector)."""
    import jax
    import jax.numpy as jnp

    inputs, labels, network = array(x), array(y), port(model)
    params = [array(p) for p in model.parameters()]
    carry = params, [jnp.zeros_like(p) for p in params]

    def loss(params: list) -> "jax.Array":
        out = network(iter(params), inputs)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(out), labels[:, None], 1)
        return -chosen.mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def advance(params: list, velocity: list) -> tuple[list, list]:
        first = jax.grad(loss)(params)
        scale = rho / jnp.sqrt(sum(jnp.square(g).sum() for g in first))
        slopes = jax.grad(loss)([p + scale * g for p, g in zip(params, first, strict=True)])
        velocity = [momentum * v + g for v, g in zip(velocity, slopes, strict=True)]
        return [p - lr * v for p, v in zip(params, velocity, strict=True)], velocity

    def step() -> None:
        nonlocal carry
        carry = jax.block_until_ready(advance(*carry))

    step.memory = lambda: beyond(advance, *carry)

    def weights() -> torch.Tensor:
        return torch.cat([torch.tensor(jax.device_get(p)).flatten() for p in carry[0]])

    return step, weights


def nbeats_step(
    tensors: list[list[torch.Tensor]],  # of each stack, as `Ensemble.tensors` has them
    bases: list[tuple[torch.Tensor, torch.Tensor]],  # of each stack: V^f, V^b
    x: torch.Tensor,  # (E, B, L)
    y: torch.Tensor,  # (E, B, H)
    mapped: bool,  # one member after the other, or all at once
    blocks: int = 3,
    lr: float = 1e-3,
    clip: float = 1.0,
) -> tuple[Callable[[], object], Callable[[], torch.Tensor]]:
    """(a step of MAPE training, all members' weights (E, P) so far), as `sam_step` has them."""
    import jax
    import jax.numpy as jnp

    params = [[array(t[:, 0] if i % 2 else t) for i, t in enumerate(s)] for s in tensors]
    curves, data = [tuple(map(array, pair)) for pair in bases], (array(x.flip(-1)), array(y))

    def loss(params, x, y):
        forecast = x[:, :1]
        for layers, (ahead, back) in zip(params, curves, strict=True):
            *hidden, (last, bias) = zip(layers[::2], layers[1::2], strict=True)
            for _ in range(blocks):
                h = x
                for weight, b in hidden:
                    h = jax.nn.relu(h @ weight + b)
                theta = h @ last + bias
                forecast = forecast + theta[:, : len(ahead)] @ ahead
                x = x - theta[:, len(ahead) :] @ back
        return (jnp.abs(y - forecast) / jnp.abs(y)).mean()

    def member(params, mean, square, x, y, count):
        g = jax.grad(loss)(params, x, y)
        norm = jnp.sqrt(sum(jnp.square(t).sum() for t in jax.tree.leaves(g)))
        g = jax.tree.map(lambda t: t * jnp.minimum(1, clip / (norm + 1e-6)), g)
        mean = jax.tree.map(lambda m, t: 0.9 * m + 0.1 * t, mean, g)
        square = jax.tree.map(lambda s, t: 0.999 * s + 0.001 * t * t, square, g)
        c, d = 1 - 0.9**count, 1 - 0.999**count
        params = jax.tree.map(lambda p, m, s: p - lr / c * m / (jnp.sqrt(s / d) + 1e-8),
                              params, mean, square)  # fmt: skip
        return params, mean, square

    def every(params, mean, square, count):
        if mapped:
            return jax.lax.map(lambda a: member(*a, count), (params, mean, square, *data))
        return jax.vmap(member, (0, 0, 0, 0, 0, None))(params, mean, square, *data, count)

    advance = jax.jit(every, donate_argnums=(0, 1, 2))
    carry = params, *(jax.tree.map(jnp.zeros_like, params) for _ in range(2))
    done = 0

    def step():
        nonlocal carry, done
        done += 1
        carry = jax.block_until_ready(advance(*carry, float(done)))

    step.memory = lambda: beyond(advance, *carry, float(done))

    def weights():
        leaves = [t for stack in carry[0] for t in stack]
        return torch.cat([torch.tensor(jax.device_get(t)).flatten(1) for t in leaves], 1)

    return step, weights
