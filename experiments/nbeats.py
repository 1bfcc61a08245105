"""N-BEATS on the Tourism, M3 and M4 competitions: ensembles of both kinds, and their union.

    python -m experiments.nbeats --preset small_m3   # narrow networks, CPU: half an hour
    python -m experiments.nbeats --preset small_m4   # likewise
    python -m experiments.nbeats --preset narrow_tourism  # likewise
    python -m experiments.nbeats --preset tourism_six     # all of Tourism at that size, 6 + 6 members: two hours
    python -m experiments.nbeats --preset two_layers # its monthly part, generic, blocks of two layers: a quarter of an hour
    python -m experiments.nbeats --preset m3_yearly  # M3 Yearly at that size, 18 + 18 members: half an hour
    python -m experiments.nbeats --preset births     # the chapter's countries, all 192, and classics
    python -m experiments.nbeats --preset births_seeds    # one kind of member against one of each
    python -m experiments.nbeats --preset tourism    # the paper's 60 + 60 members, a GPU: a minute
    python -m experiments.nbeats --preset exact      # its yearly part with products in float32
    python -m experiments.nbeats --preset m3_six     # 6 + 6 members, a GPU: minutes; m4_six likewise
    torchrun --nproc-per-node 8 -m experiments.nbeats --preset m3    # 180 + 180; m4 likewise
    python -m experiments.nbeats --tiny              # seconds, for tests

A job fits one group of an ensemble's members, as one stack of weights. Jobs are dealt to the ranks,
and the groups do not depend on their number: any number of ranks gives the same record. Finished
jobs are kept, and running ones saved; the same command started again goes on there.

Where a preset names several numbers of steps, each is tried on the last horizon before the test
part, and the ensemble is then fitted anew with the best, as in the paper.
"""

import dataclasses
import hashlib
import itertools
import json
import time
from pathlib import Path

import torch

from collage import data, runtime
from collage.common import checkpoint
from collage.nbeats import Ensemble, grid, median
from collage.nbeats.classical import arima, ets, naive, theta
from collage.nbeats.core import LOSSES
from collage.nbeats.measures import mape, mase, smape
from experiments import mixing, program

KINDS = ("generic", "interpretable")
CLASSICS = {"Theta": theta, "ETS": ets, "ARIMA": arima}  # fitted to each series, chosen by AICc


@dataclasses.dataclass(frozen=True)
class Config:
    name: str
    sets: tuple  # (set, frequency)
    stacks: tuple = ((), ())  # of the generic and of the interpretable kind; empty: the paper's
    seeds: int = 10
    lookbacks: tuple = (2, 3, 4, 5, 6, 7)
    steps: tuple = ()  # to choose among; empty: the paper's
    batch: int = 1024
    group: int = 60  # members in one stack
    every: int = 1000  # steps from one checkpoint to the next
    kinds: tuple = KINDS  # and names of CLASSICS
    layers: int = 4
    lr: float = 1e-3
    losses: tuple = tuple(LOSSES)  # on Tourism always MAPE
    product: str = "float32"  # in which layers multiply while training
    draws: int = 0  # of ensembles of one kind of member, and of one of each


ALL = tuple((name, f) for name, files in data.SETS.items() if name in ("tourism", "m3", "m4")
            for f in (Path(file[0]).stem for file in files[1]))  # fmt: skip
NARROW = ((("generic", 128),) * 10, (("trend", 64), ("seasonality", 256)))
CHAPTER = ((("generic", 64),) * 6, (("trend", 64), ("seasonality", 64)))
TINY = ((("generic", 8),) * 2, (("trend", 4), ("seasonality", 8)))


def _title(name):
    return name.upper() if name in ("m3", "m4") else name.title()


def _of(name):
    return tuple(s for s in ALL if s[0] == name)


