"""The paper: sensors that share one small network, and a sum over what they say (arXiv 2109.02869).

Sensor i reads one number x_i and hears the last action a. All sensors run the same LSTM, each with
states of its own, and so work out for themselves what they are connected to:

    k_i, c_i <- LSTM([x_i, a]; k_i, c_i)
    m = tanh( sum_i tanh( Q W_q^T W_k k_i ) x_i )        the code: a sum does not know its order
    a = tanh( W m + b )                                  the action

positions         Q, the fixed queries
fold              the weights as an episode needs them
sense, act        one step of the sensors, and of the agent behind them
AttentionNeuron   the weights of E agents: sensors and their code
Agent             with a head that acts; 913 parameters for the swing-up
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from collage.common.checks import check_whole
from collage.common.stack import Stacked

Shapes = dict[str, tuple[int, int]]


class Memory(NamedTuple):
    """What E agents remember in B episodes: the states of N sensors, and the last actions."""

    hidden: Tensor  # (E, H, N, B): k, the keys
    cell: Tensor  # (E, H, N, B): c
    action: Tensor  # (E, A, B): a

    def keep(self, which: Tensor) -> "Memory":
        """The same for some of the episodes."""
        return Memory(*(t[..., which] for t in self))


class Folded(NamedTuple):
    """Weights as an episode needs them: all that does not change is multiplied out beforehand."""

    gates: Tensor  # (E, 4H, H + 1 + A + 1): in, forget, out, cell; for k, x, a, 1
    queries: Tensor  # (E, M, H): Q W_q^T W_k
    head: tuple[Tensor, ...]  # W (E, A, M) and b (E, A, 1), where there is one


def positions(rows: int, dim: int, like: Tensor | None = None) -> Tensor:
    """Sinusoidal positions (rows, dim), the queries Q: fixed, and no function of the input.

    Q[i, j] = sin(i / 10000^(2 floor(j/2) / dim)) for even j, cos of the same for odd j

    like: a tensor whose dtype and device they take; by default float32 on the CPU. Source: Vaswani
    et al. 2017 (arXiv 1706.03762), section 3.5.

    >>> positions(2, 4)
    tensor([[0.0000, 1.0000, 0.0000, 1.0000],
            [0.8415, 0.5403, 0.0100, 0.9999]])
    """
    i, j = torch.arange(rows, dtype=torch.float64)[:, None], torch.arange(dim)
    angle = i / 10000 ** (2 * (j // 2) / dim)
    table = torch.where(j % 2 == 0, angle.sin(), angle.cos())
    return table.to(like) if like is not None else table.float()


def fold(weights: dict[str, Tensor], queries: Tensor) -> Folded:
    """The weights {name: (E, rows, columns)} of E agents, and Q (M, H), as an episode needs them.

    Q W_q^T W_k is one matrix. sigmoid(z) = (1 + tanh(z / 2)) / 2: with the rows of three gates
    halved, one tanh serves all four.

    >>> agent = Agent()
    >>> fold(agent.tensors(), positions(16, 8)).queries.shape
    torch.Size([1, 16, 8])
    """
    bias = weights["lstm.bias_ih"] + weights["lstm.bias_hh"]
    head = tuple(w for name, w in weights.items() if name.startswith("head"))
    gates = torch.cat([weights["lstm.weight_hh"], weights["lstm.weight_ih"], bias], 2)
    enter, keep, new, out = gates.chunk(4, 1)
    gates = torch.cat([enter / 2, keep / 2, out / 2, new], 1)
    queries = queries @ weights["query.weight"].mT @ weights["key.weight"]
    return Folded(gates, queries, head)


def sense(weights: Folded, readings: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """One step of the sensors: readings x (E, N, B) -> the codes m (E, M, B), and the new states.

    c_i <- sigmoid(f_i) c_i + sigmoid(e_i) tanh(n_i),    k_i <- sigmoid(o_i) tanh(c_i)
    m = tanh( sum_i tanh( Q W_q^T W_k k_i ) x_i )

    e, f, o, n are the four gates of the LSTM, affine in k_i, x_i and a. The last actions stay as
    they were. Source: arXiv 2109.02869, section 3, and the authors' released code, which has the
    outer tanh that the paper's equation (2) leaves out.
    """
    E, N, B = readings.shape
    x = readings[:, None]  # (E, 1, N, B)
    action = memory.action[:, :, None].expand(-1, -1, N, -1)  # every sensor hears it
    heard = torch.cat([memory.hidden, x, action, torch.ones_like(x)], 1)
    gates = (weights.gates @ heard.flatten(2)).tanh_().view(E, 4, -1, N, B)
    enter, keep, out = gates[:, :3].add(1).mul_(0.5).unbind(1)  # sigmoids: see `fold`
    cell = torch.addcmul(keep * memory.cell, enter, gates[:, 3])
    hidden = out * cell.tanh()
    scores = (weights.queries @ hidden.flatten(2)).tanh_().view(E, -1, N, B)
    return (scores * x).sum(2).tanh_(), Memory(hidden, cell, memory.action)


def act(weights: Folded, readings: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Memory]:
    """One step of agents: actions a = tanh(W m + b) (E, A, B), codes m (E, M, B), the new memory."""
    code, memory = sense(weights, readings, memory)
    weight, bias = weights.head
    action = torch.baddbmm(bias, weight, code).tanh()
    return action, code, memory._replace(action=action)


class AttentionNeuron(Stacked):
    """Sensors of one number each, in any order and number, as one code of M numbers; E agents.

    k_i, c_i <- LSTM([x_i, a]; k_i, c_i),    m = tanh( sum_i tanh( Q W_q^T W_k k_i ) x_i )

    All sensors share the LSTM (H units) and keep their own states, zero at first. Q (M, H) is
    `positions`. Scores pass through tanh, not softmax: no sensor takes weight from another.
    message: rows of W_q and W_k. The weights (E, P) of an agent lie in the order of torch's
    modules: LSTM, W_q, W_k, and `more`, what a subclass adds.

    Raises ValueError for sizes that are not whole. Source: arXiv 2109.02869, section 3.

    >>> neuron = AttentionNeuron(actions=1)
    >>> code, memory = neuron(torch.randn(5, 3, generator=torch.Generator()), neuron.begin(3, 5))
    >>> code.shape, memory.hidden.shape
    (torch.Size([1, 16, 3]), torch.Size([1, 8, 5, 3]))
    """

    def __init__(
        self,
        actions: int = 1,
        *,
        codes: int = 16,
        hidden: int = 8,
        message: int = 32,
        members: int = 1,
        seed: int = 0,
        more: Shapes | None = None,
    ) -> None:
        sizes = {"actions": actions, "codes": codes, "hidden": hidden, "message": message}
        A, M, H, d = (check_whole(name, size) for name, size in sizes.items())
        self.actions, self.codes, self.hidden, self.message = A, M, H, d
        shapes = {"lstm.weight_ih": (4 * H, 1 + A), "lstm.weight_hh": (4 * H, H),
                  "lstm.bias_ih": (4 * H, 1), "lstm.bias_hh": (4 * H, 1),
                  "query.weight": (d, H), "key.weight": (d, H)}  # fmt: skip
        super().__init__({**shapes, **(more or {})}, members, seed)

    def start(self, generator: torch.Generator, std: float | None) -> Tensor:
        """As torch's modules start: uniform within 1 / sqrt(inputs), for the LSTM 1 / sqrt(H)."""
        pieces = []
        for name, (rows, columns) in self.shapes.items():
            part = name.split(".")[0]
            inputs = self.hidden if part == "lstm" else self.shapes[f"{part}.weight"][1]
            draw = torch.rand(rows * columns, generator=generator, device=generator.device)
            pieces.append((2 * draw - 1) / math.sqrt(inputs))
        return torch.cat(pieces)

    def fold(self, weights: Tensor | None = None) -> Folded:
        """The `Folded` weights of all members, or of others (E, P)."""
        weights = self.weights if weights is None else weights
        size = sum(rows * columns for rows, columns in self.shapes.values())
        if weights.dim() != 2 or weights.shape[1] != size or not len(weights):
            raise ValueError(f"weights: got {tuple(weights.shape)}, wanted (E, {size})")
        return fold(self.tensors(weights), positions(self.codes, self.hidden, weights))

    def begin(self, episodes: int, sensors: int, weights: Tensor | None = None) -> Memory:
        """The `Memory` at the start of so many episodes, zeros; for other weights than its own."""
        weights = self.weights.detach() if weights is None else weights
        E, zeros = len(weights), weights.new_zeros
        shape = (E, self.hidden, check_whole("sensors", sensors), check_whole("episodes", episodes))
        return Memory(zeros(shape), zeros(shape), zeros(E, self.actions, episodes))

    def forward(
        self, readings: Tensor, memory: Memory, folded: Folded | None = None
    ) -> tuple[Tensor, Memory]:
        """`sense` for readings (N, B) that all agents share, or (E, N, B)."""
        folded = self.fold() if folded is None else folded
        return sense(folded, self.shared(readings, memory), memory)

    def shared(self, readings: Tensor, memory: Memory) -> Tensor:
        """Readings (N, B) or (E, N, B) as (E, N, B): as many sensors and episodes as at the start."""
        E, _, N, B = memory.hidden.shape
        if readings.shape not in ((N, B), (E, N, B)):
            wanted = f"{(N, B)} or {(E, N, B)}: as many sensors and episodes as at the start"
            raise ValueError(f"readings: got {tuple(readings.shape)}, wanted {wanted}")
        return readings.expand(E, N, B)


class Agent(AttentionNeuron):
    """An agent that sees through an `AttentionNeuron`, and acts by one layer on its code.

    a = tanh( W m + b ), actions (E, A, B) in [-1, 1]. The sizes as they are have the 913 parameters
    of the paper's swing-up.

    >>> Agent().weights.shape
    torch.Size([1, 913])
    """

    def __init__(self, actions: int = 1, *, codes: int = 16, **sizes: int) -> None:
        head: Shapes = {"head.weight": (actions, codes), "head.bias": (actions, 1)}
        super().__init__(actions, codes=codes, more=head, **sizes)

    def act(
        self, readings: Tensor, memory: Memory, folded: Folded | None = None
    ) -> tuple[Tensor, Tensor, Memory]:
        """`act` for readings (N, B) that all agents share, or (E, N, B)."""
        folded = self.fold() if folded is None else folded
        return act(folded, self.shared(readings, memory), memory)
