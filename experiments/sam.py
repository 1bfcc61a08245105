"""Label noise at full scale: SGD and SAM, each with its weight decay and radius tuned, and with mixup.

    python -m experiments.sam --preset mnist10k               # what was recorded on two CPU cores
    python -m experiments.sam --preset decay                  # SGD alone, with more decay
    python -m experiments.sam --preset resnet                 # a small residual network, and mixup
    python -m experiments.sam --preset mixer                  # a small MLP-Mixer, likewise
    torchrun --nproc-per-node 8 -m experiments.sam --preset cifar10     # the paper's Table 4
    python -m experiments.sam --tiny                          # seconds, for tests

A job is one setting (noise, rho, decay, mixup) with all its seeds. Jobs are dealt to the ranks, and what
a job does depends on its setting and seeds alone: any number of ranks gives the same record. Every
job saves a checkpoint after each epoch; start the same command again and it goes on from there.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F

from collage import data, runtime
from collage.common.graph import Captured
from collage.common.networks import forward, mlp
from collage.sam import SAM, Ensemble
from experiments import program


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "label_noise_mnist"
    dataset: str = (
        "mnist_test"  # digits | mnist | mnist_test (its 10,000 test images) | cifar10 ...
    )
    network: str = "mlp"  # mlp | resnet32 | resnet8 | mixer
    hidden: tuple = (128, 128)
    train: int = 6000
    validation: int = 1000  # clean labels, to choose settings; the rest is for the test
    noise: tuple = (0.2, 0.4, 0.6, 0.8)
    rho: tuple = (0.0, 0.05, 0.1, 0.2)
    decay: tuple = (0.0, 1e-3, 5e-3, 1e-2, 2e-2, 3e-2, 4e-2)
    mixup: tuple = (0.0,)  # 0: none; else alpha of Beta(alpha, alpha), for networks other than mlp
    seeds: int = 4
    epochs: int = 20
    batch: int = 64
    lr: float = 0.05
    momentum: float = 0.9


FORMATS = {"wrong labels": "{:.0%}"} | {
    name + way: "{:.1f}" for name in ("SGD", "SAM") for way in ("", " with mixup")
}
SMALL = Config(hidden=(), train=2000, noise=(0.4, 0.8), decay=(0.0, 1e-3, 3e-3, 1e-2), mixup=(0.0, 1.0),
               seeds=3, lr=0.1)  # fmt: skip
PRESETS = {
    "mnist10k": Config(),
    "decay": Config("label_noise_mnist_decay", noise=(0.4, 0.6), rho=(0.0,),
                    decay=(0.0, 1e-2, 2e-2, 3e-2, 4e-2)),
    "resnet": dataclasses.replace(SMALL, name="label_noise_resnet", network="resnet8",
                                  decay=(0.0, 1e-3, 3e-3, 1e-2, 2e-2)),
    "mixer": dataclasses.replace(SMALL, name="label_noise_mixer", network="mixer",
                                 decay=(0.0, 1e-3, 3e-3, 5e-3, 1e-2)),
    "mnist": Config("label_noise_mnist60k", "mnist", hidden=(512, 512), train=55_000,
                    validation=5_000, epochs=40, batch=128),
    "cifar10": Config("label_noise_cifar10", "cifar10", "resnet32", (), 45_000, 5_000,
                      rho=(0.0, 0.05, 0.1, 0.2), decay=(1e-4, 5e-4, 2e-3), seeds=3, epochs=200,
                      batch=128, lr=0.1),
    "tiny": Config("tiny", "digits", hidden=(16,), train=400, validation=200, noise=(0.4,),
                   rho=(0.0, 0.1), decay=(0.0,), seeds=2, epochs=3, batch=25),
}  # fmt: skip


def images(config):
    """(pool, pool labels, test, test labels): training and validation images come from the pool."""
    if config.dataset == "digits":
        x, y = data.digits()
        x = x.view(-1, 1, 8, 8)
    elif config.dataset == "mnist_test":
        x, y = data.load("mnist", "test")
    else:
        (x, y), (tx, ty) = (data.load(config.dataset, split) for split in ("train", "test"))
        x, y = torch.cat([x, tx]), torch.cat([y, ty])
    x = x.float().view(len(x), -1, *x.shape[-2:])
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    cut = len(x) if config.dataset in ("digits", "mnist_test") else len(x) - len(tx)
    return x, y, cut


def split(config, y, cut, seed, noise):
    """Rows for training, validation and test of one seed, and the (partly wrong) training labels."""
    g, y = runtime.generator(seed), y.cpu()
    order = torch.randperm(cut, generator=g)
    train = order[: config.train]
    valid = order[config.train : config.train + config.validation]
    test = order[config.train + config.validation :] if cut == len(y) else torch.arange(cut, len(y))
    wrong = torch.randint(1, 10, train.shape, generator=g)
    flip = torch.rand(train.shape, generator=g) < noise
    return train, valid, test, torch.where(flip, (y[train] + wrong) % 10, y[train])


class Mlps:
    """All seeds of a setting at once, as a stack of fully connected networks; a step is one CUDA graph."""

    def __init__(self, config, shape, setting, device):
        sizes = [math.prod(shape), *config.hidden, 10]
        parts = [mlp(sizes, 1, runtime.generator(10_000 + s)) for s in range(config.seeds)]
        stacked = [torch.cat(same).to(device) for same in zip(*parts, strict=True)]
        rate = torch.full((config.seeds,), config.lr)
        self.nets = Ensemble(stacked, rho=setting["rho"], lr=rate, momentum=config.momentum,
                             weight_decay=setting["decay"])  # fmt: skip
        self.rate, self.captured = config.lr, Captured(self._step)

    def _step(self, x, y, scale=1.0):
        def losses(params):
            out = forward(params, x.flatten(2))
            return F.cross_entropy(out.transpose(1, 2), y, reduction="none").mean(1)

        return self.nets.step(losses, scale)

    def step(self, x, y, scale):
        if not x.is_cuda:
            self._step(x, y, scale)
            return
        self.nets.lr.fill_(self.rate * scale)  # where the graph reads it
        self.captured(x, y)

    @torch.no_grad()
    def guess(self, x):
        return forward(self.nets.params, x.flatten(2)).argmax(-1)

    def state(self):
        return {"flat": self.nets.flat, "velocity": self.nets.velocity}

    def load(self, arrays):
        for name, target in self.state().items():
            target.copy_(torch.as_tensor(arrays[name]))


class Singles:
    """All seeds of a setting, one network each, stepped in turn by the optimiser; on a GPU a step of
    each is a CUDA graph."""

    def __init__(self, config, shape, setting, device):
        self.models, self.optimizers, self.lr, self.captured = [], [], config.lr, []
        # A graph reads its rate where it lies.
        rate = torch.tensor(config.lr, device=device) if device.type == "cuda" else config.lr
        for s in range(config.seeds):
            with torch.random.fork_rng():
                torch.manual_seed(10_000 + s)
                model = NETWORKS[config.network](*shape[:2]).to(device)
            self.models.append(model)
            self.optimizers.append(
                SAM(model.parameters(), "SGD", rho=setting["rho"], fused=True, lr=rate,
                    momentum=config.momentum, weight_decay=setting["decay"])
            )  # fmt: skip

    def step(self, x, y, scale):
        if x.is_cuda:
            self._replay(x, y, scale)
            return
        for model, optimizer, xs, ys in zip(self.models, self.optimizers, x, y, strict=True):
            optimizer.param_groups[0]["lr"] = self.lr * scale
            optimizer.step(self._closure(model, xs, ys))

    def _replay(self, x, y, scale):
        if not self.captured:  # with batches of their own, which are filled before each step
            self.batch = torch.empty_like(x), torch.empty_like(y)
            for model, optimizer, xs, ys in zip(
                self.models, self.optimizers, *self.batch, strict=True
            ):
                self.captured.append(optimizer.capture(self._closure(model, xs, ys)))
        for mine, new in zip(self.batch, (x, y), strict=True):
            mine.copy_(new)
        for optimizer, run in zip(self.optimizers, self.captured, strict=True):
            optimizer.param_groups[0]["lr"].fill_(self.lr * scale)
            run()

    @staticmethod
    def _closure(model, x, y):
        def closure():
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        return closure

    @torch.no_grad()
    def guess(self, x):
        found = []
        for model, xs in zip(self.models, x, strict=True):
            model.eval()
            found.append(torch.cat([model(part) for part in xs.split(500)]).argmax(-1))
            model.train()
        return torch.stack(found)

    def state(self):
        found = {}
        for i, (model, optimizer) in enumerate(zip(self.models, self.optimizers, strict=True)):
            found |= {f"{i}.model.{k}": v for k, v in model.state_dict().items()}
            for j, values in optimizer.state_dict()["state"].items():
                found |= {f"{i}.velocity.{j}": values["momentum_buffer"]}
        return found

    def load(self, arrays):
        for i, (model, optimizer) in enumerate(zip(self.models, self.optimizers, strict=True)):
            named = {k: torch.as_tensor(v) for k, v in arrays.items()}
            mine = f"{i}.model."
            model.load_state_dict({k.removeprefix(mine): v for k, v in named.items()
                                   if k.startswith(mine)})  # fmt: skip
            state = optimizer.state_dict()
            state["state"] = {int(k.rpartition(".")[2]): {"momentum_buffer": v}
                              for k, v in named.items() if k.startswith(f"{i}.velocity.")}  # fmt: skip
            optimizer.load_state_dict(state)


def mixer(channels, side, patch=4, width=32, tokens=32, hidden=64, blocks=3):
    """An MLP-Mixer (Tolstikhin et al. 2021) on square images (n, channels, side, side).

    Each block mixes the patches, channel by channel, then the channels, patch by patch; no convolution,
    no batch statistics.
    """

    class Mix(torch.nn.Module):
        def __init__(self, size, inside, across):
            super().__init__()
            self.norm, self.across = torch.nn.LayerNorm(width), across
            self.body = torch.nn.Sequential(torch.nn.Linear(size, inside), torch.nn.GELU(),
                                            torch.nn.Linear(inside, size))  # fmt: skip

        def forward(self, x):
            h = self.norm(x)
            return x + (self.body(h.mT).mT if self.across else self.body(h))

    class Tokens(torch.nn.Module):
        def forward(self, x):
            return x.mT

    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.mean(1)

    count = (side // patch) ** 2
    layers = [torch.nn.Unfold(patch, stride=patch), Tokens(),
              torch.nn.Linear(channels * patch**2, width)]  # fmt: skip
    for _ in range(blocks):
        layers += [Mix(count, tokens, True), Mix(width, hidden, False)]
    return torch.nn.Sequential(
        *layers, torch.nn.LayerNorm(width), Mean(), torch.nn.Linear(width, 10)
    )


def resnet32(channels, width=16, blocks=5, stages=3):
    """The CIFAR residual network of He et al. 2015: three stages of five blocks.

    width=64, blocks=2, stages=4 has the size of ResNet-18.
    """

    class Block(torch.nn.Module):
        def __init__(self, before, after, stride):
            super().__init__()
            self.body = torch.nn.Sequential(
                torch.nn.Conv2d(before, after, 3, stride, 1, bias=False),
                torch.nn.BatchNorm2d(after), torch.nn.ReLU(),
                torch.nn.Conv2d(after, after, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(after)
            )  # fmt: skip
            self.stride, self.grow = stride, after - before

        def forward(self, x):
            short = x[..., :: self.stride, :: self.stride]
            return F.relu(self.body(x) + F.pad(short, (0, 0, 0, 0, 0, self.grow)))

    layers = [torch.nn.Conv2d(channels, width, 3, 1, 1, bias=False),
              torch.nn.BatchNorm2d(width), torch.nn.ReLU()]  # fmt: skip
    before = width
    for stage in range(stages):
        for block in range(blocks):
            after = width * 2**stage
            layers.append(Block(before, after, 2 if stage and not block else 1))
            before = after
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                               torch.nn.Linear(before, 10))  # fmt: skip


NETWORKS = {  # (channels, side) of the images -> a network
    "resnet32": lambda channels, side: resnet32(channels),
    "resnet8": lambda channels, side: resnet32(channels, width=8, blocks=1),
    "mixer": mixer,
}


def mixed(x, y, alpha, generators):
    """Mixup (Zhang et al. 2018): each picture with another of its batch, and their labels likewise.

    x (seeds, batch, ...), labels (seeds, batch) -> x, and the labels as shares (seeds, batch, 10). One
    weight from Beta(alpha, alpha) for a batch; a seed's numbers come from its own generator.
    """
    weight, other = [], []
    for g in generators:
        two = torch._standard_gamma(torch.full((2,), float(alpha)), generator=g)
        weight.append(two[0] / two.sum())
        other.append(torch.randperm(x.shape[1], generator=g))
    other, weight = torch.stack(other).to(x.device), torch.stack(weight).to(x.device)
    seed, weight = torch.arange(len(x), device=x.device)[:, None], weight[:, None, None]
    shares = F.one_hot(y, 10).to(x.dtype)
    shares = weight * shares + (1 - weight) * shares[seed, other]
    weight = weight.view(-1, *[1] * (x.dim() - 1))
    return weight * x + (1 - weight) * x[seed, other], shares


def moves(batch, generators):
    """How each picture of a batch is to be flipped and shifted (seeds, 3, batch); a seed's numbers come
    from its own generator."""
    flip = [torch.rand(1, batch, generator=g) < 0.5 for g in generators]
    by = [torch.randint(0, 9, (2, batch), generator=g) for g in generators]
    return torch.cat([torch.stack(flip).long(), torch.stack(by)], 1)


def augment(x, moves):
    """Each picture flipped or not, and shifted by up to four pixels: the usual for CIFAR.

    x (seeds, batch, channels, height, width); `moves` beside it.
    """
    seeds, batch, _, height, width = x.shape
    flip, down, right = moves.unbind(1)
    x = torch.where(flip.bool()[:, :, None, None, None], x.flip(-1), x)
    rows = (down[..., None] + torch.arange(height, device=x.device))[:, :, None, :, None]
    columns = (right[..., None] + torch.arange(width, device=x.device))[:, :, None, None, :]
    seed = torch.arange(seeds, device=x.device)[:, None, None, None, None]
    at = torch.arange(batch, device=x.device)[:, None, None, None]
    channel = torch.arange(x.shape[2], device=x.device)[:, None, None]
    return F.pad(x, (4, 4, 4, 4))[seed, at, channel, rows, columns]


def run_job(config, setting, x, y, cut, folder, device):
    """Train one setting, from its checkpoint if there is one; returns accuracies for each seed."""
    job = program.Job(config, setting, folder)
    if job.found is not None:
        return job.found
    parts = [split(config, y, cut, s, setting["noise"]) for s in range(config.seeds)]
    train, valid, test, labels = (torch.stack(p).to(device) for p in zip(*parts, strict=True))
    build = Mlps if config.network == "mlp" else Singles
    nets = build(config, x.shape[1:], setting, device)
    arrays, meta = job.resume()
    if arrays:
        nets.load(arrays)
    done = meta.get("epochs", 0)
    steps = config.train // config.batch
    for epoch in range(done, config.epochs):
        g = [runtime.generator(1_000_000 * (s + 1) + epoch) for s in range(config.seeds)]
        order = torch.stack([torch.randperm(config.train, generator=each) for each in g]).to(device)
        if config.network == "resnet32":  # of a whole epoch at once: a GPU waits for each copy
            moved = torch.stack([moves(config.batch, g) for _ in range(steps)]).to(device)
        for t in range(steps):
            rows = order[:, t * config.batch : (t + 1) * config.batch]
            inputs = x[train.gather(1, rows)]
            if config.network == "resnet32":
                inputs = augment(inputs, moved[t])
            targets = labels.gather(1, rows)
            if alpha := setting.get("mixup"):
                inputs, targets = mixed(inputs, targets, alpha, g)
            progress = (epoch * steps + t) / (config.epochs * steps)
            nets.step(inputs, targets, (1 + math.cos(math.pi * progress)) / 2)
        job.save(nets.state(), {"epochs": epoch + 1})
    found = {**setting}
    for name, rows in (("validation", valid), ("test", test)):
        right = [(nets.guess(x[part]) == y[part]).float().sum(1) for part in rows.split(500, 1)]
        found[name] = (100 * torch.stack(right).sum(0) / rows.shape[1]).tolist()
    return job.finish(found)


def best(results):
    """The setting with the best validation accuracy: the mean of its test accuracies, and itself."""
    chosen = max(results, key=lambda r: sum(r["validation"]))
    return program.mean(chosen["test"]), chosen


def table(config, results):
    """For each noise: SGD and SAM without decay, and both tuned, chosen on validation."""
    rows, least = [], min(config.decay)
    for noise in config.noise:
        here = [r for r in results if r["noise"] == noise]
        plain, tuned = {}, {}
        for name in dict.fromkeys(method(r) for r in results):
            mine = [r for r in here if method(r) == name]
            plain[name] = best([r for r in mine if r["decay"] == least])[0]
            cell, taken = best(mine)
            radius = f", rho {taken['rho']:g}" if taken["rho"] else ""
            tuned[f"{name}, tuned decay"] = cell | {
                "format": f"{{:.1f}} ({taken['decay']:g}{radius})"
            }
        rows.append({"wrong labels": noise, **plain, **tuned})
    return rows


def method(result):
    return ("SAM" if result["rho"] else "SGD") + (" with mixup" if result.get("mixup") else "")


def swept(config, results):
    """(settings tried, settings chosen) of SGD and SAM at each noise."""

    def named(r):
        return {
            "method": f"{method(r)}, {r['noise']:.0%} wrong",
            "rho": r["rho"],
            "decay": r["decay"],
        }

    groups = {}
    for r in results:
        groups.setdefault(named(r)["method"], []).append(r)
    return [named(r) for r in results], [named(best(group)[1]) for group in groups.values()]


def main(argv=None):
    config, args = program.arguments(
        __doc__, "sam", PRESETS, "mnist10k", argv,
        lambda parser: parser.add_argument("--seeds", type=program.positive,
                                           help="instead of the preset's number"))  # fmt: skip
    if args.seeds is not None:
        config = dataclasses.replace(config, seeds=args.seeds)
    settings = [{"noise": p, "rho": r, "decay": d, "mixup": m} for m in config.mixup
                for p in config.noise for r in config.rho for d in config.decay]  # fmt: skip
    folder = args.runs / config.name
    with runtime.ranks() as (rank, world, device):
        x, y, cut = images(config)
        x, y = x.to(device), y.to(device)
        torch.backends.cudnn.allow_tf32 = False  # float32 is float32, in convolutions too
        for setting in program.deal(settings, rank, world):
            run_job(config, setting, x, y, cut, folder, device)
    if rank == 0:
        results = [run_job(config, s, x, y, cut, folder, device) for s in settings]
        note = (f"Test accuracy (%, mean ± standard deviation over {config.seeds} seeds) on clean "
                f"labels after training on {config.train:,} images of {config.dataset} with wrong "
                f"labels; {config.network}, {config.epochs} epochs. rho and weight decay (in "
                "brackets) chosen on clean validation labels.")  # fmt: skip
        if alphas := [alpha for alpha in config.mixup if alpha]:
            note += f" Mixup: shares from Beta(alpha, alpha), alpha {alphas[0]:g}."
        tried, chosen = swept(config, results)
        sweeps = {c["method"]: sum(s["method"] == c["method"] for s in tried) for c in chosen}
        split = {
            "chosen on": f"{config.validation:,} validation images",
            "judged on": "test images",
        }
        numbers = {"table": table(config, results), "formats": FORMATS, "runs": results,
                   "sweeps": sweeps, "split": split}  # fmt: skip
        program.keep(config, args.out, numbers, note, tried=tried, chosen=chosen)


if __name__ == "__main__":
    program.run(main)
