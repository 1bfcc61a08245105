"""Files that are whole or not there: what a run needs to go on where it was stopped.

write            a text
save, load       named arrays and a dict
resume           what a checkpoint of the same run holds
digest           to tell whether a run is the same one
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor


def write(path: str | Path, text: str) -> None:
    """Write a file whole or not at all: an old version stays until the new one is complete."""
    _atomically(Path(path), lambda file: file.write(text.encode()))


def save(path: str | Path, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """An atomic checkpoint: named arrays or tensors and a JSON-ready dict, without pickle.

    Raises OSError with the path and the reason (a full disk, say); the checkpoint that was there
    before is then still there, untouched.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/a.npz", {"w": torch.ones(2)}, {"step": 3})
    ...     load(f"{folder}/a.npz")
    ({'w': array([1., 1.], dtype=float32)}, {'step': 3})
    """
    named = {k: v.detach().cpu().numpy() if isinstance(v, Tensor) else np.asarray(v)
             for k, v in arrays.items()}  # fmt: skip
    text = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    _atomically(Path(path), lambda file: np.savez(file, **named, meta_json=text))  # type: ignore[arg-type]


def load(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
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


def resume(
    path: str | Path | None, setting: Mapping[str, Any], device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], int]:
    """What a checkpoint of the same run holds: ({name: tensor}, the steps that are done).

    One training goes on with it; the jobs of a program do with `Job` of experiments/program.py.

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


def digest(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's numbers, to tell whether a run is the same one."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # numpy has none
        tensor = tensor.contiguous().view(torch.int16)
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def _atomically(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
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
