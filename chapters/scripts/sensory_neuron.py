"""The Sensory Neuron in one file (Tang & Ha 2021, arXiv 2109.02869).

The idea: give each input x_i a small recurrent network of its own, all with the same
weights. From its reading and the last action a it works out what it is connected to
(its key k_i). Attention with fixed queries Q adds all up: a sum knows no order.

    k_i <- LSTM([x_i, a]),    m = tanh( sum_i tanh(Q W_q^T W_k k_i) x_i )

What you will see: networks learn from a controller to balance a pole on a cart (a
formula), two of its four sensors mounted backwards. Shuffle the wires in each episode,
and an ordinary network soon falls, even if trained so.

    python sensory_neuron.py [figure.png] [--seed 0] [--quick]    # about 25 s

MIT licence, the ML Collage contributors; explained in chapter 33 of ML Collage.
"""

import argparse

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Generator, Tensor, nn

METHOD, PLAIN, TUNED = "#D55E00", "#0072B2", "#56B4E9"  # Okabe and Ito's palette

State = tuple[Tensor, Tensor] | None  # of the sensors; None at the start of an episode
Result = tuple[Tensor, State]


# The method: copy this class.
class SensoryNeuron(nn.Module):
    """Readings x (T, B, N), and a (T, B, A) before them, as codes m (T, B, M)."""

    def __init__(self, A: int = 1, M: int = 16, hidden: int = 8, message: int = 32):
        super().__init__()
        self.lstm = nn.LSTM(1 + A, hidden)  # one for all sensors
        self.W_q = nn.Linear(hidden, message, bias=False)
        self.W_k = nn.Linear(hidden, message, bias=False)
        i, j = torch.arange(M)[:, None], torch.arange(hidden)
        angle = i / 10000 ** (2 * (j // 2) / hidden)  # the transformer's positions
        self.register_buffer("Q", torch.where(j % 2 == 0, angle.sin(), angle.cos()))

    def forward(self, x: Tensor, a: Tensor, state: State = None) -> Result:
        heard = [x[..., None], a[:, :, None].expand(*x.shape, -1)]  # [x_i, a]
        k, state = self.lstm(torch.cat(heard, -1).flatten(1, 2), state)
        score = self.W_k(k) @ self.W_q(self.Q).T  # (T, B N, M)
        score = score.view(*x.shape, -1).tanh()  # not softmax: none takes from another
        return (score * x[..., None]).sum(2).tanh(), state


class Agent(SensoryNeuron):
    """The same with a layer that acts: a = tanh(W m + b), (T, B, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor, a: Tensor, state: State = None) -> Result:
        code, state = super().forward(x, a, state)
        return self.head(code).tanh(), state


# The experiment: a pole on a cart, pushed with -10 to 10 newtons, -1 <= a <= 1.
SCALES = torch.tensor([1.0, -1.0, 5.0, -2.0])  # two sensors are mounted backwards
GAINS = torch.tensor([0.1, 0.2, 3.0, 0.6])  # of the controller to learn from


class Ordinary(nn.Sequential):
    """The usual network: a place in its input always means the same."""

    def forward(self, x: Tensor, a: Tensor, state: State = None) -> Result:
        return super().forward(x), None


def push(s: Tensor, a: Tensor) -> Tensor:
    """0.02 s on: position, speed, angle, turning, (B, 4)."""
    _, v, angle, turn = s.unbind(1)
    pull = (10 * a + 0.05 * turn**2 * angle.sin()) / 1.1
    spin = (9.8 * angle.sin() - angle.cos() * pull) / (2 / 3 - angle.cos() ** 2 / 22)
    speed = pull - 0.05 * spin * angle.cos() / 1.1
    return s + 0.02 * torch.stack([v, speed, turn, spin], 1)


def play(net: nn.Module, shuffle: bool, rng: Generator, T: int, noise: float, B: int):
    """Of B episodes: readings, actions before, what the expert does, who stands."""
    s = torch.randn(B, 4, generator=rng) * torch.tensor([0.3, 0.3, 0.1, 0.3])
    wires = torch.rand(B, 4, generator=rng).argsort(1) if shuffle else torch.arange(4)
    a, state, up, log = torch.zeros(B, 1), None, torch.ones(B, dtype=torch.bool), []
    for _ in range(T):
        x = (s * SCALES).gather(1, wires.expand(B, -1))
        log.append((x, a, (s @ GAINS).tanh()[:, None], up))
        with torch.no_grad():
            act, state = net(x[None], a[None], state)
        a = (act[0] + noise * torch.randn(B, 1, generator=rng)).clamp(-1, 1)
        s = torch.where(up[:, None], push(s, a[:, 0]), s)
        up = up & (s[:, 2].abs() < 0.5) & (s[:, 0].abs() < 2.4)
    return [torch.stack(v) for v in zip(*log)]


def train(net: nn.Module, shuffle: bool, rng: Generator, rounds: int) -> None:
    """DAgger: play, ask the expert what it would have done, learn from all so far."""
    adam, seen = torch.optim.Adam(net.parameters(), 2e-2), []
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 50 * rounds)
    for _ in range(rounds):
        seen.append(play(net, shuffle, rng, T=100, noise=0.3, B=64))
        data = [torch.cat(v, 1) for v in zip(*seen)]
        for _ in range(50):
            b = torch.randint(data[0].shape[1], (32,), generator=rng)
            x, a, wanted, up = (v[:, b] for v in data)
            adam.zero_grad()
            nn.functional.mse_loss(net(x, a)[0][up], wanted[up]).backward()
            adam.step()
            rate.step()


def main() -> None:
    parser = argparse.ArgumentParser(description="an agent whose wires may be swapped")
    parser.add_argument("figure", nargs="?", help="file to save to; shown if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a short version")
    args = parser.parse_args()
    torch.set_num_threads(1)  # tensors this small only lose by more
    seeds, rounds, steps = (2, 1, 50) if args.quick else (3, 8, 200)
    fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
    ways = {"ordinary": (False, PLAIN), "ordinary, trained shuffled": (True, TUNED)}
    ways["sensory neurons"] = True, METHOD
    for i, (name, (shuffle, colour)) in enumerate(ways.items()):
        stands = []
        for seed in range(args.seed, args.seed + seeds):
            rng = torch.manual_seed(seed)
            layers = nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 1), nn.Tanh()
            net = Ordinary(*layers) if "ordinary" in name else Agent()
            train(net, shuffle, rng, rounds)
            ups = [play(net, mix, rng, steps, 0.0, 200)[-1] for mix in (False, True)]
            stands.append([up.sum(0).double().mean().item() for up in ups])
        mean, spread = np.mean(stands, 0), np.std(stands, 0, ddof=1)
        tidy, mixed = (f"{m:.0f} ± {s:.0f}" for m, s in zip(mean, spread))
        print(f"{name}: stands for {tidy} of {steps} steps, shuffled {mixed}")
        look = {"color": colour, "hatch": ["", "//"], "ec": "white", "capsize": 4}
        ax.bar([i - 0.2, i + 0.2], mean, 0.36, yerr=spread, **look)
    ax.set_xticks(range(3), [name.replace(", ", ",\n") for name in ways])
    ax.set_ylabel(f"steps of {steps} that the pole stands")
    ax.set_title("Plain: wires in order; hatched: shuffled", loc="left", weight="bold")
    ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(args.figure, dpi=150) if args.figure else plt.show()


if __name__ == "__main__":
    main()
