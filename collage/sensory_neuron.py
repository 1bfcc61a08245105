"""Permutation-invariant agents: sensors that work out for themselves what they are.

Each sensor sees one number, or one patch of an image, and the last action; all run the same small
network. Attention with fixed queries sums what they say into one code, whatever their order and
number (Tang & Ha, 2021; arXiv 2109.02869).

positions               the table of fixed queries
AttentionNeuron         sensors of one number each -> a code, for E agents at once
Agent                   with a head that acts; 913 parameters for the swing-up
Sensors                 what is done to the sensors: shuffled, copied, drowned in noise, taken away
trained                 an agent that this project has evolved
Plain                   an ordinary network, for comparison
play                    whole episodes of a population, all at once
fused_returns           the same on a CPU in one compiled loop
clone                   a student learns from an expert that is not permutation invariant
PatchNeuron             sensors that see patches of an image
RacingAgent             with the paper's driver behind it; 7,212 parameters
"""

import concurrent.futures
import ctypes
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from collage import runtime
from collage.environments import Step, SwingUp
from collage.evolution import check_single, check_whole
from collage.networks import forward, mlp
from collage.offline import Stacked


def positions(rows, dim, like=None):
    """Sinusoidal positions (rows, dim), the queries: fixed, and no function of the input.

    Q[i, j] = sin(i / 10000^(2 floor(j/2) / dim)) for even j, cos of the same for odd j

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5.

    >>> positions(2, 4)
    tensor([[0.0000, 1.0000, 0.0000, 1.0000],
            [0.8415, 0.5403, 0.0100, 0.9999]])
    """
    i, j = torch.arange(rows, dtype=torch.float64)[:, None], torch.arange(dim)
    angle = i / 10000 ** (2 * (j // 2) / dim)
    table = torch.where(j % 2 == 0, angle.sin(), angle.cos())
    return table.to(like) if like is not None else table.float()


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
    agent, (arrays, _) = Agent(), runtime.load(Path(__file__).with_name("swing_up.npz"))
    agent.weights.data = torch.from_numpy(arrays["weights"])[None]
    return agent


class Plain:
    """Ordinary ReLU networks that expect their sensors in order: what a shuffle breaks.

    sizes: widths from readings to actions, which pass through tanh; E networks. `fit` clones an expert.

    >>> Plain([5, 8, 1], members=2).act(torch.zeros(5, 3), None)[0].shape
    torch.Size([2, 1, 3])
    """

    def __init__(self, sizes, members=1, seed=0, device="cpu"):
        g = runtime.generator(seed, device)
        self.params = mlp(sizes, check_whole("members", members), g)
        self.members = members

    def begin(self, episodes, sensors, weights=None):
        if sensors != self.params[0].shape[1]:
            raise ValueError(f"sensors: got {sensors}, wanted {self.params[0].shape[1]}: an ordinary "
                             "network has as many inputs as it was made with")  # fmt: skip
        return None

    def fold(self, weights=None):
        if weights is not None:
            raise ValueError("weights: got some, wanted None: an ordinary network brings its own")
        return None

    def act(self, readings, memory, folded=None):
        """As `Agent.act`; there is no code."""
        out = forward(self.params, readings.mT.contiguous())
        return out.tanh().mT, None, None

    def fit(self, readings, actions, steps, generator, *, batch=512, lr=3e-3):
        """Least squares by Adam on readings (n, N) and an expert's actions (n, A); the last losses (E,)."""
        steps, batch = check_whole("steps", steps), check_whole("batch", batch)
        for p in self.params:
            p.requires_grad_()
        adam = torch.optim.Adam(self.params, lr, fused=True)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for _ in range(steps):
            rows = torch.randint(len(readings), (self.members, batch), generator=generator,
                                 device=generator.device)  # fmt: skip
            wrong = forward(self.params, readings[rows]).tanh() - actions[rows]
            losses = wrong.square().mean((1, 2))
            adam.zero_grad()
            losses.sum().backward()
            adam.step(), rates.step()
        for p in self.params:
            p.requires_grad_(False)
        return losses.detach()


class Sensors:
    """What is done to the readings (N, B) of B episodes before an agent sees them.

    copies: each sensor so many times. noise: so many further sensors that read N(0, spread^2), new at
    each step. shuffle: None, "episode" for an order drawn once for each episode, or a whole number of
    steps: they begin in order, and after so many a new one is drawn, again and again. dropped: so many of the sensors, drawn for
    each episode, are taken away. An agent is told none of this, and its memory stays where it was when
    the sensors change places.

    Raises ValueError for numbers that are not whole, or none that is left. Source: arXiv 2109.02869,
    sections 4.1 and 4.2.

    >>> two = Sensors(shuffle="episode", noise=1)
    >>> g = torch.Generator().manual_seed(0)
    >>> two.begin(4, 3, g), two(torch.ones(4, 3), 0).shape
    (5, torch.Size([5, 3]))
    """

    def __init__(self, shuffle=None, noise=0, copies=1, dropped=0, spread=0.1):
        fine = shuffle in (None, "episode") or (isinstance(shuffle, int) and shuffle > 0)
        if isinstance(shuffle, bool) or not fine:
            raise ValueError(
                f"shuffle: got {shuffle!r}, wanted None, 'episode' or a number of steps"
            )
        self.shuffle, self.spread = shuffle, check_single("spread", spread)
        self.noise, self.copies, self.dropped = (
            check_whole(n, v, least) for n, v, least in (("noise", noise, 0), ("copies", copies, 1),
                                                         ("dropped", dropped, 0)))  # fmt: skip

    def begin(self, sensors, episodes, generator):
        """Draw what holds for these episodes; returns how many sensors an agent has then."""
        self.generator = generator
        every = sensors * self.copies + self.noise
        if every <= self.dropped:
            raise ValueError(f"dropped: got {self.dropped}, wanted less than the {every} sensors")
        left = torch.arange(every, device=generator.device)[:, None].expand(every, episodes)
        if self.dropped:
            left = self._mixed(left)[self.dropped :].sort(0).values
        self.order = self._mixed(left) if self.shuffle == "episode" else left
        return every - self.dropped

    def _mixed(self, order):
        g = self.generator
        draw = torch.rand(order.shape, generator=g, device=g.device)
        return order.gather(0, draw.argsort(0))

    def keep(self, which):
        """Go on with some of the episodes."""
        self.order = self.order[:, which]

    def __call__(self, readings, step):
        """Readings (..., N, B) as they arrive at the agent, (..., N', B)."""
        x = torch.cat([readings] * self.copies, -2) if self.copies > 1 else readings
        if self.noise:
            g = self.generator
            draw = torch.randn(self.noise, x.shape[-1], generator=g, device=g.device, dtype=x.dtype)
            x = torch.cat([x, (self.spread * draw).expand(*x.shape[:-2], -1, -1)], -2)
        if self.shuffle not in (None, "episode") and step and step % self.shuffle == 0:
            self.order = self._mixed(self.order)
        if self.shuffle or self.dropped:
            x = x.gather(-2, self.order.expand(*x.shape[:-2], -1, -1))
        return x


class Played(NamedTuple):
    """What `play` saw: returns and lengths (E, B); with trace, also what happened on the way."""

    returns: torch.Tensor
    lengths: torch.Tensor
    states: torch.Tensor | None = None  # (T + 1, E, B, S)
    readings: torch.Tensor | None = None  # (T, E, N, B)
    actions: torch.Tensor | None = None  # (T, E, A, B)
    codes: torch.Tensor | None = None  # (T, E, M, B)


@torch.no_grad()
def play(policy, env, starts, *, weights=None, sensors=None, generator=None, steps=None, trace=False,
         noise=0.0):  # fmt: skip
    """Episodes from the states starts (B, S), the same for all E agents of a population, at once.

    policy: an `Agent`, or `Plain`. weights (E, P) instead of an agent's own. sensors: `Sensors`, drawn
    from `generator`. steps: at most so many. noise: standard deviation of what is added to actions on
    the way to the environment, the agent remembering what it meant to do. Episodes that have ended for
    every agent are taken out of the batch, unless their `trace` is wanted; there they stand still.

    Raises ValueError for starts that are not finite or not (B, S), and where a draw has no generator.

    >>> from collage.environments import SwingUp
    >>> play(Agent(), SwingUp(), torch.zeros(2, 5), steps=10).lengths
    tensor([[10, 10]])
    """
    wanted = env.reset(1, torch.Generator(starts.device)).shape[1:]
    if starts.shape[1:] != wanted or not len(starts) or not bool(starts.isfinite().all()):
        raise ValueError(
            f"starts: got {tuple(starts.shape)}, wanted finite states (B, {wanted[0]})"
        )
    if noise:
        check_single("noise", noise)
    drawn = noise or sensors is not None
    if drawn and getattr(generator, "device", None) != starts.device:
        raise ValueError(f"generator: got {generator}, wanted one on {starts.device} for the sensors "
                         "and the noise")  # fmt: skip
    folded = policy.fold(weights)
    E = policy.members if weights is None else len(weights)
    B, steps = (
        len(starts),
        check_whole("steps", getattr(env, "longest", 0) if steps is None else steps),
    )
    N = env.observe(starts[:1]).shape[1]
    N = sensors.begin(N, B, generator) if sensors else N
    memory = policy.begin(B, N, weights)
    state = starts.repeat(E, 1, 1)  # (E, B, S)
    returns = starts.new_zeros(E, B)
    lengths = torch.zeros(E, B, dtype=torch.long, device=starts.device)
    total, length, where = returns.clone(), lengths.clone(), torch.arange(B, device=starts.device)
    going, seen = torch.ones_like(total, dtype=torch.bool), {k: [] for k in Played._fields[2:]}
    for t in range(steps):
        readings = env.observe(state.flatten(0, 1)).view(E, state.shape[1], -1).mT.contiguous()
        readings = sensors(readings, t) if sensors else readings
        action, code, memory = policy.act(readings, memory, folded)
        if trace:
            for name, value in zip(seen, (state, readings, action, code)):
                seen[name].append(value)
        push = action.mT.flatten(0, 1)
        if noise:
            push = push + noise * torch.randn(push.shape, generator=generator, device=push.device)
        out = env.step(state.flatten(0, 1), push)
        out = out if isinstance(out, Step) else Step(*out, *2 * [torch.zeros_like(out[1]).bool()])
        new = out.state.view(state.shape)
        state = torch.where(going[..., None], new, state) if trace else new
        total += torch.where(going, out.reward.view(total.shape), 0)
        length += going
        going &= ~(out.terminated | out.truncated).view(going.shape)
        if t % 25 == 24 or t == steps - 1 or trace:
            left = going.any(0)
            if t == steps - 1 or not bool(left.any()):
                break
            if not trace and bool((~left).sum() > 0.02 * len(left)):
                returns[:, where], lengths[:, where] = total, length
                keep = left.nonzero()[:, 0]
                state, total, length = state[:, keep], total[:, keep], length[:, keep]
                going, where = going[:, keep], where[keep]
                memory = memory.keep(keep) if memory is not None else None
                if sensors:
                    sensors.keep(keep)
    returns[:, where], lengths[:, where] = total, length
    if not trace:
        return Played(returns, lengths)
    seen["states"].append(state)
    return Played(
        returns, lengths, *(torch.stack(v) if v[0] is not None else None for v in seen.values())
    )


def fused_returns(weights, starts, steps=1000):
    """Returns and lengths (E, B) in `SwingUp` of `Agent()`s with weights (E, 913), compiled for the CPU.

    The same as `play`, in one loop over vector lanes that never leaves the processor's caches, and with
    a rational tanh that is at most 5e-7 off. Each of torch's threads takes its share of the episodes.
    starts (B, 4) or (B, 5) as `SwingUp` makes them, at time 0 and on the track. The first call compiles
    `sensory_neuron.cpp` (about a second, kept for later).

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


def clone(agent, teacher, env, starts, generator, *, rounds=5, updates=60, episodes=100, length=200,
          batch=48, lr=0.015, clip=0.5, noise=0.2, progress=False):  # fmt: skip
    """Teach every member of an `Agent` what a teacher does that is not permutation invariant.

    DAgger: in the first round the teacher acts, later the student, and the teacher says at each step
    what it would have done. All of it is kept, and after each round whole episodes are learned by
    least squares, all their steps in parallel. starts(n, generator) -> states (n, S) to begin from.
    length: steps of an episode that are seen; noise: of the actions on their way to the environment.
    Adam, its rate falling to zero like a cosine, gradients clipped to the norm `clip`. Sensors come in
    their usual order: a permutation-invariant student has nothing to learn from others.

    Returns the losses (rounds * updates, E). Raises ValueError for counts that are not whole. Source:
    Ross, Gordon & Bagnell 2011 (arXiv 1011.0686); arXiv 2109.02869, section 4.2.
    """
    counts = {
        "rounds": rounds,
        "updates": updates,
        "episodes": episodes,
        "length": length,
        "batch": batch,
    }
    rounds, updates, episodes, length, batch = (check_whole(n, v) for n, v in counts.items())
    adam = torch.optim.Adam([agent.weights], lr, fused=True)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(adam, rounds * updates)
    seen, curve = [], []
    for step in runtime.steps_from(0, rounds * updates, progress):
        if step % updates == 0:
            actor = agent if step else teacher
            seen.append(
                _watch(actor, teacher, env, starts(episodes, generator), length, noise, generator)
            )
            lessons = [torch.cat([t.expand(-1, agent.members, -1, -1) for t in parts])
                       for parts in zip(*seen)]  # fmt: skip
        rows = torch.randint(
            len(lessons[0]), (batch,), generator=generator, device=generator.device
        )
        losses = torch.stack([_lesson(agent, member, [t[rows, member] for t in lessons])
                              for member in range(agent.members)])  # fmt: skip
        adam.zero_grad()
        losses.sum().backward()
        sizes = agent.weights.grad.norm(dim=1, keepdim=True)
        agent.weights.grad *= (clip / (sizes + 1e-6)).clamp(max=1)
        adam.step(), rates.step()
        curve.append(losses.detach())
    return torch.stack(curve)


@torch.no_grad()
def _watch(actor, teacher, env, starts, length, noise, generator):
    """Episodes of an actor: readings, what it did before, what the teacher would have done, which steps
    count; (B, E, T, ...) each."""
    run = play(actor, env, starts, steps=length, trace=True, noise=noise, generator=generator)
    readings = run.readings  # (T, E, N, B)
    T, E, N, B = readings.shape
    flat = readings.permute(2, 0, 1, 3).reshape(N, -1)
    wanted = teacher.act(flat, None)[0][0].view(-1, T, E, B).permute(1, 2, 0, 3)
    before = torch.cat([torch.zeros_like(run.actions[:1]), run.actions[:-1]])
    counts = (torch.arange(T, device=starts.device)[:, None, None] < run.lengths)[:, :, None]
    parts = (readings, before, wanted, counts.to(readings))
    # Where all have ended early, the rest is padding that does not count.
    return tuple(F.pad(t.permute(3, 1, 0, 2), (0, 0, 0, length - T)) for t in parts)


def _lesson(agent, member, lesson):
    """The mean squared error of one member on whole episodes."""
    readings, before, wanted, counts = lesson
    wrong = agent.actions_along(readings, before, member) - wanted
    return (wrong.square() * counts).sum() / (counts.sum() * wanted.shape[-1])


class PatchNeuron(nn.Module):
    """Sensors that see one patch of an image each, in any order and number: a code of M rows.

    m = norm( relu( softmax( Q W_q (K W_k)^T / sqrt(d) ) V W_v ) )

    A row of K: the patch's differences from frame to frame, then the last action. A row of V: its
    pixels, each frame of it brought to mean 0 and variance 1. patch: pixels of a patch's side, frames F,
    actions A, codes M, dim columns of Q, message d, values: columns of W_v; affine: the two layer norms
    learn a scale and shift. Attention is torch's fused scaled_dot_product_attention.

    Raises ValueError for patches of another shape. Source: arXiv 2109.02869, section 4.3, and the
    authors' released code.

    >>> eye = PatchNeuron(patch=2, frames=3, actions=1, codes=4, message=8, values=6)
    >>> frames = torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> eye(patches(frames, 2), torch.zeros(7, 1)).shape
    torch.Size([7, 4, 6])
    """

    def __init__(self, patch=6, frames=4, actions=3, codes=1024, dim=8, message=16, values=16,
                 affine=False):  # fmt: skip
        super().__init__()
        self.size, self.frames, self.actions = check_whole("patch", patch) ** 2, frames, actions
        check_whole("frames", frames, 2)
        self.register_buffer("positions", positions(check_whole("codes", codes), dim))
        self.query = nn.Linear(dim, message)
        self.key = nn.Linear((frames - 1) * self.size + actions, message)
        self.value = nn.Linear(frames * self.size, values)
        self.before = nn.LayerNorm(self.size, elementwise_affine=affine)
        self.after = nn.LayerNorm(values, elementwise_affine=affine)

    def forward(self, seen, action):
        """Patches (B, P, F, size^2), last actions (B, A) -> the code (B, M, values)."""
        B, wanted = len(seen), (self.frames, self.size)
        if seen.dim() != 4 or seen.shape[2:] != wanted or action.shape != (B, self.actions):
            raise ValueError(f"seen, action: got {tuple(seen.shape)}, {tuple(action.shape)}, wanted "
                             f"(B, P, {self.frames}, {self.size}), (B, {self.actions})")  # fmt: skip
        moved = seen.diff(dim=2).flatten(2)
        keys = self.key(torch.cat([moved, action[:, None].expand(-1, moved.shape[1], -1)], 2))
        values = self.value(self.before(seen).flatten(2))
        asked = self.query(self.positions).expand(B, -1, -1)
        return self.after(F.scaled_dot_product_attention(asked, keys, values).relu())


def patches(frames, size):
    """Images (B, F, H, W) as patches (B, P, F, size^2), row by row, without overlap.

    >>> patches(torch.arange(16.0).view(1, 1, 4, 4), 2)[0, 1]
    tensor([[2., 3., 6., 7.]])
    """
    B, frames_, H, W = frames.shape
    if H % size or W % size:
        raise ValueError(f"frames: got {H} x {W} pixels, wanted multiples of {size}")
    cut = frames.view(B, frames_, H // size, size, W // size, size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(B, -1, frames_, size * size)


class RacingAgent(nn.Module):
    """The paper's driver for CarRacing: a `PatchNeuron` of 1,024 rows, and a glance at ten of them.

    The code is taken for an image of 32 x 32 pixels and mixed with the last one, alpha of it old. Its pixels vote for each other, the ten with most votes tell an LSTM where they are, and that
    steers. 7,212 parameters.

    Source: arXiv 2109.02869, section 4.3; the driver is that of Tang, Nguyen & Ha 2020
    (arXiv 2003.08165).

    >>> sum(p.numel() for p in RacingAgent().parameters())
    7212
    """

    side, best, units = 32, 10, 16

    def __init__(self):
        super().__init__()
        self.eye = PatchNeuron(patch=6, frames=4, actions=3, codes=self.side**2)
        self.asks, self.answers = nn.Linear(16, 4), nn.Linear(16, 4)
        self.lstm, self.head = nn.LSTMCell(2 * self.best, self.units), nn.Linear(self.units, 3)
        self.mix = nn.Sequential(
            nn.Linear(self.units + 3, 16), nn.Tanh(), nn.Linear(16, 1), nn.Sigmoid()
        )

    def begin(self, episodes):
        """Memory: hidden and cell (B, 16), the last action (B, 3), the last code (B, 1024, 16)."""
        zero = self.head.weight.new_zeros
        return (zero(episodes, self.units), zero(episodes, self.units), zero(episodes, 3),
                zero(episodes, self.side**2, 16))  # fmt: skip

    def forward(self, seen, memory):
        """Patches (B, P, 4, 36) -> actions (B, 3) in [-1, 1] and the new memory."""
        hidden, cell, action, last = memory
        alpha = self.mix(torch.cat([hidden, action], 1))[..., None]
        code = (1 - alpha) * self.eye(seen, action) + alpha * last
        votes = (self.asks(code) @ self.answers(code).mT).softmax(2).sum(1)
        top = votes.topk(self.best, 1).indices
        where = torch.stack([top // self.side, top % self.side], 2).to(code) / self.side
        hidden, cell = self.lstm(where.flatten(1), (hidden, cell))
        action = self.head(hidden).tanh()
        return action, (hidden, cell, action, code)
