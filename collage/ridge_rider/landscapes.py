"""Losses with several solutions and a known saddle between them: point (P,) -> scalar.

Levers        two players who cannot talk pull the same lever, or earn nothing
Choices       a tree of yes-no choices with rewards at its leaves, its return exact
Tanh          a classifier with one hidden layer, whose saddle is the network of zeros
coloured      pictures in two colours that agree with a noisy label, more or less often
"""

import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from collage import runtime
from collage.common.checks import check_whole
from collage.common.placed import Placed


class Levers:
    """A game for two who cannot talk: both pull a lever, and earn r_k if it is the same one.

    L(theta) = -sum_k r_k p_k q_k,  p = softmax(theta[:n]), q = softmax(theta[n:])

    payoffs: r (n,), positive. The logits of both players lie in one point (2n,). At
    p = q = c / r with c = 1 / sum(1 / r) no lever is better than another: a saddle, and the
    eigenvalues of its Hessian are those of +-c (diag(p) - p p^T).

    Raises ValueError for fewer than two levers, or payoffs that are not positive and finite.
    Source: the game is that of Hu et al. 2020 (arXiv 2003.02979), with payoffs of any kind.

    >>> game = Levers([1.0, 0.5, 0.5])
    >>> [round(v, 4) for v in game.saddle()[:3].softmax(0).tolist()]
    [0.2, 0.4, 0.4]
    >>> [round(v, 4) for v in game.spectrum()[:2].tolist()]
    [-0.08, -0.048]
    """

    def __init__(self, payoffs: Tensor | list[float]) -> None:
        r = torch.as_tensor(payoffs)
        self.payoffs = r if r.is_floating_point() else r.double()
        positive = bool((self.payoffs > 0).all() and self.payoffs.isfinite().all())
        if r.dim() != 1 or len(r) < 2 or not positive:
            raise ValueError(f"payoffs: got {payoffs}, wanted two positive finite numbers or more")
        self._paid = Placed(self.payoffs)

    def __call__(self, theta: Tensor) -> Tensor:
        p, q = theta.unflatten(-1, (2, -1)).softmax(-1).unbind(-2)
        return -(self._paid.on(theta.device) * p * q).sum(-1)

    def entropy(self, theta: Tensor) -> Tensor:
        """The entropy of both players' choices, in nats; a scalar (or (B,) of points (B, 2n))."""
        logs = theta.unflatten(-1, (2, -1)).log_softmax(-1)
        return -(logs.exp() * logs).sum((-2, -1))

    def saddle(self) -> Tensor:
        """The logits (2n,) of the saddle."""
        return (-self.payoffs.log()).repeat(2)

    def spectrum(self) -> Tensor:
        """The eigenvalues (2n,) of the Hessian at the saddle, in closed form, smallest first."""
        p = self.saddle()[: len(self.payoffs)].softmax(0)
        c = 1 / (1 / self.payoffs).sum()
        eigenvalues = c * torch.linalg.eigvalsh(torch.diag(p) - torch.outer(p, p))
        return torch.cat([-eigenvalues, eigenvalues]).sort()[0]

    def cross_play(self, thetas: Tensor) -> Tensor:
        """(R, R): what players from run i and run j earn together, the mean of both seatings.

        The diagonal is self-play: the return that each run was trained for.
        """
        p, q = thetas.unflatten(-1, (2, -1)).softmax(-1).unbind(-2)
        earned = torch.einsum("k,ik,jk->ij", self._paid.on(p.device).to(p), p, q)
        return (earned + earned.T) / 2


