"""Eigensolvers and batched rides against their peers: python -m benchmarks.ridge_rider [--rounds 3]

Solvers: the four most negative eigenpairs of a tanh classifier on digits, after 200 steps of
descent, at 1,210 and 4,810 parameters, float32, one thread. Peers: scipy's eigsh over curvlinops'
product and over ours, with its own settings and with a wide basis; scipy's LOBPCG, with and without
a preconditioner; hessian-eigenthings at its own
setting and at one that converges; PyHessian (largest magnitudes); the whole Hessian. 'Off' is the
largest relative error of the four values, against the whole Hessian in float64.
Rides: B at once against one after the other, the same algorithm, the ends checked equal.
Writes results/ridge_rider/solvers_cpu.json. On a GPU (solvers_gpu.json): no rides, and a third
network of about a million parameters, whose eigenvalues are checked by Lanczos in float64.
"""

import os

# One thread for everybody: said before the libraries load.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import argparse
import contextlib
import importlib.metadata
import io
import statistics
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.timing import at_size, clock, one_core, peak, quotient, show
from collage import data, runtime
from collage.common.curvature import hvp, lanczos
from collage.ridge_rider import ride, ridges
from collage.ridge_rider.landscapes import Levers, Tanh
from experiments.program import positive
from tools import provenance
from tools.peers import absent

CASES = {1210: (16, 512), 4810: (64, 1797)}  # parameters: hidden units, pictures
LARGE = {999_985: (13_333, 512)}
FORMATS = {"time / ours": "{:.2f}", "seconds": "{:.2f}", "off": "{:.0e}"}


def problem(size, device):
    """A trained classifier: its module, its inputs, and the same as a list of parameters."""
    hidden, n = (CASES | LARGE)[size]
    x, y = data.digits()
    x, y = (x[:n] / 16).float().to(device), y[:n].to(device)
    g = runtime.generator(0)
    net = nn.Sequential(nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 10))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / p.shape[-1] ** 0.5 * (p.dim() > 1))
    net.to(device)
    for _ in range(200):
        grads = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
        with torch.no_grad():
            for p, d in zip(net.parameters(), grads, strict=True):
                p -= 0.5 * min(1, 64 / hidden) * d
    return net, x, y


def functional(net, x, y):
    names = [n for n, _ in net.named_parameters()]

    def loss(params):
        return F.cross_entropy(
            torch.func.functional_call(net, dict(zip(names, params, strict=True)), x), y
        )

    return loss, [p.detach() for p in net.parameters()]


def truth(net, x, y):
    """The lowest eigenvalues in float64, of large networks by Lanczos to the last digits."""
    loss, params = functional(net, x.double(), y)
    product = hvp(loss, [p.double() for p in params])
    size = sum(p.numel() for p in params)
    if size in LARGE:
        g = runtime.generator(3, x.device)
        return lanczos(product, size, 4, "SA", tol=1e-10, steps=1000, generator=g,
                       dtype=torch.float64).values  # fmt: skip
    eye = torch.eye(size, dtype=torch.float64, device=x.device)
    return torch.linalg.eigvalsh(torch.cat([product(rows) for rows in eye.split(256)]))[:4]


def from_scipy(product, size, device, **how):
    from scipy.sparse.linalg import LinearOperator, eigsh

    def matvec(v):
        return (
            product(torch.from_numpy(np.ascontiguousarray(v, np.float32)).ravel().to(device))
            .cpu()
            .numpy()
        )

    values = eigsh(LinearOperator((size, size), matvec, dtype=np.float32), 4, which="SA", **how)[0]
    return torch.from_numpy(np.sort(values))


def by_lobpcg(product, size, device, k=4, probes=0):
    """scipy's, in blocks of k products; preconditioned by the diagonal, as `probes` random signs show it."""
    from scipy.sparse.linalg import LinearOperator, lobpcg

    def matmat(v):
        rows = torch.from_numpy(np.ascontiguousarray(v.reshape(size, -1).T, np.float32))
        return product(rows.to(device)).cpu().numpy().T

    g = np.random.default_rng(2)
    how = {}
    if probes:
        signs = g.choice([-1.0, 1.0], (size, probes)).astype(np.float32)
        diagonal = np.abs((signs * matmat(signs)).mean(1))
        inverse = 1 / (diagonal + 0.1 * diagonal.max())
        how["M"] = LinearOperator((size, size), lambda v: inverse * v.ravel(), dtype=np.float32,
                                  matmat=lambda v: inverse[:, None] * v)  # fmt: skip
    operator = LinearOperator((size, size), matmat, matmat=matmat, dtype=np.float32)
    start = g.standard_normal((size, k)).astype(np.float32)
    values = lobpcg(operator, start, tol=1e-4, maxiter=300, largest=False, **how)[0]
    return torch.from_numpy(np.sort(values))


