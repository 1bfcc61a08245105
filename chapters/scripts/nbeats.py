"""N-BEATS in one file (Oreshkin et al. 2020, arXiv 1905.10437).

The idea: block by block, a forecast is peeled off a window x. Each block answers with
two sums of fixed curves, a backcast (its share of the window) and a forecast (how that
share goes on). The backcast is taken away before the next block looks:

    x <- x - backcast_k,    forecast = last observation + sum_k forecast_k

With powers of time for the curves of one stack and waves for the other, the forecast
comes out as a trend plus a season.

What you will see: trained on 300 synthetic series (a bent trend, a yearly wave, noise:
a formula, so that the true parts are known) the forecast beats last year's values plus
their drift. Its season is near the true one; its trend is held less tightly.

    python nbeats.py [figure.png] [--seed 0] [--quick]    # about 13 s

MIT licence, the ML Collage contributors; explained in chapter 38 of ML Collage.
"""

import argparse

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

METHOD, PLAIN, DATA = "#D55E00", "#0072B2", "#8A8A8A"  # Okabe and Ito's palette


# The method: copy from here ...
def trend(points: int, length: int) -> Tensor:
    """Powers of time, (3, points): (j / length)^i for i = 0, 1, 2."""
    t = torch.arange(points) / length
    return torch.stack([t**i for i in range(3)])


def season(points: int, H: int) -> Tensor:
    """Waves, (2 ceil(H / 2), points): cos, then sin of 2 pi r j / H."""
    r, j = torch.arange((H + 1) // 2), torch.arange(points)
    angle = 2 * torch.pi * torch.outer(r, j) / H
    return torch.cat([angle.cos(), angle.sin()])


class NBeats(nn.Module):
    """Windows (B, L) -> level, trend and season, (B, H): the forecast is their sum."""

    def __init__(self, L: int, H: int, width: int = 64, blocks: int = 3) -> None:
        super().__init__()
        self.blocks = blocks  # in a stack, with the same weights
        curves = (trend(H, H), trend(L, L)), (season(H, H), season(L, H))
        self.nets = nn.ModuleList()
        for i, (ahead, back) in enumerate(curves):
            self.register_buffer(f"ahead{i}", ahead)
            self.register_buffer(f"back{i}", back)
            layers = nn.Linear(L, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
            out = nn.Linear(width, len(ahead) + len(back))
            self.nets.append(nn.Sequential(*layers, out))  # the paper: four ReLUs

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        level, x = x[:, -1:], x.flip(-1)  # the newest point first
        parts = []
        for i, net in enumerate(self.nets):
            ahead, back = getattr(self, f"ahead{i}"), getattr(self, f"back{i}")
            part = x.new_zeros(1)
            for _ in range(self.blocks):
                theta = net(x)  # coefficients of both sums
                part = part + theta[:, : len(ahead)] @ ahead
                x = x - theta[:, len(ahead) :] @ back
            parts.append(part)
        return level, *parts


def smape(y: Tensor, f: Tensor) -> Tensor:
    """The competitions' relative error in percent, its denominator held constant."""
    return (200 * (y - f).abs() / (y.abs() + f.detach().abs())).mean()


# ... to here. The experiment: series whose true parts are known.
L, H, POINTS = 36, 12, 120


def series(n: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """n monthly series (n, POINTS), and the trend and season they are made of."""
    t = torch.arange(POINTS) / POINTS
    draw = 0.6 * torch.randn(5, n, 1, generator=rng)
    slow = 30 + 8 * draw[0] * t + 8 * draw[1] * t**2
    year = 2 * torch.pi * torch.arange(POINTS) / 12
    wave = draw[2] * year.cos() + draw[3] * year.sin() + draw[4] * (2 * year).cos()
    return slow + wave + 0.2 * torch.randn(n, POINTS, generator=rng), slow, wave


def train(past: Tensor, seed: int, steps: int) -> NBeats:
    torch.manual_seed(seed)
    net = NBeats(L, H)
    adam = torch.optim.Adam(net.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(adam, 3e-3, steps)
    pairs = past.unfold(1, L + H, 1).flatten(0, 1)  # windows and what came after
    for _ in range(steps):
        x, y = pairs[torch.randint(len(pairs), (64,))].split((L, H), 1)
        adam.zero_grad()
        smape(y, sum(net(x))).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        rate.step()
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description="forecasts as a trend plus a season")
    parser.add_argument("figure", nargs="?", help="file to save to; shown if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a short version")
    args = parser.parse_args()
    torch.set_num_threads(1)  # tensors this small only lose by more
    networks, steps = (2, 100) if args.quick else (5, 600)

    y, slow, wave = series(300, torch.Generator().manual_seed(args.seed))
    past, future = y[:, :-H], y[:, -H:]  # no network sees the last year
    year = past[:, -12:]
    drift = (year - past[:, -24:-12]).mean(1, keepdim=True)
    answers = [train(past, args.seed + i, steps)(past[:, -L:]) for i in range(networks)]
    level, *parts = (torch.stack(p).detach() for p in zip(*answers))
    forecast = level + sum(parts)  # (networks, series, H)
    each = torch.tensor([smape(future, f) for f in forecast])
    rivals = smape(future, year), smape(future, year + drift)
    print("sMAPE of last year again: {:.2f} %, plus drift: {:.2f} %".format(*rivals))
    print(f"sMAPE of {networks} N-BEATS: {each.mean():.2f} ± {each.std():.2f} %")
    fig, axes = plt.subplots(1, 3, figsize=(8, 3.4), layout="constrained")
    ahead = range(1, H + 1)
    axes[0].plot(range(-23, 1), past[0, -24:], color=DATA, label="the past")
    axes[0].plot(ahead, future[0], color="black", label="what came")
    axes[0].plot(ahead, (year + drift)[0], "--", color=PLAIN, label="last year + drift")
    axes[0].plot(ahead, forecast.median(0).values[0], color=METHOD, label="N-BEATS")
    for ax, name, part, true in zip(axes[1:], ("trend", "season"), parts, (slow, wave)):
        a, b = (v - v.mean(-1, keepdim=True) for v in (part, true[:, -H:]))
        share = 100 * (1 - (a - b).square().sum((1, 2)) / b.square().sum())
        print(f"{name} part: {share.mean():.0f} ± {share.std():.0f} % of the true one")
        ax.plot(ahead, a[:, 0].T, color=METHOD, lw=1)
        ax.plot(ahead, b[0], "k--", label="true" if name == "trend" else None)
        ax.set(title=f"its {name} part", ylabel="value, about its mean")
    axes[0].set(title="one series of 300", ylabel="value")
    fig.legend(loc="outside lower center", ncol=5, frameon=False)
    for ax in axes:
        ax.set_xlabel("months ahead")
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(args.figure, dpi=150) if args.figure else plt.show()


if __name__ == "__main__":
    main()
