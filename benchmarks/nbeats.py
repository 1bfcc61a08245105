"""Training an ensemble of N-BEATS against its other homes: python -m benchmarks.nbeats [--rounds 3]

Interpretable networks, two stacks of three blocks that share weights, four hidden layers of one
width (neuralforecast and nbeats-pytorch know only one), H = 6, L = 24, batches of 128 windows of
192 series of births, MAPE, Adam, gradients clipped. E members with different first weights.
Peers: neuralforecast and darts through their own `fit`, and their networks and nbeats-pytorch's in a
bare loop over windows that lie ready; the network as one writes it down, in the same loop. Our `fit`
draws its windows itself. Before timing, our forecast is checked equal to neuralforecast's and to the
plain network's under the same weights. One thread. On a GPU, with width 256: ours, also with products
in bfloat16, against the network by hand, one member after the other.
Writes results/nbeats/fit_cpu.json or fit_gpu.json.
"""

import argparse
import contextlib
import io
import itertools
import logging
import statistics
import warnings
from pathlib import Path

import torch
from torch import nn

from benchmarks import jax_peers
from benchmarks.timing import at_size, clock, median, one_core, peak, show
from collage import data, runtime
from collage.common.train import train
from collage.nbeats import Ensemble, Member, NBeats, seasonal_basis, trend_basis
from collage.nbeats.core import shapes
from collage.nbeats.fast.compiled import CompiledGradient
from collage.nbeats.fast.gradient import Gradient, members_in_cache
from collage.page.records import shown
from experiments.program import positive
from tools import provenance
from tools.peers import peer

L, H, BATCH = 24, 6, 128


def panel():
    return list(data.panel("fertility").values())


def loss(y, f):
    return ((y - f).abs() / y.abs()).mean()


class Plain(nn.Module):
    """One interpretable network, as one writes it down."""

    def __init__(self, width, layers=4):
        super().__init__()
        pairs = ((trend_basis(H, H), trend_basis(L, L)),
                 (seasonal_basis(H, H), seasonal_basis(L, H)))  # fmt: skip
        self.networks = nn.ModuleList()
        for i, (ahead, back) in enumerate(pairs):
            self.register_buffer(f"ahead{i}", ahead)
            self.register_buffer(f"back{i}", back)
            sizes = [L, *[width] * layers, len(ahead) + len(back)]
            steps = [nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
            mixed = itertools.chain(*((step, nn.ReLU()) for step in steps[:-1]))
            self.networks.append(nn.Sequential(*mixed, steps[-1]))

    def forward(self, x):
        total, x = x[:, -1:], x.flip(-1)
        for i, network in enumerate(self.networks):
            ahead, back = getattr(self, f"ahead{i}"), getattr(self, f"back{i}")
            for _ in range(3):
                parameters = network(x)
                total = total + parameters[:, : len(ahead)] @ ahead
                x = x - parameters[:, len(ahead) :] @ back
        return total


def neural(width, **training):
    from neuralforecast.losses.pytorch import MAPE
    from neuralforecast.models import NBEATS

    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False,
             "enable_checkpointing": False, "enable_model_summary": False}  # fmt: skip
    return NBEATS(h=H, input_size=L, n_harmonics=1, n_basis=2, stack_types=["trend", "seasonality"],
                  n_blocks=[3, 3], mlp_units=3 * [[width, width]], shared_weights=True,
                  loss=MAPE(), windows_batch_size=BATCH, batch_size=192, learning_rate=1e-3,
                  gradient_clip_val=1.0, **training, **quiet)  # fmt: skip


def neural_forward(network, x):
    return network({"insample_y": x[..., None], "insample_mask": torch.ones_like(x)[..., None]})[
        ..., 0
    ]


def darts_network(width):
    from darts.models.forecasting.nbeats import _NBEATSModule

    return _NBEATSModule(
        input_dim=1, output_dim=1, nr_params=1, generic_architecture=False, num_stacks=2,
        num_blocks=3, num_layers=4, layer_widths=[width, width], expansion_coefficient_dim=5,
        trend_polynomial_degree=2, batch_norm=False, dropout=0.0, activation="ReLU",
        input_chunk_length=L, output_chunk_length=H, train_sample_shape=None)  # fmt: skip


def darts_forward(network, x):
    from darts.models.forecasting.pl_forecasting_module import PLModuleInput

    return network(PLModuleInput(past_target=x[..., None])).prediction[:, :, 0, 0]


