"""What the programs of this folder share: their command line, and how a finished job is kept."""

import argparse
import dataclasses
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import torch

from collage import data, runtime
from collage.common import checkpoint
from collage.page.records import texts
from tools import provenance

ROOT = Path(__file__).resolve().parent.parent


def arguments(text, paper, presets, default, argv=None, more=None):
    """(config, arguments) of a program: --preset or --tiny, --runs for checkpoints, --out for the record.

    text: the program's docstring, of which the first paragraph is shown; more(parser) adds to it. What
    cannot be used is said in one line, with exit code 2, before anything is written.

    >>> arguments("A program.", "sam", {"tiny": 1, "whole": 2}, "whole", ["--tiny"])[0]
    1
    """
    parser = argparse.ArgumentParser(description=text.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--preset", choices=sorted(presets), default=default)
    parser.add_argument("--tiny", action="store_true", help="the smallest preset, in seconds")
    for name, folder, what in (
        ("--runs", "runs", "checkpoints"),
        ("--out", "results", "the record"),
    ):
        parser.add_argument(name, type=usable, default=ROOT / folder / paper, help=what)
    if more is not None:
        more(parser)
    found = parser.parse_args(argv)
    try:
        runtime.seed_shift(), runtime.threads()
    except ValueError as error:
        parser.error(str(error))
    return presets["tiny" if found.tiny else found.preset], found


def usable(text):
    """A command line's folder, there or not, into which files can be written."""
    folder = Path(text)
    if not text or folder.suffix in (".json", ".npz", ".pt", ".csv", ".txt"):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a folder")
    there = folder
    try:
        while not there.exists():
            there = there.parent
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a folder to write into "
                                         f"({there}: {error.strerror})") from None  # fmt: skip
    return folder