PRESETS = {
    **{f"small_{name}": Config(f"small_{name}", _of(name), NARROW, 1, steps=(50, 200, 800), batch=128,
                               group=6, every=100) for name in ("m3", "m4")},
    "narrow_tourism": Config("narrow_tourism", _of("tourism"), NARROW, 3, steps=(50, 200, 800), batch=128,
                             group=6, every=100),
    "tourism_six": Config("tourism_six", _of("tourism"), seeds=1, group=1, every=10, product="bfloat16"),
    "two_layers": Config("tourism_two_layers", (("tourism", "Monthly"),), seeds=1, group=1, every=10,
                         kinds=("generic",), layers=2, product="bfloat16"),
    "m3_yearly": Config("m3_yearly", (("m3", "Yearly"),), seeds=1, group=1, every=10, product="bfloat16"),
    "tourism": Config("tourism_gpu", _of("tourism"), product="bfloat16"),
    "exact": Config("tourism_yearly_gpu", (("tourism", "Yearly"),)),
    **{f"{name}_six": Config(f"{name}_six_gpu", _of(name), seeds=1, losses=("smape",), product="bfloat16",
                             every=20_000) for name in ("m3", "m4")},
    "m3": Config("m3_gpu", _of("m3"), group=90, product="bfloat16"),
    "m4": Config("m4_gpu", _of("m4"), group=90, product="bfloat16"),
    "births": Config("births", (("births", "2000"), ("births", "2006")), CHAPTER, 2, (1, 2, 3),
                     (400, 1200), 128, 18, 200, (*KINDS, *CLASSICS), 2, 1e-2),
    "births_seeds": Config("births_seeds", (("births", "2000"), ("births", "2006")), CHAPTER, 20, (1, 2, 3),
                           (220,), 128, 45, 220, ("interpretable",), 2, 1e-2, draws=100),
    "tiny": Config("tiny", (("tiny births", "2006"),), TINY, 1, (2, 3), (3, 6), 16, 2, 2,
                   (*KINDS, "Theta")),
}  # fmt: skip

# Table 18 of the paper: how many horizons the last cuts reach back, and how many steps, for the
# generic and the interpretable kind; the published scores of Tables 11, 14 and 15 (generic,
# interpretable, both): sMAPE, on Tourism MAPE. M4's weekly and hourly series are published as part
# of a larger group only.
PAPER = {
    ("tourism", "Yearly"): (5, 20, 30, 30, (21.67, 21.55, 21.44)),
    ("tourism", "Quarterly"): (10, 10, 100, 500, (14.71, 15.22, 14.78)),
    ("tourism", "Monthly"): (20, 20, 100, 300, (19.17, 19.82, 19.29)),
    ("m3", "Yearly"): (20, 20, 20, 50, (16.20, 15.84, 15.93)),
    ("m3", "Quarterly"): (20, 5, 250, 6000, (8.92, 9.03, 8.84)),
    ("m3", "Monthly"): (20, 5, 10_000, 6000, (13.19, 13.15, 13.11)),
    ("m3", "Other"): (10, 20, 250, 250, (4.19, 4.30, 4.24)),
    ("m4", "Weekly"): (10, 10, 5000, 5000, None),
    ("m4", "Hourly"): (10, 10, 5000, 5000, None),
    ("births", "2000"): (2, 2, None, None, None),
    ("births", "2006"): (2, 2, None, None, None),
    ("tiny births", "2006"): (2, 2, None, None, None),
}
MEASURE = {"tourism": "MAPE", "m3": "sMAPE", "m4": "sMAPE"}  # the others: MASE
COUNTS = {"tourism": 60, "m3": 180, "m4": 180}  # the paper's members of each kind
AVERAGES = {"m3": (12.47, 12.43, 12.37), "tourism": (18.47, 18.97, 18.52)}  # Table 1
BASELINE = {"tourism": "seasonal naive", "m3": "Naive2", "m4": "Naive2"}  # the others: naive
FORMATS = {**dict.fromkeys(("one member", "ensemble", "extrapolated", "naive", *BASELINE.values(), "paper"),
                           "{:.2f}"), "OWA": "{:.3f}", "fit (s)": "{:.0f}"}  # fmt: skip


