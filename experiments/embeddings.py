"""Share of test images in the hull of the training images, as networks and reducers see them.

    python -m experiments.embeddings --preset mnist10k     # units of a convolutional network
    python -m experiments.embeddings --preset cubes        # corners of cubes, reduced to the plane
    python -m experiments.embeddings --tiny                # seconds, for tests

A job is one network, trained or not, with all its views; or one reducer on one cube. Jobs are dealt
to the ranks, and what a job finds depends on its setting alone: any number of ranks gives the same
record. A finished job is kept; the same command started again goes on with the next.
"""

import dataclasses
import itertools

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import ConvexHull
from torch import nn

from collage import data, runtime
from collage.convex_hull import membership
from experiments import program


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "embeddings_mnist10k"
    dataset: str = "mnist_test"  # digits | mnist_test
    points: int = 9000
    queries: int = 1000
    networks: tuple = ("trained", "untrained")
    width: int = 128  # units before the last layer
    epochs: int = 5
    dims: tuple = (2, 4, 8, 12, 16, 20, 30, 64, 128)
    cubes: tuple = ()  # dimensions of cubes, instead of images
    seeds: int = 5


PRESETS = {
    "mnist10k": Config(),
    "cubes": Config("cubes", points=0, queries=0, networks=(), dims=(2,), cubes=(8, 10, 12), seeds=3),
    "tiny": Config("tiny", "digits", 700, 90, width=16, epochs=1, dims=(2, 16), cubes=(5,), seeds=1),
}  # fmt: skip
VIEWS = ("principal components", "random units")
REDUCERS = ("LLE", "modified LLE", "Hessian LLE", "LTSA", "spectral", "Isomap", "t-SNE", "MDS",
            "principal components")  # fmt: skip


def reducer(name, seed):
    """A reducer to the plane, with its usual settings."""
    from sklearn import decomposition, manifold

    local = {
        "LLE": "standard",
        "modified LLE": "modified",
        "Hessian LLE": "hessian",
        "LTSA": "ltsa",
    }
    if name in local:
        return manifold.LocallyLinearEmbedding(
            n_neighbors=10, method=local[name], eigen_solver="dense", random_state=seed
        )
    return {"spectral": lambda: manifold.SpectralEmbedding(random_state=seed),
            "Isomap": lambda: manifold.Isomap(n_neighbors=10),
            "t-SNE": lambda: manifold.TSNE(random_state=seed),
            "MDS": lambda: manifold.MDS(n_init=1, init="random", random_state=seed),
            "principal components": lambda: decomposition.PCA(2, random_state=seed)}[name]()  # fmt: skip


def inside_after(name, d, seed):
    """Share of the 2^d corners that no longer are corners of their hull; all of them are before."""
    corners = np.array(np.meshgrid(*[(-1.0, 1.0)] * d)).reshape(d, -1).T
    rng = np.random.default_rng(seed)
    corners = rng.permutation(corners)  # the order must not tell
    if name == "principal components":
        # All directions vary alike. Without noise two axes come out, and corners fall on each other.
        corners = corners + 1e-3 * rng.normal(size=corners.shape)
    plane = reducer(name, seed).fit_transform(corners)
    return 1 - len(ConvexHull(plane).vertices) / len(corners)


class Network(nn.Module):
    """Three convolutions, the mean over places, and one layer: its input is the embedding."""

    def __init__(self, width):
        super().__init__()
        sizes = [1, width // 4, width // 2, width]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in itertools.pairwise(sizes)
        )
        self.head = nn.Linear(width, 10)

    def embed(self, x):
        for layer in self.convolutions[:-1]:
            x = F.max_pool2d(layer(x).relu(), 2)
        return self.convolutions[-1](x).relu().mean((2, 3))


def images(config):
    """(training images, their labels, test images, their labels); pixels near 1."""
    if config.dataset == "digits":
        x, y = data.digits()
        x = x.view(-1, 8, 8)
    else:
        x, y = data.load("mnist", "test")
    order = torch.randperm(len(x), generator=runtime.generator(0))
    order = order[: config.points + config.queries]
    x = x[order, None].float()
    parts = (config.points, config.queries)
    (x, z), (y, t) = (s.split(parts) for s in (x / x.std(), y[order]))
    return x, y, z, t


