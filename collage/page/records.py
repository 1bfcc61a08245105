"""Recorded runs as tables, each with the line that says where it came from.

A record's table is a list of rows, {column: cell}, with the formats beside it, {column: format}.
A cell is one of

- text: a label, or "-" where there is nothing
- a number, shown by the format of its column
- a list of numbers, a field of the format for each: [3, 2000] with "{:,} of {:,}"
- a list of such lists, joined by commas
- a measurement: {"median": m} or {"mean": m}, with its "spread" and the number "n" of values behind
  it where they are known, and with a "format" of its own where the column's does not fit

`shown` is the one place where a cell becomes text.
"""

from __future__ import annotations

import html
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import collage
from collage.page.claims import claims

if TYPE_CHECKING:
    from IPython.display import Markdown

REPOSITORY = "https://github.com/ml-collage/ml-collage"
RESULTS = Path(collage.__file__).parent.parent / "results"

Cell = str | float | list | dict
Row = Mapping[str, Cell]


class Measured(NamedTuple):
    """A number and its spread (None: not known), formatted as one.

    >>> f"{Measured(1234.4, 5.2):,.0f}", f"{Measured(0.5):.2f}"
    ('1,234 ± 5', '0.50')
    """

    value: float
    spread: float | None = None

    def __format__(self, spec: str) -> str:
        value = format(self.value, spec)
        return value if self.spread is None else f"{value} ± {format(self.spread, spec)}"


def measured(cell: Cell) -> Measured:
    """The number in a cell, with its spread. Raises ValueError for a cell that holds none.

    >>> measured({"median": 2.5, "spread": 0.5, "n": 3}), measured(7)
    (Measured(value=2.5, spread=0.5), Measured(value=7, spread=None))
    """
    if isinstance(cell, dict):
        return Measured(cell["median"] if "median" in cell else cell["mean"], cell.get("spread"))
    if isinstance(cell, int | float):
        return Measured(cell)
    raise ValueError(f"cell: got {cell!r}, wanted a number or a measurement")


def shown(cell: Cell, template: str = "{}") -> str:
    """A cell as the reader sees it.

    template: the format of its column, as for `str.format`.

    >>> shown({"median": 0.13, "spread": 0.02, "n": 5}, "{:.3f}"), shown([3, 2000], "{:,} of {:,}")
    ('0.130 ± 0.020', '3 of 2,000')
    >>> shown([[4, 99.0], [9, 1.0]], "{} ({:.0f})"), shown({"mean": 3, "format": "{:.1f} at once"})
    ('4 (99), 9 (1)', '3.0 at once')
    """
    if isinstance(cell, str):
        return cell
    if isinstance(cell, dict):
        return cell.get("format", template).format(measured(cell))
    if isinstance(cell, list):
        if cell and isinstance(cell[0], list):
            return ", ".join(template.format(*part) for part in cell)
        return template.format(*cell)
    return template.format(cell)


def texts(rows: Iterable[Row], formats: Mapping[str, str] | None = None) -> list[dict[str, str]]:
    """Rows with every cell as the reader sees it.

    >>> texts([{"work": "a step", "ratio": 2}], {"ratio": "{:.1f}"})
    [{'work': 'a step', 'ratio': '2.0'}]
    """
    formats = formats or {}
    return [{name: shown(cell, formats.get(name, "{}")) for name, cell in row.items()}
            for row in rows]  # fmt: skip


def table(rows: Sequence[Row], formats: Mapping[str, str] | None = None) -> str:
    """Rows with the same columns as a table in Markdown."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    lines += ["| " + " | ".join(row.values()) + " |" for row in texts(rows, formats)]
    return "\n".join(lines).replace(" ± ", "\u00a0±\u00a0")  # a number and its spread stay together


def as_markdown(content: dict[str, Any]) -> str:
    """Note, table and provenance line of one record."""
    peers = "".join(f" · {name} {version}" for name, version in content["peers"].items())
    seeds = len(content["seeds"])
    source = (f"*`{content['command']}` · {content['device']} · {content['date']} · torch "
              f"{content['torch']} · {seeds} seed{'s' if seeds > 1 else ''} · commit "
              f"{content['commit'][:8]}{peers}*")  # fmt: skip
    numbers = content["numbers"]
    return "\n\n".join([content["note"], table(numbers["table"], numbers.get("formats")), source])


def record(paper: str, name: str) -> Markdown:
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


def records() -> dict[str, dict[str, Any]]:
    """Every record by "paper/name". Raises FileNotFoundError for a package without its repository."""
    if not RESULTS.is_dir():
        raise FileNotFoundError(f"{RESULTS}: an installed package brings no records; clone {REPOSITORY} "
                                "and work there")  # fmt: skip
    return {f"{p.parent.name}/{p.stem}": json.loads(p.read_text())
            for p in sorted(RESULTS.glob("*/*.json"))}  # fmt: skip


def audit() -> list[dict[str, Any]]:
    """The rows of the audit of all claims (`make audit`), none where there is no record of it."""
    path = RESULTS / "audit.json"
    return json.loads(path.read_text())["numbers"]["table"] if path.exists() else []


def folded(title: str, text: str, note: str = "", kind: str = "record", anchor: str = "") -> str:
    """Text in Markdown behind one line that opens it: a title, and a note in small letters.

    >>> print(folded("A & B", "text", "a note"))
    <details class="record">
    <summary><strong>A &amp; B</strong> <small>a note</small></summary>
    <BLANKLINE>
    text
    <BLANKLINE>
    </details>
    """
    small = f" <small>{html.escape(note, quote=False)}</small>" if note else ""
    name = f' id="{anchor}"' if anchor else ""
    return (f'<details class="{kind}"{name}>\n<summary><strong>{html.escape(title, quote=False)}</strong>'
            f"{small}</summary>\n\n{text}\n\n</details>")  # fmt: skip


def chapter_records(chapter: str) -> Markdown:
    """All records of a chapter, a fold for each, to end a cell with."""
    from IPython.display import Markdown

    parts = []
    for name, content in records().items():
        paper, run = name.split("/")
        if paper == chapter:
            title, about = run.replace("_", " ").capitalize(), content["note"].split(";")[0]
            # Two lines on a phone.
            about = textwrap.shorten(about, 70 - len(title), placeholder=" …")
            parts.append(folded(title, as_markdown(content), about, anchor=f"record-{paper}-{run}"))
    return Markdown("\n\n".join(parts))


def lookup(paper: str, name: str, column: str, where: Mapping[str, str]) -> str:
    """The one cell of a record's table in a column and in the row that shows what `where` says.

    Raises ValueError where not exactly one row does.

    >>> lookup("nbeats", "small_m3", "ensemble", {"series": "average", "kind": "both"})
    '13.13'
    """
    numbers = records()[f"{paper}/{name}"]["numbers"]
    rows = [row for row in texts(numbers["table"], numbers.get("formats"))
            if all(row[key] == text for key, text in where.items())]  # fmt: skip
    if len(rows) != 1:
        raise ValueError(f"where: {len(rows)} rows of {paper}/{name} say {where}, wanted one")
    return rows[0][column]


def beside() -> Iterator[dict[str, Cell]]:
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


def compared() -> Markdown:
    """The papers' numbers beside ours, a fold for each, to end a cell with."""
    from IPython.display import Markdown

    folds = []
    for row in beside():
        number, what, paper, ours, source, differs = row.values()
        folds.append(folded(f"{number} · {what}", f"Ours differs: {differs}. The paper's number: {source}.",
                            f"the paper {paper}, ours {ours}"))  # fmt: skip
    return Markdown("\n\n".join(folds))
