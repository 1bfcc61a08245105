"""What a run needs besides its mathematics: a device, seeds, threads, records, checkpoints."""

import contextlib
import ctypes
import datetime
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch


def device(name=None):
    """The device to run on: the one named, else CUDA, else the CPU.

    Apple's MPS only by name: it has no float64, in which much here is summed and decided.

    Raises ValueError for a device that is not here.

    >>> device("cpu")
    device(type='cpu')
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
            "cpu": True}  # fmt: skip
    chosen = torch.device(name or ("cuda" if here["cuda"] else "cpu"))
    if not here.get(chosen.type, False):
        present = [kind for kind, there in here.items() if there]
        raise ValueError(f"device: got {name!r}, wanted one of {present}")
    return chosen


def seed_shift():
    """What $COLLAGE_SEED_SHIFT adds to every seed (0 where it is not set): the same run, other chance.

    Raises ValueError where it is no whole number.
    """
    text = os.environ.get("COLLAGE_SEED_SHIFT", "0")
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"COLLAGE_SEED_SHIFT: got {text!r}, wanted a whole number") from None


def generator(seed, device="cpu"):
    """A random generator of its own, so that nothing touches the global one.

    Every generator of the package and of its chapters is made here, so that `seed_shift` shifts all.

    >>> torch.equal(torch.rand(3, generator=generator(1)), torch.rand(3, generator=generator(1)))
    True
    """
    return torch.Generator(device).manual_seed(seed + seed_shift())


def seed_for(*what):
    """A seed for a purpose, such as (3, "weights"): the same on every machine.

    >>> seed_for(0, "weights") == seed_for(0, "weights") != seed_for(1, "weights")
    True
    """
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:7], "big")


def digest(tensor):
    """The SHA-256 of a tensor's numbers, to tell whether a run is the same one."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # numpy has none
        tensor = tensor.contiguous().view(torch.int16)
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def steps_from(done, total, bar=False):
    """The steps that are left, range(done, total); with a progress bar where one is wanted."""
    steps = range(done, total)
    if not bar:
        return steps
    from tqdm import tqdm

    return tqdm(steps, total=total, initial=done, unit="step", leave=False)


def threads(n=1):
    """Fix the number of CPU threads: sums in another order are other numbers.

    $COLLAGE_THREADS overrides n, to try what depends on it. Raises ValueError where it is no
    positive whole number.

    >>> threads(1)
    1
    """
    wanted = os.environ.get("COLLAGE_THREADS", str(n))
    if not wanted.isascii() or not wanted.isdigit() or int(wanted) < 1:
        raise ValueError(f"COLLAGE_THREADS: got {wanted!r}, wanted a positive whole number")
    n = int(wanted)
    if torch.get_num_threads() != n:
        torch.set_num_threads(n)
    return torch.get_num_threads()


@contextlib.contextmanager
def ranks(kind=None):
    """(rank, world, device) of this process, as `torchrun` set it up, or of a single one.

    One CPU thread for each rank, and a GPU (NCCL) where there is one; gloo without, and where kind is
    "cpu". On leaving, the ranks wait for each other.

    >>> with ranks() as (rank, world, device):
    ...     rank, world
    (0, 1)
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chosen = device(kind or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    threads(1)
    if world > 1:
        # Ranks with short jobs wait for those with long ones.
        torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo",
                                             timeout=datetime.timedelta(days=30))  # fmt: skip
    yield rank, world, chosen
    if world > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


class Captured:
    """A function of tensors as a CUDA graph: called once as it is, captured then, and replayed.

    Inputs are copied to where the graph reads them; the next call overwrites what it returned. The
    function must not wait for the GPU, and its shapes must not depend on the numbers. generators: those
    that it draws from. On a CPU it is only called.

    >>> double = Captured(lambda x: 2 * x)
    >>> double(torch.ones(1)), double(torch.ones(1))
    (tensor([2.]), tensor([2.]))
    """

    def __init__(self, function, generators=()):
        self.function, self.generators = function, generators
        self.held = self.graph = self.found = None

    def __call__(self, *inputs):
        if not inputs[0].is_cuda:
            return self.function(*inputs)
        if self.held is None:  # libraries settle, and whoever keeps a state makes it
            self.held = [t.clone() for t in inputs]
            return self.function(*self.held)
        for i, (place, given) in enumerate(zip(self.held, inputs, strict=True)):
            if place.shape != given.shape or place.dtype != given.dtype:
                raise ValueError(f"input {i}: got {given.dtype} {tuple(given.shape)}, wanted "
                                 f"{place.dtype} {tuple(place.shape)} as in the first call")  # fmt: skip
            place.copy_(given)
        if self.graph is None:
            graph = torch.cuda.CUDAGraph()
            for g in self.generators:
                graph.register_generator_state(g)
            with torch.cuda.graph(graph):
                self.found = self.function(*self.held)
            self.graph = graph
        self.graph.replay()
        return self.found


def record(numbers, *, config, seeds, repeats, peers=None, note="", gpu=None):
    """The provenance of a run around its numbers, as `results/` wants it (JSON-ready).

    numbers: what was measured; config: every setting; peers: {name: version} of what it was
    compared with; gpu: whether one was used, where there is one. Command, commit, date, machine and
    library versions are read from the process. Where the files are no git repository, the commit is
    the one named in $COLLAGE_COMMIT (with "+changes" where that is the truth), or "unknown".
    """
    gpu = torch.cuda.is_available() if gpu is None else gpu
    changed = _git("status", "--porcelain", "--", ":/", ":!/results", ":!/chapters", ":!/assets")
    return {
        "command": _command(),
        "config": config,
        "seeds": seeds,
        "commit": (_git("rev-parse", "HEAD") or os.environ.get("COLLAGE_COMMIT") or "unknown")
                  + ("+changes" if changed else ""),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if gpu else _cpu(),
        "driver": _driver() if gpu else "none",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "tf32": bool(gpu and torch.backends.cuda.matmul.allow_tf32),
        "repeats": repeats,
        "peers": peers or {},
        "note": note,
        "numbers": numbers,
    }  # fmt: skip


def write(path, text):
    """Write a file whole or not at all: an old version stays until the new one is complete."""
    _atomically(Path(path), lambda file: file.write(text.encode()))


def write_record(path, content):
    """Write a record as JSON (see `record`)."""
    write(path, json.dumps(content, indent=1, sort_keys=False, allow_nan=False) + "\n")


def save(path, arrays, meta):
    """An atomic checkpoint: named arrays or tensors and a JSON-ready dict, without pickle.

    Raises OSError with the path and the reason (a full disk, say); the checkpoint that was there
    before is then still there, untouched.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/a.npz", {"w": torch.ones(2)}, {"step": 3})
    ...     load(f"{folder}/a.npz")
    ({'w': array([1., 1.], dtype=float32)}, {'step': 3})
    """
    named = {
        k: v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else np.asarray(v)
        for k, v in arrays.items()
    }
    text = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    _atomically(Path(path), lambda file: np.savez(file, meta_json=text, **named))


def load(path):
    """The arrays and the dict that `save` wrote. Raises ValueError for a damaged file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {k: file[k] for k in file.files if k != "meta_json"}
            return arrays, json.loads(bytes(file["meta_json"]))
    except (OSError, MemoryError):  # no file, or one that cannot be read just now: it may be whole
        raise
    except Exception as error:
        raise ValueError(f"{path}: a damaged checkpoint ({error}); remove it to start "
                         "this part again") from error  # fmt: skip


