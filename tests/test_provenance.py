"""The record around a run's numbers."""

import json

import pytest
import torch

from tools import provenance


def test_record_is_complete_and_json(tmp_path):
    made = provenance.record({"a": 1.5}, config={"n": 3}, seeds=[0], repeats=2, peers={"x": "1"})
    provenance.write_record(tmp_path / "deep" / "r.json", made)
    back = json.loads((tmp_path / "deep" / "r.json").read_text())
    assert back == made and back["torch"] == torch.__version__ and back["device"]
    with pytest.raises(ValueError):
        provenance.write_record(tmp_path / "r.json", {"x": float("nan")})


def test_commit_where_there_is_no_repository(monkeypatch):
    settings = {"config": {}, "seeds": [0], "repeats": 1}
    monkeypatch.setattr(provenance, "_git", lambda *words: "")
    monkeypatch.setenv("COLLAGE_COMMIT", "c" * 40)
    assert provenance.record({}, **settings)["commit"] == "c" * 40
    monkeypatch.delenv("COLLAGE_COMMIT")
    assert provenance.record({}, **settings)["commit"] == "unknown"
    assert provenance._said("no such program") == ""


def test_a_command_keeps_its_quotes(monkeypatch):
    monkeypatch.setattr("sys.argv", ["x.py", "--levels", "medium late", "--preset=a"])
    assert provenance._command().endswith(" --levels 'medium late' --preset=a")
