"""`pytest -p tests.pretend_cuda.plugin`: the tests of this process see a GPU."""

from tests.pretend_cuda import install

WATCH = install()
