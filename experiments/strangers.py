"""Lever games at random: how near do strangers come to the best that they can do together?

Ten levers in three groups: some pay 1, the others share a lower pay, and one, the only one of its kind,
has a pay of its own. Whoever cannot tell equal levers apart earns at most the highest pay of a group
over its size.
"""

import torch
from torch.func import hessian

from collage import runtime
from collage.ridge_rider import descend, ride
from collage.ridge_rider.core import eigenspaces
from collage.ridge_rider.landscapes import Levers

LEVERS, GROUPS = 10, 3  # of which one is a single lever: four eigenspaces
METHODS = {
    "first": "ridge 1",
    "chosen": "ridge chosen by self-copies",
    "descent": "gradient descent",
}


def game_of(g):
    """(payoffs, the best that strangers can expect): 2 to 7 levers pay 1, a lone one and the others less.

    >>> pays, best = game_of(runtime.generator(0))
    >>> sizes = [int((pays == p).sum()) for p in pays]
    >>> len(pays), sizes.count(1), round(best, 3) == round(max(p / n for p, n in zip(pays.tolist(), sizes)), 3)
    (10, 1, True)
    """
    top = int(torch.randint(2, 8, (), generator=g))
    others, lone = (0.2 + 0.75 * torch.rand(2, generator=g).double()).tolist()
    rest = LEVERS - 1 - top
    pays = torch.tensor(top * [1.0] + rest * [others] + [lone]).double()
    return pays, max(1 / top, others / rest, lone)


def riders(game, count, g, step, polish):
    """Where `count` runs end up on every ridge (ridges, count, 2n), each with its own bases and signs.

    Of an eigenspace, where each run has a basis of its own, one vector. Of a ridge's two ends the
    one that pays more where the ride stops.
    """
    start = game.saddle()
    n, H = len(start), hessian(game)(start)
    spaces = eigenspaces(torch.linalg.eigvalsh(H)[None, : n // 2 - 1])[0]
    at = spaces.diff(prepend=spaces[:1] - 1).nonzero()[:, 0]  # the first of each
    ridges = len(at)
    S = 1e-9 * torch.randn(count, n, n, generator=g).double()
    e = torch.linalg.eigh(H + S + S.mT)[1][:, :, at].permute(2, 0, 1)
    e = (e * (2 * torch.randint(2, (ridges, count, 1), generator=g) - 1)).flatten(0, 1)
    rides = ride(game, start, torch.cat([e, -e]), step)
    less, more = rides.thetas.view(2, -1, n)
    first, second = rides.losses[-1].round(decimals=9).view(2, -1)
    ends = torch.where((first <= second)[:, None], less, more)
    ends = ends + 1e-3 * torch.randn(ends.shape, generator=g)
    return descend(game, ends, *polish).view(ridges, count, n)


def with_strangers(game, thetas):
    """What each run earns with each other run, on average."""
    pairs = game.cross_play(thetas)
    return ((pairs.sum() - pairs.diagonal().sum()) / (len(pairs) * (len(pairs) - 1))).item()


def play(config, seed):
    """One game: the returns with strangers of the three methods, and the best possible.

    Every agent tries every ridge on `copies` copies of itself, and plays the one that did best among
    them in a run that is none of these.
    """
    g = runtime.generator(seed)
    pays, best = game_of(g)
    game, many = Levers(pays), config.copies + 1
    thetas = riders(game, config.agents * many, g, config.step, config.polish)
    mine = thetas.unflatten(1, (config.agents, many))  # (ridges, agents, copies + 1, 2n)
    own = [
        [with_strangers(game, mine[k, a, 1:]) for k in range(len(mine))]
        for a in range(config.agents)
    ]
    taken = torch.tensor(own).argmax(1)
    played = torch.stack([mine[k, a, 0] for a, k in enumerate(taken.tolist())])
    noise = torch.randn(config.agents * many, 2 * LEVERS, generator=g).double()
    return {"pays": pays.tolist(), "best": best, "first": with_strangers(game, thetas[0]),
            "chosen": with_strangers(game, played), "taken": (taken + 1).tolist(),
            "descent": with_strangers(game, descend(game, noise, 1500, 2.0))}  # fmt: skip


def rows(results, mean):
    """For each method the share of the best (%), how often it is nine tenths or more, and the return."""
    found = []
    for key, name in METHODS.items():
        shares = [100 * r[key] / r["best"] for r in results]
        found.append({"method": name, "share of the best (%)": mean(shares, standard_error=True),
                      "games at 90 % or more (%)": 100 * sum(s >= 90 for s in shares) / len(shares),
                      "return": mean([r[key] for r in results], standard_error=True),
                      "best possible": mean([r["best"] for r in results], standard_error=True)})  # fmt: skip
    return found


def effort(config):
    """How many ridges each method had to choose from, on what, and what it is judged on."""
    return {"sweeps": {METHODS["first"]: 1, METHODS["chosen"]: GROUPS + 1, METHODS["descent"]: 1},
            "split": {"chosen on": f"{config.copies} copies of each agent",
                      "judged on": f"another run of each of {config.agents} agents, with the others"}}  # fmt: skip
