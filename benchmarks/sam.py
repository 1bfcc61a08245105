"""SAM against SGD and the popular implementations: python -m benchmarks.sam [--rounds 40]

Same network, same data, same result first; then one step of each in alternation. Writes
results/sam/steps_cpu.json or steps_gpu.json. Peers: davda54/sam and pytorch_optimizer (both its
paths), each around the fastest SGD of torch, and the whole step jitted in JAX, on a CPU beside ours as
one compiled program; what compiling took is in the record's checks.
"""

import argparse
import copy
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import jax_peers
from benchmarks.timing import alternate, at_size, clock, median, one_core, peak, show
from collage import runtime
from collage.common.networks import forward, mlp
from collage.sam import SAM, Ensemble, Flat, compiled_step
from experiments.program import positive
from experiments.sam import resnet32
from tools import provenance
from tools.peers import peer

RHO, SETTINGS = 0.05, {"lr": 1e-4, "momentum": 0.9}
COMPILED = "ours, compiled", "JAX, jitted"
FORMATS = dict.fromkeys(("x SGD", "x flat SGD", "speed-up over the best peer"), "{:.2f}")


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear, self.norm = torch.nn.Linear(width, width), torch.nn.LayerNorm(width)

    def forward(self, x):
        return x + self.norm(self.linear(x)).relu()


def networks(device):
    """The three networks of the comparison, with one batch each."""
    torch.manual_seed(0)
    layers = [m for _ in range(5) for m in (torch.nn.Linear(64, 64), torch.nn.ReLU())]
    small = torch.nn.Sequential(*layers, torch.nn.Linear(64, 10))
    blocks = [Block(32) for _ in range(30)]
    many = torch.nn.Sequential(*blocks, torch.nn.Linear(32, 10))
    convolutions = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(32 * 16, 10))  # fmt: skip
    made = {"5 x 64 MLP, batch 32": (small, (32, 64)),
            "122 small tensors, batch 32": (many, (32, 32)),
            "small CNN, batch 64": (convolutions, (64, 1, 8, 8))}  # fmt: skip
    if device.type == "cuda":
        made["ResNet-18 size, batch 128"] = (resnet32(3, 64, 2, 4), (128, 3, 32, 32))
    return {name: (net.to(device), torch.randn(shape, device=device),
                   torch.randint(10, shape[:1], device=device))
            for name, (net, shape) in made.items()}  # fmt: skip


def closure(model, x, y, clear, gather=None):
    def run():
        clear()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        if gather:
            gather()
        return loss

    return run


def steppers(model, x, y):
    """{name: (weights(), one step)} for every way to train a copy of the model; versions of peers."""
    ways = {}

    def joined(net):
        return lambda: torch.cat([p.detach().reshape(-1) for p in net.parameters()])

    def add(name, build, two_calls=False):
        net = copy.deepcopy(model)
        optimizer, clear, *gather = build(net.parameters())
        run = closure(net, x, y, clear or optimizer.zero_grad, *gather)

        def twice():  # the peers' own recipe: two backward passes, two calls
            run()
            optimizer.first_step(zero_grad=True)
            run()
            optimizer.second_step()

        ways[name] = joined(net), twice if two_calls else lambda: optimizer.step(run)

    def flat_sgd(params):
        flat = Flat(list(params))
        return torch.optim.SGD([flat.whole], fused=True, **SETTINGS), flat.zero, flat.collect

    sgd = torch.optim.SGD
    nothing = lambda: None  # noqa: E731 - our step clears the gradients itself
    add("SGD", lambda p: (sgd(p, fused=True, **SETTINGS), None))
    add("SGD, flat", flat_sgd)
    add("ours", lambda p: (SAM(p, "SGD", rho=RHO, **SETTINGS), nothing))
    add("ours, flat", lambda p: (SAM(p, "SGD", rho=RHO, fused=True, **SETTINGS), nothing))
    if x.is_cuda:  # the whole step, both passes, as one graph
        net = copy.deepcopy(model)
        optimizer = SAM(net.parameters(), "SGD", rho=RHO, fused=True, **SETTINGS)
        ways["ours, graph"] = joined(net), optimizer.capture(closure(net, x, y, nothing))
    versions = {}
    net = copy.deepcopy(model)
    optimizer = SAM(net.parameters(), "SGD", rho=RHO, fused=True, **SETTINGS)
    run = compiled_step(optimizer, net, lambda n, x, y: F.cross_entropy(n(x), y))
    ways["ours, compiled"] = joined(net), lambda: run(x, y)
    if not x.is_cuda and (version := jax_peers.usable(anywhere=True)):
        versions["jax"] = version
        ways["JAX, jitted"] = jax_peers.sam_step(model, x, y, RHO, **SETTINGS)[::-1]
    if found := peer("sam", "davda54-sam"):
        versions["davda54/sam"] = found[1]
        add("davda54/sam",
            lambda p: (found[0].SAM(p, sgd, rho=RHO, fused=True, **SETTINGS), None), True)  # fmt: skip
    if found := peer("pytorch_optimizer"):
        versions["pytorch_optimizer"] = found[1]
        for name, base in (("", {"fused": True}), (", foreach", {"foreach": True})):
            add(f"pytorch_optimizer{name}",
                lambda p, base=base: (found[0].SAM(p, sgd, rho=RHO, **base, **SETTINGS), None),
                True)  # fmt: skip
    return ways, versions


