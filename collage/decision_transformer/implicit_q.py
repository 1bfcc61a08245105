"""Implicit Q-learning: the value method beside the Decision Transformer.

ImplicitQ     values and a policy; at temperature 0 plain behaviour cloning
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from collage.common.checks import check_whole
from collage.common.stack import linear
from collage.decision_transformer.core import Window
from collage.decision_transformer.training import Windowed


class ImplicitQ(Windowed):
    """Implicit Q-learning: values and a policy from recorded actions only, none invented.

    V <- the tau-expectile of min(Q1', Q2')(h, a) over the recorded a,   Q_i <- r + gamma V(h'),
    pi <- max E[ exp(beta (Q' - V)) log pi(a | h) ],   weights at most 100

    h is the history of up to `context` steps, states and earlier actions side by side: one state for
    context 1. Q' are slow copies. Q, V and pi are networks of two hidden layers of `width`. With
    temperature (beta) 0 the policy is that of behaviour cloning. discrete: actions are whole numbers
    below action_dim, pi a softmax; else pi is a tanh and log pi a squared error. follow: by how much
    the slow copies move at a step; values travel back by one step in about 1 / follow updates.

    Raises ValueError for an expectile or a discount outside of (0, 1), (0, 1]. Source: Kostrikov et al.
    2021 (arXiv 2110.06169).

    >>> model = ImplicitQ(3, 2, discrete=True, width=8)
    >>> model.weights.shape
    torch.Size([1, 525])
    """

    ahead = 1  # the loss needs the step after
    target: Tensor  # (E, P) the slow copies

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        *,
        context: int = 1,
        width: int = 256,
        discrete: bool = False,
        expectile: float = 0.7,
        temperature: float = 3.0,
        discount: float = 0.99,
        follow: float = 0.005,
        members: int = 1,
        seed: int = 0,
    ) -> None:
        sizes = {"state_dim": state_dim, "action_dim": action_dim, "context": context}
        for name, size in {**sizes, "width": width}.items():
            check_whole(name, size)
        if not 0 < expectile < 1 or not 0 < discount <= 1 or not temperature >= 0:
            got = f"{expectile}, {discount}, {temperature}"
            wanted = "(0, 1), (0, 1], not negative"
            raise ValueError(f"expectile, discount, temperature: got {got}, wanted {wanted}")
        if not 0 < follow <= 1:
            raise ValueError(f"follow: got {follow}, wanted one above 0, at most 1")
        settings = {"expectile": expectile, "temperature": temperature, "discount": discount}
        settings |= {**sizes, "follow": follow, "discrete": bool(discrete)}
        features = context * (state_dim + 1) + (context - 1) * action_dim
        super().__init__(_shapes(features, action_dim, width), settings, members, seed)
        self.context, self.expectile, self.temperature = context, expectile, temperature
        self.discount, self.follow = discount, follow
        self.register_buffer("target", self.weights.detach().clone())

    def moving(self) -> Sequence[Tensor]:
        """The slow copies."""
        return (self.target,)

    @torch.no_grad()
    def after(self) -> None:
        """The slow copies follow."""
        self.target.lerp_(self.weights, self.follow)

    def histories(self, window: Window) -> Tensor:
        """What is known at each of K steps: (E, B, K, features), from a window (E, B, K) in units."""
        real = window.mask[..., None].float()
        past = self._past(torch.cat([window.states, real], -1) * real)
        if self.context == 1:
            return past
        earlier = self._past(self._one_hot(window.actions) * real)[..., self.action_dim :]
        return torch.cat([past, earlier], -1)

    def _past(self, x: Tensor) -> Tensor:
        """(E, B, K, D) -> (E, B, K, context D): the last steps up to each, newest first, else zero."""
        x = F.pad(x, (0, 0, self.context - 1, 0))
        return x.unfold(2, self.context, 1).flip(-1).transpose(-1, -2).flatten(-2)

    def _one_hot(self, actions: Tensor) -> Tensor:
        """(E, B, K, A), also of whole actions."""
        if not self.discrete:
            return actions
        return F.one_hot(actions, self.action_dim).to(self.weights.dtype)

    def network(self, name: str, x: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """The network "v", "q1", "q2" or "pi" of these `tensors`: (E, n, in) -> (E, n, out)."""
        for i in range(3):
            x = x.relu() if i else x
            x = linear(x, tensors[f"{name}{i} weight"], tensors[f"{name}{i} bias"])
        return x

    def loss(
        self, window: Window, noise: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """The losses of V, Q1, Q2 and pi, summed (E,); each has a gradient for its network only."""
        window = self.in_units(window)
        histories = self.histories(window)
        K = window.mask.shape[2]
        k = K - 1 if self.context < K else K  # the step after is only there to be looked at

        def flat(x: Tensor) -> Tensor:
            return x[:, :, :k].flatten(1, 2)

        h, mask, over = flat(histories), flat(window.mask), flat(window.over)
        action = flat(self._one_hot(window.actions))
        now, slow = self.tensors(weights), self.tensors(self.target)
        pi = self.network("pi", h, now)
        if self.discrete:
            cloned = -(pi.log_softmax(-1) * action).sum(-1)
        else:
            cloned = (pi.tanh() - action).square().mean(-1)
        if not self.temperature:  # all weights are one: no value is needed
            return (cloned * mask).sum(1) / mask.sum(1).clamp(min=1)
        pair = torch.cat([h, action], -1)
        with torch.no_grad():
            later = flat(F.pad(histories[:, :, 1:], (0, 0, 0, 1)))
            value = self.network("v", later, now)[..., 0] * ~over
            goal = flat(window.rewards) + self.discount * value
            q = torch.minimum(*(self.network(n, pair, slow)[..., 0] for n in ("q1", "q2")))
        advantage = q - self.network("v", h, now)[..., 0]
        lean = torch.where(advantage > 0, self.expectile, 1 - self.expectile).detach()
        losses = lean * advantage.square() * mask
        # Nothing is known of what follows the last step of an episode that was cut off.
        known = mask & (over | flat(F.pad(window.mask[:, :, 1:], (0, 1))))
        for name in ("q1", "q2"):
            losses = losses + (self.network(name, pair, now)[..., 0] - goal).square() * known
        weight = (self.temperature * advantage.detach()).exp().clamp(max=100.0)
        losses = losses + weight * cloned * mask
        return losses.sum(1) / mask.sum(1).clamp(min=1)

    def predictions(self, window: Window) -> Tensor:
        """The policy's actions (E, n, A) at the end of histories (E, n, K): logits where discrete."""
        h = self.histories(self.in_units(window))[:, :, -1]
        pi = self.network("pi", h, self.tensors())
        return pi if self.discrete else pi.tanh()


def _shapes(features: int, actions: int, width: int) -> dict[str, tuple[int, int]]:
    """The tensors of one member: three layers each of v, pi, q1 and q2."""
    shapes: dict[str, tuple[int, int]] = {}
    pair = features + actions
    ends = {"v": (features, 1), "pi": (features, actions), "q1": (pair, 1), "q2": (pair, 1)}
    for name, (first, last) in ends.items():
        for i, (rows, columns) in enumerate(((first, width), (width, width), (width, last))):
            shapes |= {f"{name}{i} weight": (rows, columns), f"{name}{i} bias": (1, columns)}
    return shapes
