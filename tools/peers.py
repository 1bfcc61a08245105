"""Implementations by other people, for benchmarks: found where they are, or said to be missing."""

import functools
import importlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path


@functools.cache
def peer(package, folder=None):
    """(module, version) of an installed package, or of a checkout below $COLLAGE_PEERS; or None.

    Peers that are on no package index lie in $COLLAGE_PEERS/<folder>. That one is missing is said once.
    """
    if folder is None:
        try:
            return importlib.import_module(package), importlib.metadata.version(package)
        except ImportError:
            return absent(package)
    home = os.environ.get("COLLAGE_PEERS")
    place = Path(home, folder) if home else None
    if place is None or not place.is_dir():
        return absent(folder)
    sys.path.insert(0, str(place))
    try:
        return importlib.import_module(package), _commit(place)
    finally:
        sys.path.remove(str(place))


def absent(name):
    print(f"not run: {name} is not installed (see benchmarks/requirements.txt)", flush=True)


def _commit(place):
    words = ["git", "-C", str(place), "rev-parse", "--short", "HEAD"]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    return f"commit {run.stdout.strip()}" if run.returncode == 0 else place.name
