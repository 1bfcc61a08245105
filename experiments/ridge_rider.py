"""Ridge Rider at full scale: trees of choices, coloured digits, the ridges of a digit classifier.

    python -m experiments.ridge_rider --preset trees      # 20 trees of each of 4 depths, two laws
    python -m experiments.ridge_rider --preset coloured   # coloured MNIST, two environments
    python -m experiments.ridge_rider --preset levers     # strangers in 200 lever games
    python -m experiments.ridge_rider --preset mnist      # what each ridge of a classifier learns
    torchrun --nproc-per-node 8 -m experiments.ridge_rider --preset trees
    python -m experiments.ridge_rider --tiny              # seconds, for tests

A job is one tree, one colouring, one game or one ridge. Jobs are dealt to the ranks, and what a job finds
depends on its setting alone: any number of ranks gives the same record. Finished jobs are kept, and
so are the levels of a search; the same command started again goes on there.
"""

import dataclasses
import itertools
import warnings

import torch
import torch.nn.functional as F

from collage import data, runtime
from collage.ridge_rider import descend, ride, ridges, saddle, search
from collage.ridge_rider.landscapes import Choices, Tanh, coloured
from experiments import program, strangers


@dataclasses.dataclass(frozen=True)
class Config:
    name: str
    task: str  # trees | coloured | levers | mnist
    depths: tuple = (4, 6, 8, 10)
    laws: tuple = ((0.5, 0.3), (0.8, 0.1))  # (share of bad leaves, chance of a side branch)
    trees: int = 20
    levels: int = 3
    most: int = 300  # rides of one search
    polish: tuple = (500, 1.0)  # steps and rate of gradient descent
    step: float = 0.3
    dataset: str = "mnist_test"  # digits | mnist_test | mnist
    train: int = 3000  # pictures of one environment; of all for mnist
    held: int = 1000  # to choose on; and as many to test, at least
    agree: tuple = ((0.9, 0.8), (0.9, 0.6))
    hidden: int = 32
    seeds: int = 5
    games: int = 200
    agents: int = 6  # in a game
    copies: int = 12  # of an agent, on which it tries every ridge


SEARCHED = 1000  # steps of the search for a start

PRESETS = {
    "trees": Config("trees", "trees"),
    "coloured": Config("coloured_mnist10k", "coloured", step=0.15),
    "levers": Config("levers", "levers", step=0.2, polish=(200, 2.0)),
    "mnist": Config("mnist10k", "mnist", train=8000, held=2000, hidden=128, polish=(1000, 0.5)),
    "tiny": Config("tiny", "trees", (3, 4), ((0.5, 0.3),), 2, 2, 40, (50, 1.0)),
}  # fmt: skip


def pictures(config):
    """x (N, D) between 0 and 1 and the digits (N,), in an order that is always the same."""
    if config.dataset == "digits":
        x, y = data.digits()
    else:
        x, y = data.load("mnist", "test" if config.dataset == "mnist_test" else "train")
    order = torch.randperm(len(x), generator=runtime.generator(0))
    if config.task == "coloured":
        x = x[:, ::2, ::2]
    x = x.flatten(1)[order].double()
    return x / x.max(), y[order].long()


def tree_job(config, setting, file):
    """The rewarded leaves that each method finds in one tree."""
    g = runtime.generator(1000 * setting["depth"] + setting["tree"])
    while True:  # until there is a ridge to leave along
        game = Choices.random(setting["depth"], *setting["law"], g)
        size, good = game.turns.shape[1], int((game.rewards > 0).sum())
        zero = torch.zeros(1, size).double()
        start = saddle(game, zero, game.entropy, floor=0.01, steps=SEARCHED)
        point = start.thetas[0]
        with warnings.catch_warnings():  # a child of a point may have no ridge of its own left
            warnings.simplefilter("ignore", RuntimeWarning)
            if len(ridges(game, point).values):
                break
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="ride: ")
        tree = search(
            game, point, step=config.step, levels=config.levels, most=config.most, path=file
        )
    rides = len(tree.prints)
    # One Hessian is `size` rows, each the gradient of a gradient: about two gradients. The start
    # took a gradient of a gradient a step, too.
    left = len({p[:-1] for p in tree.prints})
    gradients = rides * config.polish[0] + 2 * size * (sum(tree.tries) + left) + 3 * SEARCHED
    starts = round(gradients / config.polish[0])

    def draw(n):
        return torch.randn(n, size, generator=g, dtype=torch.float64)

    def covered(points):
        # A little noise for all methods alike: without it an even split between two rewarded leaves
        # would always count as the same one of them.
        points = points + 1e-2 * draw(len(points))
        ends = descend(game, points, *config.polish)
        return len(set(game.reached(ends).tolist()) - {-1}) / good

    found = {"ridges": covered(tree.thetas)}
    for n, where in ((rides, "same rides"), (starts, "same gradients")):
        for scale in (0.1, 1.0, 3.0):
            found[f"descent, init {scale:g}, {where}"] = covered(scale * draw(n))
        found[f"descent from the saddle, {where}"] = covered(point + 0.01 * draw(n))
        for length in (1.0, 5.0):
            way = F.normalize(draw(n), dim=1)
            found[f"random directions {length:g}, {where}"] = covered(point + length * way)
    return {"good": good, "choices": size, "rides": rides, "starts": starts,
            "slope": start.slopes.item(), "found": found}  # fmt: skip


