"""Claims and verdicts: a sentence, and the condition that settles it.

The claims of the book are in claims.yml, beside this file.
"""

from __future__ import annotations

import html
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.display import HTML, Markdown

GROUND = {
    "check": ("#edf0f3", "#37474f"),  # neutral: a check that held is no verdict on a claim
    "good": ("#e8f3ec", "#1b5e3a"),
    "bad": ("#fbeae6", "#8c2f17"),
    "open": ("#f3f1ea", "#4a4a4a"),
}

# How a claim fared: a mark, and what it means; ground and ink of its square.
OUTCOMES = {
    "holds": ("✓", "held"),
    "partly": ("◐", "in part"),
    "fails": ("✗", "not reproduced"),
    "paper": ("·", "only the paper’s"),
}
# What an outcome rests on, the rubric of the Claims page.
BASES = {
    "proof": "by proof",
    "experiment": "by experiment",
    "toy": "in small",
    "paper": "only the paper’s",
}
GROUNDS = {
    "holds": ("#d9ecdf", "#1b5e3a"),
    "partly": ("#f7e7c1", "#5c4300"),
    "fails": ("#fbded6", "#8c2f17"),
    "paper": ("#e9e6dc", "#4a4a4a"),
}

_claimed: dict[str, bool] = {}  # the sentences of this page, and whether each held when last run


class Verdict:
    """A sentence that shows itself as a small coloured bar, or as one line of text."""

    def __init__(self, mark: str, text: str, kind: str, note: str = "") -> None:
        self.mark, self.text, self.kind, self.note = mark, text, kind, note

    def __bool__(self) -> bool:
        return self.kind == "good"

    def __repr__(self) -> str:
        return f"{self.mark} {self.text}" + (f"  [{self.note}]" if self.note else "")

    def _repr_html_(self) -> str:
        ground, ink = GROUND[self.kind]
        note = (
            f' <small style="opacity:.85">({html.escape(self.note)})</small>' if self.note else ""
        )
        return (f'<div class="verdict {self.kind}" style="background:{ground};color:{ink};'
                f'border-left:4px solid {ink};padding:.45em .8em;margin:.2em 0">'
                f"<strong>{self.mark}</strong> {html.escape(self.text)}{note}</div>")  # fmt: skip


def claim(text: str, condition: object, settles: str | None = None) -> None:
    """State a sentence, and show whether it is true here.

    text: what a reader may doubt, the same on every machine (no measured digits in it).
    condition: a bool, or a 0-d tensor or array. settles: the claim of the digest that this
    settles, such as "sam-5". Where the condition is false the bar is red and the page goes on, so that
    whoever changes something sees the rest, too; its last cell fails (see `conclude`).

    >>> claim("two and two make four", 2 + 2 == 4)
    ✓ two and two make four
    >>> claim("two and two make five", 2 + 2 == 5)
    ✗ two and two make five  [does not hold in this run]
    >>> _claimed.clear()
    """
    held = _claimed[text] = bool(condition)
    note = f"bears on claim {settles.rsplit('-', 1)[1]}" if settles else ""
    _show(Verdict("✓", text, "check", note) if held
          else Verdict("✗", text, "bad", "does not hold in this run"))  # fmt: skip


def conclude() -> None:
    """The last cell of a page: says that every claim above held, or fails.

    A claim that was run again counts as it was found then. Raises AssertionError with the sentences
    that do not hold.

    >>> claim("one is one", 1 == 1)
    ✓ one is one
    >>> conclude()
    ✓ every claim on this page held in this run (1 of 1)
    >>> _claimed.clear()
    """
    failed = [text for text, held in _claimed.items() if not held]
    if failed:
        raise AssertionError(f"{len(failed)} of {len(_claimed)} claims do not hold in this run: "
                             + "; ".join(failed))  # fmt: skip
    count = f"{len(_claimed)} of {len(_claimed)}"
    _show(Verdict("✓", f"every claim on this page held in this run ({count})", "check"))


def claims(chapter: str | None = None) -> dict[str, Any]:
    """The claims of the two digests, in our words: a chapter's entry, or all of them by name.

    >>> claims("sam")["number"], len(claims("sam")["claims"])
    (36, 6)
    >>> sum(len(chapter["claims"]) for chapter in claims().values())
    47
    """
    import yaml

    text = resources.files("collage.page").joinpath("claims.yml").read_text(encoding="utf-8")
    every = yaml.safe_load(text)
    if chapter is not None and chapter not in every:
        raise ValueError(f"chapter: got {chapter!r}, wanted one of {list(every)}")
    return every if chapter is None else every[chapter]


