"""Records: every one carries its whole provenance, and nothing that JSON cannot say."""

import json
import math
import re
from pathlib import Path

import pytest

from tools.bench import first_number, summary

ROOT = Path(__file__).parent.parent
RECORDS = sorted((ROOT / "results").glob("*/*.json"))
KEYS = {"command": str, "config": dict, "seeds": list, "commit": str, "date": str, "device": str,
        "driver": str, "torch": str, "cuda": str, "dtype": str, "tf32": bool, "repeats": int,
        "peers": dict, "note": str, "numbers": dict, "threads": int, "python": str}  # fmt: skip


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_record(path):
    record = json.loads(path.read_text())
    for key, kind in KEYS.items():
        assert isinstance(record.get(key), kind), f"{path}: {key} is missing or not {kind}"
    assert re.fullmatch(r"[0-9a-f]{40}", record["commit"]), "run it from a clean commit"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])
    assert record["seeds"] and record["config"] and record["note"]
    assert record["cuda"] == "none" or record["device"].startswith("CPU") or record["driver"]
    table = record["numbers"]["table"]
    assert table and all(set(row) == set(table[0]) for row in table)
    assert not re.search(r"/(home|root|work|tmp)/", path.read_text()), "a machine path"

    def numbers(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            return [n for v in value for n in numbers(v)]
        return [value] if isinstance(value, float) else []

    assert all(math.isfinite(n) for n in numbers(record["numbers"]))


def test_there_is_a_record():
    assert RECORDS


def test_the_benchmarks_have_one_table():
    """Every record of a benchmark says how long the strongest peer takes, ours being 1."""
    papers = sorted({p.parent.name for p in (ROOT / "results").glob("*/*_cpu.json")})
    found = list(summary(papers))
    assert {row["paper"] for row in found} == set(papers)
    for row in found:
        assert first_number(row["peer / ours"]) > 0 and row["strongest peer"], row
        assert not row["strongest peer"].startswith(("ours", "collage")), row
