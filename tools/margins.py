"""Run one notebook in this process and keep what each of its claims measured.

    python -m tools.margins chapters/sam.ipynb sam.json

A claim's condition is a sentence of comparisons, such as `(gain > 0).all() and gain.mean() > 8`. Before
a cell runs, each comparison inside a `claim(...)` is rewritten so that it also notes its *slack*: how far
its left side is from its right one, positive where it holds. Over many runs the slack's mean in units of
its spread says how sure the claim is (see `tools.audit`). Nothing is computed twice.
"""

import ast
import contextlib
import json
import math
import operator
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

import collage.page
from collage.common.checkpoint import write

COMPARE = {"Lt": operator.lt, "LtE": operator.le, "Gt": operator.gt, "GtE": operator.ge}
ORDER = {ast.Lt: -1, ast.LtE: -1, ast.Gt: 1, ast.GtE: 1}  # the sign of left - right where it holds


class Rewriter(ast.NodeTransformer):
    """claim(text, condition) -> claim(*__claimed__(text, condition')), comparisons being measured."""

    def visit_Call(self, node):
        self.generic_visit(node)
        if getattr(node.func, "id", "") != "claim" or len(node.args) < 2:
            return node
        text, condition, *rest = node.args
        measured = Comparisons().visit(condition)
        settles = next((k.value for k in node.keywords if k.arg == "settles"), ast.Constant(None))
        noted = ast.Call(ast.Name("__claimed__", ast.Load()), [text, measured, settles], [])
        node.args = [ast.Starred(noted, ast.Load()), *rest]
        return ast.fix_missing_locations(node)


class Comparisons(ast.NodeTransformer):
    """Outermost comparisons and allclose; each has a number, its place in the condition."""

    def __init__(self):
        self.count, self.sign, self.best = 0, 1, False

    def _call(self, name, *words):
        self.count += 1
        values = [ast.Constant(w) if isinstance(w, str | int | bool) else w for w in words]
        return ast.Call(ast.Name(name, ast.Load()), [ast.Constant(self.count - 1), *values], [])

    def visit_Compare(self, node):
        if not all(type(op) in ORDER for op in node.ops):
            return node  # equal, in, is: exact, and nothing to measure
        signs = ",".join(str(self.sign * ORDER[type(op)]) for op in node.ops)
        names = ",".join(type(op).__name__ for op in node.ops)
        sides = ast.Tuple([node.left, *node.comparators], ast.Load())
        return self._call("__compared__", sides, names, signs, self.best)

    def visit_UnaryOp(self, node):
        if not isinstance(node.op, ast.Not | ast.Invert):
            return self.generic_visit(node)
        self.sign, self.best = -self.sign, not self.best
        self.generic_visit(node)
        self.sign, self.best = -self.sign, not self.best
        return node

    def visit_Call(self, node):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in ("equal", "array_equal"):
            return node  # exact
        if name == "allclose":
            sides = ast.Tuple(node.args[:2], ast.Load())
            rest = ast.Dict([ast.Constant(k.arg) for k in node.keywords],
                            [k.value for k in node.keywords])  # fmt: skip
            return self._call("__close__", sides, rest)
        before, self.best = self.best, self.best ^ (name == "any")
        self.generic_visit(node)
        self.best = before
        return node


class Notes:
    """What the claims of a run measured: text -> held, and for each comparison its slacks."""

    def __init__(self):
        self.claims, self.pending = {}, {}

    def compared(self, place, sides, names, signs, best):
        """a < b < c, as Python has it; notes the slack of each link."""
        result, links = True, zip(sides, sides[1:], names.split(","), signs.split(","))
        for i, (a, b, name, sign) in enumerate(links):
            if i and not result:  # as in Python; of arrays it raises here, too
                break
            result = COMPARE[name](a, b)
            self._note(f"{place}.{i}", _array(a), _array(b), int(sign), best)
        return result

    def close(self, place, sides, words):
        a, b = sides
        module = np if isinstance(a, np.ndarray) else torch
        wanted = {"rtol": 1e-5, "atol": 1e-8, **words}
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            x, y = _array(a), _array(b)
            room = wanted["atol"] + wanted["rtol"] * np.abs(y)
            gap = np.max(np.abs(x - y) / np.where(room > 0, room, 1.0))
            if (room > 0).all():
                self._note(f"{place}.0", np.asarray(gap), np.asarray(1.0), -1, False)
        return bool(module.allclose(a, b, **words))

    def _note(self, place, a, b, sign, best):
        try:
            a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
        except (TypeError, ValueError):
            return
        if not a.size or np.isnan(a).any() or np.isnan(b).any():
            return
        with np.errstate(all="ignore"):
            linear = sign * (a - b)
            log = sign * (np.log(a) - np.log(b)) if (a > 0).all() and (b > 0).all() else None
        pick = np.max if best else np.min
        pair = [float(pick(linear)), None if log is None else float(pick(log))]
        pair = [v if v is not None and math.isfinite(v) else None for v in pair]
        kept = self.pending.setdefault(place, pair)
        worse = [v if k is None or v is None else min(k, v) for k, v in zip(kept, pair)]
        self.pending[place] = worse

    def claimed(self, text, condition, settles):
        held = bool(condition)
        entry = self.claims.setdefault(text, {"held": True, "settles": settles, "slack": {}})
        entry["held"] &= held
        for place, pair in self.pending.items():
            kept = entry["slack"].get(place, pair)
            entry["slack"][place] = [v if k is None or v is None else min(k, v)
                                     for k, v in zip(kept, pair)]  # fmt: skip
        self.pending = {}
        return text, condition


def _array(x):
    return x.detach().double().cpu().numpy() if hasattr(x, "detach") else x


def execute(path):
    """(claims, error or None, seconds) of a notebook run from its top to its last claim."""
    os.environ["MPLBACKEND"] = "agg"
    import matplotlib.pyplot as plt
    from IPython.core.interactiveshell import InteractiveShell

    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    while cells and "claim(" not in "".join(cells[-1]["source"]):
        cells.pop()
    shell, notes = InteractiveShell.instance(), Notes()
    shell.ast_transformers.append(Rewriter())
    shell.user_ns.update(__claimed__=notes.claimed, __compared__=notes.compared,
                         __close__=notes.close)  # fmt: skip
    collage.page.flipbook = collage.page.demo = lambda *args, **settings: None  # settle nothing
    os.chdir(path.parent)
    begin = time.perf_counter()
    for cell in cells:
        text = "".join(cell["source"])
        if "conclude()" in text:
            continue  # a claim that fails here is what is counted
        notes.pending = {}
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            result = shell.run_cell(text)
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            said = f"{type(error).__name__}: {error}"
            return notes.claims, f"{text.splitlines()[0]}: {said}", time.perf_counter() - begin
        plt.close("all")
    return notes.claims, None, time.perf_counter() - begin


def main(argv):
    path, into = Path(argv[0]).resolve(), Path(argv[1]).resolve()
    found, error, seconds = execute(path)
    write(into, json.dumps({"claims": found, "error": error, "seconds": round(seconds, 1),
                            "files": used()}))  # fmt: skip


def used():
    """The files of the package behind this run, but for what only shows it."""
    root = Path(collage.__file__).parent
    found = [Path(m.__file__) for n, m in sys.modules.items()
             if n.startswith("collage.") and not n.startswith("collage.page")]  # fmt: skip
    return sorted(str(p.relative_to(root.parent)) for p in found)


if __name__ == "__main__":
    main(sys.argv[1:])
