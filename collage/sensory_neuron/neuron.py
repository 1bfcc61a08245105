"""Permutation-invariant agents: sensors that work out for themselves what they are.

Each sensor sees one number, or one patch of an image, and the last action; all run the same small
network. Attention with fixed queries sums what they say into one code, whatever their order and
number (Tang & Ha, 2021; arXiv 2109.02869).

AttentionNeuron         sensors of one number each -> a code, for E agents at once
Agent                   with a head that acts; 913 parameters for the swing-up
trained                 an agent that this project has evolved
fused_returns           whole episodes of a population, in one compiled loop on a CPU (`neuron.cpp`)
"""

import concurrent.futures
import ctypes
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import torch

from collage import runtime
from collage.common import checkpoint
from collage.common.checks import check_whole
from collage.common.environments import SwingUp
from collage.common.stack import Stacked
from collage.sensory_neuron.images import positions


class Memory(NamedTuple):
    """What agents remember in an episode: (E, H, N, B) each, and the last actions (E, A, B)."""

    hidden: torch.Tensor
    cell: torch.Tensor
    action: torch.Tensor

    def keep(self, which):
        """The same for some of the episodes."""
        return Memory(*(t[..., which] for t in self))


class Folded(NamedTuple):
    """Weights as an episode needs them: all that does not change is multiplied out beforehand."""

    gates: torch.Tensor  # (E, 4H, H + 1 + A + 1): in, forget, out, cell; for h, reading, action, 1
    queries: torch.Tensor  # (E, M, H): Q W_q^T W_k
    offset: torch.Tensor | None  # (E, M, 1): Q W_q^T b_k, with biases
    head: tuple  # (weight, bias) of each layer


