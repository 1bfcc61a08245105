"""The transformer of `core` as a module: its settings, its weights, its checks.

DecisionTransformer   a causal transformer over returns-to-go, states and actions

Behaviour cloning is the same model with `conditioned=False`; %BC is that on `Trajectories.best`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from collage.common.checks import check_whole
from collage.decision_transformer import core
from collage.decision_transformer.core import STATES, Affine, Block, Drop, Parameters, Window, keep
from collage.decision_transformer.fast.transformer import Dropout, Needed, transformer
from collage.decision_transformer.training import Windowed


class DecisionTransformer(Windowed):
    """A causal transformer over (R_1, s_1, a_1, R_2, s_2, a_2, ...) that predicts a_t at token s_t.

    x = LN(W_R R_t + e_t, W_s s_t + e_t, W_a a_t + e_t),   then for each layer
    x = x + Attention(LN(x)),  x = x + W_2 relu(W_1 LN(x)),   and  a_t = head(LN(x at s_t))

    One embedding e_t of the time in the episode serves the three tokens of a step; there is no other
    sense of position. Returns are given in the environment's unit and divided by the scale of
    `units` inside. discrete: actions are whole numbers below action_dim, predictions are logits; else
    predictions are tanh. context: K, or one for each member (a list). longest: steps of the longest
    episode. conditioned=False hides the returns: behaviour cloning. predict_return: a second head
    for the return-to-go at s_t, which is only of interest where the returns are hidden. members: so
    many models as one stack. dropout: while it is trained by `fit`, a multiple of 1 / 65536.

    Raises ValueError for sizes below one, heads that do not divide the width, or a context longer than
    `longest`. Source: arXiv 2106.01345; the defaults are those of its Gym experiments.

    >>> model = DecisionTransformer(11, 3)
    >>> sum(p.numel() for p in model.parameters())
    726019
    >>> model(torch.zeros(4, 5), torch.zeros(4, 5, 11), torch.zeros(4, 5, 3), torch.arange(5)).shape
    torch.Size([4, 5, 3])
    """

    longest: int
    each_context: Tensor  # (E, 1, 1)

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        *,
        width: int = 128,
        layers: int = 3,
        heads: int = 1,
        context: int | Sequence[int] = 20,
        longest: int = 1000,
        discrete: bool = False,
        conditioned: bool = True,
        predict_return: bool = False,
        dropout: float = 0.1,
        members: int = 1,
        seed: int = 0,
    ) -> None:
        sizes = {"state_dim": state_dim, "action_dim": action_dim, "width": width}
        sizes |= {"layers": layers, "heads": heads, "longest": longest}
        for name, size in {"members": members, **sizes}.items():
            check_whole(name, size)
        if width % heads:
            raise ValueError(f"heads: got {heads}, wanted a divisor of the width {width}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: got {dropout}, wanted one in [0, 1)")
        contexts = list(context) if isinstance(context, Sequence) else [context] * int(members)
        if len(contexts) != members or max(check_whole("context", k) for k in contexts) > longest:
            wanted = f"one for all or {members}, none above the longest episode, {longest}"
            raise ValueError(f"context: got {context}, wanted {wanted}")
        settings: dict[str, Any] = {**sizes, "dropout": dropout, "context": contexts}
        settings |= {"discrete": bool(discrete), "conditioned": bool(conditioned)}
        settings |= {"predict_return": bool(predict_return)}
        shapes = _shapes(state_dim, action_dim, width, layers, longest, discrete, predict_return)
        super().__init__(shapes, settings, members, seed, initial_std=0.02)
        self.width, self.layers, self.heads, self.longest = width, layers, heads, longest
        self.conditioned, self.predict_return = bool(conditioned), bool(predict_return)
        self.context, self.contexts, self.dropout = max(contexts), contexts, dropout
        each = torch.tensor(contexts)[:, None, None]
        self.register_buffer("each_context", each, persistent=False)

    def forward(self, returns: Tensor, states: Tensor, actions: Tensor, steps: Tensor) -> Tensor:
        """Predicted actions (B, K, A): logits where discrete, else in (-1, 1).

        returns (B, K), states (B, K, S), actions (B, K) or (B, K, A), steps (B, K) or (K,); for a
        stack (E, B, K, ...), or (B, K, ...) for all members alike, and then (E, B, K, A). The action
        of step t is not seen by the prediction for step t.
        """
        predicted, _ = self._predict(self._window(returns, states, actions, steps))
        return predicted[0] if returns.dim() == 2 and self.members == 1 else predicted

    def predicted_returns(self, *fields: Tensor) -> Tensor:
        """Returns-to-go (B, K) that the second head expects at each state; fields as in `forward`."""
        if not self.predict_return:
            raise ValueError("predict_return: got False, wanted a model made with True")
        _, predicted = self._predict(self._window(*fields))
        assert predicted is not None
        predicted = predicted * self.scale
        return predicted[0] if fields[0].dim() == 2 and self.members == 1 else predicted

    def loss(
        self, window: Window, noise: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Mean cross-entropy or squared error over all steps that are real, for each member (E,).

        With predict_return the squared error of the second head, in units of the scale, is added.
        Dropout acts where there is noise (E, n) int64, of the `noise_size` of the window.
        """
        self._check_ranges(window.steps, window.actions)
        window = self.in_units(window)
        drop = keep if noise is None or not self.dropout else Dropout(self.dropout, noise)
        predicted = self._predict(window, drop, weights=weights)
        if min(self.contexts) < self.context:
            step = torch.arange(window.mask.shape[2], device=window.mask.device)
            window = window._replace(mask=window.mask & (step < self.each_context))
        return core.loss(predicted, window)

    @torch.no_grad()
    def noise_size(self, window: Window) -> int:
        """Draws of 64 bits that each member needs for the `loss` of a window with dropout."""
        if not self.dropout:
            return 0
        needed = Needed(self.members)
        self._predict(self.in_units(window), needed)
        return needed.used

    def predictions(self, window: Window) -> Tensor:
        """Actions (E, n, A) at the end of histories (E, n, K), of which a short context sees less."""
        real, K = None, window.mask.shape[2]
        if min(self.contexts) < K:
            age = torch.arange(K, device=window.mask.device).flip(0)
            real = window.mask & (age < self.each_context)
        newest = slice(-1, None)
        predicted, _ = self._predict(self.in_units(window), read=newest, real=real)
        return predicted[:, :, 0]

    def member(self, i: int) -> "DecisionTransformer":
        """Member i as a model of its own, a copy."""
        if not -self.members <= i < self.members:
            raise ValueError(f"i: got {i}, wanted one of {self.members} members")
        i = range(self.members)[i]
        settings = {**self.settings, "context": self.contexts[i]}
        one = DecisionTransformer(**settings, seed=self.seed + i).to(self.weights)
        with torch.no_grad():
            for name in ("weights", "mean", "std"):
                getattr(one, name).copy_(getattr(self, name)[i : i + 1])
            one.scale.copy_(self.scale)
        return one

    def _predict(
        self,
        window: Window,  # (E, B, K, ...), in units
        drop: Drop = keep,
        read: slice = STATES,
        real: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        R, s, a, t = window[:4]
        if not self.conditioned:
            R = torch.zeros_like(R)
        p = arrange(self.tensors(weights), self.layers)
        fast = functools.partial(transformer, read=read, real=real, drop=drop)
        return core.predict(R, s, a, t, p, self.heads, fast)

    def _window(self, returns: Tensor, states: Tensor, actions: Tensor, steps: Tensor) -> Window:
        """The fields as a `Window` (E, B, K, ...) in units, once they are checked."""
        shape = tuple(returns.shape)
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != self.members):
            raise ValueError(f"returns: got {shape}, wanted (B, K) or ({self.members}, B, K)")
        steps = steps.expand(shape) if steps.shape == shape[-1:] else steps
        wanted = {"states": (*shape, self.state_dim), "steps": shape}
        wanted["actions"] = shape if self.discrete else (*shape, self.action_dim)
        for name, field in (("states", states), ("actions", actions), ("steps", steps)):
            if tuple(field.shape) != wanted[name]:
                raise ValueError(f"{name}: got {tuple(field.shape)}, wanted {wanted[name]}")
        self._check_ranges(steps, actions)
        real = torch.ones(shape, dtype=torch.bool, device=returns.device)
        return self.in_units(Window(returns, states, actions, steps, returns, real, real))

    def _check_ranges(self, steps: Tensor, actions: Tensor) -> None:
        """Raise ValueError beyond the tables; not where a GPU or a compiler would have to wait for it."""
        limits = [("steps", steps, self.longest)]
        limits += [("actions", actions, self.action_dim)] if self.discrete else []
        for name, index, limit in limits:
            if index.is_cuda or torch.compiler.is_compiling() or not index.numel():
                continue
            low, high = int(index.min()), int(index.max())
            if not 0 <= low <= high < limit:
                raise ValueError(f"{name}: got {low} to {high}, wanted 0 to {limit - 1}")