def audited() -> dict[str, tuple[int, int]]:
    """How often what settles a claim held, {"sam-5": (held, runs)}, from the record of the audit.

    Where several sentences settle a claim it is the one that held least often. Empty where there is no
    record (a package without its repository).
    """
    from collage.page.records import audit

    least: dict[str, tuple[int, int]] = {}
    for row in audit():
        if row["settles"]:
            before = least.get(row["settles"], (row["runs"], row["runs"]))
            least[row["settles"]] = min(before, (row["held"], row["runs"]))
    return least


def unfair(content: dict[str, Any]) -> list[str]:
    """Why a record is no fair experiment: what it does not say, or who had more settings than whom.

    content: a record. Every method of its table needs a number of settings, the same
    for all (random search, whose draws are its settings, may have more), and the record what they were
    chosen and judged on.

    >>> unfair({"numbers": {"table": [{"method": "MG"}], "sweeps": {"MG": 4}}})
    ['no split between choosing and judging']
    """
    numbers = content["numbers"]
    sweeps, split = numbers.get("sweeps", {}), numbers.get("split", {})
    methods = {row["method"] for row in numbers["table"]}
    found = [f"no number of settings for {m}" for m in sorted(methods - set(sweeps))]
    counts = {n for m, n in sweeps.items() if m != "random search"}
    if len(counts) > 1:
        found.append(f"methods have {min(counts)} to {max(counts)} settings")
    if not {"chosen on", "judged on"} <= set(split) or split["chosen on"] == split["judged on"]:
        found.append("no split between choosing and judging")
    return found


def verdicts(chapter: str) -> Markdown:
    """A chapter's claims in Markdown, a fold for each: claim and outcome, within it the verdict."""
    from IPython.display import Markdown

    held = audited()
    folds = []
    for i, entry in enumerate(claims(chapter)["claims"], 1):
        mark, label = OUTCOMES[entry["outcome"]]
        anchor = entry["where"].lower().replace(",", "").replace(" ", "-")
        key = f"{chapter}-{i}"
        runs = " *Its checks held in {} of {} runs.*".format(*held[key]) if key in held else ""
        folds.append(
            f'<details class="claim {entry["outcome"]}" id="claim-{key}">\n'
            f"<summary><strong>{mark} {i}.</strong> <span>{html.escape(entry['text'], quote=False)} "
            f"<em>{label[0].upper()}{label[1:]}.</em></span></summary>\n\n"
            f"{entry['verdict']}{runs}\n\n[{entry['how'].capitalize()}]({chapter}.ipynb#{anchor}), "
            f"{BASES[entry['by']]}.\n\n</details>"
        )
    return Markdown("\n\n".join(folds))


def fared(chapter: str) -> HTML:
    """A chapter's claims as cards, one below the other: outcome, claim, why. For one cell's end."""
    from IPython.display import HTML

    held = audited()
    cards = []
    for i, entry in enumerate(claims(chapter)["claims"], 1):
        mark, label = OUTCOMES[entry["outcome"]]
        ground, ink = GROUNDS[entry["outcome"]]
        anchor = entry["where"].lower().replace(",", "").replace(" ", "-")
        key = f"{chapter}-{i}"
        runs = " Its checks held in {} of {} runs.".format(*held[key]) if key in held else ""
        cards.append(
            f'<div class="verdict" style="background:{ground};color:{ink};'
            f'border-left:4px solid {ink};padding:.6em .8em;margin:.5em 0">'
            f"<strong>{mark} {i}. {html.escape(entry['text'])}</strong><br>"
            f"<em>{label[0].upper()}{label[1:]}.</em> {html.escape(entry['verdict'])}{runs} "
            f'<a href="#{anchor}" style="color:inherit;text-decoration:underline">'
            f"{html.escape(entry['where'])}</a></div>"
        )
    return HTML("\n".join(cards))


def _show(verdict: Verdict) -> None:
    try:
        get_ipython()  # type: ignore[name-defined]  # a name that notebooks have
    except NameError:
        print(verdict)
        return
    from IPython.display import display

    display(verdict)
