"""Training on windows of trajectories.

Windowed      E models that see windows of trajectories: what `fit` and `rollout` ask of them
fit           train them
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Generator, Tensor

from collage import runtime
from collage.common.checkpoint import digest
from collage.common.checks import as_tensor, check_positive, check_whole
from collage.common.program import Program
from collage.common.stack import Stacked
from collage.common.train import train
from collage.decision_transformer.core import Window
from collage.decision_transformer.fast.transformer import random_bits
from collage.decision_transformer.trajectories import Trajectories

WARMUP, DECAY = 0.1, 1e-4  # share of the steps; of the weights


class Windowed(Stacked):
    """E models of one shape that see windows of trajectories, in units of their own.

    A subclass implements `loss` and `predictions`; if tensors besides the weights change in training,
    also `moving` and `after`. settings: JSON-ready, with state_dim, action_dim and discrete; a
    checkpoint of a model with other settings is refused.
    """

    context: int  # steps that it sees
    ahead = 0  # further steps of a window that `loss` needs
    longest: int | None = None  # steps of the longest episode that it knows, if there is a limit
    mean: Tensor  # (E, 1, 1, S)
    std: Tensor  # (E, 1, 1, S)
    scale: Tensor  # ()

    def __init__(
        self,
        shapes: dict[str, tuple[int, int]],
        settings: dict[str, Any],
        members: int,
        seed: int,
        initial_std: float | None = None,  # of the weights, see `Stacked`
    ) -> None:
        super().__init__(shapes, members, seed, initial_std)
        self.settings, self.discrete = settings, settings["discrete"]
        self.state_dim, self.action_dim = settings["state_dim"], settings["action_dim"]
        self.register_buffer("mean", torch.zeros(self.members, 1, 1, self.state_dim))
        self.register_buffer("std", torch.ones(self.members, 1, 1, self.state_dim))
        self.register_buffer("scale", torch.ones(()))

    def loss(
        self, window: Window, noise: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """The loss of each member (E,) on a window, of its own weights or of these (E, P).

        noise: (E, n) random int64, as many as `noise_size` says, for models with dropout.
        """
        raise NotImplementedError

    def noise_size(self, window: Window) -> int:
        """How many random int64 each member needs for the loss of a window; none by default."""
        return 0

    def predictions(self, window: Window) -> Tensor:
        """Actions, or their logits, at the end of histories (E, n, K): (E, n, A)."""
        raise NotImplementedError

    def moving(self) -> Sequence[Tensor]:
        """The tensors besides the weights that `after` changes; none by default."""
        return ()

    def after(self) -> None:
        """Called after each step of the optimizer; does nothing by default."""

    @torch.no_grad()
    def act(
        self, window: Window, generator: Generator | None = None, sample: bool = False
    ) -> Tensor:
        """Actions (n,) or (n, A) after histories (n, K); the last steps of them where longer.

        Discrete ones are the likeliest, or drawn with `sample`. A stack shares the histories out: the
        first n / E belong to member 0, and so on.
        """
        n = len(window.returns)
        if n % self.members:
            raise ValueError(f"window: got {n} histories, wanted a multiple of {self.members}")
        newest = (t[:, -self.context :].unflatten(0, (self.members, -1)) for t in window)
        actions = self.predictions(Window._make(newest)).flatten(0, 1)
        if not self.discrete:
            return actions
        if not sample:
            return actions.argmax(-1)
        if generator is None:
            raise ValueError("generator: got None, wanted one to draw actions from")
        return torch.multinomial(actions.softmax(-1), 1, generator=generator)[:, 0]

    def units(self, mean: Tensor, std: Tensor, scale: float) -> Self:
        """Set the units: states are seen as (s - mean) / std, returns and rewards over `scale`.

        mean, std: (S,), or (E, S) for members with data of their own; 1 takes the place of a std of 0.
        Returns the model. Raises ValueError for other shapes, NaN or inf, a negative std, or a scale
        that is not positive.
        """
        mean, std = (as_tensor("mean, std", t).to(self.weights) for t in (mean, std))
        wanted = ((self.state_dim,), (self.members, self.state_dim))
        if mean.shape not in wanted or std.shape != mean.shape:
            shapes = f"{tuple(mean.shape)}, {tuple(std.shape)}"
            raise ValueError(f"mean, std: got {shapes}, wanted one of {wanted}")
        if not bool((mean.isfinite() & std.isfinite() & (std >= 0)).all()):
            raise ValueError("mean, std: got NaN, inf or a negative std")
        self.scale.fill_(check_positive("scale", scale))
        self.mean.copy_(mean.expand(self.members, -1)[:, None, None])
        self.std.copy_(torch.where(std > 0, std, 1.0).expand(self.members, -1)[:, None, None])
        return self

    def in_units(self, window: Window) -> Window:
        """(B, K, ...), the same for all members, or (E, B, K, ...) -> (E, B, K, ...) in units."""
        if window.returns.dim() == 2:
            window = Window._make(t.expand(self.members, *t.shape) for t in window)
        returns, rewards = window.returns / self.scale, window.rewards / self.scale
        states = (window.states - self.mean) / self.std
        return window._replace(returns=returns, states=states, rewards=rewards)


def fit(
    model: Windowed,
    data: Trajectories | Sequence[Trajectories],
    steps: int,
    *,
    batch: int = 64,
    lr: float = 1e-4,
    anneal: bool = False,
    clip: float = 0.25,
    weights: Tensor | list[Tensor] | list[Tensor | None] | None = None,
    whole: bool = False,
    checkpoint: str | Path | None = None,
    every: int = 500,
    compiled: bool = False,
) -> Tensor:
    """Train all members of a stack on windows of trajectories; returns the losses (steps, E).

    AdamW, its rate rising over the first tenth of the steps and constant from there on, or falling to
    zero with `anneal`; gradients clipped to the norm `clip` for each member on its own. data:
    `Trajectories` for all, or one for each member; weights: of the M episodes, (M,), or a list of them
    (see `Trajectories.first`); whole: windows are the beginnings of episodes. Member i draws from its
    own seed, so that it comes out the same in any company (but for rounding, and for dropout where
    contexts differ). checkpoint: a file, written `every` so many steps; where it exists, training
    goes on from there, to the same result. compiled: losses and gradients come from one compiled
    program, which takes a minute to make (see `Program`); on a GPU it is a part of the recorded step.

    Raises ValueError for data that does not fit the model, or weights that are no longer finite; the
    weights are then those before the call. Source of the settings: arXiv 2106.01345, appendix A.
    """
    steps, batch = check_whole("steps", steps), check_whole("batch", batch)
    lr, clip = float(check_positive("lr", lr)), float(check_positive("clip", clip))
    E, k = model.members, model.context + model.ahead
    data_sets = [data] * E if isinstance(data, Trajectories) else list(data)
    drawn: list[Tensor | None] = [*weights] if isinstance(weights, list | tuple) else [weights] * E
    if len(data_sets) != E or len(drawn) != E:
        got = f"{len(data_sets)}, {len(drawn)}"
        raise ValueError(f"data, weights: got {got}, wanted one for all or {E}")
    for part in data_sets:
        _check_fits(model, part)
    seeds = [runtime.seed_for(model.seed + i, "windows") for i in range(E)]
    generators = [runtime.generator(seed, model.weights.device) for seed in seeds]

    checked = [None if w is None else part.checked(w) for part, w in zip(data_sets, drawn)]
    alike = all(part is data_sets[0] for part in data_sets) and all(w is drawn[0] for w in drawn)

    def draw() -> list[Tensor]:
        like: dict[str, Any] = {"device": model.weights.device, "dtype": torch.float64}
        return [torch.rand(batch, generator=g, **like) for g in generators]

    def window(numbers: Sequence[Tensor]) -> Window:
        """(E, batch, k, ...): what each member draws, looked up at once where the data are the same."""
        if alike:
            numbers = [torch.cat(list(numbers))]
        each = [part.windows(part.first(number, w, whole), k)
                for part, w, number in zip(data_sets, checked, numbers)]  # fmt: skip
        fields = (torch.cat(field) if len(field) > 1 else field[0] for field in zip(*each))
        return Window._make(field.unflatten(0, (E, batch)) for field in fields)

    anywhere = torch.zeros(batch, dtype=torch.float64, device=model.weights.device)
    size = model.noise_size(window([anywhere] * E))
    program = Program(_slope_of(model, window)) if compiled else None

    def gradient() -> tuple[Tensor, Tensor]:
        numbers = draw()
        noise = random_bits(size, generators, model.weights.device)  # for dropout
        if program is not None:
            return program(model.weights.detach(), noise, *numbers)
        losses = model.loss(window(numbers), noise)
        return losses.detach(), torch.autograd.grad(losses.sum(), model.weights)[0]

    def rate(i: int) -> float:
        rise = min(1.0, (i + 1) / max(1, round(WARMUP * steps)))
        return lr * rise * ((1 - i / steps) if anneal else 1)

    options: dict[str, Any] = {"checkpoint": checkpoint, "every": check_whole("every", every)}
    if checkpoint is not None:
        numbers = [steps, batch, lr, anneal, clip, whole]
        options["setting"] = {"fit": numbers, **_setting(model, data_sets, drawn)}
    options |= {"after": model.after, "moving": model.moving(), "generators": generators}
    options |= {"optimizer": functools.partial(torch.optim.AdamW, weight_decay=DECAY)}
    return train(model.weights, lambda i: (), gradient, steps, rate=rate, clip=clip, **options)


def _slope_of(
    model: Windowed, window: Callable[[Sequence[Tensor]], Window]
) -> Callable[..., tuple[Tensor, Tensor]]:
    """(weights (E, P), noise, *what was drawn) -> the losses (E,) and their gradient (E, P)."""

    def slope(weights: Tensor, noise: Tensor, *numbers: Tensor) -> tuple[Tensor, Tensor]:
        now = window(numbers)

        def total(weights: Tensor) -> tuple[Tensor, Tensor]:
            losses = model.loss(now, noise, weights)
            return losses.sum(), losses

        gradient, losses = torch.func.grad(total, has_aux=True)(weights)
        return losses, gradient

    return slope


def _setting(
    model: Windowed, data_sets: Sequence[Trajectories], weights: Sequence[Tensor | None]
) -> dict[str, Any]:
    """What a checkpoint of the same run has in common, JSON-ready."""
    tensors = model.weights, *model.moving(), model.mean, model.std, model.scale
    fields = ("states", "actions", "rewards", "over", "ends")
    return {
        "model": [model.settings, model.seed, *map(digest, tensors)],
        "data": [[digest(getattr(part, name)) for name in fields] for part in data_sets],
        "weights": [None if w is None else digest(torch.as_tensor(w)) for w in weights],
    }


def _check_fits(model: Windowed, data: Trajectories) -> None:
    """Raise ValueError for data of other kinds or sizes than the model's."""
    if not isinstance(data, Trajectories):
        raise ValueError(f"data: got {type(data).__name__}, wanted Trajectories")
    dtype, device = model.weights.dtype, model.weights.device
    for name in ("states", "rewards", "actions"):
        field = getattr(data, name)
        if field.device != device or (field.is_floating_point() and field.dtype != dtype):
            got = f"{name} of {field.dtype} on {field.device}"
            raise ValueError(f"data: got {got}, wanted {dtype} on {device} as the model")
    tail = () if model.discrete else (model.action_dim,)
    if data.states.shape[1] != model.state_dim or data.actions.shape[1:] != tail:
        got = f"states {tuple(data.states.shape)}, actions {tuple(data.actions.shape)}"
        kind = "whole numbers (N,)" if model.discrete else f"(N, {model.action_dim})"
        raise ValueError(f"data: got {got}, wanted (N, {model.state_dim}) and {kind}")
    if model.discrete and int(data.actions.max()) >= model.action_dim:
        highest = int(data.actions.max())
        raise ValueError(f"data: got the action {highest}, wanted less than {model.action_dim}")
    longest = int(data.lengths.max())
    if model.longest is not None and longest > model.longest:
        wanted = f"at most the model's longest, {model.longest}"
        raise ValueError(f"data: got an episode of {longest} steps, wanted {wanted}")