def resume(path, setting, device="cpu"):
    """What a checkpoint of the same run holds: ({name: tensor}, the steps that are done).

    Nothing, and 0, without a path or where there is no file yet. The dict that `save` wrote has the
    run's "setting", JSON-ready, and how many steps are "done".

    Raises ValueError for a damaged file, or one of a run with another setting.

    >>> resume(None, {})
    ({}, 0)
    """
    try:
        arrays, meta = load(path) if path is not None else ({}, {"setting": None, "done": 0})
    except FileNotFoundError:
        return {}, 0
    setting = json.loads(json.dumps(setting))  # as a checkpoint gives it back
    if arrays and meta.get("setting") != setting:
        other = sorted(k for k in setting if (meta.get("setting") or {}).get(k) != setting[k])
        raise ValueError(f"checkpoint: {path} is of a run with other {', '.join(other)}; "
                         "wanted the same settings, or another file")  # fmt: skip
    return {k: torch.from_numpy(v).to(device) for k, v in arrays.items()}, meta["done"]


def cache():
    """The folder for what can be made or fetched again: $COLLAGE_CACHE, else the user's."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("COLLAGE_CACHE") or Path(base) / "ml-collage")


def compiled(source):
    """A C++ file as a ctypes library, compiled here and kept in the cache.

    No flag lets the compiler reorder or contract sums, and none names a processor: every one gives
    the same numbers.

    Raises RuntimeError where there is no C++ compiler (g++, clang++, or the one named in CXX), or
    where it refuses the file.
    """
    source = Path(source)
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++")), None)
    if compiler is None:
        raise RuntimeError(f"{source.name}: there is no C++ compiler here; install g++ or clang++")
    options = ["-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-Wno-psabi"]
    said = [compiler, options, platform.machine()]
    key = hashlib.sha256(source.read_bytes() + repr(said).encode()).hexdigest()
    library = cache() / f"{source.stem}-{key[:16]}.so"
    if not library.exists():
        try:
            _compile(compiler.split(), options, source, library)
        except OSError as error:
            raise RuntimeError(f"{source.name}: could not be compiled ({error})") from error
    return ctypes.CDLL(str(library))


def _compile(compiler, options, source, library):
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        run = subprocess.run([*compiler, *options, "-shared", source, "-o", made, "-lm"],
                             capture_output=True, text=True, check=False)  # fmt: skip
        if run.returncode:
            raise RuntimeError(f"{source.name}: {compiler[0]} says {run.stderr[-500:]}")
        os.replace(made, library)  # whole or not at all, also where two compile at once


def _atomically(path, fill):
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name for each rank: what a killed run has left is overwritten by the next.
    temporary = path.with_name(f"{path.name}.{os.environ.get('RANK', 0)}.part")
    try:
        with open(temporary, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"{path}: could not be written ({error}); what was there before is "
                      "untouched") from error  # fmt: skip
    finally:
        temporary.unlink(missing_ok=True)


def _command():
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"-m {spec.name}" if spec else Path(sys.argv[0]).name
    return " ".join(["python", program, *sys.argv[1:]])


def _git(*words):
    return _said("git", "-C", str(Path(__file__).parent), *words)


def _driver():
    return _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]


def _said(*words):
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""  # no such program, or nothing that it could say here


def _cpu():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"CPU {name}"