class Choices:
    """A binary tree: at each inner node a policy goes left or right, each leaf pays a reward.

    L(theta) = -sum_l r_l prod_{nodes n above l} sigmoid(s_ln theta_n)

    turns: s (leaves, nodes), -1 or 1 where a leaf lies left or right below a node, else 0.
    rewards: r (leaves,). The loss is minus the expected return, exact.

    >>> game = Choices(torch.tensor([[-1.0, 0.0], [1.0, -1.0], [1.0, 1.0]]), torch.tensor([-1.0, 1, 1]))
    >>> game(torch.zeros(2)), game.reached(torch.tensor([[5.0, 5.0]]))
    (tensor(-0.), tensor([2]))
    """

    def __init__(self, turns: Tensor, rewards: Tensor) -> None:
        signs = bool(((turns == 0) | (turns.abs() == 1)).all())
        if turns.dim() != 2 or rewards.shape != turns.shape[:1] or not signs:
            shapes = f"{tuple(turns.shape)} with rewards {tuple(rewards.shape)}"
            wanted = "(leaves, nodes) of -1, 0, 1 and (leaves,)"
            raise ValueError(f"turns: got {shapes}, wanted {wanted}")
        self.turns, self.rewards = turns, rewards.to(turns)
        self._turned, self._paid = Placed(self.turns), Placed(self.rewards)

    @classmethod
    def random(
        cls,
        depth: int,
        negative: float = 0.5,
        branch: float = 0.3,
        generator: torch.Generator | None = None,
    ) -> Self:
        """A tree with one good path of `depth` choices, in float64.

        At each choice one side goes on; the other is a subtree with probability `branch`, else a
        leaf, which pays -1 with probability `negative` and else 1. The path ends in a 1.
        """
        check_whole("depth", depth)
        generator = generator or runtime.generator(0)
        leaves: list[dict[int, int]] = []  # {node: side} above each
        rewards: list[float] = []
        nodes = 0

        def uniform() -> float:
            return torch.rand((), generator=generator, device=generator.device).item()

        def grow(above: dict[int, int], left: int, good: bool) -> None:
            nonlocal nodes
            if left == 0 or not (good or uniform() < branch):
                leaves.append(above)
                rewards.append(1.0 if good or uniform() >= negative else -1.0)
                return
            node, nodes = nodes, nodes + 1
            side = 1 if uniform() < 0.5 else -1
            grow({**above, node: side}, left - 1, good)
            grow({**above, node: -side}, left - 1, False)

        grow({}, depth, True)
        turns = torch.zeros(len(leaves), nodes, dtype=torch.float64, device="cpu")
        for row, above in zip(turns, leaves, strict=True):
            for node, side in above.items():
                row[node] = side
        here = generator.device
        return cls(turns.to(here), torch.tensor(rewards, device=here))

    def chances(self, theta: Tensor) -> Tensor:
        """The probability of each leaf, (leaves,)."""
        turns = self._turned.on(theta.device)
        return (turns.abs() * F.logsigmoid(turns * theta)).sum(-1).exp()

    def __call__(self, theta: Tensor) -> Tensor:
        return -(self._paid.on(theta.device) * self.chances(theta)).sum()

    def entropy(self, theta: Tensor) -> Tensor:
        """The mean entropy of the choices, in nats."""
        p = theta.sigmoid()
        return -(p * F.logsigmoid(theta) + (1 - p) * F.logsigmoid(-theta)).mean()

    def reached(self, thetas: Tensor) -> Tensor:
        """The rewarded leaf that each policy of (B, nodes) reaches most often, (B,).

        -1 where rewarded leaves together get half of the plays or less.
        """
        chances = torch.func.vmap(self.chances)(thetas) * (self._paid.on(thetas.device) > 0)
        return torch.where(chances.sum(1) > 0.5, chances.argmax(1), -1)


