"""Chapter 34's live figure computes what `collage` computes."""

import json

import pytest
import torch
import torch.nn.functional as F
from live import calls

from collage.decision_transformer import DecisionTransformer
from tools.live import LIVE, WAYS

pytestmark = pytest.mark.browser
DATA = json.loads((LIVE / "decision_transformer.json").read_text())


def package():
    """The package's model with the weights of the figure, in float64."""
    model = DecisionTransformer(11, 11, width=DATA["width"], layers=DATA["layers"], heads=DATA["heads"],
                                context=3, longest=10, discrete=True, dropout=0.0).double()  # fmt: skip
    model.units(torch.zeros(11), torch.ones(11), DATA["scale"])
    with torch.no_grad():
        model.weights[0] = torch.tensor(DATA["weights"], dtype=torch.float64) * DATA["unit"]
    return model


def walked(model, node, asked):
    """A walk by the package's model, as the chapter walks."""
    R, s, a = [-float(asked)], [node], []
    while s[-1] != 0 and len(a) < 10:
        last = [torch.tensor([x[-3:]]) for x in (R, s, [*a, 0], list(range(len(s))))]
        with torch.no_grad():
            logits = model(last[0].double(), F.one_hot(last[1], 11).double(), *last[2:])
        a.append(logits[0, -1].argmax().item())
        s.append(a[-1] if a[-1] in WAYS[s[-1]] else s[-1])
        R.append(R[-1] + 1)
    return s


@pytest.mark.parametrize("K", [1, 2, 3])
def test_predictions(window, site, K):
    """Logits at every state of 200 random histories, and attention that sums to one."""
    g = torch.Generator().manual_seed(K)
    R = -20 * torch.rand(200, K, generator=g, dtype=torch.float64)
    s, a = torch.randint(11, (2, 200, K), generator=g)
    t = torch.randint(10 - K, (200, 1), generator=g) + torch.arange(K)
    found = calls(window, site, "decision_transformer", f"""(m, [R, s, a, t]) => {{
      const p = m.predict(m.network({json.dumps(DATA)}), R, s, a, t);
      return [p.logits, p.looks];
    }}""", [[R[i].tolist(), s[i].tolist(), a[i].tolist(), t[i].tolist()] for i in range(200)])  # fmt: skip
    with torch.no_grad():
        wanted = package()(R, F.one_hot(s, 11).double(), a, t)
    for i, (logits, looks) in enumerate(found):
        assert logits == [pytest.approx(row, rel=1e-9, abs=1e-9) for row in wanted[i].tolist()]
        assert len(looks) == 3 * K - 1 and sum(looks) == pytest.approx(1)


def test_walks(window, site):
    """From every node, asked for 1 to 10 steps: the same nodes; and it arrives as asked where it can."""
    wishes = [[node, asked] for node in range(1, 11) for asked in range(1, 11)]
    found = calls(window, site, "decision_transformer", f"""(m, [node, asked]) => {{
      const net = m.network({json.dumps(DATA)});
      let walk = {{R: [-asked], s: [node], a: [], looks: [], from: 0}};
      while (!m.demo.over(walk)) walk = m.step(net, walk);
      return walk.s;
    }}""", wishes)  # fmt: skip
    model = package()
    assert found == [walked(model, node, asked) for node, asked in wishes]
    shortest = [
        len(s) - 1
        for s, (node, asked) in zip(found, wishes, strict=True)
        if asked == (node + 1) // 2
    ]
    assert sum(took == (node + 1) // 2 for node, took in enumerate(shortest, 1)) >= 8


def test_the_graphs_are_one(window, site):
    (ways,) = calls(window, site, "decision_transformer", "(m, x) => m.WAYS", [0])
    assert ways == {str(node): there for node, there in WAYS.items()}
