"""Write what the live figures read (assets/live/*.json): python -m tools.live [convex_hull ...]"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from collage.convex_hull import gaussian_inside_probability

LIVE = Path(__file__).resolve().parent.parent / "assets" / "live"


def convex_hull() -> dict[str, Any]:
    """The exact shares of new Gaussian points inside, for d = 2 ... 12."""
    return {"inside": {str(n): [round(gaussian_inside_probability(n, d), 6) for d in range(2, 13)]
                       for n in (10, 20, 50, 200)}}  # fmt: skip


FILES: dict[str, Callable[[], dict[str, Any]]] = {"convex_hull": convex_hull}


def write(name: str) -> None:
    path = LIVE / f"{name}.json"
    path.write_text(json.dumps(FILES[name](), separators=(",", ":")) + "\n")
    print(f"{path.relative_to(LIVE.parent.parent)}: {path.stat().st_size:,} bytes")


def main(names: list[str]) -> int:
    """Exit code 2 for a figure that reads no file."""
    for name in names or FILES:
        if name not in FILES:
            print(f"NAME: got {name!r}, wanted one of {', '.join(FILES)}", file=sys.stderr)
            return 2
        write(name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
