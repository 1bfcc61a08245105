"""The training loop of models that share nothing but their shape.

train         all of them at once; a run that is stopped goes on, to the same result
clip_rows     gradients cut to a norm, for each model on its own
steps_from    the steps that are left, with a progress bar
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from collage.common.checkpoint import resume, save
from collage.common.graph import Captured


def train(
    weights: Tensor,  # (E, P)
    inputs: Callable[[int], Sequence[Tensor]],
    gradient: Callable[..., tuple[Tensor, Tensor]],
    steps: int,
    *,
    optimizer: Callable[..., torch.optim.Optimizer],
    rate: Callable[[int], float],
    clip: float,
    after: Callable[[], object] = lambda: None,
    moving: Sequence[Tensor] = (),
    generators: Sequence[Generator] = (),
    setting: dict[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    every: int = 500,
    progress: bool = False,
    capture: bool = True,
) -> Tensor:
    """Train the rows of `weights` for so many steps; returns their losses (steps, E).

    At step i: losses (E,), gradient (E, P) = gradient(*inputs(i)), each row of the gradient cut to
    the norm `clip`, a step of `optimizer` (such as `torch.optim.AdamW`) at rate(i), and after().

    moving: further tensors that `after` changes; generators: those that `inputs` and `gradient` draw
    from. checkpoint: a file, written every so many steps and at the end; where it exists, training
    goes on from there, to the same result, if its `setting` (JSON-ready) is this one. On a GPU a
    step is one CUDA graph (see `Captured`), unless capture is False.

    Raises ValueError for weights that are frozen, weights or losses that are no longer finite, and
    for the checkpoint of another run. Weights, `moving` and generators are then those before the
    call, as they are after an interrupt.

    >>> w = torch.nn.Parameter(torch.tensor([[4.0], [-1.0]]))
    >>> curve = train(w, lambda i: (), lambda: (w.square().sum(1).detach(), 2 * w.detach()), 50,
    ...               optimizer=torch.optim.Adam, rate=lambda i: 0.2, clip=1.0)
    >>> curve[0], bool((curve[-1] < 0.1).all())
    (tensor([16.,  1.]), True)
    """
    if not weights.requires_grad:
        raise ValueError("weights: got frozen ones, wanted weights that require a gradient")
    before = [t.detach().clone() for t in (weights, *moving)]
    random = [g.get_state() for g in generators]
    on_gpu = weights.is_cuda
    start = torch.tensor(rate(0), device=weights.device) if on_gpu else rate(0)
    adam = optimizer([weights], start, fused=True, capturable=on_gpu)
    curve = torch.zeros(steps, len(weights), device=weights.device, dtype=weights.dtype)
    state = _State(weights, curve, adam, moving, generators)

    def step(*batch: Tensor) -> Tensor:
        losses, slope = gradient(*batch)
        weights.grad = clip_rows(slope, clip)
        adam.step()
        after()
        return losses

    try:
        done = state.resume(checkpoint, setting)
        run = Captured(step, generators, weights.device) if capture else step
        for i in steps_from(done, steps, progress):
            _set_rate(adam, rate(i))
            curve[i] = run(*inputs(i))
            if i + 1 == steps or (i + 1) % every == 0:
                _check_finite(weights, curve[done : i + 1], i + 1)
                if checkpoint is not None:
                    state.save(checkpoint, setting, i + 1)
    except BaseException:  # an interrupt, too: a checkpoint belongs to the weights it began with
        with torch.no_grad():
            for tensor, kept in zip((weights, *moving), before, strict=True):
                tensor.copy_(kept)
        for generator, drawn in zip(generators, random, strict=True):
            generator.set_state(drawn)
        raise
    finally:
        weights.grad = None
    return curve


def clip_rows(gradient: Tensor, largest: float) -> Tensor:
    """Each row of a gradient (E, P) cut to a norm, in place.

    >>> clip_rows(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]])
    """
    norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
    return gradient.mul_((largest / (norm + 1e-6)).clamp(max=1))


def steps_from(done: int, total: int, bar: bool = False) -> Iterable[int]:
    """The steps that are left, range(done, total); with a progress bar where one is wanted."""
    steps = range(done, total)
    if not bar:
        return steps
    from tqdm import tqdm

    return tqdm(steps, total=total, initial=done, unit="step", leave=False)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    group = optimizer.param_groups[0]
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)  # a recorded step reads it there
    else:
        group["lr"] = rate


def _check_finite(weights: Tensor, losses: Tensor, steps: int) -> None:
    good = weights.isfinite().all(1) & losses.isfinite().all(0)
    if not bool(good.all()):
        bad = (~good).nonzero().flatten().tolist()
        got = f"weights or losses of members {bad} are not finite after {steps} steps"
        raise ValueError(f"fit: {got}; try a smaller lr, or other units of the data")


class _State(NamedTuple):
    """All that a run changes."""

    weights: Tensor
    curve: Tensor
    adam: torch.optim.Optimizer
    moving: Sequence[Tensor]
    generators: Sequence[Generator]

    def save(self, path: str | Path, setting: dict[str, Any] | None, done: int) -> None:
        arrays = {"weights": self.weights, "curve": self.curve, **self.adam.state[self.weights]}
        arrays |= {f"moving_{j}": t for j, t in enumerate(self.moving)}
        arrays |= {f"generator_{j}": g.get_state() for j, g in enumerate(self.generators)}
        save(path, arrays, {"setting": setting, "done": done})

    def resume(self, path: str | Path | None, setting: dict[str, Any] | None) -> int:
        """Put everything back as the checkpoint has it; returns the steps that are done."""
        arrays, done = resume(path, setting or {})
        if not done:
            return 0
        with torch.no_grad():
            self.weights.copy_(arrays.pop("weights"))
            self.curve.copy_(arrays.pop("curve"))
            for j, tensor in enumerate(self.moving):
                tensor.copy_(arrays.pop(f"moving_{j}"))
        for j, generator in enumerate(self.generators):
            generator.set_state(arrays.pop(f"generator_{j}"))
        state = {name: t.to(self.weights.device) for name, t in arrays.items()}
        self.adam.state[self.weights] = state
        return done