def check_equal(ways, steps=20):
    """Every way of SAM has the same weights after 20 steps, to 1e-6; and the seconds of each first."""
    sams = {name: way for name, way in ways.items() if not name.startswith("SGD")}
    seconds = {}
    for _ in range(steps):
        for name, (_, step) in sams.items():
            begin = clock()
            step()
            seconds.setdefault(name, clock() - begin)
    first, *others = [weights() for weights, _ in sams.values()]
    gap = max((first - other).abs().max().item() for other in others)
    if gap > 1e-6:
        raise SystemExit(f"the implementations disagree by {gap:.1e}; nothing was timed")
    return gap, seconds


def ensemble(device, K=40, batch=25, hidden=64):
    """One step of K networks together, and the same by a loop over our own single-network SAM."""
    g = runtime.generator(0)
    start = [t.to(device) for t in mlp([64, hidden, hidden, 10], K, g)]
    x = torch.randn(K, batch, 64, generator=g).to(device)
    y = torch.randint(10, (K, batch), generator=g).to(device)

    def losses(params):
        out = forward(params, x)
        each = F.cross_entropy(out.flatten(0, 1), y.flatten(), reduction="none")
        return each.view(K, -1).mean(1)

    nets = Ensemble(start, rho=RHO, **SETTINGS)
    alone = [[torch.nn.Parameter(t[k : k + 1].clone()) for t in start] for k in range(K)]
    steps = []
    for k, params in enumerate(alone):
        optimizer = SAM(params, "SGD", rho=RHO, fused=True, **SETTINGS)

        def run(k=k, params=params):
            loss = F.cross_entropy(forward(params, x[k : k + 1])[0], y[k])
            loss.backward()
            return loss

        steps.append(lambda optimizer=optimizer, run=run: optimizer.step(run))

    def loop():
        for step in steps:
            step()

    for _ in range(5 if K <= 40 else 2):
        nets.step(losses)
        loop()
    together = torch.cat([t.detach().reshape(K, -1) for t in nets.params], 1)
    apart = torch.stack([torch.cat([t.detach().reshape(-1) for t in p]) for p in alone])
    if (together - apart).abs().max() > 1e-6:
        raise SystemExit("the ensemble and the loop disagree; nothing was timed")
    return {"loop": loop, "ensemble": lambda: nets.step(losses)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--rounds", type=positive, default=40)
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    runtime.threads(1)
    one_core()
    device = runtime.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, in convolutions too
    rows, scaling, peers, details = [], [], {}, {}
    for name, (model, x, y) in networks(device).items():
        ways, versions = steppers(model, x, y)
        peers.update(versions)
        gap, seconds = check_equal(ways)
        seconds = {way: t for way, t in seconds.items() if way in COMPILED}
        print(name, "first step, compiling and all (CPU s):", seconds, flush=True)
        times = alternate({k: step for k, (_, step) in ways.items()}, args.rounds)
        sgd, flat = times["SGD"][0], times["SGD, flat"][0]
        size = sum(p.numel() for p in model.parameters())
        scaling += [at_size("a step", "parameters", size, way, t[0], peak(ways[way][1]))
                    for way, t in times.items()]  # fmt: skip
        best = min((t[0] for k, t in times.items() if not k.startswith(("ours", "SGD"))),
                   default=float("nan"))  # fmt: skip
        for way, (middle, spread) in times.items():
            if not way.startswith("SGD"):  # SGD is the unit
                faster = best / middle if best == best and "ours" in way else "-"
                rows.append({"network": name, "step": way,
                             "x SGD": median(middle / sgd, spread / sgd, args.rounds),
                             "x flat SGD": middle / flat,
                             "speed-up over the best peer": faster})  # fmt: skip
        details[name] = {"largest difference of weights after 20 steps": gap,
                         "first step, compiling and all (CPU s)": seconds}  # fmt: skip
    ratios = {}
    for K in (40, 1024) if device.type == "cuda" else (40,):
        few = (
            {"rounds": 3, "inner": 1, "warmup": 1}
            if K > 40
            else {"rounds": args.rounds, "inner": 2}
        )
        times = alternate(ensemble(device, K), **few)
        ratios[K] = times["loop"][0] / times["ensemble"][0]
        rows.append({"network": f"{K} networks 64-64-64-10, batch 25", "step": "ours, together",
                     "x SGD": "-", "x flat SGD": "-",
                     "speed-up over the best peer": {"median": ratios[K], "n": few["rounds"],
                                                     "format": "{:.2f} over our loop"}})  # fmt: skip
    show(rows, FORMATS)
    if args.no_record:
        return
    kind = "gpu" if device.type == "cuda" else "cpu"
    note = ("One training step, relative to torch's fused SGD and to the same SGD on one flat "
            "buffer; ± is half the range of the middle 68 % of the rounds. All SAM variants were "
            "checked to take the same steps first.")  # fmt: skip
    made = provenance.record({"table": rows, "formats": FORMATS, "scaling": scaling,
                           "ensemble speed-up over a loop": ratios, "checks": details},
                          config={"rho": RHO, **SETTINGS, "rounds": args.rounds},
                          seeds=[0], repeats=args.rounds, peers=peers, note=note)  # fmt: skip
    path = Path(__file__).parent.parent / "results" / "sam" / f"steps_{kind}.json"
    provenance.write_record(path, made)


if __name__ == "__main__":
    main()
