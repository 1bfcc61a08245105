"""The last line of `make test`: what ran, what was skipped and why; fails where something did not run.

python -m tools.tally begin _build/checks      # forget what an earlier run has left
python -m tools.tally end _build/checks        # count the reports of pytest (JUnit's XML)
"""

import collections
import json
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from collage import runtime

ROOT = Path(__file__).resolve().parent.parent
PARTS = {"unit": "unit tests", "notebooks": "cells", "browser": "page tests"}


def read(path):
    """(passed, failed, reasons of what was skipped) of one report."""
    passed, failed, skipped = 0, 0, []
    for case in ElementTree.parse(path).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif (why := case.find("skipped")) is not None:
            skipped.append(re.sub(r"^.*?Skipped: ", "", why.get("message") or "no reason given"))
        else:
            passed += 1
    return passed, failed, skipped


def committed():
    """How many code cells the notebooks of chapters/ hold."""
    return sum(cell["cell_type"] == "code" for path in (ROOT / "chapters").glob("*.ipynb")
               for cell in json.loads(path.read_text())["cells"])  # fmt: skip


def count(folder, cells):
    """The line, and whether everything ran and passed.

    folder: where the reports unit.xml, notebooks.xml and browser.xml lie; cells: how many there are.
    """
    said, wrong, reasons = [], [], collections.Counter()
    for part, name in PARTS.items():
        path = Path(folder) / f"{part}.xml"
        passed, failed, skipped = read(path) if path.exists() else (0, 0, [])
        of = f" of {cells:,}" if part == "notebooks" else ""
        said.append(f"{passed:,}{of} {name}")
        reasons.update(skipped)
        if failed:
            wrong.append(f"{failed} {name} failed")
        if part == "notebooks" and passed + failed < cells:
            wrong.append(f"{cells - passed - failed} cells were not run")
        elif not passed + failed + len(skipped):
            wrong.append(f"no {name} ran")
    line = f"{', '.join(said)} passed; {sum(reasons.values())} skipped"
    if reasons:
        line += " (" + "; ".join(f"{n} × {why}" for why, n in reasons.most_common()) + ")"
    return line + ("; FAILED: " + ", ".join(wrong) if wrong else ""), not wrong


def main(argv):
    if len(argv) != 2 or argv[0] not in ("begin", "end"):
        print("tally: wanted begin or end, and a folder", file=sys.stderr)
        return 2
    what, folder = argv
    if what == "begin":
        shutil.rmtree(folder, ignore_errors=True)
        try:
            runtime.seed_shift()
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        return 0
    line, fine = count(folder, committed())
    print(line)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
