"""What a release attaches: an archive that can be checked, and a tag that agrees with the files."""

import hashlib
import os
import tarfile

import pytest

from tools import release


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "html"
    for name in ("index.html", "chapters/sam.html", ".complete", "downloads/ml-collage-0.2.0.epub",
                 "downloads/ml-collage-0.2.0.pdf"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"this is {name}")
    return folder


def spoilt(folder, listing):
    """Files that are not what a list of checksums says, as `sha256sum --check` reads it."""
    rows = [line.split("  ", 1) for line in (folder / listing).read_text().splitlines()]
    return [n for s, n in rows if hashlib.sha256((folder / n).read_bytes()).hexdigest() != s]


def test_a_release_can_be_checked_by_whoever_gets_it(site, tmp_path):
    wheel = tmp_path / "ml_collage-0.2.0-py3-none-any.whl"
    wheel.write_bytes(b"a wheel")
    out = tmp_path / "out" / "release"
    files = {p.name for p in release.assemble(site, [wheel], "0.2.0", "New.", out)}
    book = "ml-collage-0.2.0-site"
    assert files == {f"{book}.tar.gz", f"{book}.manifest", "ml-collage-0.2.0.epub", "ml-collage-0.2.0.pdf",
                     wheel.name, "SHA256SUMS"} == {p.name for p in out.iterdir()}  # fmt: skip
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


def test_nothing_is_released_without_its_editions(site, tmp_path):
    (site / "downloads" / "ml-collage-0.2.0.pdf").unlink()
    with pytest.raises(FileNotFoundError, match=r"make book epub pdf.*\.pdf"):
        release.assemble(site, [], "0.2.0", "", tmp_path / "out")


def test_a_tag_agrees_with_the_files():
    log = "# Changelog\n\n## Unreleased\n\n- Later.\n\n## 0.2.0 (2026)\n\n- New.\n\n## 0.1.0\n\n- Old.\n"
    assert release.changes(log, "0.2.0") == "- New." and release.changes(log, "0.1.0") == "- Old."
    assert (
        release.changes(log, "Unreleased") == "- Later." and release.changes(log, "0.3.0") is None
    )
    assert list(release.disagreements("v0.2.0", "0.2.0", "0.2.0", log)) == []
    wrong = list(release.disagreements("v0.3.0", "0.4.0", "0.2.0", log))
    assert [w.split()[0] for w in wrong] == ["the", "CITATION.cff", "CHANGELOG.md"]
