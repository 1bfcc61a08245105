"""The text of the issue that a broken weekly run opens: python3 tools/report.py FOLDER ADDRESS

FOLDER holds report-<job>.txt, what the jobs that failed have printed; needs nothing but Python.
"""

import re
import sys
from pathlib import Path

MOST = 60_000 // 3  # characters of one report: an issue holds 65,536, and there are three jobs
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def body(folder, address):
    """Markdown: where the run is, and the end of each report."""
    reports = sorted(Path(folder).glob("report-*.txt")) if Path(folder).is_dir() else []
    parts = [f"A job of the weekly run failed: {address}"]
    for path in reports:
        text = COLOURS.sub("", path.read_text(errors="replace")).replace("```", "'''")
        cut = "…\n" if len(text) > MOST else ""
        name = path.stem.removeprefix("report-")
        parts.append(f"## {name}\n\n```text\n{cut}{text[-MOST:].strip()}\n```")
    if not reports:
        parts.append("No job left a report: see the run.")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        print("report: wanted a folder and an address", file=sys.stderr)
        sys.exit(2)
    print(body(*sys.argv[1:]), end="")
