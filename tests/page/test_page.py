"""Page elements: palette, pictures, slides, flipbooks, live panels, verdicts, exercises."""

import io
import itertools
import math
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
import yaml
from PIL import Image

from collage.page import Slide, check, claim, claims, conclude, demo, flipbook, live, style
from collage.page.claims import BASES, OUTCOMES, unfair
from collage.page.exercises import CHECKERS
from collage.page.exercises.ridge_rider import _careful
from collage.page.records import records

ROOT = Path(__file__).parents[2]


def dot(**values):
    figure, axes = plt.subplots(figsize=(1, 1))
    axes.plot(list(values.values()), "o")
    return figure


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_on_figures_and_verdicts_can_be_read():
    from collage.page.claims import GROUND

    assert contrast(style.INK, style.PAPER) > 7
    assert all(contrast(ground, ink) > 4.5 for ground, ink in GROUND.values())
    assert contrast(style.METHOD, style.PAPER) > 3 and contrast(style.PLAIN, style.PAPER) > 3


def test_figures_have_an_opaque_light_ground():
    style.use()
    image = Image.open(io.BytesIO(style.png(dot(a=1))))
    assert image.mode == "P"
    corner = image.convert("RGB").getpixel((0, 0))
    assert all(abs(a - b) < 8 for a, b in zip(corner, (0xFB, 0xFA, 0xF7), strict=True))


def test_flipbook_shows_the_frame_its_sliders_say():
    seen = []
    book = flipbook(lambda **v: (seen.append(v), dot(**v))[1], "two", start={"b": 2},
                    a=[1, 2], b={"x": 3, "y": 4, "z": 5})  # fmt: skip
    assert seen == [{"a": a, "b": b} for a, b in itertools.product((1, 2), (3, 4, 5))]
    html = book._repr_html_()
    inputs = re.findall(r'<input [^>]*value="(\d)" data-stride="(\d)" data-names="([^"]*)"', html)
    assert inputs == [("0", "3", "1|2"), ("2", "1", "x|y|z")]
    images = re.findall(r'<img alt="([^"]*)"[^>]*?( hidden)? src', html)
    assert [i for i, (_, hidden) in enumerate(images) if not hidden] == [2]
    assert images[2][0] == "two: a 1, b z" and len({alt for alt, _ in images}) == 6
    assert html == book._repr_html_() and "<script" not in html and "http" not in html
    assert html.count("<label") == 2 and html.count("<output") == 2


def test_demo_shows_a_picture_and_the_way_to_the_page():
    """Where no script runs: the picture, its alt text, and a link to the place in the public book."""
    shown = demo("sam", "wells & runs", dot(), alt='a "dot"')._repr_html_()
    assert 'data-demo="sam"' in shown and "wells &amp; runs" in shown
    assert 'alt="a &quot;dot&quot;"' in shown and "data:image/png;base64," in shown
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert f'href="{config["html"]["baseurl"]}chapters/sam.html#demo"' in shown
    with pytest.raises(ValueError, match="chapter: got 'swam'"):
        demo("swam", "no such chapter", dot(), alt="a dot")


def test_flipbook_bad_input():
    with pytest.raises(ValueError, match="sliders"):
        flipbook(dot, "none")
    with pytest.raises(ValueError, match="a: got"):
        flipbook(dot, "bar", a={"x|y": 1})


def test_live_panel_draws_anew_and_says_what_went_wrong():
    import ipywidgets as widgets

    def draw(a):
        if a > 2:
            raise ValueError("too much")
        return dot(a=a)

    slider = widgets.FloatSlider(value=1, min=0, max=3)
    panel = live(draw, "one", a=slider)
    image, note = panel.children[2:]
    first = bytes(image.value)
    assert Image.open(io.BytesIO(first)).size[0] > 50
    slider.value = 2
    assert bytes(image.value) != first
    slider.value = 3
    assert "too much" in note.value
    slider.value = 1
    assert note.value == "" and bytes(image.value) == first


