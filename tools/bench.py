"""Every benchmark against its peers: python -m tools.bench [paper ...]

The peers' pins (benchmarks/requirements.txt) are installed into .bench, apart from the book's
environment. A peer that cannot be had is listed as not run.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".bench"


def main(wanted):
    pins = ROOT / "benchmarks" / "requirements.txt"
    stamp = PEERS / ".installed"
    if not stamp.exists() or stamp.read_text() != pins.read_text():
        names = [line for line in pins.read_text().splitlines() if line and line[0] != "#"]
        for name in names:
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade",
                       "--disable-pip-version-check", "--target", str(PEERS), name]  # fmt: skip
            if subprocess.run(install, check=False).returncode:
                print(f"not run: {name} could not be installed")
        PEERS.mkdir(exist_ok=True)
        stamp.write_text(pins.read_text())
    if not os.environ.get("COLLAGE_PEERS"):
        print(
            "not run: davda54/sam (clone it and set COLLAGE_PEERS, see benchmarks/requirements.txt)"
        )
    env = {**os.environ, "PYTHONPATH": str(PEERS)}
    papers = wanted or [p.stem for p in sorted((ROOT / "benchmarks").glob("*.py"))
                        if p.stem not in ("__init__", "timing")]  # fmt: skip
    for paper in papers:
        print(f"\n== {paper}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{paper}"], cwd=ROOT, env=env, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
