"""Decision Transformer in one file (Chen et al. 2021, arXiv 2106.01345).

The idea: reinforcement learning as prediction. Write recorded episodes as tokens
R_1 s_1 a_1 R_2 s_2 a_2 ..., where R_t is the return-to-go, all that was still earned
from step t on; train a causal transformer to predict each action from what stands
before it; then, to act, write the return you want in front:

    loss = -E log pi(a_t | ..., R_t, s_t),    R_t = r_t + r_(t+1) + ... + r_T

What you will see: trained on random walks on a small graph, which are drawn here, it
often arrives after as many steps as you ask for, where at least three walks did so;
shown no returns, the same network (cloning) cannot listen.

    python decision_transformer.py [figure.png] [--seed 0] [--quick]    # about 25 s

MIT licence, the ML Collage contributors; explained in chapter 34 of ML Collage.
"""

import argparse
from collections import Counter

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

METHOD, PLAIN = "#D55E00", "#0072B2"  # Okabe and Ito's palette


# The method: copy from here ...
def returns_to_go(r: Tensor) -> Tensor:
    """R_t = r_t + r_(t+1) + ..., (B, T)."""
    return r.flip(1).cumsum(1).flip(1)


class DecisionTransformer(nn.Module):
    """Logits of actions (B, K, A) from returns, states, actions and times (B, K) each.

    The prediction of a_t is read at the token of s_t, which does not see a_t.
    """

    def __init__(self, states: int, actions: int, longest: int, d: int = 32) -> None:
        super().__init__()
        self.R = nn.Linear(1, d)
        self.s = nn.Embedding(states, d)
        self.a = nn.Embedding(actions, d)
        self.t = nn.Embedding(longest, d)  # one time serves the three tokens of a step
        self.norm = nn.LayerNorm(d)
        kind = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(d, 2, 4 * d, **kind)
        self.blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(d), False)
        self.head = nn.Linear(d, actions)

    def forward(self, R: Tensor, s: Tensor, a: Tensor, t: Tensor) -> Tensor:
        step = [self.R(R[..., None] / 10), self.s(s), self.a(a)]  # returns of about 1
        x = torch.stack(step, 2) + self.t(t)[:, :, None]
        x = self.norm(x.flatten(1, 2))  # R_1 s_1 a_1 R_2 s_2 ...
        later = x.new_ones(x.shape[1], x.shape[1]).triu(1).bool()
        return self.head(self.blocks(x, later)[:, 1::3])


# ... to here. The experiment: random walks on a graph; each step costs 1; 0: goal.
WAYS = {1: [0, 3, 5], 2: [0, 4, 8], 3: [1, 5, 4], 4: [2, 6, 3], 5: [3, 7, 6]}
WAYS |= {6: [4, 8, 9], 7: [5, 9, 8], 8: [6, 10, 7], 9: [7, 10], 10: [8, 9]}
NODES, LONGEST, K = 11, 10, 2


def wander(n: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """States, actions (the next node) and rewards (n, LONGEST) of random walks."""
    N = range(NODES)  # who has arrived stays
    edges = torch.tensor([[1.0 * (b in WAYS.get(a, [0])) for b in N] for a in N])
    path = [torch.randint(1, NODES, (n,), generator=rng)]
    for _ in range(LONGEST):
        path.append(edges[path[-1]].multinomial(1, generator=rng)[:, 0])
    s, a = torch.stack(path[:-1], 1), torch.stack(path[1:], 1)
    r = -(s != 0).float()
    r[:, -1] -= 10 * (a != 0).all(1)  # not to arrive costs 10 more
    return s, a, r


def train(listens: bool, seed: int, steps: int) -> DecisionTransformer:
    rng = torch.manual_seed(seed)
    s, a, r = wander(1000, rng)
    real = r < 0  # not yet at the goal
    times = torch.arange(LONGEST).expand_as(s)
    y = a.masked_fill(~real, -100)  # nothing to predict there
    fields = (returns_to_go(r) * listens, 0.0), (s, 0), (a, 0), (times, 0), (y, -100)
    padded = [F.pad(x, (0, K - 1), value=fill) for x, fill in fields]
    pieces = [x.unfold(1, K, 1)[real] for x in padded]
    model = DecisionTransformer(NODES, NODES, LONGEST)
    adam = torch.optim.AdamW(model.parameters(), fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(adam, 5e-3, steps)
    for _ in range(steps):
        b = torch.randint(len(pieces[0]), (64,), generator=rng)
        *tokens, y = (x[b] for x in pieces)
        adam.zero_grad()
        F.cross_entropy(model(*tokens).flatten(0, 1), y.flatten()).backward()
        adam.step()
        rate.step()
    return model


@torch.no_grad()
def walk(model: DecisionTransformer, node: int, wish: int, listens: bool) -> int:
    """Steps to the goal when asked for `wish` of them; 0 if it does not arrive."""
    R, s, a = [-float(wish) * listens], [node], [0]
    while s[-1] != 0 and len(s) <= LONGEST:
        tokens = R, s, a, list(range(len(s)))  # the last a is a blank: nobody sees it
        last = [torch.tensor([x[-K:]]) for x in tokens]
        a[-1:] = [int(model(*last)[0, -1].argmax()), 0]
        s.append(a[-2] if a[-2] in WAYS[s[-1]] else s[-1])  # no such edge: it stays
        R.append(R[-1] + listens)  # R_(t+1) = R_t - r_t
    return len(s) - 1 if s[-1] == 0 else 0


def main() -> None:
    parser = argparse.ArgumentParser(description="walks of the length asked for")
    parser.add_argument("figure", nargs="?", help="file to save to; shown if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a short version")
    args = parser.parse_args()
    torch.set_num_threads(1)  # tensors this small only lose by more
    seeds, steps = (2, 20) if args.quick else (3, 800)

    s, _, r = wander(1000, torch.Generator().manual_seed(args.seed))
    seen = Counter(zip(s[:, 0].tolist(), (-r.sum(1)).int().tolist()))  # (start, steps)
    asks = {w: n for w in range(1, 9) if (n := [n for n in WAYS if seen[n, w] > 2])}
    fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
    clone, ours = ("cloning", PLAIN, "s--"), ("Decision Transformer", METHOD, "o-")
    for listens, (name, colour, line) in enumerate((clone, ours)):
        share = torch.zeros(seeds, len(asks))
        for i in range(seeds):
            model = train(bool(listens), args.seed + i, steps)
            for j, (w, nodes) in enumerate(asks.items()):
                on_time = [walk(model, n, w, bool(listens)) == w for n in nodes]
                share[i, j] = 100 * sum(on_time) / len(nodes)
        mean, spread, of_all = share.mean(0), share.std(0), share.mean(1)
        print(f"{name}: {of_all.mean():.0f} ± {of_all.std():.0f} % arrive when asked")
        ax.plot(list(asks), mean, line, color=colour, lw=2, label=name)
        low, high = mean - spread, mean + spread
        ax.fill_between(list(asks), low, high, color=colour, alpha=0.2, lw=0)
    ax.set(xlabel="steps asked for", ylabel="arrive just then (%)", ylim=(-3, 103))
    ax.set_title("Ask for a length", loc="left", weight="bold")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    fig.savefig(args.figure, dpi=150) if args.figure else plt.show()


if __name__ == "__main__":
    main()