def solvers(net, x, y):
    """{name: function -> four eigenvalues}, and the peers that are missing."""
    loss, params = functional(net, x, y)
    size, device = sum(p.numel() for p in params), x.device
    g = runtime.generator(1, device)

    def ours():
        return lanczos(hvp(loss, params), size, 4, "SA", tol=2e-6, steps=600, generator=g,
                       device=device).values  # fmt: skip

    found = {
        "collage": ours,
        "eigsh, our product": lambda: from_scipy(hvp(loss, params), size, device, tol=1e-4),
        "eigsh, our product, basis of 100": lambda: from_scipy(
            hvp(loss, params), size, device, tol=1e-4, ncv=100),
        "LOBPCG, our product": lambda: by_lobpcg(hvp(loss, params), size, device),
        "LOBPCG, our product, preconditioned": lambda: by_lobpcg(
            hvp(loss, params), size, device, probes=32),
        "whole Hessian": lambda: torch.linalg.eigvalsh(
            hvp(loss, params)(torch.eye(size, device=device)))[:4],
    }  # fmt: skip
    with contextlib.suppress(ImportError):
        from curvlinops import HessianLinearOperator

        def curvlinops():
            how = {"progressbar": False, "check_deterministic": False}
            named = dict(net.named_parameters())
            try:
                H = HessianLinearOperator(net, nn.CrossEntropyLoss(), list(named.values()), [(x, y)], **how)  # fmt: skip
            except (AttributeError, TypeError, ValueError):  # the releases that want a dict
                H = HessianLinearOperator(net, nn.CrossEntropyLoss(), named, [(x, y)], **how)
            from scipy.sparse.linalg import eigsh

            return torch.from_numpy(np.sort(eigsh(H.to_scipy(), 4, which="SA", tol=1e-4)[0]))

        found["eigsh, curvlinops"] = curvlinops
    with contextlib.suppress(ImportError):
        import hessian_eigenthings as theirs

        def eigenthings(**how):
            H = theirs.HessianOperator(net, [(x, y)], lambda m, b: F.cross_entropy(m(b[0]), b[1]))
            return theirs.lanczos(H, k=4, which="SA", seed=0, **how).eigenvalues.sort()[0]

        found["hessian-eigenthings"] = eigenthings
        found["hessian-eigenthings, 150 steps"] = lambda: eigenthings(
            max_iter=150, reorthogonalize=True
        )
    with contextlib.suppress(ImportError):
        from pyhessian import hessian

        def pyhessian():
            H = hessian(net, nn.CrossEntropyLoss(), data=(x, y), cuda=x.is_cuda)
            return torch.tensor(H.eigenvalues(maxIter=200, tol=1e-3, top_n=4)[0])

        found["PyHessian (largest magnitude)"] = pyhessian
    return found


def times(functions, rounds, warmup=1):
    """CPU seconds of each call, in alternation, after one to warm up; and what each returned."""
    spent, answers = {name: [] for name in functions}, {}
    for i in range(rounds + warmup):
        for name, function in functions.items():
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                begin = clock()
                answers[name] = function()
                if i >= warmup:
                    spent[name].append(clock() - begin)
    return spent, answers


def ratio(spent, ours):
    """Medians' ratio, and what half the ranges from the 16th to the 84th percentile make of it."""
    if len(spent) == 1:
        return spent[0] / statistics.median(ours)
    pairs = [
        (statistics.median(t), np.ptp(np.quantile(t, (0.16, 0.84))) / 2) for t in (spent, ours)
    ]
    return quotient(*pairs, n=len(spent))