def environments(config, setting, x, y):
    """Two training environments, two to choose on, one to test, each (x, y), and the labels."""
    g = runtime.generator(setting["seed"])
    order = torch.randperm(len(x), generator=g)
    x, label = x[order], (y[order] >= 5).long()
    n, m = config.train, config.held
    ends = [0, n, 2 * n, 2 * n + m, 2 * n + 2 * m, len(x)]
    parts = [slice(a, b) for a, b in itertools.pairwise(ends)]
    agree = [*setting["agree"], *setting["agree"], 0.1]
    if setting["pictures"] == "the same":  # one set of pictures and labels, coloured twice
        parts[1] = parts[0]
    noisy = [torch.where(torch.rand(len(label[p]), generator=g) < 0.25, 1 - label[p], label[p])
             for p in parts]  # fmt: skip
    if setting["pictures"] == "the same":
        noisy[1] = noisy[0]
    return [coloured(x[p], t, a, 0.0, g) for p, t, a in zip(parts, noisy, agree, strict=True)]


def coloured_job(config, setting, x, y, device):
    """Ridges, trained networks and an invariance penalty, each chosen on the worse environment."""
    parts = environments(config, setting, x, y)
    *train, one, two, test = [tuple(t.to(device) for t in part) for part in parts]
    both = [torch.cat(pair) for pair in zip(*train, strict=True)]
    net = Tanh(*both, config.hidden, 1)
    mean = net.y.double().mean()
    pulls = [((b.double() - mean)[:, None] * a).mean(0) for a, b in train]
    apart = pulls[0] - pulls[1]
    start = net.saddle()

    def share(theta, part, network=net):
        return (network.predict(theta, part[0]) == part[1]).double().mean().item()

    def judged(theta, network=net):
        return {"worse": min(share(theta, one, network), share(theta, two, network)),
                "train": share(theta, tuple(both), network), "test": share(theta, test, network)}  # fmt: skip

    found = {}
    for name, view in (("ridge", lambda t: t), ("projected ridge", lambda t: net.blind(t, apart))):
        loss = lambda t, view=view: net(view(t))  # noqa: E731
        first = ridges(loss, start, 1, tol=1e-5, distinct=True,
                       generator=runtime.generator(1, device))  # fmt: skip
        both_ways = torch.cat([first.vectors, -first.vectors])
        rides = ride(loss, start, both_ways, config.step, most=60)
        found[name] = judged(view(rides.thetas[rides.losses[-1].argmin()]))
        found[name]["monotone"] = bool((rides.losses.diff(dim=0) <= 1e-12).all())
    best = max(("ridge", "projected ridge"), key=lambda k: found[k]["worse"])
    found["ridge, chosen"] = {**found[best], "which": best}
    grey = [(sum(a.chunk(2, 1)), b) for a, b in (tuple(both), one, two, test)]
    plain = Tanh(*grey[0], config.hidden, 1)
    found["all data, grey"] = trained(plain, [grey[0]], 0.0, lambda t: {
        "worse": min(share(t, p, plain) for p in grey[1:3]), "train": share(t, grey[0], plain),
        "test": share(t, grey[3], plain)}, setting["seed"])  # fmt: skip
    seed = setting["seed"]
    found["all data"] = trained(net, [tuple(both)], 0.0, judged, seed)
    found["all data, projected"] = trained(net, [tuple(both)], 0.0, judged, seed,
                                           lambda t: net.blind(t, apart))  # fmt: skip
    penalties = [trained(net, train, p, judged, seed) for p in (0.1, 1.0, 10.0, 100.0, 1000.0)]
    found["invariance penalty"] = max(penalties, key=lambda f: f["worse"])
    return {"found": found}


