"""Every benchmark against its peers: python -m tools.bench [paper ...]

The peers' pins (benchmarks/requirements.txt) are installed into .bench, apart from the book's
environment. In the end one table says, for each piece of work, how long the strongest peer takes, as a
multiple of ours; peers that could not be had are listed below it as not run, with the reason.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.contests import summary
from benchmarks.timing import show

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".bench"


def install(pins):
    """Bring the pinned peers into .bench, if they are not there; a reason for each that fails."""
    stamp = PEERS / ".installed"
    if stamp.exists() and stamp.read_text() == pins:
        return []
    names = [line for line in pins.splitlines() if line and line[0] != "#"]
    print(f"installing {len(names)} pins of benchmarks/requirements.txt into .bench", flush=True)

    def pip(*wanted):
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade",
                 "--disable-pip-version-check", "--target", str(PEERS), *wanted]  # fmt: skip
        return subprocess.run(words, capture_output=True, text=True, check=False)

    failed = []
    if pip(*names).returncode:  # one of them at least: the others shall not suffer for it
        for name in names:
            if (tried := pip(name)).returncode:
                reason = (tried.stderr.strip().splitlines() or ["pip says nothing"])[-1]
                failed.append(f"{name} could not be installed ({reason})")
    PEERS.mkdir(exist_ok=True)
    if not failed:
        stamp.write_text(pins)
    return failed


def clone(folder, url, commit):
    """Bring a peer that is on no package index, unless COLLAGE_PEERS says where it lies."""
    if "COLLAGE_PEERS" in os.environ or (PEERS / folder / ".git").exists():
        return []
    words = ["git", "clone", "--quiet", url, str(PEERS / folder)]
    asked = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        subprocess.run(words, env=asked, capture_output=True, text=True, check=True, timeout=120)
        subprocess.run(
            ["git", "-C", str(PEERS / folder), "checkout", "--quiet", commit], check=True
        )
    except (OSError, subprocess.SubprocessError):
        shutil.rmtree(PEERS / folder, ignore_errors=True)
        return [f"{url} could not be cloned (see benchmarks/requirements.txt)"]
    return []


def run(paper, env):
    """Run one benchmark, show what it prints; its exit status, and what it says it did not run."""
    words = [sys.executable, "-u", "-m", f"benchmarks.{paper}"]
    left = []
    with subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith("not run: "):
                left.append(line.removeprefix("not run: ").strip())
    return process.returncode, left


def main(wanted):
    names = [p.stem for p in sorted((ROOT / "benchmarks").glob("*.py"))
             if p.stem not in ("__init__", "contests", "gpu", "jax_learners", "jax_peers", "timing",
                               "toy_kernel")]  # fmt: skip
    if unknown := set(wanted) - set(names):
        print(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(names)}",
              file=sys.stderr)  # fmt: skip
        sys.exit(2)
    papers = wanted or names
    left = install((ROOT / "benchmarks" / "requirements.txt").read_text())
    left += clone("davda54-sam", "https://github.com/davda54/sam", "3c3afdb")
    env = {"COLLAGE_PEERS": str(PEERS), **os.environ, "PYTHONPATH": str(PEERS)}
    broken = []
    for paper in papers:
        print(f"\n== {paper}", flush=True)
        begin = time.monotonic()
        status, said = run(paper, env)
        left += said
        broken += [paper] if status else []
        print(f"{paper}: {time.monotonic() - begin:.0f} s", flush=True)
    print("\n== time of the strongest peer, ours being 1")
    show(list(summary([p for p in papers if p not in broken])))
    for line in dict.fromkeys(left):
        print(f"not run: {line}")
    if broken:
        sys.exit(f"failed: {', '.join(broken)}")


if __name__ == "__main__":
    main(sys.argv[1:])