def compare_solvers(size, rounds, device, scaling):
    net, x, y = problem(size, device)
    exact = truth(net.double(), x, y)
    net.float()
    functions = solvers(net, x, y)
    if size > 2000:
        functions.pop("whole Hessian")
    if size in LARGE:  # once each, after a call of ours to warm up; scipy's to about our accuracy
        loss, params = functional(net, x, y)
        functions = {
            "collage": functions["collage"],
            "eigsh, our product, basis of 100": lambda: from_scipy(
                hvp(loss, params), size, device, tol=1e-2, ncv=100),
        }  # fmt: skip
        functions["collage"]()
        seconds, answers = times(functions, 1, warmup=0)
    else:
        # From a random start a solver's count of products varies: the short ones are asked more often.
        seconds, answers = times(functions, rounds if size > 2000 else 4 * rounds)
    rows = []
    for name, t in seconds.items():
        ours = seconds["collage"]
        memory = peak(functions[name])
        scaling.append(at_size("4 ridges", "parameters", size, name, statistics.median(t), memory))
        off = ((answers[name].double().to(exact) - exact) / exact).abs().max().item()
        rows.append({"work": f"4 ridges, P = {size:,}", "program": name,
                     "time / ours": ratio(t, ours),
                     **({"seconds": statistics.median(t)} if device.type == "cuda" else {}),
                     "off": off if off < 0.5 else "not ridges",
                     "correct": "yes" if off < 1e-3 else "no"})  # fmt: skip
    assert rows[0]["correct"] == "yes", rows[0]
    return rows


def compare_rides(rounds, device):
    """64 rides at once and one after the other."""
    x, y = data.digits()
    net = Tanh((x[:512] / 16).float().to(device), y[:512].to(device), 16, 10)
    # A block of sixteen finds an eigenvalue that occurs sixteen times.
    g = runtime.generator(0, device)
    vectors = lanczos(hvp(net, net.saddle()), net.size, 16, "SA", tol=1e-3, steps=600, block=16,
                      generator=g, device=device).vectors  # fmt: skip
    mix = torch.randn(64, len(vectors), generator=runtime.generator(1)).to(vectors) @ vectors
    game = Levers(torch.tensor([1.0] * 7 + [0.8, 0.8, 0.6], dtype=torch.float64, device=device))
    few = ridges(game, game.saddle()).vectors
    levers = torch.randn(64, len(few), generator=runtime.generator(2)).to(few) @ few
    rows = []
    for name, loss, start, e, how in (
        ("levers, P = 20", game, game.saddle(), levers, {"step": 0.1, "most": 20}),
        ("digits, P = 1,210", net, net.saddle(), mix, {"step": 0.05, "most": 3})):  # fmt: skip

        def together(loss=loss, start=start, e=e, how=how):
            return ride(loss, start, e, **how).thetas

        def alone(loss=loss, start=start, e=e, how=how):
            return torch.cat([ride(loss, start, one[None], **how).thetas for one in e])

        seconds, answers = times({"at once": together, "one by one": alone}, rounds)
        off = (answers["at once"] - answers["one by one"]).abs().max().item()
        assert off < 1e-3, off
        rows.append({"work": f"64 rides, {name}", "program": "one after the other",
                     "time / ours": ratio(seconds["one by one"], seconds["at once"]),
                     "off": off, "correct": "yes"})  # fmt: skip
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--rounds", type=positive, default=3)
    args = parser.parse_args()
    runtime.threads(1)
    one_core()
    device = runtime.device()
    scaling = []
    rows = [row for size in CASES for row in compare_solvers(size, args.rounds, device, scaling)]
    if device.type == "cuda":
        show(rows, FORMATS)
        rows += [row for size in LARGE
                 for row in compare_solvers(size, args.rounds, device, scaling)]  # fmt: skip
    else:
        rows += compare_rides(max(2, args.rounds // 2), device)
    show(rows, FORMATS)
    peers = {}
    for package in ("scipy", "curvlinops-for-pytorch", "hessian-eigenthings", "pyhessian"):
        try:
            peers[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            absent(package)
    kind = "gpu" if device.type == "cuda" else "cpu"
    note = ("CPU time as a multiple of collage's; medians of alternating rounds, ± half the range from "
            "the 16th to the 84th percentile, of both. 'Off' is the largest relative error of the four "
            "eigenvalues, or the largest difference of two ends of a ride; eigenvalues off by more than "
            "0.1 % are not correct.")  # fmt: skip
    if device.type == "cuda":
        note = ("Wall time as a multiple of collage's on a GPU, where scipy's share of the work runs on "
                "the CPU; the median of alternating rounds, at a million parameters one run each. 'Off' "
                "is the largest relative error of the four eigenvalues; off by more than 0.1 % is not "
                "correct.")  # fmt: skip
    made = provenance.record({"table": rows, "formats": FORMATS, "scaling": scaling}, config={"rounds": args.rounds}, seeds=[0],
                          repeats=args.rounds, peers=peers, note=note)  # fmt: skip
    place = Path(__file__).resolve().parent.parent / "results" / "ridge_rider"
    provenance.write_record(place / f"solvers_{kind}.json", made)


if __name__ == "__main__":
    main()
