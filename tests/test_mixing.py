"""One kind of member against one of each: who is drawn, what is chosen, and what is counted."""

import pytest
import torch

from collage.nbeats import grid
from experiments import mixing

MEMBERS = grid(2, (1, 2), ("mape", "mase"), 6)


def says(bias):
    """Forecasts of nothing (E, 3, 2), off by what their kind is off by, and their mean error."""
    off = torch.tensor([bias[m.loss, m.lookback] for m in MEMBERS])
    return off[:, None, None].expand(-1, 3, 2), lambda f: f.abs().mean().item()


def test_an_ensemble_has_as_many_members_as_there_are_kinds():
    picks = mixing.drawn(mixing.kinds_of(MEMBERS), 5)
    kinds = [(m.loss, m.lookback) for m in MEMBERS]
    for kind, groups in picks.items():
        for group in groups:
            assert len(set(group)) == 4
            found = sorted({kinds[i] for i in group})
            assert found == (sorted(set(kinds)) if kind is None else [kind])
    assert len({tuple(group) for group in picks[None]}) > 1, "other seeds in other draws"


def test_the_kind_is_chosen_on_the_cut_and_judged_after_it():
    before = {("mape", 2): 0.1, ("mape", 4): 1.0, ("mase", 2): -1.0, ("mase", 4): -2.0}
    after = {("mape", 2): 1.0, ("mape", 4): 0.5, ("mase", 2): -1.0, ("mase", 4): -2.0}
    table, kinds = mixing.compare(MEMBERS, says(before), {"one": says(after)}, 5)
    found = {row["method"]: row["average"]["mean"] for row in table}
    assert found["one member"] == found["one kind, all of them"] == pytest.approx(1.125)
    assert found["one kind, chosen on the cut"] == 1 and found["one kind, best in hindsight"] == 0.5
    assert found["one of each kind"] <= 0.75, "errors of different kinds cancel"
    assert [row["loss"] for row in kinds if row["chosen"]] == ["mape"]
