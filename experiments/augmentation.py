"""Does an augmentation help because it grows the convex hull? Digits, trained briefly and at length.

    python -m experiments.augmentation           # a few minutes on two CPU cores
    python -m experiments.augmentation --tiny    # seconds, for tests

A job is one split of the digits, one augmentation and one number of steps; six networks are trained
in it. Nothing is chosen: every setting that was run is in the table.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F

from collage import data, runtime
from collage.common.networks import Stack, forward, mlp
from collage.convex_hull import nearest
from experiments import program


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "augmentation_digits"
    kinds: tuple = ("none", "shifts", "mixup")
    steps: tuple = (600, 3000)
    splits: int = 5
    train: int = 700
    test: int = 600
    networks: int = 6
    hidden: tuple = (64, 64)
    batch: int = 100
    lr: float = 0.05
    momentum: float = 0.9


PRESETS = {
    "digits": Config(),
    "tiny": Config("tiny", steps=(3, 6), splits=2, train=60, test=30, networks=2, hidden=(8,)),
}

# the pixels that each of nine shifts takes from an image with a border of zeros
MOVES = torch.arange(100).view(10, 10).unfold(0, 8, 1).unfold(1, 8, 1).reshape(9, 64)


def shift(x, target, g):
    """Each image by up to one pixel in any direction."""
    padded = F.pad(x.unflatten(2, (8, 8)), (1, 1, 1, 1)).flatten(2)
    return padded.gather(2, MOVES[torch.randint(9, x.shape[:2], generator=g)]), target


def mixup(x, target, g):
    """Weighted averages of pairs of images, and of their labels."""
    share = torch.rand(*x.shape[:2], 1, generator=g)
    other = torch.randperm(x.shape[1], generator=g)
    return (share * x + (1 - share) * x[:, other],
            share * target + (1 - share) * target[:, other])  # fmt: skip


VARY = {"none": lambda x, target, g: (x, target), "shifts": shift, "mixup": mixup}


def grown(images, kind):
    """Images (N, 64) with those of which an augmentation's averages are made."""
    if kind == "shifts":
        return F.pad(images.view(-1, 8, 8), (1, 1, 1, 1)).flatten(1)[:, MOVES].flatten(0, 1)
    if kind == "mixup":
        return torch.cat([images, (images + images.flip(0)) / 2])
    return images


def run_job(config, setting, images, labels, folder):
    """The test error (%) of one setting, and how far its hull is from the test digits."""
    job = program.Job(config, setting, folder)
    if job.found is not None:
        return job.found
    order = torch.randperm(len(images), generator=runtime.generator(1000 + setting["split"]))
    rows, tests = order[: config.train], order[config.train : config.train + config.test]
    pixels, g = (images / 16).float(), runtime.generator(setting["split"])
    sizes = [64, *config.hidden, 10]
    nets = Stack(mlp(sizes, config.networks, g), lr=config.lr, momentum=config.momentum)
    for t in range(setting["steps"]):
        pick = rows[torch.randint(len(rows), (config.networks, config.batch), generator=g)]
        x, target = VARY[setting["kind"]](pixels[pick], F.one_hot(labels[pick], 10).float(), g)

        def losses(params, x=x, target=target):
            return -(target * forward(params, x).log_softmax(2)).sum(2).mean(1)

        nets.step(losses, (1 + math.cos(math.pi * t / setting["steps"])) / 2)
    with torch.no_grad():
        guess = forward(nets.params, pixels[tests]).argmax(2)
    distance = nearest(grown(images[rows], setting["kind"]), images[tests[:100]]).distance
    error = 100 * (guess != labels[tests]).double().mean()
    return job.finish({**setting, "error": error.item(), "distance": distance.mean().item()})


def table(config, results):
    rows = []
    for steps in config.steps:
        row = {"steps": steps}
        for kind in config.kinds:
            here = [r for r in results if (r["steps"], r["kind"]) == (steps, kind)]
            row[f"{kind}, error (%)"] = program.mean([r["error"] for r in here])
            row[f"{kind}, distance"] = program.mean([r["distance"] for r in here])
        rows.append(row)
    return rows


def main(argv=None):
    config, args = program.arguments(__doc__, "convex_hull", PRESETS, "digits", argv)
    images, labels = data.digits()
    images = images.double()
    jobs = [{"split": s, "kind": kind, "steps": steps} for steps in config.steps
            for kind in config.kinds for s in range(config.splits)]  # fmt: skip
    folder = args.runs / config.name
    with runtime.ranks("cpu") as (rank, world, _):
        for setting in program.deal(jobs, rank, world):
            run_job(config, setting, images, labels, folder)
    if rank == 0:
        results = [run_job(config, s, images, labels, folder) for s in jobs]
        note = (
            f"Test error of {config.networks} networks trained on {config.train} digits with an "
            f"augmentation, mean ± standard deviation over {config.splits} splits, and the mean distance "
            "of test digits to the hull of the augmented training images. Nothing was chosen."
        )
        formats = {f"{kind}, {what}": "{:.2f}" for kind in config.kinds
                   for what in ("error (%)", "distance")}  # fmt: skip
        numbers = {"table": table(config, results), "runs": results, "formats": formats}
        program.keep(config, args.out, numbers, note, seeds=list(range(config.splits)))


if __name__ == "__main__":
    program.run(main)
