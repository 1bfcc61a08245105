"""`python -m tests.pretend_cuda SCRIPT ARGUMENTS`, or `-m MODULE ARGUMENTS`: a program with a GPU."""

import runpy
import sys

from tests.pretend_cuda import install


def main(argv: list[str]) -> None:
    if not argv or argv == ["-m"]:
        raise SystemExit(__doc__)
    install()
    if argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
