"""What `benchmarks.gpu` times in JAX beside ours: short ports, compiled by XLA as a whole.

usable     the version of a JAX that is here and has a GPU, or None
sam_step   a step of SAM with heavy-ball SGD on a fully connected network
"""

import os
from collections.abc import Callable

import torch

from tools.peers import peer

# It shares the GPU with torch.
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


def sam_step(
    model: torch.nn.Sequential,  # linear layers with ReLU between them
    x: torch.Tensor,  # (n, D)
    y: torch.Tensor,  # (n,)
    rho: float,
    lr: float,
    momentum: float,
) -> tuple[Callable[[], object], Callable[[], torch.Tensor]]:
    """(a step from the model's weights, which changes no model; its weights so far, as one vector)."""
    import jax
    import jax.numpy as jnp

    def array(t: torch.Tensor) -> "jax.Array":
        return jnp.asarray(t.detach().cpu().numpy())

    inputs, labels = array(x), array(y)
    params = [array(p) for p in model.parameters()]
    carry = params, [jnp.zeros_like(p) for p in params]

    def loss(params: list) -> "jax.Array":
        out = inputs
        for i in range(0, len(params), 2):
            out = out @ params[i].T + params[i + 1]
            out = jax.nn.relu(out) if i + 2 < len(params) else out
        chosen = jnp.take_along_axis(jax.nn.log_softmax(out), labels[:, None], 1)
        return -chosen.mean()

    @jax.jit
    def advance(params: list, velocity: list) -> tuple[list, list]:
        first = jax.grad(loss)(params)
        scale = rho / jnp.sqrt(sum(jnp.square(g).sum() for g in first))
        slopes = jax.grad(loss)([p + scale * g for p, g in zip(params, first, strict=True)])
        velocity = [momentum * v + g for v, g in zip(velocity, slopes, strict=True)]
        return [p - lr * v for p, v in zip(params, velocity, strict=True)], velocity

    def step() -> None:
        nonlocal carry
        carry = jax.block_until_ready(advance(*carry))

    def weights() -> torch.Tensor:
        return torch.cat([torch.tensor(jax.device_get(p)).flatten() for p in carry[0]])

    return step, weights
