"""Share of test points in the hull of the training points, at full scale.

    python -m experiments.convex_hull --preset mnist10k           # what two CPU cores can do
    torchrun --nproc-per-node 8 -m experiments.convex_hull --preset mnist      # the paper's Fig. 3
    python -m experiments.convex_hull --preset gaussian           # Fig. 1, left, to a million points
    python -m experiments.convex_hull --tiny                      # seconds, for tests

A job is one view of the data (a number of coordinates, a seed). Jobs are dealt to the ranks, and
what a job finds depends on its setting alone: any number of ranks gives the same record. A job
saves what it has found after each chunk of queries; the same command started again goes on there.
"""

import dataclasses

import torch
import torch.nn.functional as F

from collage import data, runtime
from collage.convex_hull import gaussian_inside_probability, membership
from experiments import program


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "images_mnist10k"
    dataset: str = "mnist_test"  # digits | mnist | mnist_test | fashion_mnist | cifar10 | gaussian
    points: int = 9000
    queries: int = 1000
    views: tuple = ("principal components", "centre crop", "smoothed and reduced")
    dims: tuple = (2, 4, 6, 8, 10, 12, 16, 20, 25, 30, 36, 49, 64)  # crops: the squares among them
    seeds: int = 1
    chunk: int = 500


PRESETS = {
    "mnist10k": Config(),
    "mnist": Config("images_mnist", "mnist", 60_000, 10_000),
    "cifar10": Config("images_cifar10", "cifar10", 50_000, 10_000),
    "gaussian": Config("gaussian_million", "gaussian", 10**6, 1000, ("gaussian",),
                       (2, 4, 6, 8, 10, 12, 14, 16, 18, 20)),
    "tiny": Config("tiny", "digits", 700, 90, dims=(2, 4, 9), chunk=30),
}  # fmt: skip


def images(config):
    """Training and test images (N, C, H, W) in float64; those of one file are split in two."""
    if config.dataset == "digits":
        x = data.digits()[0].view(-1, 1, 8, 8)
    elif config.dataset == "mnist_test":
        x = data.load("mnist", "test")[0][:, None]
    else:
        both = [data.load(config.dataset, split)[0] for split in ("train", "test")]
        both = [t[:, None] if t.dim() == 3 else t for t in both]
        return both[0][: config.points].double(), both[1][: config.queries].double()
    order = torch.randperm(len(x), generator=runtime.generator(0))
    x = x[order][: config.points + config.queries].double()
    return x[: config.points], x[config.points :]


def view(config, setting, x, z):
    """Points and queries (N, d) as a setting sees them."""
    kind, d = setting["view"], setting["d"]
    if kind == "gaussian":
        g = runtime.generator(1000 * setting["seed"] + d)
        draw = lambda n: torch.randn(n, d, generator=g, dtype=torch.float64)  # noqa: E731
        return draw(config.points), draw(config.queries)
    if kind == "principal components":
        x, z = x.flatten(1), z.flatten(1)
        mean = x.mean(0)
        axes = torch.linalg.eigh((x - mean).T @ (x - mean))[1].flip(1)[:, :d]
        return (x - mean) @ axes, (z - mean) @ axes
    side = round((d // x.shape[1]) ** 0.5)
    if kind == "centre crop":
        a, b = ((s - side) // 2 for s in x.shape[2:])
        return tuple(t[:, :, a : a + side, b : b + side].flatten(1) for t in (x, z))
    return tuple(F.adaptive_avg_pool2d(t, side).flatten(1) for t in (x, z))


def settings(config, channels):
    for kind in config.views:
        for d in config.dims:
            square = d % channels == 0 and round((d // channels) ** 0.5) ** 2 * channels == d
            if square or kind in ("gaussian", "principal components"):
                for seed in range(config.seeds):
                    yield {"view": kind, "d": d, "seed": seed}


def run_job(config, setting, x, z, folder, device):
    """The entries of all queries of one setting, chunk by chunk."""
    job = program.Job(config, setting, folder)
    if job.found is not None:
        return job.found
    arrays, _ = job.resume()
    entries = arrays["entries"].tolist() if arrays else []
    points, queries = (t.to(device) for t in view(config, setting, x, z))
    while len(entries) < len(queries):
        part = queries[len(entries) : len(entries) + config.chunk]
        entries += membership(points, part).entry.tolist()
        job.save({"entries": torch.tensor(entries)}, {})
    sizes = [n for n in (2**k for k in range(1, 60)) if n < len(points)] + [len(points)]
    curve = [sum(e <= n for e in entries) / len(entries) for n in sizes]
    return job.finish({**setting, "points": len(points), "queries": len(entries), "sizes": sizes,
                       "inside": curve})  # fmt: skip


def table(config, results):
    rows = []
    for d in config.dims:
        here = [r for r in results if r["d"] == d]
        row = {"d": d}
        for kind in config.views:
            shares = [r["inside"][-1] for r in here if r["view"] == kind]
            row[kind] = 100 * sum(shares) / len(shares) if shares else "-"
        if config.dataset == "gaussian":
            row["exact"] = 100 * gaussian_inside_probability(config.points, d)
        rows.append(row)
    return rows


def main(argv=None):
    config, args = program.arguments(__doc__, "convex_hull", PRESETS, "mnist10k", argv)
    x, z = (None, None) if config.dataset == "gaussian" else images(config)
    jobs = list(settings(config, 1 if x is None else x.shape[1]))
    folder = args.runs / config.name
    with runtime.ranks() as (rank, world, device):
        for setting in program.deal(jobs, rank, world):
            run_job(config, setting, x, z, folder, device)
    if rank == 0:
        results = [run_job(config, s, x, z, folder, device) for s in jobs]
        note = (f"Share of {config.queries:,} queries in the hull of {config.points:,} points of "
                f"{config.dataset}, by number of coordinates.")  # fmt: skip
        numbers = {"table": table(config, results), "runs": results,
                   "formats": dict.fromkeys((*config.views, "exact"), "{:.1f} %")}  # fmt: skip
        program.keep(config, args.out, numbers, note)


if __name__ == "__main__":
    program.run(main)