def trained(net, parts, penalty, judged, seed, view=lambda t: t):
    """Adam from a random start, stopped where the worse environment is best; four decays tried.

    mean_e L_e + penalty |d L_e(w z) / dw|^2 at w = 1: the penalty of Arjovsky et al. 2019
    """
    best = {"worse": -1.0}
    for decay in (0.0, 0.1, 1.0, 3.0):
        g = runtime.generator(100 + seed)
        draw = [torch.randn(s, generator=g).to(net.x) / s[-1] ** 0.5 * (len(s) > 1)
                for s in net.shapes]  # fmt: skip
        theta = torch.cat([t.flatten() for t in draw]).requires_grad_()
        adam = torch.optim.AdamW([theta], 1e-2 if penalty == 0 else 3e-3, weight_decay=decay)
        for step in range(1, 301):
            losses, pulls = [], []
            for a, b in parts:
                z, t = net.logits(view(theta), a)[:, 0], b.to(a)
                losses.append(F.binary_cross_entropy_with_logits(z, t))
                pulls.append(((z.sigmoid() - t) * z).mean().square())
            strength = penalty if step > 50 else min(penalty, 1.0)
            total = torch.stack(losses).mean() + strength * torch.stack(pulls).mean()
            (theta.grad,) = torch.autograd.grad(total / max(1.0, strength), theta)
            adam.step()
            if step % 25 == 0 and (step > 50 or not penalty):  # else the penalty is not on yet
                now = judged(view(theta.detach()))
                if now["worse"] > best["worse"]:
                    best = {**now, "steps": step, "decay": decay, "penalty": penalty}
    return best


def mnist_job(config, setting, x, y, device):
    """One ridge of the zero network: what it tells apart, and what descent makes of its end.

    Ridge 0 is no ridge but a random start, for comparison.
    """
    n, x, y = config.train, x.to(device), y.to(device)
    net = Tanh(x[:n], y[:n], config.hidden, 10)
    test = x[n : n + config.held], y[n : n + config.held]

    def recall(theta):
        right = (net.predict(theta, test[0]) == test[1]).double()
        return [right[test[1] == c].mean().item() for c in range(10)], right.mean().item()

    found = {}
    if setting["ridge"]:
        start = net.saddle()
        pairs = ridges(net, start, setting["ridge"], tol=1e-4, distinct=True,
                       generator=runtime.generator(1, device))  # fmt: skip
        e = pairs.vectors[-1]
        rides = ride(net, start, torch.stack([e, -e]), config.step, most=60)
        end = rides.thetas[rides.losses[-1].argmin()]
        found = {"eigenvalue": pairs.values[-1].item(),
                 "closed form": -net.strengths()[setting["ridge"] - 1].item(),
                 "monotone": bool((rides.losses.diff(dim=0) <= 1e-12).all()),
                 "steps": rides.steps.tolist(), "recall": recall(end)[0],
                 "accuracy": recall(end)[1]}  # fmt: skip
    else:
        g = runtime.generator(10 + setting["seed"])
        end = torch.cat([torch.randn(s, generator=g).to(x).flatten() / s[-1] ** 0.5 * (len(s) > 1)
                         for s in net.shapes])  # fmt: skip
    after = descend(net, end[None], *config.polish)[0]
    found["polished recall"], found["polished accuracy"] = recall(after)
    said = "".join(map(str, net.predict(after, test[0]).tolist()))
    return {**found, "predictions": said}


def settings(config):
    if config.task == "trees":
        return [{"law": law, "depth": d, "tree": i}
                for law in config.laws for d in config.depths for i in range(config.trees)]  # fmt: skip
    if config.task == "coloured":
        return [{"agree": a, "pictures": p, "seed": s} for a in config.agree
                for p in ("the same", "different") for s in range(config.seeds)]  # fmt: skip
    if config.task == "levers":
        return [{"game": i} for i in range(config.games)]
    return [{"ridge": k, "seed": 0} for k in range(1, 10)] + [
        {"ridge": 0, "seed": s} for s in range(config.seeds)
    ]


def run_job(config, setting, images, folder, device):
    job = program.Job(config, setting, folder)
    if job.found is not None:
        return job.found
    if config.task == "trees":
        found = tree_job(config, setting, job.state)
    elif config.task == "levers":
        found = strangers.play(config, setting["game"])
    else:
        job_of = coloured_job if config.task == "coloured" else mnist_job
        found = job_of(config, setting, *images, device)
    return job.finish({**setting, **found})