class AttentionNeuron(Stacked):
    """Sensors of one number each, in any order and number, as one code of M numbers; E agents.

    k_i = LSTM(x_i, a; its own h_i, c_i),   m = tanh( sum_i tanh( Q W_q^T W_k k_i ) x_i )

    All sensors share the LSTM (H units) and keep their own states, zero at first. Q (M, H) is
    `positions`. Scores pass through tanh, not softmax: no sensor takes weight from another. message:
    rows of W_q and W_k; bias: of these two; scaled: scores divided by sqrt(message). Weights of one
    agent lie in the order of torch's modules: LSTM, W_q, W_k, and what a subclass adds.

    Raises ValueError for sizes that are not whole. Source: arXiv 2109.02869, section 3 and the
    authors' released code, which has the outer tanh that the paper's equation (2) leaves out.

    >>> neuron = AttentionNeuron(actions=1)
    >>> code, memory = neuron(torch.randn(5, 3, generator=torch.Generator()), neuron.begin(3, 5))
    >>> code.shape, memory.hidden.shape
    (torch.Size([1, 16, 3]), torch.Size([1, 8, 5, 3]))
    """

    def __init__(self, actions=1, *, codes=16, hidden=8, message=32, bias=False, scaled=False,
                 members=1, seed=0, more=None):  # fmt: skip
        A, M, H, d = (check_whole(n, v) for n, v in (("actions", actions), ("codes", codes),
                                                     ("hidden", hidden), ("message", message)))  # fmt: skip
        self.actions, self.codes, self.hidden, self.message = A, M, H, d
        shapes = {"lstm.weight_ih": (4 * H, 1 + A), "lstm.weight_hh": (4 * H, H),
                  "lstm.bias_ih": (4 * H, 1), "lstm.bias_hh": (4 * H, 1)}  # fmt: skip
        for name in ("query", "key"):
            shapes[f"{name}.weight"] = (d, H)
            if bias:
                shapes[f"{name}.bias"] = (d, 1)
        super().__init__({**shapes, **(more or {})}, members, seed)
        self.scale = 1 / math.sqrt(d) if scaled else 1.0

    def _start(self, g, std):
        """As torch's modules start: uniform within 1 / sqrt(inputs), for the LSTM 1 / sqrt(H)."""
        pieces = []
        for name, (rows, columns) in self.shapes.items():
            fan = (
                self.hidden
                if name.startswith("lstm")
                else self.shapes[name.split(".")[0] + ".weight"][1]
            )
            draw = torch.rand(rows * columns, generator=g)
            pieces.append((2 * draw - 1) / math.sqrt(fan))
        return torch.cat(pieces)

    def fold(self, weights=None):
        """The `Folded` weights of all members, or of others (E, P)."""
        weights = self.weights if weights is None else weights
        count = sum(rows * columns for rows, columns in self.shapes.values())
        if weights.dim() != 2 or weights.shape[1] != count or not len(weights):
            raise ValueError(f"weights: got {tuple(weights.shape)}, wanted (E, {count})")
        t = self.tensors(weights)
        Q = positions(self.codes, self.hidden, weights)
        asked = Q @ t["query.weight"].mT
        if "query.bias" in t:
            asked = asked + t["query.bias"].mT
        queries = self.scale * asked @ t["key.weight"]
        offset = self.scale * asked @ t["key.bias"] if "key.bias" in t else None
        bias = t["lstm.bias_ih"] + t["lstm.bias_hh"]
        gates = torch.cat([t["lstm.weight_hh"], t["lstm.weight_ih"], bias], 2)
        # sigmoid(x) = (1 + tanh(x / 2)) / 2: with halved weights one tanh serves all four gates.
        first, keep, new, out = gates.chunk(4, 1)
        gates = torch.cat([first / 2, keep / 2, out / 2, new], 1)
        return Folded(gates, queries, offset, self._head(t))

    def _head(self, tensors):
        return ()

    def begin(self, episodes, sensors, weights=None):
        """The `Memory` at the start of so many episodes, zeros; for other weights (E, P) than its own."""
        weights = self.weights.detach() if weights is None else weights
        E, zeros = len(weights), weights.new_zeros
        shape = (E, self.hidden, check_whole("sensors", sensors), check_whole("episodes", episodes))
        return Memory(zeros(shape), zeros(shape), zeros(E, self.actions, episodes))

    def forward(self, readings, memory, folded=None):
        """Readings (N, B), or (E, N, B), -> codes (E, M, B) and the memory, its action the old one."""
        f = self.fold() if folded is None else folded
        x = readings if readings.dim() == 3 else readings.expand(len(f.gates), *readings.shape)
        if x.shape[1:] != memory.hidden.shape[2:]:
            raise ValueError(
                f"readings: got {tuple(readings.shape)}, wanted {tuple(memory.hidden.shape[2:])}: as "
                "many sensors and episodes as at the start"
            )
        E, N, B = x.shape
        action = memory.action[:, :, None].expand(-1, -1, N, -1)
        heard = torch.cat([memory.hidden, x[:, None], action, torch.ones_like(x[:, None])], 1)
        gates = (f.gates @ heard.flatten(2)).tanh_().view(E, -1, N, B)
        opened, new = gates.split([3 * self.hidden, self.hidden], 1)
        first, keep, out = opened.add(1).mul_(0.5).chunk(3, 1)
        cell = torch.addcmul(keep * memory.cell, first, new)
        hidden = out * cell.tanh()
        scores = f.queries @ hidden.flatten(2)
        scores = (scores if f.offset is None else scores + f.offset).tanh_().view(E, -1, N, B)
        return (scores * x[:, None]).sum(2).tanh_(), Memory(hidden, cell, memory.action)

    def sequence(self, readings, actions, member=0):
        """Codes (B, T, M) of whole episodes at once, for one member: equal to `forward` step by step.

        readings (B, T, N); actions (B, T, A): those before each step, zero at first. The LSTM is
        torch's own, run over the whole length with the sensors in the batch; attention follows for all
        steps together. Gradients reach the weights.
        """
        B, T, N = readings.shape
        if actions.shape != (B, T, self.actions):
            raise ValueError(f"actions: got {tuple(actions.shape)}, wanted {(B, T, self.actions)}")
        t = {name: w[member] for name, w in self.tensors().items()}
        x = readings.permute(1, 0, 2)[..., None]  # (T, B, N, 1)
        seen = torch.cat([x, actions.transpose(0, 1)[:, :, None].expand(-1, -1, N, -1)], 3)
        lstm = [
            t["lstm.weight_ih"],
            t["lstm.weight_hh"],
            t["lstm.bias_ih"][:, 0],
            t["lstm.bias_hh"][:, 0],
        ]
        zero = readings.new_zeros(1, B * N, self.hidden)
        keys = torch.lstm(seen.reshape(T, B * N, -1), (zero, zero), lstm, True, 1, 0.0, True, False,
                          False)[0].view(T, B, N, self.hidden)  # fmt: skip
        f = self.fold(self.weights[member : member + 1])
        scores = keys @ f.queries[0].mT
        scores = (scores if f.offset is None else scores + f.offset[0, :, 0]).tanh()
        return (scores * x).sum(2).tanh().transpose(0, 1)


