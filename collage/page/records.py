"""Recorded runs as tables, each with the line that says where it came from."""

import json
from importlib import resources
from pathlib import Path

import collage
from collage.page.claims import claims

REPOSITORY = "https://github.com/ml-collage/ml-collage"
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
        where = f"results/{paper}/{name}.json"
        return Markdown(f"The record is [`{where}`]({REPOSITORY}/blob/main/{where}).")
    path = RESULTS / paper / f"{name}.json"
    if not path.exists():
        raise ValueError(f"record: got '{paper}/{name}', which is not in results/")
    return Markdown(as_markdown(json.loads(path.read_text())))


def records():
    """Every record by "paper/name". Raises FileNotFoundError for a package without its repository."""
    if not RESULTS.is_dir():
        raise FileNotFoundError(f"{RESULTS}: an installed package brings no records; clone {REPOSITORY} "
                                "and work there")  # fmt: skip
    return {f"{p.parent.name}/{p.stem}": json.loads(p.read_text())
            for p in sorted(RESULTS.glob("*/*.json"))}  # fmt: skip


def audit():
    """The rows of the audit of all claims (`make audit`), none where there is no record of it."""
    path = RESULTS / "audit.json"
    return json.loads(path.read_text())["numbers"]["table"] if path.exists() else []


def chapter_records(chapter):
    """All records of a chapter, one below the other, to end a cell with."""
    from IPython.display import Markdown

    found = {
        name.split("/")[1]: r for name, r in records().items() if name.startswith(f"{chapter}/")
    }
    return Markdown("\n\n".join(f"**{name.replace('_', ' ').capitalize()}.** {as_markdown(content)}"
                                for name, content in found.items()))  # fmt: skip


def lookup(paper, name, column, where):
    """The one value in a record's table, in a column and in the row that says what `where` wants.

    Raises ValueError where not exactly one row does.

    >>> lookup("nbeats", "small_m3", "ensemble", {"series": "average", "kind": "both"})
    '13.13'
    """
    rows = records()[f"{paper}/{name}"]["numbers"]["table"]
    found = [row for row in rows if all(str(row[k]) == v for k, v in where.items())]
    if len(found) != 1:
        raise ValueError(f"where: {len(found)} rows of {paper}/{name} say {where}, wanted one")
    return found[0][column]


def beside():
    """The papers' numbers beside ours, as rows of a table: those that a record can stand beside."""
    import yaml

    text = resources.files("collage.page").joinpath("papers.yml").read_text(encoding="utf-8")
    for entry in yaml.safe_load(text):
        where = dict(entry["ours"])
        name, column = where.pop("record"), where.pop("column")
        ours = lookup(entry["chapter"], name, column, where)
        yield {"": claims(entry["chapter"])["number"], "what": entry["what"],
               "the paper": entry["paper"], "ours": ours, "the paper's from": entry["from"],
               "ours differs": entry["differs"]}  # fmt: skip


def table(rows):
    """A list of dicts with the same keys as a table in Markdown."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    return "\n".join(lines + ["| " + " | ".join(str(v) for v in r.values()) + " |" for r in rows])


def as_markdown(content):
    """Note, table and provenance line of one record."""
    peers = "".join(f" · {name} {version}" for name, version in content["peers"].items())
    seeds = len(content["seeds"])
    source = (f"*`{content['command']}` · {content['device']} · {content['date']} · torch "
              f"{content['torch']} · {seeds} seed{'s' if seeds > 1 else ''} · commit "
              f"{content['commit'][:8]}{peers}*")  # fmt: skip
    return "\n\n".join([content["note"], table(content["numbers"]["table"]), source])
