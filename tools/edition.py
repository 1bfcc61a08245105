"""Make the book an edition: its number wherever it stands, its tag in every set-up cell.

python -m tools.edition 0.2.0     # write it; commit, then tag the commit v0.2.0
python -m tools.edition --check   # 1 where a file names another edition than the package
"""

import datetime
import re
import sys
from pathlib import Path

import collage

ROOT = Path(__file__).resolve().parent.parent
REF = r"(?:main|v\d+\.\d+\.\d+)"


def edition(version: str = collage.__version__) -> str:
    """What readers call a version.

    >>> edition("0.2.1")
    '0.2'
    """
    return ".".join(version.split(".")[:2])


def places(version: str, day: str) -> dict[str, list[tuple[str, str]]]:
    """What each file says of an edition: {pattern of files: [(what is there, what is wanted), ...]}."""
    tag = f"v{version}"
    return {
        "collage/__init__.py": [(r'(?<=__version__ = ")[^"]+', version)],
        "CITATION.cff": [(r"(?<=^version: ).+", version)]
        + [(r"(?<=^date-released: ).+", day)] * bool(day),
        "chapters/*.ipynb": [
            (rf"(?<=git\+https://github\.com/ml-collage/ml-collage@){REF}", tag),
            (rf'(?<=tag = \\"){REF}(?=\\")', tag),  # as it stands in the file, quotes escaped
        ],
    }


def write(root: Path, version: str, day: str = "", check: bool = False) -> list[str]:
    """The files that named another edition; they are rewritten unless this only checks.

    Raises ValueError for a version that is not three numbers.
    """
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ValueError(f"version: got {version!r}, wanted three numbers such as '0.2.0'")
    changed = []
    for files, wanted in places(version, day).items():
        for path in sorted(root.glob(files)):
            before = text = path.read_text(encoding="utf-8")
            for pattern, new in wanted:
                text = re.sub(pattern, new, text, flags=re.M)
            if text != before:
                changed.append(str(path.relative_to(root)))
                if not check:
                    path.write_text(text, encoding="utf-8")
    return changed


def main(argv: list[str]) -> int:
    """Exit code 2 for a bad version; 1 where a check finds another edition."""
    check, words = "--check" in argv, [word for word in argv if word != "--check"]
    day = "" if check else datetime.datetime.now(datetime.UTC).date().isoformat()
    try:
        changed = write(ROOT, words[0] if words else collage.__version__, day, check)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for name in changed:
        print(f"{name}: {'names another edition' if check else 'written'}")
    return int(check and bool(changed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
