"""What people install: a wheel with everything inside, an sdist that is the repository, a README that runs."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import collage

ROOT = Path(__file__).parent.parent
SNIPPETS = re.findall(
    r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S
)
BACKEND = """
import sys
from setuptools import build_meta
folder = sys.argv[1]  # setuptools writes its own words there
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""
PATIENCE = {"check": True, "capture_output": True, "text": True, "timeout": 300}


def tracked():
    """The repository's files, or a skip where this is no checkout."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("the package is built from a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, **PATIENCE).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a wheel and an sdist, made of a copy of the repository's files."""
    copy, dist = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    subprocess.run([sys.executable, "-c", BACKEND, str(dist)], cwd=copy, **PATIENCE)
    return dist


def wheel(built):
    return zipfile.ZipFile(next(built.glob("*.whl")))


def described(built):
    """The metadata of the wheel."""
    with wheel(built) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built):
    with wheel(built) as archive:
        inside = {n for n in archive.namelist() if ".dist-info/" not in n}
    wanted = {n for n in tracked() if n.startswith("collage/")}
    assert inside == wanted and "collage/py.typed" in inside


@pytest.mark.slow
def test_the_sdist_is_the_repository(built):
    """All that is tracked, so that the tests run from it; what is new at the top goes into MANIFEST.in."""
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    assert set(tracked()) - names == set()


@pytest.mark.slow
def test_the_metadata_say_what_and_where(built):
    said = described(built)
    assert said["Version"] == collage.__version__
    links = dict(link.split(", ") for link in said.get_all("Project-URL"))
    assert set(links) == {"Homepage", "Documentation", "Source", "Changelog", "Issues"}
    assert all(url.startswith("https://") for url in links.values())
    always = [r for r in said.get_all("Requires-Dist") if "extra ==" not in r]
    assert sorted(re.split(r"[>=]", r)[0] for r in always) == ["numpy", "torch"]
    assert (said["License-Expression"], said["Description-Content-Type"]) == (
        "MIT",
        "text/markdown",
    )


def test_the_readme_reads_the_same_anywhere():
    """On the package's page of an index there are no files beside it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [
        link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")
    ] == []


def needed(*names):
    """The distributions that these ask for, and those in turn, where they are installed."""
    found, ahead = {}, list(names)
    while ahead:
        name = re.sub(r"[-_.]+", "-", ahead.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        asked = [r for r in found[name].requires or () if "extra ==" not in r]
        ahead += [re.match(r"[\w.-]+", r)[0] for r in asked]
    return found


@pytest.fixture(scope="module")
def bare(built, tmp_path_factory):
    """Environment variables of a Python that has the wheel, torch, numpy, what these need, and nothing else."""
    libraries, installed = (
        tmp_path_factory.mktemp("libraries"),
        tmp_path_factory.mktemp("installed"),
    )
    for found in needed("torch", "numpy").values():
        for top in {path.parts[0] for path in found.files or ()} - {"..", "__pycache__"}:
            place = libraries / top
            if not place.exists():
                place.symlink_to(found.locate_file(top))
    run = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
           "--disable-pip-version-check", "--target", str(installed), str(next(built.glob("*.whl")))]  # fmt: skip
    subprocess.run(run, **PATIENCE)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (installed, libraries)))}


def bare_run(bare, code, folder):
    """Run code with no site-packages (-S), outside the repository."""
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=folder, env=bare, capture_output=True,
                          text=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="links need rights that Windows seldom gives")
def test_every_door_opens_in_a_bare_environment(bare, tmp_path):
    code = """
import importlib.util, pathlib
import collage
assert not any(map(importlib.util.find_spec, ("matplotlib", "scipy", "yaml")))
for room in collage.__all__:
    getattr(collage, room)
from collage.sensory_neuron import trained
trained()
print(pathlib.Path(collage.__file__).parent.parent)
"""
    assert bare_run(bare, code, tmp_path).strip() == bare["PYTHONPATH"].split(os.pathsep)[0]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="links need rights that Windows seldom gives")
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_readme_snippets_run_outside_the_repository(bare, tmp_path, number):
    end = "\nimport collage\nprint(collage.__file__)\n"
    shown = bare_run(bare, SNIPPETS[number] + end, tmp_path)
    assert shown.splitlines()[-1].startswith(bare["PYTHONPATH"].split(os.pathsep)[0])


def test_the_readme_has_snippets():
    assert SNIPPETS
