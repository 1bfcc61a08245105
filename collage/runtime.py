"""What a run needs besides its mathematics: a device, seeds, threads, ranks."""

import contextlib
import datetime
import hashlib
import os
from collections.abc import Iterator

import torch


def device(name: str | None = None) -> torch.device:
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


def seed_shift() -> int:
    """What $COLLAGE_SEED_SHIFT adds to every seed (0 where it is not set): the same run, other chance.

    Raises ValueError where it is no whole number.
    """
    text = os.environ.get("COLLAGE_SEED_SHIFT", "0")
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"COLLAGE_SEED_SHIFT: got {text!r}, wanted a whole number") from None


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator of its own, so that nothing touches the global one.

    Every generator of the package and of its chapters is made here, so that `seed_shift` shifts all.

    >>> torch.equal(torch.rand(3, generator=generator(1)), torch.rand(3, generator=generator(1)))
    True
    """
    return torch.Generator(device).manual_seed(seed + seed_shift())


def seed_for(*purpose: object) -> int:
    """A seed for a purpose, such as (3, "weights"): the same on every machine.

    >>> seed_for(0, "weights") == seed_for(0, "weights") != seed_for(1, "weights")
    True
    """
    return int.from_bytes(hashlib.sha256(repr(purpose).encode()).digest()[:7], "big")


def threads(n: int = 1) -> int:
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
def one_thread() -> Iterator[None]:
    """One CPU thread within, and as many as before afterwards.

    For long rows of small operations: shared among threads, each waits for the slowest, which on a
    busy machine is waiting for a core.

    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def product_precision() -> str:
    """What a float32 matrix product may be rounded to: "ieee" (not at all), "tf32" or "bf16".

    Torch has two flags for it, an old and a new one, and refuses the question about the old one
    once the new one was set.

    >>> product_precision()
    'ieee'
    """
    try:
        backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        said = {b.fp32_precision for b in backends}
    except AttributeError:  # before torch 2.9
        old = {"highest": "ieee", "high": "tf32", "medium": "bf16"}
        said = {old[torch.get_float32_matmul_precision()],
                "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"}  # fmt: skip
    return next((kind for kind in ("bf16", "tf32") if kind in said), "ieee")


def free_memory(device: torch.device) -> int:
    """Bytes that torch can still have on a GPU: what is free, and what it holds and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


@contextlib.contextmanager
def ranks(kind: str | None = None) -> Iterator[tuple[int, int, torch.device]]:
    """(rank, world, device) of this process, as `torchrun` set it up, or of a single one.

    One CPU thread for each rank, and a GPU of its own (NCCL) where this machine has one for each;
    else the CPU (gloo), as where kind is "cpu". On leaving, the ranks wait for each other.

    Raises ValueError where kind is "cuda" and the GPUs are fewer than the ranks.

    >>> with ranks() as (rank, world, device):
    ...     rank, world
    (0, 1)
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chosen = device(kind or ("cuda" if torch.cuda.is_available() else "cpu"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))  # ranks on this machine
    if chosen.type == "cuda" and here > torch.cuda.device_count():  # NCCL wants a GPU for each
        if kind:
            raise ValueError(f"kind: got {kind!r} for {here} ranks, wanted a GPU for each, and there "
                             f"are {torch.cuda.device_count()}")  # fmt: skip
        chosen = device("cpu")
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
