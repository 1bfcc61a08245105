"""The C++ half, compiled once for each torch (15 s) and loaded. Nothing here imports torch."""

import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("device.cpp")
CACHE = Path(__file__).parents[2] / "_build" / "pretend_cuda"


def _torch() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise RuntimeError("torch: not installed")
    return Path(spec.origin).parent


def why_not() -> str:
    """Why there can be no pretended device here; empty where there can."""
    if shutil.which("g++") is None:
        return "no g++ to compile the pretended GPU"
    version = (_torch() / "version.py").read_text()
    if not re.search(r"^cuda[^=]*= None$", version, re.M):
        return "this torch is built for a real CUDA"
    return ""


def library() -> Path:
    """The compiled device; its name holds a hash of what it was made from."""
    torch = _torch()
    made_from = SOURCE.read_bytes() + (torch / "version.py").read_bytes()
    path = CACHE / f"{hashlib.sha256(made_from).hexdigest()[:12]}.so"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")  # two processes may compile at the same time
        include = [f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include"]
        link = [f"-L{torch}/lib", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch}/lib"]
        command = ["g++", "-std=c++20", "-O0", "-fPIC", "-shared", *include, SOURCE, *link]
        subprocess.run([*command, "-o", part], check=True)
        os.replace(part, path)
    return path


def load() -> None:
    """torch asks for its CUDA hooks once, when it is first imported: this has to be there by then."""
    if reason := why_not():
        raise RuntimeError(f"pretended GPU: {reason}")
    ctypes.CDLL(str(library()), ctypes.RTLD_GLOBAL)
