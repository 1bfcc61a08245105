"""What the programs of this folder share: their command line, and how a finished job is kept."""

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def arguments(text, paper, presets, default, argv=None, more=None):
    """(config, arguments) of a program: --preset or --tiny, --runs for checkpoints, --out for the record.

    text: the program's docstring, of which the first paragraph is shown; more(parser) adds to it.

    >>> arguments("A program.", "sam", {"tiny": 1, "whole": 2}, "whole", ["--tiny"])[0]
    1
    """
    parser = argparse.ArgumentParser(description=text.split("\n\n")[0])
    parser.add_argument("--preset", choices=sorted(presets), default=default)
    parser.add_argument("--tiny", action="store_true", help="the smallest preset, in seconds")
    for name, folder, what in (
        ("--runs", "runs", "checkpoints"),
        ("--out", "results", "the record"),
    ):
        parser.add_argument(name, type=Path, default=ROOT / folder / paper, help=what)
    if more is not None:
        more(parser)
    found = parser.parse_args(argv)
    return presets["tiny" if found.tiny else found.preset], found


def job(config, setting, folder):
    """(key, found): a name for this setting's files, and what its finished job found, or None.

    Raises ValueError where the file of a finished job is damaged.
    """
    said = json.dumps({"config": dataclasses.asdict(config), "setting": setting}, sort_keys=True)
    key = hashlib.sha256(said.encode()).hexdigest()[:16]
    result = folder / f"{key}.json"
    if not result.exists():
        return key, None
    try:
        return key, json.loads(result.read_text())
    except ValueError as error:
        raise ValueError(
            f"{result}: a damaged result ({error}); remove it to run this job again"
        ) from error
