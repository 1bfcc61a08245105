"""Recorded runs as tables, each with the line that says where it came from."""

import json
from pathlib import Path

import collage

RESULTS = Path(collage.__file__).parent.parent / "results"


def record(paper, name):
    """A record of `results/` as a table with its provenance, to end a cell with.

    Without the repository around the package (in Colab) it says where the record is. Raises
    ValueError for a record that does not exist.

    >>> record("sam", "no_such_run")
    Traceback (most recent call last):
    ...
    ValueError: record: got 'sam/no_such_run', which is not in results/
    """
    from IPython.display import Markdown

    if not RESULTS.is_dir():
        return Markdown(f"The record is `results/{paper}/{name}.json` in the repository.")
    path = RESULTS / paper / f"{name}.json"
    if not path.exists():
        raise ValueError(f"record: got '{paper}/{name}', which is not in results/")
    return Markdown(as_markdown(json.loads(path.read_text())))


def records():
    """Every record by "paper/name"."""
    return {f"{p.parent.name}/{p.stem}": json.loads(p.read_text())
            for p in sorted(RESULTS.glob("*/*.json"))}  # fmt: skip


def as_markdown(content):
    """Note, table and provenance line of one record."""
    rows = content["numbers"]["table"]
    lines = [content["note"], "", "| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    lines += ["| " + " | ".join(str(v) for v in row.values()) + " |" for row in rows]
    peers = "".join(f" · {name} {version}" for name, version in content["peers"].items())
    seeds = len(content["seeds"])
    return "\n".join([*lines, "", f"*`{content['command']}` · {content['device']} · "
                      f"{content['date']} · torch {content['torch']} · {seeds} seed"
                      f"{'s' if seeds > 1 else ''} · commit {content['commit'][:8]}{peers}*"])  # fmt: skip
