"""What a release attaches: an archive that can be checked, and a tag that agrees with the files."""

import contextlib
import hashlib
import os
import tarfile

import pytest

from tools import bound, edition, release
from tools.bound import pages


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "html"
    for name in ("index.html", "chapters/sam.html", ".complete", "downloads/ml-collage-0.2.0.epub",
                 "downloads/ml-collage-0.2.0.pdf"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"this is {name}")
    return folder


@pytest.fixture
def dist(tmp_path):
    folder = tmp_path / "dist"
    folder.mkdir()
    for name in ("ml_collage-0.2.0-py3-none-any.whl", "ml_collage-0.2.0.tar.gz"):
        (folder / name).write_text(f"this is {name}")
    return folder


def spoilt(folder, listing):
    """Files that are not what a list of checksums says, as `sha256sum --check` reads it."""
    rows = [line.split("  ", 1) for line in (folder / listing).read_text().splitlines()]
    return [n for s, n in rows if hashlib.sha256((folder / n).read_bytes()).hexdigest() != s]


def test_a_release_can_be_checked_by_whoever_gets_it(site, dist, tmp_path):
    out = tmp_path / "out" / "release"
    files = {p.name for p in release.assemble(site, dist, "0.2.0", "New.", out)}
    book = "ml-collage-0.2.0-site"
    assert files == {f"{book}.tar.gz", f"{book}.manifest", "ml-collage-0.2.0.epub", "ml-collage-0.2.0.pdf",
                     *(p.name for p in dist.iterdir()), "SHA256SUMS"} == {p.name for p in out.iterdir()}  # fmt: skip
    assert spoilt(out, "SHA256SUMS") == []
    with tarfile.open(out / f"{book}.tar.gz") as archive:
        assert set(archive.getnames()) == {
            f"{book}/{n}" for n in ("MANIFEST", "index.html", "chapters/sam.html")
        }
        archive.extractall(tmp_path, filter="data")
    assert spoilt(tmp_path / book, "MANIFEST") == []
    (tmp_path / book / "index.html").write_text("changed on the way")
    assert spoilt(tmp_path / book, "MANIFEST") == ["index.html"]
    assert (out.parent / "release-notes.md").read_text() == "New.\n"


def test_the_same_site_gives_the_same_archive(site, tmp_path):
    made = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        release.archive(site, tmp_path / folder / "x.tar.gz")
        made.append((tmp_path / folder / "x.tar.gz").read_bytes())
        for path in site.rglob("*.html"):
            os.utime(path, (0, 0))
    assert made[0] == made[1]


def refused(site, dist, tmp_path, match):
    """Nothing is assembled, and what an earlier release left is still there."""
    kept = tmp_path / "out" / "kept"
    kept.parent.mkdir(exist_ok=True)
    kept.touch()
    with pytest.raises(ValueError, match=match):
        release.assemble(site, dist, "0.2.0", "", kept.parent)
    assert kept.exists()


def test_nothing_is_released_without_editions_of_this_book(site, dist, tmp_path):
    pdf = site / "downloads" / "ml-collage-0.2.0.pdf"
    os.utime(pdf, (0, 0))
    refused(site, dist, tmp_path, r"make book epub pdf.*\.pdf is older")
    pdf.unlink()
    refused(site, dist, tmp_path, r"make book epub pdf.*\.pdf is not there")
    pdf.touch()
    (site / ".complete").unlink()
    refused(site, dist, tmp_path, r"\.complete is not there")


def test_nothing_is_released_but_the_two_packages_of_its_version(site, dist, tmp_path):
    old = dist / "ml_collage-0.1.0.tar.gz"
    old.touch()
    refused(site, dist, tmp_path, r"got .*0\.1\.0.*wanted .*0\.2\.0.*alone")
    old.unlink()
    (dist / "ml_collage-0.2.0.tar.gz").rename(old)
    refused(site, dist, tmp_path, r"got .*0\.1\.0")
    old.unlink()
    refused(site, dist, tmp_path, r"wanted .*\.whl and .*\.tar\.gz")


def test_an_edition_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(bound, "DOWNLOADS", tmp_path)
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "chromium", lambda: "here")
    monkeypatch.setattr(pages, "offer", lambda: None)
    for name in ("served", "browser"):
        monkeypatch.setattr(pages, name, contextlib.nullcontext)
    target = tmp_path / pages.edition_name("epub")
    target.write_text("old")

    def build(path, window, address):
        path.write_text("half")
        assert target.read_text() == "old"
        if not whole:
            raise RuntimeError("stopped")
        path.write_text("whole")
        return path

    whole = False
    with pytest.raises(RuntimeError, match="stopped"):
        pages.bind("epub", build)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]
    whole = True
    assert pages.bind("epub", build) == 0
    assert [p.read_text() for p in tmp_path.iterdir()] == ["whole"]


def test_an_edition_has_one_name_on_the_site_and_bound():
    assert bound.EDITION == edition.edition(bound.VERSION) != bound.VERSION
    for text in (bound.PREFACE.replace("edition", "Edition"), pages.cover("")):
        assert f"Edition {bound.EDITION}" in text and bound.VERSION not in text


def test_a_tag_agrees_with_the_files():
    log = "# Changelog\n\n## Unreleased\n\n- Later.\n\n## 0.2.0 (2026)\n\n- New.\n\n## 0.1.0\n\n- Old.\n"
    assert release.changes(log, "0.2.0") == "- New." and release.changes(log, "0.1.0") == "- Old."
    assert (
        release.changes(log, "Unreleased") == "- Later." and release.changes(log, "0.3.0") is None
    )
    assert release.changes(log.replace("0.2.0", "0.2.0-rc1"), "0.2.0") is None
    assert release.changes("## 0.2.0\n- New.\n", "0.2.0") == "- New."
    assert list(release.disagreements("v0.2.0", "0.2.0", "0.2.0", log)) == []
    wrong = list(release.disagreements("v0.3.0", "0.4.0", "0.2.0", log))
    assert [w.split()[0] for w in wrong] == ["the", "CITATION.cff", "CHANGELOG.md"]
