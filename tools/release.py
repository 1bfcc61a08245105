"""What a release attaches: the site as an archive with a manifest, EPUB, PDF, wheel, sdist, checksums.

python -m tools.release                    # what this working tree would attach, into _build/release
python -m tools.release --tag v0.2.0       # the same for a tag, which must agree with the files

SHA256SUMS and the manifest are checked with `sha256sum --check`.
"""

import argparse
import gzip
import hashlib
import io
import re
import shutil
import sys
import tarfile
from pathlib import Path

import yaml

from collage import __version__
from tools.site import HTML, ROOT

OUT = ROOT / "_build" / "release"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def changes(text, version):
    """The changelog's section on a version, or None."""
    found = re.search(
        rf"^## {re.escape(version)}(?=\s|$)[^\n]*\n(.*?)(?=^## |\Z)", text, re.M | re.S
    )
    return found[1].strip() if found else None


def disagreements(tag, version, citation, changelog):
    """Why a tag is no release of these files, as sentences."""
    if tag != f"v{version}":
        yield f"the tag is {tag}, and collage.__version__ is {version}"
    if str(citation) != version:
        yield f"CITATION.cff is of version {citation}, and collage.__version__ is {version}"
    if not changes(changelog, version):
        yield f"CHANGELOG.md has no section on {version}"


def manifest(folder):
    """A line for each file of the site: its checksum and its path, as sha256sum writes them."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    kept = [p for p in files if p.relative_to(folder).parts[0] != "downloads"]
    return "".join(f"{sha256(p)}  {p.relative_to(folder).as_posix()}\n" for p in kept)


def archive(folder, target):
    """Pack the site with its manifest; the same files give the same bytes. Returns the manifest."""
    listed = manifest(folder)
    with (target.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
          tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as book):  # fmt: skip
        top = target.name.removesuffix(".tar.gz")
        add(book, f"{top}/MANIFEST", listed.encode())
        for line in listed.splitlines():
            name = line.partition("  ")[2]
            add(book, f"{top}/{name}", (folder / name).read_bytes())
    return listed


def add(book, name, data):
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    book.addfile(entry, io.BytesIO(data))


def built(dist, version):
    """Wheel and sdist of a version; ValueError where a folder holds anything less or more."""
    found = sorted([*dist.glob("*.whl"), *dist.glob("*.tar.gz")])
    wheel, sdist = f"ml_collage-{version}-py3-none-any.whl", f"ml_collage-{version}.tar.gz"
    if [p.name for p in found] != [wheel, sdist]:
        raise ValueError(f"{dist}: got {[p.name for p in found]}, wanted {wheel} and {sdist} alone;"
                         " empty it and build them (python -m build)")  # fmt: skip
    return found


def unfit(site, editions):
    """What is missing of the built book and its editions, or older than the book, as sentences."""
    book = site / ".complete"  # written when a build is through
    for path in [book, site / "index.html", *editions]:
        if not path.exists():
            yield f"{path} is not there"
        elif path in editions and book.exists() and path.stat().st_mtime < book.stat().st_mtime:
            yield f"{path} is older than the book"


def assemble(site, dist, version, notes, out):
    """Put everything that a release attaches into a folder of its own; returns the files.

    site: the built book, with EPUB and PDF below downloads/; dist: the folder of wheel and sdist.
    Raises ValueError where one of them is not of this book or version, before anything is removed.
    """
    editions = [site / "downloads" / f"ml-collage-{version}.{end}" for end in ("epub", "pdf")]
    if wrong := [*unfit(site, editions)]:
        raise ValueError(f"build them first (make book epub pdf): {', '.join(wrong)}")
    packages = built(dist, version)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    book = out / f"ml-collage-{version}-site.tar.gz"
    (out / f"ml-collage-{version}-site.manifest").write_text(archive(site, book), encoding="utf-8")
    for path in [*editions, *packages]:
        shutil.copy2(path, out)
    files = sorted(out.iterdir())
    sums = "".join(f"{sha256(p)}  {p.name}\n" for p in files)
    (out / "SHA256SUMS").write_text(sums, encoding="utf-8")
    (out.parent / "release-notes.md").write_text(notes + "\n", encoding="utf-8")
    return [*files, out / "SHA256SUMS"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tag", default="", help="the tag that is released")
    parser.add_argument(
        "--dist", type=Path, default=ROOT / "dist", help="folder of wheel and sdist"
    )
    options = parser.parse_args()
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"]
    wrong = (
        list(disagreements(options.tag, __version__, citation, changelog)) if options.tag else []
    )
    if wrong:
        print(*wrong, sep="\n", file=sys.stderr)
        return 1
    notes = changes(changelog, __version__ if options.tag else "Unreleased") or "No notes."
    try:
        files = assemble(HTML, options.dist, __version__, notes, OUT)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for path in files:
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
