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


def turn(e, H, lowest=False):
    vectors = torch.linalg.eigh(H)[1].T
    best = vectors[0 if lowest else (vectors @ e).abs().argmax()]
    return best * (best @ e).sign()


def strangers(r, p, q):
    pairs = (r * p) @ q.T
    return (pairs.sum() - pairs.trace()) / (len(p) * (len(p) - 1))


def to_go(rewards, lengths, cut=True):
    inside = torch.arange(rewards.shape[1]) < lengths[:, None]
    total = torch.where(inside, rewards, 0).flip(1).cumsum(1).flip(1)
    return total if cut else total + 0 * rewards + (~inside)


def asked_for(b, p, r, share=True):
    policy = b[:, None] * p
    return (policy / policy.sum(0) if share else policy).T @ (p @ r)


def masked(real, eye=True, pad=True):
    n = 3 * len(real)
    past = torch.ones(n, n, dtype=torch.bool).tril()
    past = past & real.repeat_interleave(3) if pad else past
    return past | torch.eye(n, dtype=torch.bool) if eye else past


def coded(x, keys, queries, inner=torch.tanh, outer=torch.tanh):
    return outer(torch.einsum("bnm,bn->bm", inner(keys @ queries.T), x))


def coin(p, R, r):
    return p * R + (1 - p) * r, math.sqrt(p * (1 - p)) * abs(R - r)


def saved(X, V, b, capped=True):
    fast = min(V, math.sqrt(4 * b * X)) if capped else V
    return (fast - fast**3 / (12 * b * X)) / V


def rearranged(images, order, size, back=False, turned=False):
    B, H, W = images.shape
    cut = (
        images.view(B, H // size, size, W // size, size).transpose(2, 3).reshape(B, -1, size, size)
    )
    order = order.argsort(1) if back else order
    cut = cut.gather(1, order[:, :, None, None].expand(-1, -1, size, size))
    cut = cut.mT if turned else cut
    return cut.view(B, H // size, W // size, size, size).transpose(2, 3).reshape(B, H, W)


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
    "convex_hull-1": ([lambda p, n: (n + 1) * (1 - p)],
                      [lambda p, n: n * (1 - p), lambda p, n: (n + 1) * p, lambda p, n: 1 / 0, 7]),
    "convex_hull-2": ([lambda p, d: p * 2**d],
                      [lambda p, d: p * 2 ** (d / 2), lambda p, d: p * 2 ** (d + 1), None]),
    "convex_hull-3": ([lambda x, z, u: (u / u.norm()) @ z - (x @ (u / u.norm())).max()],
                      [lambda x, z, u: u @ z - (x @ u).max(),
                       lambda x, z, u: (u / u.norm()) @ z - (x @ (u / u.norm())).min(),
                       lambda x, z, u: None]),
    "convex_hull-4": ([frank_wolfe],
                      [lambda x, z, y: frank_wolfe(x, z, y, clip=False),
                       lambda x, z, y: frank_wolfe(x, z, y, sign=-1), lambda x, z, y: y]),
    "pes-1": ([lambda p, w: p / (2 * (p + 1))],
              [lambda p, w: 0.5, lambda p, w: 1 / w, lambda p, w: p / (p + 1), None]),
    "pes-2": ([across], [lambda *a: across(*a, old=0.0), lambda *a: across(*a, kept=1.0),
                         lambda *a: across(*a, pairs=True), lambda *a: None]),
    "pes-3": ([lambda theta, eta, n: (theta + 1 / 6) * (1 + 6 * eta) ** n - 1 / 6],
              [lambda theta, eta, n: theta * (1 + 6 * eta) ** n,
               lambda theta, eta, n: (theta + 1 / 6) * (1 - 6 * eta) ** n - 1 / 6, "up"]),
    "pes-4": ([lambda first, ends: torch.diff(ends, dim=0, prepend=first[None])],
              [lambda first, ends: ends, lambda first, ends: ends - first,
               lambda first, ends: torch.diff(ends, dim=0), lambda first, ends: None]),
    "nbeats-1": ([count], [lambda *a: count(*a, coefficients=3), lambda *a: count(*a, hidden=4),
                           lambda L, H, a, b: 3 * count(L, H, a, b), lambda *a: None]),
    "nbeats-2": ([stacked], [lambda *a: stacked(*a, turn=False), lambda *a: stacked(*a, level=0),
                             lambda *a: stacked(*a, masked=False), lambda *a: None]),
    "nbeats-3": ([waves], [lambda *a: waves(*a, first=0), lambda *a: waves(*a, extra=False),
                           lambda points, H: waves(points, points), lambda *a: None]),
    "nbeats-4": ([lambda one, two, k: 2 * two - one + 2 * (one - two) / k],
                 [lambda one, two, k: one / k, lambda one, two, k: two + (one - two) / k, None]),
    "ridge_rider-1": ([lambda n, r: -r / n**2], [lambda n, r: -r / n, lambda n, r: r / n**2, None]),
    "ridge_rider-2": ([turn], [lambda e, H: -turn(e, H), lambda e, H: turn(e, H, lowest=True),
                               lambda e, H: e, None]),
    "ridge_rider-3": ([lambda K, D, h: (h * min(K - 1, D), min(K - 1, D))],
                      [lambda K, D, h: (h * (K - 1), K - 1), lambda K, D, h: (h * K, K), None]),
    "ridge_rider-4": ([strangers], [lambda r, p, q: ((r * p) @ q.T).mean(), lambda *a: 0.5, None]),
    "decision_transformer-1": ([to_go], [lambda r, n: to_go(r, n, cut=False),
                                         lambda r, n: r.flip(1).cumsum(1).flip(1),
                                         lambda r, n: r.cumsum(1), lambda r, n: None]),
    "decision_transformer-2": ([asked_for], [lambda b, p, r: asked_for(b, p, r, share=False),
                                             lambda b, p, r: r, lambda b, p, r: b @ p * r]),
    "decision_transformer-3": ([masked], [lambda real: masked(real, eye=False),
                                          lambda real: masked(real, pad=False),
                                          lambda real: masked(real).float(),
                                          lambda real: masked(real).T]),
    "decision_transformer-4": ([lambda c: 1 / c], [lambda c: 1 / 2, lambda c: c, lambda c: None]),
    "sensory_neuron-1": ([coded], [lambda *a: coded(*a, inner=lambda s: s.softmax(1)),
                                   lambda *a: coded(*a, outer=lambda s: s),
                                   lambda *a: coded(*a).T, lambda *a: None]),
    "sensory_neuron-2": ([coin, lambda *a: torch.tensor(coin(*a))],
                         [lambda p, R, r: (p * R, coin(p, R, r)[1]),
                          lambda p, R, r: (coin(p, R, r)[0], p * (1 - p) * abs(R - r))]),
    "sensory_neuron-3": ([saved], [lambda *a: saved(*a, capped=False), lambda X, V, b: 0.653]),
    "sensory_neuron-4": ([rearranged], [lambda *a: rearranged(*a, back=True),
                                        lambda *a: rearranged(*a, turned=True),
                                        lambda images, order, size: images]),
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