class Agent(AttentionNeuron):
    """An agent that sees through an `AttentionNeuron`: a head of tanh layers turns the code to actions.

    actions A, widths: of layers between the code and the actions. Actions (E, A, B) in [-1, 1]. The
    settings as they are have the 913 parameters of the paper's swing-up; `Agent.ant()` has the 2,504
    of its Ant.

    >>> Agent().weights.shape, Agent.ant().weights.shape
    (torch.Size([1, 913]), torch.Size([1, 2504]))
    """

    def __init__(self, actions=1, *, codes=16, widths=(), **settings):
        sizes = [codes, *widths, actions]
        more = {}
        for i, (columns, rows) in enumerate(itertools.pairwise(sizes)):
            more |= {f"head{i}.weight": (rows, columns), f"head{i}.bias": (rows, 1)}
        super().__init__(actions, codes=codes, more=more, **settings)

    @classmethod
    def ant(cls, **settings):
        """The paper's Ant: 8 joints, a code of 32 numbers, one layer of 32 units in the head."""
        return cls(8, codes=32, widths=(32,), bias=True, scaled=True, **settings)

    def _head(self, tensors):
        names = [name for name in self.shapes if name.startswith("head")]
        return tuple((tensors[w], tensors[b]) for w, b in zip(names[0::2], names[1::2]))

    def act(self, readings, memory, folded=None):
        """Readings (N, B) or (E, N, B) -> actions (E, A, B), codes (E, M, B), and the new memory."""
        f = self.fold() if folded is None else folded
        code, memory = self(readings, memory, f)
        x = code
        for weight, bias in f.head:
            x = torch.baddbmm(bias, weight, x).tanh()
        return x, code, memory._replace(action=x)

    def actions_along(self, readings, actions, member=0):
        """Actions (B, T, A) for whole episodes: see `sequence`."""
        x = self.sequence(readings, actions, member)
        for weight, bias in self._head({n: w[member] for n, w in self.tensors().items()}):
            x = (x @ weight.mT + bias[:, 0]).tanh()
        return x


def trained():
    """The agent of 913 parameters that evolution found for the swing-up: `experiments.sensory_neuron`.

    >>> trained().weights.shape
    torch.Size([1, 913])
    """
    agent, (arrays, _) = Agent(), checkpoint.load(Path(__file__).with_name("swing_up.npz"))
    agent.weights.data = torch.from_numpy(arrays["weights"])[None]
    return agent


def fused_returns(weights, starts, steps=1000):
    """Returns and lengths (E, B) in `SwingUp` of `Agent()`s with weights (E, 913), compiled for the CPU.

    The same as `play`, in one loop over vector lanes that never leaves the processor's caches, and with
    a rational tanh that is at most 5e-7 off. Each of torch's threads takes its share of the episodes.
    starts (B, 4) or (B, 5) as `SwingUp` makes them, at time 0 and on the track. The first call compiles
    `neuron.cpp` (about a second, kept for later).

    Raises ValueError for other weights or starts; RuntimeError where there is no C++ compiler.
    """
    agent = Agent()
    if weights.dim() != 2 or weights.shape[1] != agent.weights.shape[1] or not len(weights):
        raise ValueError(
            f"weights: got {tuple(weights.shape)}, wanted (E, {agent.weights.shape[1]})"
        )
    if starts.dim() != 2 or starts.shape[1] not in (4, 5) or not len(starts):
        raise ValueError(f"starts: got {tuple(starts.shape)}, wanted (B, 4)")
    weights, begin = weights.detach().float().cpu(), starts.float().cpu()
    fine = begin.isfinite().all() and (begin[:, 0].abs() <= SwingUp.track).all()
    if not bool(fine and (begin[:, 4:] == 0).all() and weights.isfinite().all()):
        raise ValueError("weights, starts: got NaN, inf, or a start off the track or later than 0")
    steps = check_whole("steps", steps)
    if steps >= 2**31:
        raise ValueError(f"steps: got {steps}, wanted less than 2^31")
    f = agent.fold(weights)
    (head, bias), E, B = f.head[0], len(weights), len(starts)
    parts = (f.gates, f.queries, head, bias)
    table = torch.cat([part.flatten(1) for part in parts], 1).contiguous()
    first = begin[:, :4].repeat(E, 1)
    member = torch.arange(E, dtype=torch.int32).repeat_interleave(B)
    returns, lengths = torch.zeros(E * B), torch.zeros(E * B, dtype=torch.int32)
    library = runtime.compiled(Path(__file__).with_suffix(".cpp"))

    def part(span):
        pointers = (ctypes.c_void_p(t[span].data_ptr()) for t in (first, member))
        out = (ctypes.c_void_p(t[span].data_ptr()) for t in (returns, lengths))
        library.rollouts(
            ctypes.c_void_p(table.data_ptr()), *pointers, span.stop - span.start, steps, *out
        )

    n = min(torch.get_num_threads(), -(-E * B // 16))
    spans = [slice(i * E * B // n, (i + 1) * E * B // n) for i in range(n)]
    if n == 1:
        part(spans[0])
    else:
        with concurrent.futures.ThreadPoolExecutor(n) as pool:
            list(pool.map(part, spans))
    return returns.view(E, B).to(starts.device), lengths.view(E, B).long().to(starts.device)