@dataclasses.dataclass
class Task:
    """A panel, what came after it, and how the competition measured it."""

    name: str
    frequency: str
    train: list
    test: torch.Tensor
    period: int
    baseline: torch.Tensor

    def score(self, f, published=False):
        """In the competition's measure; for M3 with absolute values unless `published`.

        M3 had y + f below. Where a forecast is negative that can be anything, a negative error
        included, and nothing to choose by.
        """
        if "births" in self.name:
            return float(mase(self.test, f, self.train))
        if self.name == "tourism":
            return float(mape(self.test, f))
        return float(smape(self.test, f, signed=published and self.name == "m3"))

    def owa(self, f):
        """M4's, which weighs sMAPE and MASE relative to Naive2's; its weekly season is 1."""
        pair = [(float(smape(self.test, g)), float(mase(self.test, g, self.train, self.period)))
                for g in (f, self.baseline)]  # fmt: skip
        (smape_ours, mase_ours), (smape_naive2, mase_naive2) = pair
        return (smape_ours / smape_naive2 + mase_ours / mase_naive2) / 2


def task(name, frequency, validation=False):
    """A task; validation: the last horizon before the test part, in place of it."""
    if "births" in name:
        series = [s.double() for s in data.panel("fertility").values()][
            :: 16 if "tiny" in name else 1
        ]
        n, period = int(frequency) - 1960, 1
        train, test = [s[:n] for s in series], torch.stack([s[n : n + 6] for s in series])
        baseline = naive(train, 6)
    else:
        files = data.load(name)[frequency]
        cuts = itertools.pairwise(files["offsets"].tolist())
        train = [torch.as_tensor(files["train"][a:b]).double() for a, b in cuts]
        test = torch.tensor(files["test"]).double()
        period = 1 if frequency == "Weekly" else int(files["frequency"])
        if name == "tourism":
            baseline = naive(train, test.shape[1], period)
        else:
            baseline = torch.tensor(files["naive2"]).double()
    if validation:
        horizon = test.shape[1]
        # A series needs two points besides; the shortest of Tourism have three left.
        kept = [s for s in train if len(s) >= horizon + 2]
        train, test = [s[:-horizon] for s in kept], torch.stack([s[-horizon:] for s in kept])
        if name == "tourism":  # the measure is not defined where a target is zero
            fine = (test != 0).all(1)
            train, test = [s for s, ok in zip(train, fine.tolist(), strict=True) if ok], test[fine]
        baseline = naive(train, horizon)
    return Task(name, frequency, train, test, period, baseline)


def members(config, name, horizon):
    losses = ("mape",) if name == "tourism" else config.losses
    return grid(horizon, config.lookbacks, losses, config.seeds)


def groups(config, name, horizon):
    """Members in the order in which an ensemble grows, cut into groups."""
    found = sorted(members(config, name, horizon), key=lambda m: m.seed)
    return [found[i : i + config.group] for i in range(0, len(found), config.group)]


def run_job(config, job, folder, device):
    """Fit one group; its forecasts (E, N, H) and the seconds it took, from a file if it is there."""
    name, frequency, kind, steps, validation, at = job
    key = json.dumps({"config": dataclasses.asdict(config), "job": job}, sort_keys=True)
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if path.exists():
        arrays, meta = checkpoint.load(path)
        return torch.from_numpy(arrays["forecasts"]), meta["seconds"]
    here, begin = task(name, frequency, validation), time.perf_counter()
    resumed = path.with_suffix(".part.npz").exists()
    horizon = here.test.shape[1]
    if kind in CLASSICS:
        found = [CLASSICS[kind](s, horizon, here.period) for s in here.train]
        forecasts = torch.stack(found)[None]
    else:
        which = KINDS.index(kind)
        ensemble = Ensemble(groups(config, name, horizon)[at], horizon, kind, layers=config.layers,
                            stacks=config.stacks[which] or None, device=device)  # fmt: skip
        ensemble.fit(here.train, steps, batch=config.batch, lr=config.lr, period=here.period,
                     recent=PAPER[name, frequency][which] * horizon, every=config.every,
                     checkpoint=path.with_suffix(".part.npz") if steps > config.every else None,
                     product=getattr(torch, config.product))  # fmt: skip
        forecasts = ensemble.forecast(here.train).cpu()
    # What a resumed job took is not known.
    seconds = None if resumed else time.perf_counter() - begin
    checkpoint.save(path, {"forecasts": forecasts}, {"seconds": seconds})
    path.with_suffix(".part.npz").unlink(missing_ok=True)
    return forecasts, seconds


