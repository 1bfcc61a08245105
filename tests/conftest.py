"""One thread, so that sums come in one order; a seed shift that is none ends the run at once."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")


def pytest_configure(config):
    from collage import runtime

    try:
        runtime.seed_shift()
    except ValueError as error:
        pytest.exit(str(error), returncode=2)