def table(config, results):
    """Means, with the standard error over trees or the standard deviation over seeds."""
    rows = []
    if config.task == "levers":
        rows = strangers.rows(results, program.mean)
    elif config.task == "trees":
        names = {"ridges": "ridges", "descent, init 0.1": "init 0.1", "descent, init 1": "init 1",
                 "descent, init 3": "init 3", "descent from the saddle": "saddle",
                 "random directions 5": "directions"}  # fmt: skip
        for law in config.laws:
            for d in config.depths:
                here = [r["found"] for r in results if r["law"] == list(law) and r["depth"] == d]
                for where in ("same rides", "same gradients"):
                    row = {"depth, bad leaves": f"{d}, {law[0]:.0%}", "budget": where}
                    for name, short in names.items():
                        full = name if name == "ridges" else f"{name}, {where}"
                        row[short] = program.mean(
                            [100 * f[full] for f in here], standard_error=True
                        )
                    rows.append(row)
    elif config.task == "coloured":
        for a in config.agree:
            for p in ("the same", "different"):
                here = [r["found"] for r in results if r["agree"] == list(a) and r["pictures"] == p]
                for name in here[0]:
                    row = {"colour agrees": " / ".join(map(str, a)), "pictures": p, "method": name}
                    for part in ("train", "worse", "test"):
                        row[part] = program.mean([100 * f[name][part] for f in here])
                    rows.append(row)
    else:
        for r in [r for r in results if r["ridge"]]:
            share = [[c, 100 * v] for c, v in enumerate(r["recall"]) if v > 0.1]
            rows.append({"start": f"ridge {r['ridge']}", "eigenvalue": r["eigenvalue"],
                         "digits found at its end (%)": share,
                         "accuracy (%)": 100 * r["accuracy"],
                         "after descent (%)": 100 * r["polished accuracy"]})  # fmt: skip
        for name, kind in (("the nine ridges", 1), ("random", 0)):
            group = [r for r in results if bool(r["ridge"]) == bool(kind)]
            said = torch.tensor([list(map(int, r["predictions"])) for r in group])
            pairs = list(itertools.combinations(said, 2))
            apart = torch.stack([(a != b).double().mean() for a, b in pairs]).mean()
            polished = [100 * r["polished accuracy"] for r in group]
            rows.append({"start": f"{name} ({len(group)}), mean", "eigenvalue": "-",
                         "digits found at its end (%)": {"mean": apart.item(), "n": len(pairs),
                                                         "format": "two solutions differ on {:.1%}"},
                         "accuracy (%)": "-", "after descent (%)": sum(polished) / len(polished)})  # fmt: skip
    return rows


FORMATS = {**dict.fromkeys(("ridges", "init 0.1", "init 1", "init 3", "saddle", "directions"), "{:.0f}"),
           **dict.fromkeys(("train", "worse", "test", "accuracy (%)", "after descent (%)"), "{:.1f}"),
           **dict.fromkeys(("share of the best (%)", "games at 90 % or more (%)"), "{:.0f}"),
           **dict.fromkeys(("return", "best possible"), "{:.3f}"),
           "eigenvalue": "{:.4f}", "digits found at its end (%)": "{} ({:.0f})"}  # fmt: skip
NOTES = {
    "trees": "Share of the rewarded leaves found (%), mean ± standard error over {trees} trees of our "
    "own generator, those with a ridge at the start. Budget: as many starts as rides, or as many as cost the same number of "
    "gradients.",
    "coloured": "Every second pixel of the pictures. Accuracy (%), mean ± standard deviation over {seeds} seeds; {train:,} pictures in an "
    "environment. 'Worse' is the worse of the two training environments on held-out pictures; "
    "settings and stopping are chosen on it, never on test, where colour agrees in 10 %.",
    "levers": "{games} games with ten levers: 2 to 7 pay 1, one is the only one of its kind, the others share a pay; both "
    "pays uniform in 0.2 to 0.95. Return with strangers over the best possible to those who cannot tell equal levers apart, mean ± "
    "standard error over games. Each of {agents} agents tries every ridge on {copies} copies of itself and plays another run of the "
    "best; of an eigenspace it takes one vector.",
    "mnist": "One hidden layer of {hidden} tanh units, {train:,} training and {held:,} test pictures.",
}


def main(argv=None):
    config, args = program.arguments(__doc__, "ridge_rider", PRESETS, "trees", argv)
    small = config.task in ("trees", "levers")  # a CPU rides them faster
    images = None if small else pictures(config)
    jobs, folder = settings(config), args.runs / config.name
    with runtime.ranks("cpu" if small else None) as (rank, world, device):
        for setting in program.deal(jobs, rank, world):
            run_job(config, setting, images, folder, device)
    if rank == 0:
        results = [run_job(config, s, images, folder, device) for s in jobs]
        seeds = config.trees if config.task == "trees" else config.seeds
        seeds = {"mnist": 1, "levers": config.games}.get(config.task, seeds)
        numbers = {"table": table(config, results), "formats": FORMATS, "runs": results}
        if config.task == "levers":
            numbers |= strangers.effort(config)
        program.keep(config, args.out, numbers,
                     NOTES[config.task].format(**dataclasses.asdict(config)), list(range(seeds)),
                     gpu=device.type == "cuda")  # fmt: skip


if __name__ == "__main__":
    program.run(main)