def jobs_of(config, kind, name, frequency, steps, validation):
    if kind in CLASSICS:
        return [(name, frequency, kind, None, validation, 0)]
    horizon = 6 if "births" in name else int(data.load(name)[frequency]["horizon"])
    return [(name, frequency, kind, steps, validation, i)
            for i in range(len(groups(config, name, horizon)))]  # fmt: skip


def ensemble_of(config, folder, device, jobs):
    """Forecasts of a whole ensemble, and the seconds of all its jobs."""
    found = [run_job(config, job, folder, device) for job in jobs]
    seconds = [s for _, s in found]
    return torch.cat([f for f, _ in found]).double(), None if None in seconds else sum(seconds)


def choose(config, folder, device, kind, name, frequency):
    """The number of steps with the best ensemble on validation."""
    if kind in CLASSICS:
        return None
    if len(config.steps) < 2:
        return config.steps[0] if config.steps else PAPER[name, frequency][2 + KINDS.index(kind)]
    here = task(name, frequency, True)

    def score(steps):
        jobs = jobs_of(config, kind, name, frequency, steps, True)
        return here.score(median(ensemble_of(config, folder, device, jobs)[0]))

    return min(config.steps, key=score)


def run(config, folder, device, rank=0, world=1):
    """All jobs of this rank; validation first. Ranks wait for each other in between."""

    def work(jobs, what):
        for i, job in enumerate(mine := jobs[rank::world]):
            print(f"rank {rank}: {what} {i + 1} of {len(mine)}, {job}", flush=True)
            run_job(config, job, folder, device)
        if world > 1:
            torch.distributed.barrier()

    cases = [(kind, *one) for one in config.sets for kind in config.kinds]
    if len(config.steps) > 1:
        work([job for case in cases if case[0] in KINDS for steps in config.steps
              for job in jobs_of(config, *case, steps, True)], "validation")  # fmt: skip
    if config.draws:
        work(jobs_of(config, *cases[0], config.steps[0], True), "cut")
    chosen = {case: choose(config, folder, device, *case) for case in cases}
    work([job for case in cases for job in jobs_of(config, *case, chosen[case], False)], "final")
    return chosen


def sizes(here, forecasts, draws=20):
    """Scores of ensembles of 1, 2, 3, 6, ... members, mean over random choices of members."""
    g, count = runtime.generator(0), len(forecasts)
    found = {}
    for size in [s for s in (1, 2, 3, 6, 9, 12, 18, 30, 60, 120, 180) if s <= count]:
        picks = [torch.randperm(count, generator=g)[:size] for _ in range(draws)]
        found[size] = sum(here.score(median(forecasts[p])) for p in picks) / draws
    return found


def extrapolated(sizes, count):
    """The score of `count` members, where score = a + b / size fits those of `sizes` from two members on.

    >>> round(extrapolated({1: 9.0, 2: 4.0, 3: 3.0, 6: 2.0}, 60), 3)
    1.1
    """
    sizes = {size: score for size, score in sizes.items() if size > 1}
    rows = torch.tensor([[1.0, 1 / size] for size in sizes], dtype=torch.float64)
    scores = torch.tensor(list(sizes.values()), dtype=torch.float64)
    level, slope = torch.linalg.lstsq(rows, scores[:, None]).solution[:, 0].tolist()
    return level + slope / count


