"""Launches of the compiled steps: `python -m tests.gpu.compiled` prints their rows of the table.

torch's compiler writes each program for a GPU, as `tests.pretend_cuda.compiler` makes it, in a process of
its own: nothing is computed there.
"""

import json
import sys
import warnings
from collections.abc import Callable

from tests.pretend_cuda import install, installed

if not installed():
    install(compiler=True)

import torch
from torch.nn.functional import cross_entropy

import collage.bmg.fast.colours
import collage.common.train
from collage import nbeats, sam
from collage.bmg.fast.colours import MetaLoop
from tests.gpu import works
from tests.gpu.launches import FEWEST, Counts, count, per_step


def sam_step() -> Counts:
    model, opt, _ = works.sam_of("cuda", torch.float32, fused=True)
    batch = works.classes("cuda", torch.float32)
    run = sam.compiled_step(opt, model, lambda net, x, y: cross_entropy(net(x), y))
    return count(lambda: run(*batch))


def forecasters() -> Counts:
    members = [nbeats.Member(8, "smape", 0), nbeats.Member(12, "mase", 1)]
    stacks = [("trend", 8), ("seasonality", 8)]
    made, series = nbeats.Ensemble(members, 4, stacks=stacks, device="cuda"), works.panel("cuda")

    def train(steps: int) -> object:
        return made.fit(series, steps, batch=8, compiled=True)

    train(4)  # compiles
    return per_step(train)


def offline(kind: str, members: int) -> Counts:
    def train(steps: int) -> object:
        return works.offline("cuda", kind, steps, members, compiled=True)

    train(4)
    return per_step(train)


def meta() -> Counts:
    return count(MetaLoop(*works.colours("cuda"), 3, compiled=True).run)


WORKS: dict[str, tuple[str, Callable[[], Counts]]] = {  # and whose fewest launches are theirs
    "SAM compiled, 4 tensors": ("SAM, 4 tensors", sam_step),
    "N-BEATS, a compiled training step of 2 members": ("N-BEATS, a training step of 2 members",
                                                       forecasters),
    "Decision Transformer, a compiled offline step": ("Decision Transformer, an offline step",
                                                      lambda: offline("dt", 1)),
    "Decision Transformer, a compiled offline step of 8 members": (
        "Decision Transformer, an offline step of 8 members", lambda: offline("dt", 8)),
    "Implicit Q, a compiled offline step of 2 members": ("Implicit Q, an offline step of 2 members",
                                                         lambda: offline("iql", 2)),
    "BMG, a compiled meta-step of two colours, L = 3": ("BMG, a meta-step of two colours, L = 3", meta),
}  # fmt: skip


def main() -> None:
    # What was never computed need not be finite.
    collage.common.train._check_finite = lambda *args: None  # type: ignore[assignment]
    collage.bmg.fast.colours.check_finite = lambda *args: None  # type: ignore[assignment]
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "compiled: ")
        for name, (plain, counted) in WORKS.items():
            fewest, why = FEWEST[plain]
            row = {"step": name, **counted(), "fewest": fewest, "of these": why}
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