def _shapes(
    states: int, actions: int, d: int, layers: int, longest: int, discrete: bool, returns: bool
) -> dict[str, tuple[int, int]]:
    """The tensors of one member, in the order in which they lie in a row of the weights."""

    def linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, int]]:
        return {f"{name} weight": (rows, columns), f"{name} bias": (1, columns)}

    def norm(name: str) -> dict[str, tuple[int, int]]:
        return {f"{name} gain": (1, d), f"{name} bias": (1, d)}

    shapes = linear("return", 1, d) | linear("state", states, d)
    shapes |= {"action weight": (actions, d)} if discrete else linear("action", actions, d)
    shapes |= {"time": (longest, d)} | norm("embed")
    for i in range(layers):
        shapes |= norm(f"{i} first") | linear(f"{i} qkv", d, 3 * d) | linear(f"{i} out", d, d)
        shapes |= norm(f"{i} second") | linear(f"{i} up", d, 4 * d) | linear(f"{i} down", 4 * d, d)
    shapes |= norm("last") | linear("head", d, actions)
    return shapes | linear("value", d, 1) if returns else shapes


def arrange(tensors: dict[str, Tensor], layers: int) -> Parameters:
    """The tensors of `_shapes`, (E, rows, columns) each, as `core` takes them: weights with biases."""
    pairs: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        pairs.setdefault(name.rpartition(" ")[0] or name, []).append(tensor)
    (time,), action = pairs.pop("time"), pairs.pop("action")
    R, s, norm_in, *rest = (Affine(*pair) for pair in pairs.values())
    a = Affine(*action) if len(action) == 2 else action[0]
    blocks = [Block(*rest[i : i + 6]) for i in range(0, 6 * layers, 6)]
    norm_out, head, *value = rest[6 * layers :]
    return Parameters(R, s, a, time, norm_in, blocks, norm_out, head, value[0] if value else None)
