"""Every Triton kernel, in every form the code can choose, compiled for GPUs that are not there.

Triton's interpreter shows that a kernel is right; what it hides is read from the compiled form: what
spills out of registers, how large it is, where an offset is counted in 32 bits, and what TF32 or an
atomic addition would make differ from run to run.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

try:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
except ImportError:
    triton = None

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")


class Kernel(NamedTuple):
    """A kernel, the kinds of its arguments, the forms it is launched in, and what it may take."""

    function: object
    kinds: dict  # of the arguments that are no constants
    forms: list  # constants and options, as the code chooses them
    registers: int  # a thread
    stack: int  # bytes a thread: what spills, and the tables of sin and cos
    code: int  # bytes of the compiled form
    bare: int = 0  # loads and stores without a mask: of tables that fill their blocks


def distinct(forms):
    return [dict(form) for form in sorted({tuple(form.items()) for form in forms})]


def block_max():
    from collage.convex_hull.fast import kernel

    kinds = {"x": "*fp32", "w": "*fp32", "counts": "*i64", "out": "*fp32",
             "blocks": "i32", "m": "i32", "d": "i32"}  # fmt: skip
    forms = distinct(kernel.tiles(d) for d in range(1, 300))
    return Kernel(kernel._block_max, kinds, forms, registers=168, stack=16, code=128 << 10)


def toy():
    from benchmarks import toy_kernel as kernel

    numbers = ("sigma", "lr", "b1", "b2", "eps", "power1", "power2")
    kinds = {"memory": "*fp32", "noise": "*fp32", **dict.fromkeys("MSWTK", "i32"),
             **dict.fromkeys(numbers, "fp32")}  # fmt: skip
    forms = distinct(kernel.block(pairs) for pairs in range(1, kernel.MOST + 1))
    return Kernel(kernel._toy, kinds, forms, registers=128, stack=32, code=208 << 10)


def swing_up():
    from collage.sensory_neuron.fast import kernel

    numbers = ["track", "wave", "force", "dt", "friction", "ml", "l", "M4", "m3", "mg3", "Mg6"]
    kinds = {"table": "*fp32", "starts": "*fp32", "returns": "*fp32", "lengths": "*i32",
             **dict.fromkeys(("groups", "B", "steps", "one"), "i32"),
             **dict.fromkeys(numbers, "fp32")}  # fmt: skip
    return Kernel(kernel._swing_up, kinds, [kernel.FORM], registers=224, stack=32, code=288 << 10,
                  bare=18)  # of an agent's weights  # fmt: skip


KERNELS = {"block_max": block_max, "toy": toy, "swing_up": swing_up}
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def compiler():
    """Triton 3.9; its compiler needs no GPU."""
    have = tuple(int(n) for n in triton.__version__.split(".")[:2]) if triton else (0, 0)
    if have < (3, 9):
        said = "Triton is not installed, or older than 3.9 (pip install triton)"
        pytest.fail(said) if os.environ.get("CI") else pytest.skip(said)


def test_no_kernel_is_left_out():
    """A kernel is launched by its name and a grid in brackets."""
    found = set()
    for path in [*(ROOT / "collage").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        if "@triton.jit" in (text := path.read_text()):
            found |= set(re.findall(r"^\s*(_\w+)\[\S+\]\(", text, re.M))
    assert found == {f"_{name}" for name in KERNELS}


@pytest.mark.parametrize("name", KERNELS)
def test_one_compiled_form_for_one_set_of_constants(name):
    """No whole number is specialised: else 1, multiples of 16 and the others are compiled apart."""
    kernel = KERNELS[name]()
    whole = {argument for argument, kind in kernel.kinds.items() if kind == "i32"}
    assert {p.name for p in kernel.function.params if p.do_not_specialize} == whole
    assert len(kernel.forms) <= 3


@pytest.mark.parametrize("capability", [75, 90, *(pytest.param(c, marks=pytest.mark.slow)
                                                  for c in (80, 100))])  # fmt: skip
@pytest.mark.parametrize("name", KERNELS)
def test_compiled_form(name, capability, tmp_path):
    kernel = KERNELS[name]()
    pointers = [i for i, kind in enumerate(kernel.kinds.values()) if kind[0] == "*"]
    aligned = {(i,): [["tt.divisibility", 16]] for i in pointers}  # as torch's memory is
    for form in kernel.forms:
        options = {o: form[o] for o in ("num_warps", "num_stages") if o in form}
        constants = {c: value for c, value in form.items() if c not in options}
        kinds = {**kernel.kinds, **dict.fromkeys(constants, "constexpr")}
        source = ASTSource(kernel.function, kinds, constants, aligned)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        registers, stack = resources(made.asm["cubin"], tmp_path)
        assert registers <= kernel.registers, (form, registers)
        assert stack <= kernel.stack, (form, stack)
        assert made.metadata.shared <= 24 << 10, (
            form,
            made.metadata.shared,
        )  # two a core, anywhere
        assert len(made.asm["cubin"]) <= kernel.code, (form, len(made.asm["cubin"]))
        # what must repeat adds in one order; what is proved in float64 is computed in float32
        assert "tt.atomic" not in made.asm["ttir"] and "tf32" not in made.asm["ptx"], form
        offsets = re.findall(r"tt\.addptr .*: tensor<[^,]*>, tensor<\w+x(i\d+)>", made.asm["ttir"])
        assert offsets and set(offsets) == {"i64"}, (form, offsets)
        # what reads or writes a block of places says which of them are there
        calls = re.findall(r"tt\.(load|store) ([^:{]*).*: tensor<", made.asm["ttir"])
        bare = [k for k, words in calls if words.count(",") < {"load": 1, "store": 2}[k]]
        assert calls and len(bare) == kernel.bare, (form, len(bare))


def resources(cubin, folder):
    """(registers, bytes of stack) of a thread."""
    (folder / "kernel.cubin").write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    said = subprocess.run([tool, "-res-usage", folder / "kernel.cubin"], capture_output=True,
                          text=True, check=True).stdout  # fmt: skip
    return [int(re.search(rf"{word}:(\d+)", said)[1]) for word in ("REG", "STACK")]