class Tanh:
    """The cross-entropy of a classifier with one hidden layer of tanh units, at a flat point (P,).

    z = W_2 tanh(W_1 x + b_1) + b_2;  with C = mean_n (onehot(y_n) - p) x_n^T and p the frequencies,
    the Hessian at W = 0, b_1 = 0, b_2 = log p has the negative eigenvalues -sigma_k(C), each
    `hidden` times

    x (N, D), y (N,) whole numbers below `classes`. With classes = 1, y is 0 or 1 and z one logit.

    >>> net = Tanh(torch.eye(2), torch.tensor([0, 1]), hidden=3, classes=2)
    >>> net.size, round(net(net.saddle()).item(), 4), net.strengths()[0]
    (17, 0.6931, tensor(0.5000))
    """

    def __init__(self, x: Tensor, y: Tensor, hidden: int, classes: int) -> None:
        if x.dim() != 2 or y.shape != x.shape[:1] or not len(x):
            shapes = f"{tuple(x.shape)} with y {tuple(y.shape)}"
            raise ValueError(f"x: got {shapes}, wanted (N, D) and (N,)")
        top = max(classes, 2)
        if y.is_floating_point() or y.min() < 0 or y.max() >= top:
            raise ValueError(f"y: wanted whole numbers from 0 to {top - 1}")
        self.x, self.y = x, y
        self.hidden, self.classes = check_whole("hidden", hidden), check_whole("classes", classes)
        self.shapes = [(hidden, x.shape[1]), (hidden,), (classes, hidden), (classes,)]
        self.size = sum(map(math.prod, self.shapes))

    def layers(self, theta: Tensor) -> list[Tensor]:
        """W_1, b_1, W_2, b_2 as views of theta."""
        pieces = theta.split([math.prod(s) for s in self.shapes])
        return [p.view(s) for p, s in zip(pieces, self.shapes, strict=True)]

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        W1, b1, W2, b2 = self.layers(theta)
        return (x @ W1.T + b1).tanh() @ W2.T + b2

    def __call__(self, theta: Tensor) -> Tensor:
        z = self.logits(theta, self.x)
        if self.classes == 1:
            return F.binary_cross_entropy_with_logits(z[:, 0], self.y.to(z))
        return F.cross_entropy(z, self.y)

    def predict(self, theta: Tensor, x: Tensor) -> Tensor:
        """The likelier class (N,)."""
        z = self.logits(theta, x)
        return (z[:, 0] > 0).long() if self.classes == 1 else z.argmax(1)

    def saddle(self) -> Tensor:
        """The zero network (P,) that predicts the frequencies of the classes."""
        theta = self.x.new_zeros(self.size)
        p = torch.bincount(self.y, minlength=max(self.classes, 2)).to(theta) / len(self.y)
        theta[-self.classes :] = (p[1] / p[0]).log() if self.classes == 1 else p.log()
        return theta

    def pull(self) -> Tensor:
        """C (classes, D): how each class differs from the mean, weighted by its frequency."""
        y = self.y[:, None] if self.classes == 1 else F.one_hot(self.y, self.classes)
        y = y.to(self.x)
        return (y - y.mean(0)).T @ self.x / len(self.x)

    def strengths(self) -> Tensor:
        """The singular values of C: minus the negative eigenvalues at the saddle."""
        return torch.linalg.svdvals(self.pull())

    def blind(self, theta: Tensor, direction: Tensor) -> Tensor:
        """theta with `direction` (D,) taken out of every hidden unit's input weights."""
        d = direction / direction.norm()
        W1 = self.layers(theta)[0]
        return torch.cat([(W1 - (W1 @ d)[:, None] * d).flatten(), theta[W1.numel() :]])


def coloured(
    pictures: Tensor,  # (N, D)
    labels: Tensor,  # (N,) of 0 and 1
    agree: float,
    flip: float = 0.25,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Pictures in one of two colours, with labels that are partly wrong.

    y = label, flipped with probability `flip`;  colour = y with probability `agree`, else 1 - y

    Returns x (N, 2 D) - the picture in the half of its colour, zeros in the other - and y (N,).
    Source: the protocol of Arjovsky et al. 2019 (arXiv 1907.02893).

    >>> x, y = coloured(torch.ones(1, 2), torch.tensor([1]), agree=1.0, flip=0.0)
    >>> x, y
    (tensor([[0., 0., 1., 1.]]), tensor([1]))
    """
    for name, chance in (("agree", agree), ("flip", flip)):
        if not 0 <= chance <= 1:
            raise ValueError(f"{name}: got {chance!r}, wanted a probability")
    if pictures.dim() != 2 or labels.shape != pictures.shape[:1]:
        shapes = f"{tuple(labels.shape)} for pictures {tuple(pictures.shape)}"
        raise ValueError(f"labels: got {shapes}, wanted (N,) for (N, D)")
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError("labels: got other numbers than 0 and 1")
    generator = generator or runtime.generator(0, labels.device)
    uniform = torch.rand(2, len(labels), generator=generator, device=labels.device)
    y = torch.where(uniform[0] < flip, 1 - labels, labels)
    colour = torch.where(uniform[1] < agree, y, 1 - y)
    return torch.cat([pictures * (colour == c)[:, None] for c in (0, 1)], 1), y
