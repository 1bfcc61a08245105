"""No step starts more on a GPU, or waits more often, than the committed table says."""

import json

import pytest

from tests.pretend_cuda import installed

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not installed(), reason="counts need the pretended GPU"),
]


def test_no_step_starts_more_than_the_table_says():
    """A tenth more, or a wait more where there are none, fails; so does a step that is not in the table."""
    from tests.gpu.launches import FEWEST, PATH, WORKS

    table = {row["step"]: row for row in json.loads(PATH.read_text())["numbers"]["table"]}
    assert {name for name in table if "compiled" not in name} == set(WORKS)
    for name, counted in WORKS.items():
        found, row = counted(), table[name]
        assert (row["fewest"], row["of these"]) == FEWEST[name]
        assert row["fewest"] <= row["launches"] + row["in graphs"]
        for kind, number in found.items():
            assert number <= 1.1 * table[name][kind], (
                f"{name}: {number} {kind}, {table[name][kind]} in the table"
            )
        if "captured" in name:
            assert found["in graphs"] > 0, f"{name}: nothing was captured"