def table(config, folder, device, chosen):
    """A row for each set and kind, and for both kinds together; the curves over ensemble size."""
    rows, curves = [], []
    for name, frequency in config.sets:
        here, parts, published = task(name, frequency), {}, PAPER[name, frequency][4]
        for kind in [*config.kinds, *(["both"] if {*KINDS} <= {*config.kinds} else [])]:
            if kind == "both":
                forecasts, seconds = torch.cat([parts[k] for k in KINDS]), 0
            else:
                jobs = jobs_of(config, kind, name, frequency, chosen[kind, name, frequency], False)
                forecasts, seconds = ensemble_of(config, folder, device, jobs)
                parts[kind] = forecasts
            one = torch.tensor([here.score(f) for f in forecasts])
            best, count = median(forecasts), len(forecasts)
            paper = dict(zip((*KINDS, "both"), published or [], strict=False)).get(kind)
            rows.append({"series": frequency, "kind": kind,
                         "members": count if kind not in CLASSICS else "-",
                         "steps": chosen.get((kind, name, frequency)) or "-" if config.steps else "-",
                         "one member": program.mean(one) if count > 1 else "-",
                         "ensemble": here.score(best, True),
                         "baseline": here.score(here.baseline, True),
                         "extrapolated": "-",
                         "OWA": here.owa(best) if name == "m4" else "-",
                         "paper's ensemble": paper or "-",
                         "fit (s)": seconds if seconds and device.type == "cuda" else "-"})  # fmt: skip
            if count == 1:
                continue
            scores = {k: round(v, 4) for k, v in sizes(here, forecasts).items()}
            curves.append({"set": f"{name} {frequency}", "kind": kind, "sizes": scores})
            wanted = COUNTS.get(name, 0) * (2 if kind == "both" else 1)
            if wanted > count > 2:
                rows[-1]["extrapolated"] = extrapolated(scores, wanted)
    rows += averages(config, rows)
    used = [k for k in rows[0] if any(row[k] != "-" for row in rows)]
    heads = {"baseline": BASELINE.get(config.sets[0][0], "naive"), "paper's ensemble": "paper"}
    return [{heads.get(k, k): row[k] for k in used} for row in rows], curves


def averages(config, rows):
    """Over the frequencies of a competition, weighted by forecast points, as M3 and Tourism did."""
    found = []
    for name, published in AVERAGES.items():
        mine = [one for one in config.sets if one[0] == name]
        if len(mine) < len(_of(name)):
            continue
        points = torch.tensor([float(task(*one).test.numel()) for one in mine])
        for kind, paper in zip((*KINDS, "both"), published, strict=True):
            here = [row for row in rows if row["kind"] == kind]
            scores = {key: ((points * torch.tensor([row[key] for row in here])).sum() / points.sum()).item()
                      for key in ("ensemble", "extrapolated", "baseline")
                      if "-" not in [row[key] for row in here]}  # fmt: skip
            found.append({**dict.fromkeys(rows[0], "-"), "series": "average", "kind": kind,
                          **scores, "paper's ensemble": paper})  # fmt: skip
    return found


