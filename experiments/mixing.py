"""Is an ensemble of different members better than one of a single kind? Nine of a kind against one of each.

A kind is a loss and a lookback; members of a kind differ in their seed alone. Both ensembles are
medians of as many members, drawn often from more seeds than they need.
"""

import torch

from collage import runtime
from collage.nbeats import median
from experiments import program


def kinds_of(members):
    """{(loss, lookback): indices of its members}.

    >>> from collage.nbeats import grid
    >>> {k: len(i) for k, i in kinds_of(grid(6, (1, 2), ("mape", "mase"), 5)).items()}
    {('mape', 6): 5, ('mape', 12): 5, ('mase', 6): 5, ('mase', 12): 5}
    """
    found = {}
    for i, m in enumerate(members):
        found.setdefault((m.loss, m.lookback), []).append(i)
    return found


def drawn(kinds, draws):
    """{kind: draws of as many members as there are kinds}, and draws of one of each under None."""
    g, size = runtime.generator(0), len(kinds)
    picks = {kind: [[at[i] for i in torch.randperm(len(at), generator=g)[:size]] for _ in range(draws)]
             for kind, at in kinds.items()}  # fmt: skip
    picks[None] = [[at[int(torch.randint(len(at), (), generator=g))] for at in kinds.values()]
                   for _ in range(draws)]  # fmt: skip
    return picks


def compare(members, cut, origins, draws):
    """(rows of methods, rows of kinds): errors of ensembles, at each origin and on average.

    cut: (forecasts (E, N, H), score), of earlier years, on which a kind is chosen; origins:
    {name: the same}. score maps forecasts (N, H) to a number.
    """
    kinds = kinds_of(members)
    picks = drawn(kinds, draws)

    def errors(forecasts, score, groups):
        return torch.tensor([score(median(forecasts[g])) for g in groups])

    before = {kind: errors(*cut, picks[kind]) for kind in kinds}
    found, alone = {}, {}  # (draws, origins) of ensembles, (E, origins) of single members
    for kind, groups in picks.items():
        found[kind] = torch.stack([errors(*one, groups) for one in origins.values()], 1)
    for kind, at in kinds.items():
        alone[kind] = torch.stack([errors(*one, [[i] for i in at]) for one in origins.values()], 1)

    def row(values, **words):
        columns = zip((*origins, "average"), (*values.unbind(1), values.mean(1)), strict=True)
        return {**words, **{name: program.mean(v) for name, v in columns}}

    chosen = min(kinds, key=lambda kind: before[kind].mean())
    best = min(kinds, key=lambda kind: found[kind].mean())
    every = torch.stack([found[kind].mean(0) for kind in kinds])
    table = [row(torch.cat(list(alone.values())), method="one member"),
             row(every, method="one kind, all of them"),
             row(found[chosen], method="one kind, chosen on the cut"),
             row(found[best], method="one kind, best in hindsight"),
             row(found[None], method="one of each kind")]  # fmt: skip
    cells = [{"loss": kind[0], "lookback": kind[1], "chosen": kind == chosen,
              "on the cut": program.mean(before[kind]), **row(found[kind]),
              "one member": program.mean(alone[kind].mean(1))} for kind in kinds]  # fmt: skip
    return table, cells