def test_slide(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAGE_ASSETS", str(tmp_path))
    slide = Slide("sam", "ab", {"a": "The problem.", "b": "The idea."}, "Takeaway.")
    slide["a"].plot([1, 2])
    small = slide.show()
    kept = Image.open(tmp_path / "collages" / "sam.png")
    assert kept.size == (1600, 900) and Image.open(io.BytesIO(small.data)).size == (800, 450)
    with pytest.raises(ValueError, match="words, wanted"):
        Slide("sam", "a", {"a": "word " * 13}, "x")
    with pytest.raises(ValueError, match="captions"):
        Slide("sam", "ab", {"a": "only one"}, "x")
    with pytest.raises(ValueError, match="chapter"):
        Slide("nothing", "a", {"a": "x"}, "x")


def test_a_claim_that_fails_goes_on_and_the_last_cell_fails(capsys):
    claim("one is one", 1 == 1, settles="sam-3")
    assert capsys.readouterr().out == "✓ one is one  [bears on claim 3]\n"
    claim("one is two", torch.tensor(1) == 2, settles="sam-3")
    assert capsys.readouterr().out == "✗ one is two  [does not hold in this run]\n"
    with pytest.raises(AssertionError, match=r"1 of 2 claims .* one is two"):
        conclude()
    claim("one is two", True)  # run again, after a change
    conclude()
    assert capsys.readouterr().out.endswith("(2 of 2)\n")
    with pytest.raises(RuntimeError):  # several truth values are no verdict
        claim("all of them", torch.tensor([True, False]))


@pytest.mark.parametrize("chapter", claims())
def test_nothing_on_a_slide_is_cut_off(chapter):
    """The edges of the kept collage show nothing but its ground."""
    path = Path(__file__).parents[2] / "assets" / "collages" / f"{chapter}.png"
    pixels = torch.frombuffer(
        bytearray(Image.open(path).convert("RGB").tobytes()), dtype=torch.uint8
    )
    pixels = pixels.view(900, 1600, 3)
    for edge in (pixels[115:, :3], pixels[115:, -3:], pixels[-3:]):
        assert len(edge.reshape(-1, 3).unique(dim=0)) == 1


def test_claims_list_is_complete():
    for name, chapter in claims().items():
        wanted = {"number", "part", "title", "short", "authors", "year", "arxiv", "line", "claims"}
        assert wanted <= set(chapter), name
        assert chapter["part"] == (1 if chapter["number"] <= 36 else 2)
        for entry in chapter["claims"]:
            assert set(entry) - {"records"} == {"text", "how", "where", "outcome", "by", "verdict"}
            assert entry["by"] in BASES and (entry["by"] == "experiment") == ("records" in entry)
            assert entry["how"] in ("shown", "recorded", "paper") and entry["outcome"] in OUTCOMES
            assert (
                len({key == "paper" for key in (entry["how"], entry["outcome"], entry["by"])}) == 1
            )
            if entry["outcome"] == "holds":  # then the verdict does not take it back
                assert not re.match(r"(Not|No|In part|Largely)\b", entry["verdict"]), entry["text"]
            if entry["outcome"] == "fails":
                assert entry["verdict"].startswith("Not"), entry["text"]
    assert [c["number"] for c in claims().values()] == list(range(33, 41))


def test_an_experiment_tunes_every_method_and_judges_on_other_seeds():
    """Its records say how many settings each method had, the same for all, and what for."""
    named = [(name, run) for name, chapter in claims().items() for entry in chapter["claims"]
             for run in entry.get("records", ())]  # fmt: skip
    assert named
    for name, run in named:
        assert not unfair(records()[f"{name}/{run}"]), f"{name}/{run}"


def test_what_is_no_experiment():
    fair = {"table": [{"method": "ours"}, {"method": "baseline"}], "sweeps": {"ours": 4, "baseline": 4},
            "split": {"chosen on": "1 run", "judged on": "5 others"}}  # fmt: skip
    assert not unfair({"numbers": fair})
    for less, why in (({"sweeps": {"ours": 4}}, "no number of settings for baseline"),
                      ({"sweeps": {"ours": 12, "baseline": 4}}, "methods have 4 to 12 settings"),
                      ({"split": {"chosen on": "4 seeds", "judged on": "4 seeds"}}, "no split"),
                      ({"split": {}}, "no split")):  # fmt: skip
        (said,) = unfair({"numbers": fair | less})
        assert said.startswith(why)


def step(losses, w, rho, eta, v, at_top=False, keep=0.9, rows=False, together=False, total=False):
    """SAM's step over parts of a batch, and ways to get it wrong."""
    slopes = [torch.func.grad(loss)(w) for loss in losses]
    if together:
        slopes = [torch.stack(slopes).mean(0)] * len(losses)
    tops = [w + rho * g / (g.norm(dim=1, keepdim=True) if rows else g.norm()) for g in slopes]
    above = torch.stack([torch.func.grad(f)(top) for f, top in zip(losses, tops, strict=True)])
    v = keep * v + (above.sum(0) if total else above.mean(0))
    return (tops[0] if at_top else w) - eta * v, v


def in_float32(losses, w, rho, eta, v):
    return tuple(t.float() for t in step(losses, w, rho, eta, v))


def frank_wolfe(x, z, y, clip=True, sign=1):
    s = x[(sign * (x @ (z - y))).argmax()]
    t = (z - y) @ (s - y) / (s - y).square().sum().clamp(min=1e-30)
    return y + (t.clamp(0, 1) if clip else t) * (s - y)


def across(xi, eps, before, after, sigma, old=1.0, kept=0.0, pairs=False):
    """The estimate where a problem ends inside an unroll, and ways to get it wrong."""
    g = (before[0] - before[1]) @ (old * xi + eps) + (after[0] - after[1]) @ eps
    return g / (len(eps) * sigma**2 * (1 if pairs else 2)), eps + kept * xi


def count(L, H, a, b, coefficients=6, hidden=3):
    """The weights of an interpretable network."""
    return sum(L * w + hidden * w * w + (hidden + 1) * w + (w + 1) * out
               for w, out in ((a, coefficients), (b, 4 * ((H + 1) // 2))))  # fmt: skip


def stacked(x, seen, blocks, turn=True, level=1, masked=True):
    """Doubly residual stacking, right and wrong."""
    seen = seen.flip(-1) if turn else seen
    rest, total = (x.flip(-1) if turn else x) * seen, level * x[:, -1:]
    for block in blocks:
        back, ahead = block(rest)
        rest, total = rest - back, total + ahead
        rest = rest * seen if masked else rest
    return total


def waves(points, H, first=1, extra=True):
    """Waves of whole turns within H, and the fastest one."""
    k, j = torch.arange((H + 1) // 2).double(), torch.arange(points).double()
    angle = 2 * math.pi * torch.outer(k, j) / H
    return torch.cat([angle.cos(), angle[first:].sin(),
                      *([(math.pi * j).cos()[None]] if extra and H % 2 == 0 else [])])  # fmt: skip


def rider(loss, theta, e, alpha, **how):
    return _careful(loss, e, alpha, **how)


def padded_loss(model, rewards, s, a, lengths, cut=True, late=False, every=False):
    real = torch.arange(rewards.shape[1]) < lengths[:, None]
    R = (torch.where(real, rewards, 0) if cut else rewards).flip(1).cumsum(1).flip(1)
    logits = model(R - torch.where(real, rewards, 0) if late else R, s, a)
    each = torch.nn.functional.cross_entropy(logits.mT, a, reduction="none")
    if every:
        return ((each * real).sum(1) / lengths).mean()
    return each[real].mean() if cut else each.mean()


def asked_for(b, p, r, share=True):
    policy = b[:, None] * p
    return (policy / policy.sum(0) if share else policy).T @ (p @ r)


def coded(x, keys, queries, inner=torch.tanh, outer=torch.tanh):
    return outer(torch.einsum("bnm,bn->bm", inner(keys @ queries.T), x))


def filled(x, keys, queries):
    code = torch.zeros(len(x), len(queries))
    for i in range(x.shape[1]):
        code += (keys[:, i] @ queries.T).tanh() * x[:, i, None]
    return code.tanh()


def coin(p, R, r):
    return p * R + (1 - p) * r, math.sqrt(p * (1 - p)) * abs(R - r)


def saved(X, V, b, capped=True):
    fast = min(V, math.sqrt(4 * b * X)) if capped else V
    return (fast - fast**3 / (12 * b * X)) / V


def by_hand(h, x, w, L, alpha):
    move = -w.exp() * h * x
    student = onward = x + move
    for _ in range(L - 1):
        onward = onward - w.exp() * h * onward
    target = onward - alpha * h * onward
    return ((student - target) * move).sum(), onward


def one_step_rate(h, sigma, x):
    return (h**2 * x**2).sum() / (h**3 * x**2 + h * sigma**2).sum()


ANSWERS = {
    "sam-1": (
        [step, in_float32],
        [lambda *args: step(*args, at_top=True), lambda *args: step(*args, keep=0.0),
         lambda *args: step(*args, rows=True), lambda *args: step(*args, together=True),
         lambda *args: step(*args, total=True), lambda losses, w, rho, eta, v: step(losses, w, 0.05, 0.1, v),
         lambda losses, w, rho, eta, v: (w, v), lambda *args: None],
    ),
    "sam-2": (
        [lambda a, eta, rho, decay: eta * a * rho / (2 - eta * (a + decay))],
        [lambda a, eta, rho, decay: eta * a * rho / (2 - eta * a), lambda a, *rest: a, 3],
    ),
    "sam-3": ([10, 10.0, torch.tensor(10)], [2.3026, 1, 64, None]),
    "convex_hull-1": ([frank_wolfe, lambda x, z, y: frank_wolfe(x.float(), z.float(), y.float()),
                       lambda x, z, y: frank_wolfe(x, z, y).tolist()],
                      [lambda x, z, y: frank_wolfe(x, z, y, clip=False), lambda x, z, y: None,
                       lambda x, z, y: frank_wolfe(x, z, y, sign=-1), lambda x, z, y: y,
                       lambda x, z, y: x, lambda x, z, y: x[(x @ (z - y)).argmax()]]),
    "convex_hull-2": ([lambda N, M: N / (N + M) * (N - 1) / (N + M - 1),
                       lambda N, M: torch.tensor(N * (N - 1) / ((N + M) * (N + M - 1)))],
                      [lambda N, M: ((N - 1) / (N + 1)) ** M, lambda N, M: (N - 1) / (N + M),
                       lambda N, M: (N / (N + M)) ** 2, lambda N, M: 1 / 0, 7]),
    "convex_hull-3": ([lambda p, d, s: 2 * p * (2 * s) ** d],
                      [lambda p, d, s: p * (2 * s) ** d, lambda p, d, s: 2 * p * 2**d,
                       lambda p, d, s: 2 * p * (2 / s) ** d, None]),
    "convex_hull-4": ([[0, 0, -1], (0, 0, -1), torch.tensor([0, 0, -1])],
                      [[0, 0, 1], [1, 0, -1], [0, -1, -1], [0, 0], 0, None, [0, 0, -0.5]]),
    "pes-1": ([across, lambda *a: tuple(t.float() for t in across(*a)),
               lambda *a: [t.tolist() for t in across(*a)]],
              [lambda *a: across(*a, old=0.0), lambda *a: across(*a, kept=1.0),
               lambda *a: across(*a, pairs=True), lambda *a: across(*a)[0], lambda *a: None,
               lambda xi, eps, before, after, sigma: across(xi, eps, before + after, 0 * after, sigma)]),
    "pes-2": ([lambda p, w: p / (2 * (p + 1)), lambda p, w: torch.tensor(p / (2 * (p + 1))),
               lambda p, w: [p / (2 * (p + 1))]],
              [lambda p, w: 0.5, lambda p, w: 1 / w, lambda p, w: p / (p + 1), lambda p, w: None, None]),
    "pes-3": ([lambda theta, eta, n: (theta + 1 / 6) * (1 + 6 * eta) ** n - 1 / 6,
               lambda theta, eta, n: torch.tensor((theta + 1 / 6) * (1 + 6 * eta) ** n - 1 / 6)],
              [lambda theta, eta, n: theta * (1 + 6 * eta) ** n,
               lambda theta, eta, n: (theta + 1 / 6) * (1 - 6 * eta) ** n - 1 / 6, "up"]),
    "pes-4": ([0.989, torch.tensor(0.99), [0.987]], [0.5, 0.9, 0.98, 0.985, 1, 1.5, "all", None]),
    "nbeats-1": ([count], [lambda *a: count(*a, coefficients=3), lambda *a: count(*a, hidden=4),
                           lambda L, H, a, b: 3 * count(L, H, a, b), lambda *a: None,
                           lambda L, H, a, b: count(L, H, b, a)]),
    "nbeats-2": ([stacked, lambda x, s, b: stacked(x, s, b).float(),
                  lambda x, s, b: stacked(x, s, b).tolist()], [lambda *a: stacked(*a, turn=False), lambda *a: stacked(*a, level=0),
                             lambda *a: stacked(*a, masked=False), lambda *a: None,
                             lambda *a: stacked(*a)[:, :1]]),
    "nbeats-3": ([waves, lambda points, H: waves(points, H).float(),
                  lambda points, H: waves(points, H).tolist()], [lambda *a: waves(*a, first=0), lambda *a: waves(*a, extra=False),
                           lambda points, H: waves(points, points), lambda *a: None]),
    "nbeats-4": ([lambda one, two, k: 2 * two - one + 2 * (one - two) / k,
                  lambda one, two, k: torch.tensor(2 * two - one + 2 * (one - two) / k)],
                 [lambda one, two, k: one / k, lambda one, two, k: two + (one - two) / k, None,
                  lambda *a: None]),
    "ridge_rider-1": ([rider, lambda loss, t, e, alpha: rider(loss, t.float(), e.float(), alpha),
                       lambda *a: [rider(*a)[0].tolist(), float(rider(*a)[1])]],
                      [lambda *a: rider(*a, least=0.0), lambda *a: rider(*a, restore=True),
                       lambda *a: rider(*a, signed=False), lambda *a: rider(*a)[0],
                       lambda *a: (rider(*a)[0], rider(*a)[1] + 1), lambda *a: (rider(*a)[0][None], 1),
                       lambda *a: (a[1], 0), None]),
    "ridge_rider-2": ([1.0, 1.1, torch.tensor(1.2), 0.9], [0.1, 0.5, 2.0, 3, "wide", None, [1, 2]]),
    "ridge_rider-3": ([lambda n, r: -r / n**2, lambda n, r: torch.tensor([-r / n**2])],
                      [lambda n, r: -r / n, lambda n, r: r / n**2, lambda n, r: None, lambda n, r: [1, 2],
                       -0.25, None]),
    "ridge_rider-4": ([(0.8, 0.4), [0.8, 0.38], torch.tensor([0.7987, 0.3911])],
                      [(0.4, 0.4), (0.6, 0.6), (0.8, 0.8), (0.8, 1 / 7), (1, 0.4), 0.8, None, "both"]),
    "ridge_rider-5": ([lambda K, D, h: (h * min(K - 1, D), min(K - 1, D)),
                       lambda K, D, h: torch.tensor([h * min(K - 1, D), min(K - 1, D)])],
                      [lambda K, D, h: (h * (K - 1), K - 1), lambda K, D, h: (h * K, K),
                       lambda K, D, h: (h * min(K - 1, D) + 0.9, min(K - 1, D) + 0.4),
                       lambda K, D, h: (min(K - 1, D), min(K - 1, D)), lambda K, D, h: None,
                       lambda K, D, h: (None, None), (9, 3), None]),
    "decision_transformer-1": (
        [padded_loss, lambda *a: float(padded_loss(*a)), lambda *a: padded_loss(*a).double()],
        [lambda *a: padded_loss(*a, cut=False), lambda *a: padded_loss(*a, late=True),
         lambda *a: padded_loss(*a, every=True), lambda model, r, s, a, n: model(r, s, a), lambda *a: None],
    ),
    "decision_transformer-2": ([0.6, 3 / 5, torch.tensor(0.6)], [0.5, 0.4, 1, None, "high"]),
    "decision_transformer-3": (
        [asked_for, lambda b, p, r: asked_for(b, p, r).tolist(),
         lambda b, p, r: asked_for(b.double(), p.double(), r.double())],
        [lambda b, p, r: asked_for(b, p, r, share=False), lambda b, p, r: r, lambda b, p, r: b @ p * r,
         lambda b, p, r: (b @ p) @ r, lambda b, p, r: None],
    ),
    "decision_transformer-4": ([0, 0.0, torch.tensor(0)], [4, 100, None]),
    "sensory_neuron-1": (
        [coded, lambda *a: coded(*a).tolist(), lambda *a: coded(*a).double(), filled],
        [lambda *a: coded(*a, inner=lambda s: s.softmax(1)), lambda *a: coded(*a, inner=lambda s: s),
         lambda *a: coded(*a, outer=lambda s: s), lambda *a: coded(*a).T, lambda *a: coded(*a)[0],
         lambda x, keys, queries: coded(x / x.shape[1], keys, queries), lambda *a: None, 7],
    ),
    "sensory_neuron-2": ([math.tanh(3 * math.atanh(0.5)), 0.93, torch.tensor(13 / 14)],
                         [0.5, 1.5, math.tanh(1.5), math.tanh(2 * math.atanh(0.5)), 1, None, "more"]),
    "sensory_neuron-3": ([1 / 3, 0.333, torch.tensor(1 / 3)], [1, 3, 0.5, 2 / 3, 0.1, None]),
    "sensory_neuron-4": ([coin, lambda *a: torch.tensor(coin(*a)), lambda *a: list(coin(*a))],
                         [lambda p, R, r: (p * R, coin(p, R, r)[1]),
                          lambda p, R, r: (coin(p, R, r)[0], math.sqrt(p * (1 - p)) * (R - r)),
                          lambda p, R, r: (coin(p, R, r)[0], p * (1 - p) * (R - r) ** 2),
                          lambda p, R, r: (coin(p, R, r)[0], p * (1 - p) * abs(R - r)),
                          lambda p, R, r: coin(p, R, r)[0], lambda p, R, r: coin(p, R, r)[::-1],
                          lambda *a: None]),
    "sensory_neuron-5": ([saved, lambda *a: torch.tensor(saved(*a))],
                         [lambda *a: saved(*a, capped=False), lambda X, V, b: 0.653,
                          lambda X, V, b: None]),
    "bmg-1": ([by_hand, lambda *a: [t.tolist() for t in by_hand(*a)],
               lambda h, x, w, L, alpha: by_hand(h.float(), x.float(), w.float(), L, alpha)],
              [lambda h, x, w, L, alpha: by_hand(h, x, w, L + 1, alpha),
               lambda h, x, w, L, alpha: by_hand(h, x, w, L, 0.0),
               lambda h, x, w, L, alpha: by_hand(h, x, w, L, w.exp()),
               lambda h, x, w, L, alpha: (-by_hand(h, x, w, L, alpha)[0], x),
               lambda h, x, w, L, alpha: (by_hand(h, x, w, L, alpha)[0], x),
               lambda h, x, w, L, alpha: (by_hand(h, x, w, L, alpha)[0] * torch.ones(3), x),
               lambda *a: by_hand(*a)[0], lambda *a: by_hand(*a)[::-1], lambda *a: None]),
    "bmg-2": ([one_step_rate, lambda h, s, x: one_step_rate(h.float(), s.float(), x.float())],
              [lambda h, s, x: one_step_rate(h, 0 * s, x), lambda h, s, x: 1 / h[0],
               lambda h, s, x: one_step_rate(h, h * s, x), lambda h, s, x: 1 / h,
               lambda h, s, x: None]),
    "bmg-3": ([lambda t, x: x.softmax(-1) - t.softmax(-1),
               lambda t, x: (x.float().softmax(-1) - t.float().softmax(-1)).tolist()],
              [lambda t, x: t.softmax(-1) - x.softmax(-1), lambda t, x: x - t, lambda t, x: None,
               lambda t, x: (x.softmax(-1) - t.softmax(-1)) / len(x),
               lambda t, x: (x.softmax(-1) - t.softmax(-1)).sum(0)]),
    "bmg-4": ([lambda K, L: (K + L, K + L - 1, K), lambda K, L: torch.tensor([K + L, K + L - 1, K])],
              [lambda K, L: (K + L - 1, K + L - 1, K), lambda K, L: (K + L, K, K), lambda K, L: (K,),
               lambda K, L: (K + L + 0.9, K + L - 0.5, K), lambda K, L: None]),
    "bmg-5": ([0.18, torch.tensor(0.179)], [-0.18, 0.46, 0.28, 1, None, "higher", lambda: 0.18]),
    "sam-4": ([0.5, math.sqrt(0.25)], [2, 0.25, 1, "half", None]),
}  # fmt: skip


def test_every_exercise_is_tried_here():
    assert set(ANSWERS) == set(CHECKERS)


@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_checkers_tell_right_from_wrong(name):
    right, wrong = ANSWERS[name]
    assert all(check(name, answer) for answer in right)
    for answer in wrong:
        verdict = check(name, answer)
        assert not verdict and "not yet" in repr(verdict)
    assert "not answered" in repr(check(name, ...)) and not check(name, ...)


def test_unknown_exercise():
    with pytest.raises(ValueError, match="name: got"):
        check("sam-99", 1)
