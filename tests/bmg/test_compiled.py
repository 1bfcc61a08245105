"""A meta-step from compiled programs: that of `colour_step`, with or without a compiler."""

import warnings

import pytest
import torch

from collage import runtime
from collage.bmg import colour_step
from collage.bmg.actors import ColourLearner
from collage.bmg.fast.compiled import compiled_step
from collage.bmg.gridworlds import TwoColours
from collage.common.populations import tree_leaves
from tests.compiler import require_compiler


def started(lifetimes=3, **settings):
    settings = {"walkers": 2, "steps": 3, "widths": (8,)} | settings
    env = TwoColours(3, period=7, see="ways")
    learner = ColourLearner(env, lifetimes, runtime.generator(0), **settings)
    life, w = learner.begin(), learner.start_meta()
    with torch.no_grad():
        for k in range(3):
            life = learner.update(life, w, k)
    return learner, life, w


def beside(compiled, steps=4, L=3, **settings):
    """The largest difference between the program's `Meta` and ours, both from the same draws."""
    learner, life, w = started(**settings)
    run, largest = compiled_step(learner, L, compiled), 0.0
    for _ in range(steps):
        before = learner.generator.get_state()
        wanted = colour_step(learner, life, w, L)
        after = learner.generator.get_state()
        learner.generator.set_state(before)
        got = run(life, w)
        assert torch.equal(learner.generator.get_state(), after)
        pairs = zip(tree_leaves(got._asdict()), tree_leaves(wanted._asdict()), strict=True)
        largest = max(largest, *((a - b).abs().max().item() for a, b in pairs))
        life = wanted.onward
    return largest


@pytest.mark.parametrize("settings", [{}, {"L": 1}, {"widths": (8, 5), "context": False}])
def test_the_meta_step(settings):
    assert beside(False, **settings) < 1e-6


@pytest.mark.slow
def test_compiled():
    require_compiler()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "compiled: ")
        assert beside(True) < 1e-6


def test_bad_lives():
    learner, life, w = started()
    with pytest.raises(ValueError, match="L: got 0"):
        compiled_step(learner, 0)
    run = compiled_step(learner, 2, compiled=False)
    with pytest.raises(ValueError, match="life: got cells"):
        run(life._replace(cells=life.cells[:2]), w)
    with pytest.raises(ValueError, match="wanted cpu"):
        run(life._replace(recent=life.recent.to("meta")), w)