def pytorch_network(width):
    from nbeats_pytorch.model import NBeatsNet

    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it is made of
        return NBeatsNet(stack_types=("trend", "seasonality"), nb_blocks_per_stack=3,
                         forecast_length=H, backcast_length=L, thetas_dim=(3, 6),
                         share_weights_in_stack=True, hidden_layer_units=width)  # fmt: skip


def bare(make, forward):
    """One network after the other, on windows that lie ready."""

    def run(members, width, steps, device="cpu"):
        g = runtime.generator(0)
        x, y = (2 + torch.rand(members, BATCH, n, generator=g) for n in (L, H))
        x, y = x.to(device), y.to(device)
        networks = [make(width).to(device) for _ in range(members)]
        weights = [[p for p in n.parameters() if p.requires_grad] for n in networks]
        adams = [torch.optim.Adam(w, 1e-3, fused=True) for w in weights]

        def train_each(count):
            for network, w, adam, xs, ys in zip(networks, weights, adams, x, y, strict=True):
                for _ in range(count):
                    adam.zero_grad()
                    loss(ys, forward(network, xs)).backward()
                    nn.utils.clip_grad_norm_(w, 1.0)
                    adam.step()

        train_each(2)
        begin = clock()
        train_each(steps)
        return members * BATCH * steps / (clock() - begin), peak(lambda: train_each(1))

    return run


def ours(members, width, steps, device="cpu", product=None, compiled=False):
    """`fit` and `forecast`; a short call first, for what that costs.

    On a CPU in ensembles of as many members as its cache holds.
    """
    ensemble = [Member(L, "mape", i) for i in range(members)]
    series = [s.to(device) for s in panel()]
    stacks, at_once = [("trend", width), ("seasonality", width)], members
    if device == "cpu":
        at_once = members_in_cache(shapes(stacks, 4, L, H), 3, BATCH)

    def once(count):
        begin = clock()
        for i in range(0, members, at_once):
            some = Ensemble(ensemble[i : i + at_once], H, stacks=stacks, device=device)
            some.fit(series, count, batch=BATCH, product=product, compiled=compiled)
            some.forecast(series)
        return clock() - begin

    once(2)
    first = once(3)
    return members * BATCH * steps / (once(steps + 3) - first), peak(lambda: once(1))


def jitted(mapped):
    """The network, clipping and Adam in JAX, on windows that lie ready; compiled before it is timed."""

    def run(members, width, steps):
        begin, (step, _) = clock(), jax_step(members, width, mapped)
        step()
        print(f"JAX: compiling took {clock() - begin:.1f} s of CPU time", flush=True)
        step()
        begin = clock()
        for _ in range(steps):
            step()
        return members * BATCH * steps / (clock() - begin), peak(step)

    return run


def jax_step(members, width, mapped, kind=torch.float32, others=None):
    """The jitted step from our first weights; others: to which ensemble, windows and targets go."""
    stacks = [("trend", width), ("seasonality", width)]
    ensemble = Ensemble([Member(L, "mape", i) for i in range(members)], H, stacks=stacks).to(kind)
    x, y = (2 + torch.rand(members, BATCH, n, generator=runtime.generator(n), dtype=kind)
            for n in (L, H))  # fmt: skip
    pairs = (trend_basis(H, H), trend_basis(L, L)), (seasonal_basis(H, H), seasonal_basis(L, H))
    bases = [(ahead.to(kind), back.to(kind)) for ahead, back in pairs]
    if others is not None:
        others += [ensemble, x, y]
    return jax_peers.nbeats_step(ensemble.tensors(), bases, x, y, mapped)


def check_training(steps=20):
    """JAX's weights and ours, plain and compiled, after so many steps in double precision.

    In single precision Adam enlarges what rounding leaves, in the first steps to the size of its own.
    """
    import jax

    with jax.enable_x64(True):
        others = []
        step, weights = jax_step(2, 16, True, torch.float64, others)
        for _ in range(steps):
            step()
        its, (ensemble, x, y) = weights(), others
    seen, known = torch.ones_like(x, dtype=torch.bool), torch.ones_like(y, dtype=torch.bool)
    for name, make in (("plain", Gradient), ("compiled", CompiledGradient)):
        w = nn.Parameter(ensemble.weights.detach().clone())
        gradient = make(ensemble.networks, w, BATCH)
        train(w, lambda i: (x, seen, y, known), gradient, steps, optimizer=torch.optim.Adam,
              rate=lambda i: 1e-3, clip=1.0)  # fmt: skip
        gap = (w.detach() - its).abs().max().item()
        print(
            f"weights after {steps} steps, ours ({name}) and JAX: differ by {gap:.1e}", flush=True
        )
        if gap > 1e-6:
            raise SystemExit("JAX trains otherwise; no record is written")


