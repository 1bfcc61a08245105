"""Sine waves and starts that adapt: against loops over tasks, autograd, and MAML written out."""

import math

import pytest
import torch

from collage.bmg import meta_gradient, squared_distance
from collage.bmg.waves import Adapter, sinusoids


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_waves_are_waves():
    t = sinusoids(500, 7, seeded(), queries=9)
    assert t.x.shape == t.y.shape == (500, 7, 1) and t.query.shape == t.answer.shape == (500, 9, 1)
    assert bool((t.x.abs() <= 5).all()) and bool((t.y.abs() <= 5).all())
    # A wave is known from a sine and a cosine: the fit of the points answers the queries.
    for x, y, query, answer in zip(*(v[:20].double() for v in t), strict=True):
        basis = torch.cat([x.sin(), x.cos()], 1)
        fit = torch.linalg.lstsq(basis, y).solution
        assert torch.allclose(torch.cat([query.sin(), query.cos()], 1) @ fit, answer, atol=1e-4)
        assert 0.1 - 1e-4 < fit.norm() < 5 + 1e-4
        assert -1e-4 < math.atan2(-fit[1], fit[0]) < math.pi + 1e-4


def doubled(adapter, w):
    adapter.tasks = type(adapter.tasks)(*(t.double() for t in adapter.tasks))
    return [t.double() for t in w]


@pytest.mark.parametrize("K", [1, 3])
def test_tasks_in_a_batch_are_tasks_alone(K):
    """Each task's adapted network and meta-gradient; the start's gradient is their sum."""
    adapter = Adapter([1, 8, 6, 1], lr=0.05)
    w = adapter.start(seeded())
    adapter.tasks = sinusoids(5, 6, seeded(1))
    w = doubled(adapter, w)
    whole = meta_gradient(adapter.update, adapter.begin(w), w, K, objective=adapter.objective)
    tasks, total = adapter.tasks, [torch.zeros_like(t) for t in w]
    for i in range(5):
        adapter.tasks = type(tasks)(*(t[i : i + 1] for t in tasks))
        one = meta_gradient(adapter.update, adapter.begin(w), w, K, objective=adapter.objective)
        total = [a + b for a, b in zip(total, one.gradient, strict=True)]
        for a, b in zip(whole.onward, one.onward, strict=True):
            assert torch.allclose(a[i : i + 1], b, atol=1e-13)
    for a, b in zip(whole.gradient, total, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_a_bootstrap_of_one_is_maml_on_all_points():
    """L = 1 and the squared distance: lr times the gradient of the error on points and queries."""
    adapter = Adapter([1, 8, 1], lr=0.03)
    w = adapter.start(seeded())
    adapter.tasks = sinusoids(4, 5, seeded(2))
    w = doubled(adapter, w)
    t = adapter.tasks

    def everything(params):
        return adapter.error(params, torch.cat([t.x, t.query], 1), torch.cat([t.y, t.answer], 1))

    maml = meta_gradient(adapter.update, adapter.begin(w), w, 2, objective=everything)
    boot = meta_gradient(adapter.update, adapter.begin(w), w, 2, 1, ground_truth_step=adapter.ground_truth_step,
                         matching=squared_distance)  # fmt: skip
    for a, b in zip(boot.gradient, maml.gradient, strict=True):
        assert torch.allclose(a, 0.03 * b, rtol=1e-9, atol=1e-14)


def test_bad_input():
    with pytest.raises(ValueError, match="shots: got 0"):
        sinusoids(3, 0, seeded())
    with pytest.raises(ValueError, match="tasks: got -1"):
        sinusoids(-1, 5, seeded())
    with pytest.raises(ValueError, match="lr"):
        Adapter(lr=-0.1)