def network(config, x, y, seed, epochs):
    """A network after so many epochs, with a rate that falls to zero."""
    with torch.random.fork_rng():
        torch.manual_seed(runtime.seed_for(seed, "embeddings"))
        net = Network(config.width).to(x.device)
    g, steps = runtime.generator(seed), epochs * (len(x) // 64)
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(steps):
        adam.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        rows = torch.randint(len(x), (64,), generator=g).to(x.device)
        adam.zero_grad()
        F.cross_entropy(net.head(net.embed(x[rows])), y[rows]).backward()
        adam.step()
    return net


def views(config, setting, device):
    """Accuracy, and the share inside for each view and number of coordinates, of one network."""
    x, y, z, t = (part.to(device) for part in images(config))
    epochs = config.epochs if setting["network"] == "trained" else 0
    net = network(config, x, y, setting["seed"], epochs)
    with torch.no_grad():
        points, queries = (torch.cat([net.embed(p) for p in s.split(500)]) for s in (x, z))
        accuracy = (net.head(queries).argmax(1) == t).double().mean().item()
    points, queries = points.double(), queries.double()
    mean = points.mean(0)
    axes = torch.linalg.eigh((points - mean).T @ (points - mean))[1].flip(1)
    units = torch.randperm(config.width, generator=runtime.generator(setting["seed"])).to(device)
    shares = []
    for d in config.dims:
        for view in VIEWS:
            a, b = ((points - mean) @ axes[:, :d], (queries - mean) @ axes[:, :d])
            if view == "random units":
                a, b = points[:, units[:d]], queries[:, units[:d]]
            inside = membership(a.contiguous(), b.contiguous()).inside.double().mean().item()
            shares.append({"view": view, "d": d, "inside": inside})
    return {**setting, "accuracy": accuracy, "shares": shares}


def settings(config):
    for seed in range(config.seeds):
        yield from ({"network": network, "seed": seed} for network in config.networks)
        yield from ({"reducer": name, "cube": d, "seed": seed}
                    for d in config.cubes for name in REDUCERS)  # fmt: skip


def run_job(config, setting, folder, device):
    job = program.Job(config, setting, folder)
    if job.found is not None:
        return job.found
    if "network" in setting:
        return job.finish(views(config, setting, device))
    share = inside_after(setting["reducer"], setting["cube"], setting["seed"])
    return job.finish({**setting, "inside": share})


def table(config, results):
    """A row for each number of coordinates, and one for each reducer; means over seeds, in per cent."""
    rows = []
    for d in config.dims if config.networks else ():
        row = {"what": f"{d} coordinates"}
        for network in config.networks:
            for view in VIEWS:
                inside = [s["inside"] for r in results if r.get("network") == network
                          for s in r["shares"] if s["d"] == d and s["view"] == view]  # fmt: skip
                row[f"{network}, {view}"] = program.mean([100 * v for v in inside])
        rows.append(row)
    for name in REDUCERS if config.cubes else ():
        row = {"what": name}
        for d in config.cubes:
            found = [r["inside"] for r in results if r.get("reducer") == name and r["cube"] == d]
            row[f"cube of {d} dimensions"] = program.mean([100 * v for v in found])
        rows.append(row)
    heads = {head: "-" for row in rows for head in row}
    return [heads | row for row in rows]


def main(argv=None):
    config, args = program.arguments(__doc__, "convex_hull", PRESETS, "mnist10k", argv)
    if config.networks:
        images(config)  # data that are not here are said before anything runs
    jobs, folder = list(settings(config)), args.runs / config.name
    with runtime.ranks() as (rank, world, device):
        for setting in program.deal(jobs, rank, world):
            run_job(config, setting, folder, device)
    if rank:
        return
    results = [run_job(config, s, folder, device) for s in jobs]
    rows = table(config, results)
    right = [100 * r["accuracy"] for r in results if r.get("network") == "trained"]
    note = ""
    if right:
        note = (f"Share of {config.queries:,} test images in the hull of {config.points:,} training images "
                f"of {config.dataset}, as the {config.width} units before the last layer of a convolutional "
                f"network see them; the trained ones are right on {sum(right) / len(right):.1f} % of the "
                "test images.")  # fmt: skip
    if config.cubes:
        note += (" Share of the corners of a cube that are inside the hull of the others after reduction to "
                 "the plane; before it, none is.")  # fmt: skip
    note += f" Mean ± s.d. over {config.seeds} seeds."
    numbers = {"table": rows, "formats": dict.fromkeys(rows[0], "{:.1f}") | {"what": "{}"},
               "runs": results}  # fmt: skip
    program.keep(config, args.out, numbers, note.strip())


if __name__ == "__main__":
    program.run(main)