def neural_fit(members, width, steps):
    """One model through NeuralForecast.fit; a short fit is subtracted. More models come in turn."""
    import pandas as pd
    from neuralforecast import NeuralForecast

    frame = pd.concat([pd.DataFrame({"unique_id": str(i), "ds": range(len(s)), "y": s.numpy()})
                       for i, s in enumerate(panel())])  # fmt: skip

    def once(count):
        begin = clock()
        NeuralForecast([neural(width, max_steps=count)], freq=1).fit(frame)
        return clock() - begin

    first = once(3)
    return BATCH * steps / (once(steps + 3) - first), peak(lambda: once(1))


def darts_fit(members, width, steps):
    """One model through NBEATSModel.fit; a short fit is subtracted."""
    from darts import TimeSeries
    from darts.models import NBEATSModel

    class Mape(nn.Module):
        def forward(self, f, y):
            return loss(y, f)

    series = [TimeSeries.from_values(s.numpy()) for s in panel()]

    def once(count):
        model = NBEATSModel(
            L, H, generic_architecture=False, num_blocks=3, num_layers=4, layer_widths=width,
            trend_polynomial_degree=2, batch_size=BATCH, n_epochs=1000, loss_fn=Mape(),
            pl_trainer_kwargs={"max_steps": count, "accelerator": "cpu", "logger": False,
                               "enable_progress_bar": False, "enable_model_summary": False,
                               "enable_checkpointing": False, "gradient_clip_val": 1.0})  # fmt: skip
        begin = clock()
        model.fit(series)
        return clock() - begin

    first = once(3)
    return BATCH * steps / (once(steps + 3) - first), peak(lambda: once(1))


