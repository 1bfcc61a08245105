"""One thread, so that sums come in one order; a seed shift that is none ends the run at once."""

import os

import pytest

# They pretend to be a GPU as soon as they are imported.
collect_ignore = ["pretend_cuda/plugin.py", "gpu/launches.py", "gpu/compiled.py"]

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")


def pytest_configure(config):
    from collage import runtime

    try:
        runtime.seed_shift()
    except ValueError as error:
        pytest.exit(str(error), returncode=2)


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="no GPU here: see tests/test_gpu_ready.py"))
