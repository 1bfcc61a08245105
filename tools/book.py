"""Build the book from the committed notebooks, every warning an error: python -m tools.book

python -m tools.book --links    # instead: ask every address outside whether it is still there
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"


def newest(*patterns):
    """Latest change of the files behind the book."""
    times = [p.stat().st_mtime for pattern in patterns for p in ROOT.glob(pattern) if p.is_file()]
    return max(times, default=0)


def links():
    """Report the links to elsewhere that are broken; 1 where there are some."""
    program, folder = str(Path(sys.executable).parent / "jupyter-book"), BUILD / "links"
    subprocess.run([program, "build", str(ROOT), "--path-output", str(folder), "--builder", "custom",
                    "--custom-builder", "linkcheck", "-q"], cwd=ROOT, check=False)  # fmt: skip
    found = next(folder.rglob("output.json"), None)
    if found is None:
        print("links: the check did not run")
        return 1
    rows = [json.loads(line) for line in found.read_text().splitlines()]
    broken = sorted({(r["uri"], r["filename"], r["info"]) for r in rows if r["status"] == "broken"})
    for uri, page, info in broken:
        print(f"{page}: {uri} ({info})")
    print(f"{len({r['uri'] for r in rows})} addresses, {len({b[0] for b in broken})} broken")
    return int(bool(broken))


def main():
    if "--links" in sys.argv[1:]:
        return links()
    done = BUILD / "html" / ".complete"
    sources = newest("*.yml", "*.md", "*.bib", "chapters/*", "chapters/scripts/*.py", "assets/**/*", "_ext/*.py",
                     "collage/**/*.py", "collage/page/*.yml", "results/**/*.json", "requirements.txt")  # fmt: skip
    if done.exists() and done.stat().st_mtime > sources:
        print("nothing has changed since the last build")
        return 0
    done.unlink(missing_ok=True)
    command = [
        str(Path(sys.executable).parent / "jupyter-book"),
        "build",
        str(ROOT),
        "-W",
        "--keep-going",
        "-q",
    ]
    # --all: a page that is not read again cannot warn
    code = subprocess.run([*command, "--all"], cwd=ROOT, check=False).returncode
    if code == 0:
        done.touch()
    return code


if __name__ == "__main__":
    sys.exit(main())