def check_equal(width, with_neural):
    """Our forecast against the plain network's and neuralforecast's under our weights."""
    mine = NBeats(L, H, stacks=[("trend", width), ("seasonality", width)])
    x = 2 + torch.rand(64, L, generator=runtime.generator(1))
    others = {"plain": (Plain(width), lambda n: n.networks, lambda n, x: n(x))}
    if with_neural:  # which has no ReLU after its first layer; for this check it gets one
        changed = neural(width)
        for block in (changed.blocks[0], changed.blocks[3]):
            block.layers.insert(1, nn.ReLU())
        others["neuralforecast"] = changed, lambda n: (n.blocks[0], n.blocks[3]), neural_forward
    for name, (network, parts, forward) in others.items():
        with torch.no_grad():
            for part, tensors in zip(parts(network), mine.ensemble.tensors(), strict=True):
                places = [p for p in part.parameters() if p.requires_grad]
                for place, w in zip(places, tensors, strict=True):
                    w = w[0]
                    place.copy_(w.T if place.dim() == 2 else w[0])
                if name == "neuralforecast":  # backcast first, whose sines have the other sign
                    for place in places[-2:]:
                        place.copy_(place.roll(len(place) // 2, 0))
                        if len(place) == 2 * H:
                            place[H // 2 : H] *= -1
            gap = (forward(network, x) - mine(x)).abs().max().item()
        print(f"forecasts under the same weights, ours and {name}: differ by {gap:.1e}")
        if gap > 1e-4:
            raise SystemExit(f"{name} gives another answer; no record is written")


def candidates(gpu):
    if gpu:
        return {"ours": (lambda *a: ours(*a, "cuda"), True),
                "ours, bfloat16 products": (lambda *a: ours(*a, "cuda", torch.bfloat16), True),
                "by hand, one after the other":
                    (lambda *a: bare(Plain, lambda n, x: n(x))(*a, "cuda"), False)}, {}  # fmt: skip
    found = {"ours": (ours, True),
             "ours, compiled": (lambda *a: ours(*a, compiled=True), True), "by hand, one after the other":
             (bare(Plain, lambda n, x: n(x)), True)}  # fmt: skip
    peers = {}
    if version := jax_peers.usable(anywhere=True):
        peers["jax"] = version
        found |= {"JAX, all members at once": (jitted(False), True),
                  "JAX, one member after the other": (jitted(True), True)}  # fmt: skip
    for package, name, entries in (
            ("neuralforecast", "neuralforecast", {"network only": (bare(neural, neural_forward), True),
                                                  "its fit": (neural_fit, False)}),
            ("darts", "darts", {"network only": (bare(darts_network, darts_forward), True),
                                "its fit": (darts_fit, False)}),
            ("nbeats_pytorch", "nbeats-pytorch",
             {"network only": (bare(pytorch_network, lambda n, x: n(x)[1]), True)})):  # fmt: skip
        if (module := peer(package)) is None:
            continue
        peers[name] = module[1]
        found |= {f"{name}, {how}": entry for how, entry in entries.items()}
    return found, peers


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    runtime.threads(1)
    one_core()
    gpu = torch.cuda.is_available()
    found, peers = candidates(gpu)
    check_equal(64, "neuralforecast" in peers)
    if "jax" in peers:
        check_training()
    rows, formats, scaling = {name: {"program": name} for name in found}, {}, []
    cases = ((256,), (1, 6, 18, 60, 180)) if gpu else ((64, 256), (1, 6, 18))
    for width, members in itertools.product(*cases):
        steps = max(3, 12_000 // (members * width))
        if gpu:
            steps = 1000 if members <= 18 else 400
        rates, memory = {name: [] for name in found}, {}
        for _ in range(args.rounds):
            for name, (run, every) in found.items():
                # What fits one model at a time is no faster for many.
                if every or members == 1:
                    rate, memory[name] = run(members, width, steps)
                    rates[name].append(rate)
        if gpu and members == 1:
            single = rates
        # On a GPU what one model at a time takes is worth a comparison with any number.
        alone = {name: r or single[name] for name, r in rates.items() if r or gpu}
        base = statistics.median(alone["ours"])
        for name, r in alone.items():
            ratio = [base / v for v in r]
            half = (max(ratio) - min(ratio)) / 2
            work, rate = f"width {width}, E = {members}", f"{statistics.median(r):,.0f} windows/s"
            cell = median(statistics.median(ratio), half, len(ratio))
            if gpu and name.startswith("ours"):
                cell["format"] = f"{{:.2f}} ({rate})"
            rows[name][work], formats[work] = cell, "{:.2f}"
            step = members * BATCH / statistics.median(r)
            scaling.append(at_size(f"training step, width {width}", "members", members, name, step,
                                   memory.get(name)))  # fmt: skip
            print(name, width, members, shown(cell, "{:.2f}"), rate, flush=True)
    heads = list(rows["ours"])
    rows = [{head: row.get(head, "-") for head in heads} for row in rows.values()]
    show(rows, formats)
    if args.no_record:
        return
    note = (f"Training interpretable networks on {'one GPU' if gpu else 'one CPU thread'}: time for "
            f"the same number of windows as a multiple of ours, batches of {BATCH} (± is half the "
            "range over rounds). 'Network only' is a peer's network in a bare loop over windows that "
            "lie ready; 'its fit' is what a user calls. All but ours train one member after the "
            "other. Checked for equal forecasts under equal weights: the network by hand, and "
            "neuralforecast's with a ReLU after its first layer, where it has none; darts and "
            "nbeats-pytorch have other bases and no level.")  # fmt: skip
    if gpu:
        note = (f"Training interpretable networks of width 256 on one GPU: time for the same number of "
                f"windows as a multiple of ours, batches of {BATCH}, wall time (± is half the range over "
                "rounds). Ours trains E members as one stack, a step as a CUDA graph, its windows drawn "
                "on the way; by hand, E members take E times what one takes, a plain loop over windows "
                "that lie ready. Checked for equal forecasts under equal weights.")  # fmt: skip
    made = provenance.record({"table": rows, "formats": formats, "scaling": scaling}, config={"lookback": L, "horizon": H, "batch": BATCH},
                          seeds=[0], repeats=args.rounds, peers=peers, note=note)  # fmt: skip
    place = Path(__file__).parent.parent / "results" / "nbeats"
    provenance.write_record(place / f"fit_{'gpu' if gpu else 'cpu'}.json", made)


if __name__ == "__main__":
    main()