def keep_mixed(config, out, folder, device):
    """The record of nine members of one kind against one of each; the last cut before the first
    origin chooses a kind."""
    kind, steps = config.kinds[0], config.steps[0]

    def at(name, frequency, validation=False):
        jobs = jobs_of(config, kind, name, frequency, steps, validation)
        return ensemble_of(config, folder, device, jobs)[0], task(name, frequency, validation).score

    members = [m for group in groups(config, config.sets[0][0], 6) for m in group]
    origins = {frequency: at(name, frequency) for name, frequency in config.sets}
    rows, cells = mixing.compare(members, at(*config.sets[0], True), origins, config.draws)
    count, begin = len(cells), int(config.sets[0][1])
    note = (f"MASE of the median of {count} {kind} members on all {len(task(*config.sets[0]).train)} series of births per "
            f"woman, six years from each origin; {steps} steps, batches of {config.batch} windows, width 64. A kind is a loss and a "
            f"lookback, {config.seeds} seeds each. Mean ± s.d. over {config.draws} draws of seeds; 'one member' over members, 'one kind, all of "
            f"them' over kinds. Draws of {count} of {config.seeds} overlap, so that the s.d. of one kind is somewhat too small. The "
            f"cut: years before {begin - 6}, judged on {begin - 6} to {begin - 1}.")  # fmt: skip
    shown = dict.fromkeys((*origins, "average", "on the cut", "one member"), "{:.3f}")
    numbers = {"table": rows, "formats": shown, "kinds": cells,
               "sweeps": dict.fromkeys((row["method"] for row in rows), count),
               "split": {"chosen on": f"{begin - 6} to {begin - 1}",
                         "judged on": f"six years from {' and from '.join(origins)}"}}  # fmt: skip
    lookbacks = [
        {"method": "one kind, chosen on the cut", "lookback": cell["lookback"]} for cell in cells
    ]
    program.keep(config, out, numbers, note, tried=lookbacks,
                 chosen=[each for each, cell in zip(lookbacks, cells, strict=True) if cell["chosen"]])  # fmt: skip


def main(argv=None):
    config, args = program.arguments(__doc__, "nbeats", PRESETS, "small_m3", argv)
    folder = args.runs / config.name
    with runtime.ranks() as (rank, world, device):
        chosen = run(config, folder, device, rank, world)
    if rank:
        return
    if config.draws:
        keep_mixed(config, args.out, folder, device)
        return
    rows, curves = table(config, folder, device, chosen)
    if config.name == "tiny":  # a record that two machines can compare
        rows = [{k: v for k, v in row.items() if k != "fit (s)"} for row in rows]
    width = ["the paper's size" if not stacks else
             f"{len(stacks)} stacks of width {' and '.join(str(w) for w in sorted({w for _, w in stacks}))}"
             for stacks in config.stacks]  # fmt: skip
    widths = ", ".join(
        f"{kind}: {w}" for kind, w in zip(KINDS, width, strict=True) if kind in config.kinds
    )
    if config.layers != Config.layers:
        widths += f", but {config.layers} layers in a block instead of {Config.layers}"
    seconds = [row["fit (s)"] for row in rows if row.get("fit (s)", "-") != "-"]
    steps = "as in the paper's Table 18" if not config.steps else \
        f"chosen among {', '.join(map(str, config.steps))} on validation"  # fmt: skip
    note = (f"{_title(config.sets[0][0])}, {MEASURE.get(config.sets[0][0], 'MASE')}; {config.seeds} seed{'s' * (config.seeds > 1)} of each "
            f"member, batches of {config.batch:,} windows; {widths}; steps {steps}. 'One member' is mean ± s.d. over members; an ensemble is "
            "the median of its members."
            + (" 'Extrapolated' is to the paper's number of members, along a + b / members, fitted to the means of "
               "random choices of two members and more." if any("extrapolated" in row for row in rows) else "")
            + (f" All members have the {config.losses[0]} loss; the paper's 180 have three."
               if len(config.losses) == 1 else "")
            + (f" Layers multiply in {config.product} while training, on windows rounded to it; weights, their updates and forecasts are float32."
               if config.product != "float32" else "")
            + (f" All fits together took {sum(seconds):.0f} s, from first weights to forecasts."
               if seconds else "")
            + (" M3's published measure has y + f in its denominator, which is used for ensembles and "
               "the baseline; single members and the choice of steps are judged with absolute "
               "values, since a negative forecast makes the published one meaningless."
               if config.sets[0][0] == "m3" else ""))  # fmt: skip
    program.keep(config, args.out, {"table": rows, "formats": FORMATS, "curves": curves}, note)


if __name__ == "__main__":
    program.run(main)
