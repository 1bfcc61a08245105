"""Whether torch's own compiler can make a program for this processor."""

import os
import shutil

import pytest


def require_compiler():
    """Skip the test where it cannot."""
    if os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2"):
        pytest.skip("torch's own compiler fails for a processor that is only pretended")
    if not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("no C++ compiler here")
