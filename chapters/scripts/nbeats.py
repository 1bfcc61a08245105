"""N-BEATS in one file (Oreshkin et al. 2020, arXiv 1905.10437).

The idea: block by block, a forecast is peeled off a window x. Each block answers with
two sums of fixed curves, a backcast (its share of the window) and a forecast (how that
share goes on). The backcast is taken away before the next block looks:

    x <- x - backcast_k,    forecast = last observation + sum_k forecast_k

With powers of time for the curves of one stack of blocks and waves for the other, the
forecast comes out as a trend plus a season, though nobody ever told it which is which.

What you will see: trained on 300 synthetic series (a bent trend, a yearly wave, noise:
a formula, so that the true parts are known) the forecast beats last year's values, and
its parts are near the true ones.

    python nbeats.py [figure.png] [--seed 0] [--quick]    about 15 s; torch, matplotlib

From ML Collage, chapter 38. MIT licence: use it as you like, keep this line.
"""

import argparse
import itertools
import math

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

METHOD, PLAIN, OTHER, DATA = "#D55E00", "#0072B2", "#009E73", "#8A8A8A"  # Okabe and Ito


# The method: copy from here ...


def trend(points: int, length: int) -> Tensor:
    """Powers of time, (3, points): (j / length)^i for i = 0, 1, 2."""
    t = torch.arange(points) / length
    return torch.stack([t**i for i in range(3)])


def season(points: int, H: int) -> Tensor:
    """Waves, (2 ceil(H / 2), points): cos, then sin of 2 pi r j / H."""
    r, j = torch.arange((H + 1) // 2), torch.arange(points)
    angle = 2 * math.pi * torch.outer(r, j) / H
    return torch.cat([angle.cos(), angle.sin()])


class NBeats(nn.Module):
    """Windows (B, L) -> level (B, 1), trend and season (B, H): the forecast is their sum."""

    def __init__(self, L: int, H: int, width: int = 64, blocks: int = 3) -> None:
        super().__init__()
        self.blocks = blocks  # in a stack, with the same weights
        curves = (trend(H, H), trend(L, L)), (season(H, H), season(L, H))
        self.nets = nn.ModuleList()
        for i, (ahead, back) in enumerate(curves):
            self.register_buffer(f"ahead{i}", ahead)
            self.register_buffer(f"back{i}", back)
            sizes = [L, width, width, len(ahead) + len(back)]  # the paper: four layers
            parts = [part for pair in itertools.pairwise(sizes)
                     for part in (nn.Linear(*pair), nn.ReLU())]  # fmt: skip
            self.nets.append(nn.Sequential(*parts[:-1]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        level, x = x[:, -1:], x.flip(-1)  # the newest point first
        parts = []
        for i, net in enumerate(self.nets):
            ahead, back = getattr(self, f"ahead{i}"), getattr(self, f"back{i}")
            part = torch.zeros(1)
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
    draw = torch.randn(5, n, 1, generator=rng)
    slow = 30 + 5 * draw[0] * t + 5 * draw[1] * t**2
    year = 2 * math.pi * torch.arange(POINTS) / 12
    wave = 0.6 * (
        draw[2] * year.cos() + draw[3] * year.sin() + draw[4] * (2 * year).cos()
    )
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


def explained(part: Tensor, true: Tensor) -> float:
    """How much of the true curves' shape (their means taken off) is in the part: R^2."""
    a, b = (v - v.mean(1, keepdim=True) for v in (part, true))
    return 1 - ((a - b).square().sum() / b.square().sum()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description="forecasts as a trend plus a season")
    parser.add_argument("figure", nargs="?", help="file to save to; shown if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="fewer networks and steps")
    args = parser.parse_args()
    torch.set_num_threads(1)  # tensors this small only lose by more
    networks, steps = (2, 100) if args.quick else (5, 600)

    y, slow, wave = series(300, torch.Generator().manual_seed(args.seed))
    past, future = y[:, :-H], y[:, -H:]  # no network sees the last year
    year, before = past[:, -12:], past[:, -24:-12]
    drift = (year - before).mean(1, keepdim=True)
    nets = [train(past, args.seed + i, steps) for i in range(networks)]
    with torch.no_grad():
        level, *parts = (
            torch.stack(p) for p in zip(*(net(past[:, -L:]) for net in nets))
        )
    forecast = level + sum(parts)  # (networks, series, H)
    each = torch.tensor([smape(future, f) for f in forecast])
    print(f"sMAPE (%): last year again {smape(future, year):.2f}, "
          f"with its drift {smape(future, year + drift):.2f}, "
          f"N-BEATS {each.mean():.2f} ± {each.std():.2f} ({networks} networks)")  # fmt: skip
    true = slow[:, -H:], wave[:, -H:]
    for name, part, shape in zip(("trend", "season"), parts, true):
        found = torch.tensor([explained(p, shape) for p in part])
        print(f"of the true {name}'s shape its {name} part holds "
              f"{100 * found.mean():.0f} ± {100 * found.std():.0f} %")  # fmt: skip

    fig = plt.figure(figsize=(7.2, 3.8), layout="constrained")
    axes = fig.subplot_mosaic(
        [["all", "trend"], ["all", "season"]], width_ratios=(3, 2)
    )
    ahead, when = range(1, H + 1), range(1 - L, 1)
    axes["all"].plot(when, past[0, -L:], color=DATA, lw=2, label="the window")
    axes["all"].plot(ahead, future[0], color="black", lw=1.5, label="what came")
    axes["all"].plot(
        ahead, (year + drift)[0], "--", color=PLAIN, label="last year + drift"
    )
    axes["all"].plot(ahead, forecast[:, 0].T, color=METHOD, lw=1)
    axes["all"].plot([], color=METHOD, label=f"{networks} networks")
    axes["all"].legend(frameon=False)
    for name, part, shape in zip(("trend", "season"), parts, true):
        centred = (part - part.mean(2, keepdim=True))[:, 0]
        axes[name].plot(ahead, centred.T, color=METHOD, lw=1)
        axes[name].plot(ahead, shape[0] - shape[0].mean(), color="black", ls="--")
    titles = "one series of 300", "its trend part (--: true)", "its season part"
    for ax, title in zip(axes.values(), titles):
        ax.set_title(title, loc="left", weight="bold", size=11)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#E4E1DA")
    axes["all"].set(xlabel="months ahead", ylabel="value")
    axes["season"].set_xlabel("months ahead")
    fig.savefig(args.figure, dpi=150) if args.figure else plt.show()


if __name__ == "__main__":
    main()