def positive(text):
    """A command line's positive whole number."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a positive whole number")
    return int(text)


def run(main):
    """main() from the command line: data that are not here are one line, and exit code 2."""
    try:
        main()
    except data.Missing as error:
        print(error, file=sys.stderr)
        sys.exit(2)


class Job:
    """One setting of a program and its two files: what it found, and where it stopped.

    found: the result of the finished job, or None. While it runs, `save` and `resume` keep a
    checkpoint; `finish` writes the result, and the checkpoint goes. (A training that keeps its own
    checkpoint, and is no job, goes on with `collage.common.checkpoint.resume`.)

    Raises ValueError where the file of a finished job is damaged.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     job = Job({"seeds": 3}, {"rho": 0.1}, Path(folder))
    ...     job.save({"w": torch.ones(2)}, {"done": 5})
    ...     arrays, meta = Job({"seeds": 3}, {"rho": 0.1}, Path(folder)).resume()
    ...     _ = job.finish({"rho": 0.1, "accuracy": 0.9})
    ...     again = Job({"seeds": 3}, {"rho": 0.1}, Path(folder))
    ...     arrays, meta, again.found, again.resume()
    ({'w': array([1., 1.], dtype=float32)}, {'done': 5}, {'rho': 0.1, 'accuracy': 0.9}, ({}, {}))
    """

    def __init__(self, config, setting, folder):
        config = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
        words = json.dumps({"config": config, "setting": setting}, sort_keys=True)
        self.key = hashlib.sha256(words.encode()).hexdigest()[:16]
        self.result, self.state = folder / f"{self.key}.json", folder / f"{self.key}.npz"
        self.found = None
        if self.result.exists():
            try:
                self.found = json.loads(self.result.read_text())
            except ValueError as error:
                raise ValueError(f"{self.result}: a damaged result ({error}); remove it to run "
                                 "this job again") from error  # fmt: skip

    def resume(self):
        """(arrays, meta) of the checkpoint; both empty where there is none."""
        return checkpoint.load(self.state) if self.state.exists() else ({}, {})

    def save(self, arrays, meta):
        checkpoint.save(self.state, arrays, meta)

    def finish(self, found):
        """Write what was found, and return it."""
        self.found = json.loads(json.dumps(found))  # as the next run reads it
        checkpoint.write(self.result, json.dumps(found))
        self.state.unlink(missing_ok=True)
        return self.found


def deal(jobs, rank, world, what="job", show=str):
    """This rank's share of the jobs, one by one, each announced: show(job) says which.

    >>> list(deal(["a", "b", "c"], 0, 2))
    rank 0: job 1 of 2, a
    rank 0: job 2 of 2, c
    ['a', 'c']
    """
    mine = jobs[rank::world]
    for i, job in enumerate(mine):
        print(f"rank {rank}: {what} {i + 1} of {len(mine)}, {show(job)}", flush=True)
        yield job


def mean(values, standard_error=False):
    """The cell of a mean, with the standard deviation of the values, or with its own error.

    >>> mean([1.0, 3.0, 5.0]), mean([7.0])
    ({'mean': 3.0, 'spread': 2.0, 'n': 3}, {'mean': 7.0, 'n': 1})
    >>> mean([0.0, 2.0], standard_error=True)
    {'mean': 1.0, 'spread': 1.0, 'n': 2}
    """
    values = torch.as_tensor(values).double()
    cell, n = {"mean": values.mean().item()}, len(values)
    if n > 1:
        cell["spread"] = (values.std() / (n**0.5 if standard_error else 1)).item()
    return cell | {"n": n}


def swept(tried, chosen):
    """What a record says of its sweeps: the values that each method tried, and took, and which of those
    lie at the edge of what was tried, so that better ones may lie beyond.

    tried, chosen: lists of settings, {"method": its name, "lr": 0.1, ...}. Words, switches and what had
    one value only are left out.

    >>> tried = [{"method": "MG", "K": K, "lr": lr} for K in (1, 3) for lr in (0.1, 0.2, 0.4)]
    >>> swept(tried, [{"method": "MG", "K": 1, "lr": 0.4}])["at the edge"]
    {'MG': ['lr']}
    """

    def measured(value):
        return isinstance(value, int | float) and not isinstance(value, bool)

    values, taken = {}, {}
    for setting in tried:
        mine = values.setdefault(setting["method"], {})
        for axis, value in setting.items():
            if measured(value):
                mine.setdefault(axis, set()).add(value)
    grids = {name: {axis: sorted(them) for axis, them in mine.items() if len(them) > 1}
             for name, mine in values.items()}  # fmt: skip
    for setting in chosen:
        name = setting["method"]
        taken[name] = {axis: setting[axis] for axis in grids.get(name, {})}
    return {"grids": grids, "chosen": taken, "at the edge": edges(grids, taken)}


def edges(grids, chosen):
    """{method: the settings that are the least or the greatest of those tried}.

    Nothing lies below 0, or below a count of 1.

    >>> edges({"MG": {"K": [1, 3], "lr": [0.1, 0.2, 0.4]}}, {"MG": {"K": 1, "lr": 0.1}})
    {'MG': ['lr']}
    """

    def at_edge(values, value):
        floor = value == 0 or (value == 1 and isinstance(value, int))
        return value == values[-1] or (value == values[0] and not floor)

    found = {name: [axis for axis, value in taken.items() if at_edge(grids[name][axis], value)]
             for name, taken in chosen.items()}  # fmt: skip
    return {name: axes for name, axes in found.items() if axes}


def keep(config, out, numbers, note, seeds=None, gpu=None, tried=(), chosen=()):
    """Write the record of a run to <out>/<config.name>.json, and print its table.

    numbers: what was found, the "table" and the "formats" of its columns among it; seeds: a list, or those that the config counts;
    tried, chosen: where settings were chosen, those (see `swept`).
    """
    if "sweeps" in numbers:
        numbers |= swept(tried, chosen)
    seeds = list(range(config.seeds)) if seeds is None else seeds
    made = provenance.record(numbers, config=dataclasses.asdict(config), seeds=seeds, repeats=1, note=note,
                          gpu=gpu)  # fmt: skip
    provenance.write_record(out / f"{config.name}.json", made)
    for row in texts(numbers["table"], numbers["formats"]):
        print(row)
