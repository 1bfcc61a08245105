"""Chapter 37's live figure computes what `collage` computes."""

import pytest
import torch
from live import calls

from collage.bmg import bootstrap_target, unroll
from collage.bmg.core import meta_gradient
from tests.bmg.valley import NoisyValley

pytestmark = pytest.mark.browser
METRICS = {"distance": torch.ones(2), "loss": torch.tensor([1.0, 0.05])}


class Given(NoisyValley):
    """The valley of the figure, with the noise that it was given."""

    def __init__(self, table):
        super().__init__([1.0, 0.05], sigma=0.4, alpha=0.3)
        self.table = table

    def noise(self, x, k):
        return self.table[k]


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(values):
    return pytest.approx(values, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("K", "L"), [(1, None), (7, None), (1, 1), (1, 8), (5, 30)])
@pytest.mark.parametrize("metric", METRICS)
def test_meta_gradients_and_where_they_lead(window, site, K, L, metric):
    """200 learners with rates from 0.01 to 2: gradient, states, target."""
    x, w, noise = (
        3 * random(200, 2, seed=0),
        random(200, seed=1) - 1,
        random(K + (L or 0), 200, 2, seed=2),
    )
    weights = METRICS[metric].double()
    valley = Given(noise)
    how = {"objective": valley.objective} if L is None else {
        "ground_truth_step": valley.ground_truth_step,
        "matching": lambda target, x: (weights * (target - x).square()).sum(1) / 2}  # fmt: skip
    found = calls(window, site, "bmg", f"""(m, [x, [w], noise]) => {{
      const r = m.metaGradient(x, w, noise, {K}, {"null" if L is None else L}, {weights.tolist()});
      return [r.g, r.states, r.onward];
    }}""", [[a.tolist(), [b.item()], n.tolist()] for a, b, n in zip(x, w, noise.unbind(1), strict=True)])  # fmt: skip
    meta = meta_gradient(valley.update, x, w, K, L, **how)
    states = unroll(valley.update, x, w, K)
    for i, (g, path, onward) in enumerate(found):
        assert g == near(meta.gradient[i].item())
        assert path == [near(s[i].tolist()) for s in states]
        if L is None:
            assert onward == []
        else:
            boot = bootstrap_target(valley.update, valley.ground_truth_step, states[-1], w, L, K)
            assert len(onward) == L + 1
            assert onward[-2:] == [near(boot.onward[i].tolist()), near(boot.target[i].tolist())]


def test_the_objective(window, site):
    x = random(200, 2, seed=3)
    found = calls(window, site, "bmg", "(m, x) => m.objective(x)", x.tolist())
    assert found == near(NoisyValley([1.0, 0.05]).objective(x).tolist())
