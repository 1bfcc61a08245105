"""Build the book from the committed notebooks, every warning an error: python -m tools.book"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"


def newest(*patterns):
    """Latest change of the files behind the book."""
    times = [p.stat().st_mtime for pattern in patterns for p in ROOT.glob(pattern) if p.is_file()]
    return max(times, default=0)


def main():
    done = BUILD / "html" / ".complete"
    sources = newest("*.yml", "*.md", "*.bib", "chapters/*", "assets/**/*", "_ext/*.py",
                     "collage/page/*", "results/**/*.json", "requirements.txt")  # fmt: skip
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
