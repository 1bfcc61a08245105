"""The built book, served as it will be in public, and a headless Chromium to look at it."""

import contextlib
import http.server
import os
import shutil
import threading
from pathlib import Path
from urllib.parse import urlparse

import yaml

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
PREFIX = urlparse(yaml.safe_load((ROOT / "_config.yml").read_text())["html"]["baseurl"]).path
NOT_PAGES = {"genindex.html", "search.html"}


def pages():
    """Every page of the book, as paths below the root, the 404 page included."""
    found = [str(p.relative_to(HTML)) for p in HTML.rglob("*.html") if "_static" not in p.parts]
    return sorted(set(found) - NOT_PAGES)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the book below its public prefix; what is not there is the 404 page."""

    def translate_path(self, path):
        return super().translate_path("/" + path.removeprefix(PREFIX))

    def send_error(self, code, message=None, explain=None):
        body = (HTML / "404.html").read_bytes()
        self.send_response(code)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def served():
    """The address of the book on a free local port."""

    def handler(*args):
        return Handler(*args, directory=str(HTML))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}{PREFIX}"
        server.shutdown()


def chromium():
    """Path of a Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextlib.contextmanager
def browser():
    """Headless Chromium that asks the network for nothing of its own."""
    from playwright.sync_api import sync_playwright

    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--disable-quic", "--no-first-run", "--disable-gpu"]  # fmt: skip
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as play:
        window = play.chromium.launch(executable_path=chromium(), args=quiet + sandbox)
        yield window
        window.close()
