"""The summary scripts: they run, stand alone, stay short, and are the package's methods."""

import ast
import importlib.util
import json
import runpy
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from collage import bmg, convex_hull, nbeats, sam, sensory_neuron
from collage.convex_hull.core import wolfe
from collage.decision_transformer import core as transformer
from collage.nbeats import core as stacking
from collage.page.claims import claims
from collage.pes import core as strategies
from collage.pes.batch import unrolled
from collage.ridge_rider import ride, ridges

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "chapters" / "scripts"
NAMES = sorted(path.stem for path in SCRIPTS.glob("*.py"))
ALLOWED = {"torch", "numpy", "matplotlib"} | sys.stdlib_module_names
SLOW = {"decision_transformer", "sensory_neuron"}  # two or three seconds more than the others


def script(name):
    """A script as a module, its experiment not run."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def close(a, b, tol=1e-6):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tol * b.abs().max().clamp(min=1)


def test_every_paper_has_its_script():
    assert set(claims()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_stands_alone_and_is_short(name):
    text = (SCRIPTS / f"{name}.py").read_text()
    lines, tree = text.splitlines(), ast.parse(text)
    assert len(lines) <= 150
    assert [i for i, line in enumerate(lines, 1) if len(line) > 88] == []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= ALLOWED
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module.split(".")[0] in ALLOWED
    opening = ast.get_docstring(tree)
    for part in ("arXiv ", "The idea:", "What you will see:", "    python ", "MIT licence"):
        assert part in opening, part
    assert f"python {name}.py [figure.png] [--seed 0] [--quick]" in opening


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NAMES]
)
def test_runs_and_draws(name, tmp_path, monkeypatch, capsys):
    """As from the command line; the seed counts, and the same one gives the same words."""
    import matplotlib.pyplot as plt

    file = tmp_path / "figure.png"
    said = []
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    try:
        for seed in ("0", "0", "1") if name in ("bmg", "pes") else ("0",):
            words = [f"{name}.py", str(file), "--quick", "--seed", seed]
            monkeypatch.setattr(sys, "argv", words)
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
            said.append(capsys.readouterr())
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
        plt.close("all")
    assert len(said[0].out.splitlines()) >= 2 and said[0].err == ""
    assert "±" in said[0].out or "to" in said[0].out  # a result comes with its spread
    assert "nan" not in said[0].out
    assert said[0] == said[min(1, len(said) - 1)]
    assert len(said) == 1 or said[2] != said[0]
    picture = plt.imread(file)
    assert min(picture.shape[:2]) > 400 and picture.std() > 0.02


def test_sam_is_the_packages():
    ours, g = script("sam"), [torch.randn(s, generator=rng(1)).double() for s in ((3, 4), (5,))]
    for e, wanted in zip(ours.ascent(g, 0.3), sam.ascent(g, 0.3), strict=True):
        close(e, wanted)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(20, 4, generator=rng(2)).double(), torch.arange(20) % 3
    first, params = [p.detach().clone() for p in net.parameters()], list(net.parameters())

    def loss(weights):
        names = [name for name, _ in net.named_parameters()]
        return F.cross_entropy(torch.func.functional_call(net, dict(zip(names, weights)), x), y)

    value, slope = sam.gradient(loss, first, 0.3)
    said = ours.sam_step(
        lambda: F.cross_entropy(net(x), y), params, torch.optim.SGD(params, 0.1), 0.3
    )
    close(said, value)
    for p, old, g in zip(params, first, slope, strict=True):
        close(p.detach(), old - 0.1 * g)


def test_sam_step_that_fails_leaves_the_weights():
    ours, p = script("sam"), torch.ones(3, requires_grad=True)
    calls = iter((lambda: p.square().sum(), lambda: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        ours.sam_step(lambda: next(calls)(), [p], torch.optim.SGD([p], 0.1), 0.3)
    assert p.tolist() == [1, 1, 1]


def test_bmg_is_the_packages():
    ours, x = script("bmg"), torch.randn(6, 2, generator=rng()).double()
    w = torch.randn(6, generator=rng(1)).double() - 2

    def update(x, w, k=0):
        return x - w.exp()[:, None] * ours.CURVATURE * x.sin()

    def real_step(x, k=0):
        return x - 0.1 * ours.CURVATURE * x

    for K, L in ((1, 1), (2, 4)):
        found = ours.bmg(update, real_step, ours.squared, x, w, K, L)
        wanted = bmg.meta_gradient(update, x, w, K, L, ground_truth_step=real_step)
        close(found[0], wanted.gradient)
        close(found[1], wanted.onward)
    found = ours.mg(update, ours.f, x, w, 3)
    wanted = bmg.meta_gradient(update, x, w, 3, objective=ours.f)
    close(found[0], wanted.gradient)
    close(found[1], wanted.onward)


def test_nbeats_is_the_packages():
    ours = script("nbeats")
    close(ours.trend(7, 5), nbeats.trend_basis(7, 5))
    close(ours.season(20, 6), nbeats.seasonal_basis(20, 6), 1e-5)  # float32 far from the origin
    torch.manual_seed(0)
    net = ours.NBeats(8, 4, width=6).double()
    x = torch.randn(5, 8, generator=rng()).double()
    blocks = []
    for i, layers in enumerate(net.nets):
        weights = [p.detach().view(len(p), -1).T[None] for p in layers.parameters()]
        basis = stacking.Basis(getattr(net, f"ahead{i}"), getattr(net, f"back{i}"))
        blocks += 3 * [(weights, basis)]
    flipped = x.flip(-1)[None]
    wanted, *_ = stacking.stack_blocks(flipped, torch.ones_like(flipped), flipped[..., :1], blocks)
    with torch.no_grad():
        close(sum(net(x)), wanted[0])


def test_convex_hull_is_the_packages():
    ours, draw = script("convex_hull"), np.random.default_rng(0)
    for d in (1, 2, 6):
        x, new = draw.standard_normal((60, d)), 0.8 * draw.standard_normal((30, d))
        found = np.stack([ours.nearest(z, x) for z in new])
        close(torch.from_numpy(found), wolfe(torch.from_numpy(x), torch.from_numpy(new)))
        inside = convex_hull.membership(torch.from_numpy(x), torch.from_numpy(new)).inside
        assert [ours.inside(z, x) for z in new] == inside.tolist()
        assert d == 1 or 0 < inside.sum() < 30


def test_convex_hull_in_any_units():
    """Nanometres or gigametres: the same points are inside, the same distance away."""
    ours, draw = script("convex_hull"), np.random.default_rng(0)
    x, new = draw.standard_normal((50, 3)), draw.standard_normal((20, 3))
    wanted = [ours.inside(z, x) for z in new]
    assert 0 < sum(wanted) < 20
    for scale in (1e-9, 1.0, 1e9):
        assert [ours.inside(scale * z, scale * x) for z in new] == wanted
        assert ours.inside(scale * x.mean(0), scale * x)
        assert ours.inside(scale * x[0], scale * x[:1])  # nothing but itself
        for z in new:
            found = ours.nearest(scale * z, scale * x) / scale
            assert np.abs(found - ours.nearest(z, x)).max() < 1e-8


def test_minima_are_told_apart_by_distance():
    """0.049 and 0.051 round to two numbers, and are one place."""
    ends = torch.tensor([[0.049, 0.0], [0.051, 0.0], [1.0, 0.0]])
    close(script("ridge_rider").minima(ends), ends[[0, 2]])


def test_ridge_rider_is_the_packages():
    ours, middle = script("ridge_rider"), torch.zeros(2).double()
    ways = ours.ridges(ours.surface, middle)
    wanted = ridges(ours.surface, middle).vectors
    close((ways @ wanted.T).abs().sum(1), torch.ones(len(ways)).double())
    batch = ride(ours.surface, middle, ways, 0.1, keep=True)
    for i, e in enumerate(ways):
        path = ours.ride(ours.surface, middle, e, 0.1)
        close(path, batch.path[: len(path), i])
        assert len(path) - 1 == batch.steps[i]


def test_sensory_neuron_is_the_packages():
    agent = sensory_neuron.Agent(seed=1).double()
    ours = script("sensory_neuron").Agent().double()
    ours.Q = ours.Q.double()
    nn.utils.vector_to_parameters(agent.weights[0].detach(), ours.parameters())
    x = torch.randn(6, 3, 5, generator=rng()).double()  # (T, B, N)
    memory, folded, acted = agent.begin(3, 5), agent.fold(), []
    for reading in x:
        action, _, memory = agent.act(reading.T, memory, folded)
        acted.append(action[0].T)
    wanted = torch.stack(acted).detach()  # (T, B, 1)
    before = torch.cat([torch.zeros_like(wanted[:1]), wanted[:-1]])
    with torch.no_grad():
        close(ours(x, before)[0], wanted)
        close(ours(x[..., [3, 0, 4, 1, 2]], before)[0], wanted)  # in any order


def test_decision_transformer_is_the_packages():
    ours = script("decision_transformer")
    r = torch.randn(2, 5, generator=rng())
    ends = (torch.arange(10) % 5) == 4
    close(ours.returns_to_go(r).flatten(), transformer.returns_to_go(r.flatten(), ends))
    torch.manual_seed(0)
    net = ours.DecisionTransformer(11, 4, 10).double().eval()

    def affine(layer, part="", scale=1.0):
        weight, bias = getattr(layer, f"{part}weight").detach(), getattr(layer, f"{part}bias")
        weight = weight.T[None] if weight.dim() == 2 else weight.view(1, 1, -1)
        return transformer.Affine(weight * scale, bias.detach().view(1, 1, -1))

    blocks = [
        transformer.Block(
            affine(b.norm1), affine(b.self_attn, "in_proj_"), affine(b.self_attn.out_proj),
            affine(b.norm2), affine(b.linear1), affine(b.linear2))
        for b in net.blocks.layers
    ]  # fmt: skip
    state = transformer.Affine(net.s.weight.detach()[None], torch.zeros(1, 1, 32).double())
    parameters = transformer.Parameters(
        affine(net.R, scale=0.1), state, net.a.weight.detach()[None], net.t.weight.detach()[None],
        affine(net.norm), blocks, affine(net.blocks.norm), affine(net.head), None)  # fmt: skip
    R = 5 * torch.randn(3, 4, generator=rng()).double()
    s, a = (torch.randint(4, (3, 4), generator=rng(i)) for i in (1, 2))
    t = torch.arange(4).expand(3, 4)
    states = F.one_hot(s, 11).double()
    fields = (v[None] for v in (R, states, a, t))
    wanted, _ = transformer.predict(*fields, parameters, heads=2)
    with torch.no_grad():
        close(net(R, s, a, t), wanted[0])


def test_pes_is_the_packages():
    ours, N = script("pes"), 8
    theta = ours.START[None]
    state, other = ours.begin(1, N), tuple(v.view(1, 2, N // 2) for v in ours.begin(1, N))
    xi = total = torch.zeros(1, N // 2, 2).double()
    for u in range(3):
        eps = 0.3 * torch.randn(1, N // 2, 2, generator=rng(u)).double()
        g, state, xi = ours.pes(ours.toy, theta, state, xi, eps, 0.3, 10)
        step = strategies.pes(theta, eps, total, other, 10, 0.3)
        [(wanted, total, other)] = unrolled([step], ours.toy)
        close(g, wanted)
        close(xi, total)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_networks_answer_on_the_inputs_device():
    zeros = partial(torch.zeros, device="cuda")
    token = zeros(3, 4, dtype=torch.long)
    asked = (
        (script("nbeats").NBeats(8, 4), zeros(5, 8)),
        (script("decision_transformer").DecisionTransformer(11, 4, 10), zeros(3, 4), *3 * [token]),
        (script("sensory_neuron").Agent(), zeros(6, 3, 5), zeros(6, 3, 1)),
    )
    for net, *inputs in asked:
        answer = net.to("cuda")(*inputs)
        parts = answer if isinstance(answer, tuple) else (answer,)
        assert {part.device.type for part in parts if torch.is_tensor(part)} == {"cuda"}


def test_a_notebook_without_outputs():
    """Its cells are all there; nothing that was computed is."""
    sys.path.insert(0, str(ROOT / "_ext"))
    try:
        from downloads import bare, line
    finally:
        sys.path.pop(0)
    whole = json.loads((ROOT / "chapters" / "sam.ipynb").read_text())
    left = json.loads(bare(json.dumps(whole)))
    assert [c["source"] for c in left["cells"]] == [c["source"] for c in whole["cells"]]
    assert any(c.get("outputs") for c in whole["cells"])
    assert not any(c.get("outputs") or c.get("execution_count") for c in left["cells"])
    assert len(json.dumps(left)) < 0.3 * len(json.dumps(whole))
    for wanted in ("_sources/chapters/sam.ipynb", "downloads/sam.ipynb", "downloads/sam.py"):
        assert wanted in line("sam")
