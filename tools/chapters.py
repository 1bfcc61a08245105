"""Run chapters and keep their outputs, normalised: python -m tools.chapters sam [bmg ...]"""

import base64
import json
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, CellExecutionError, DeadKernelError

from collage import runtime
from collage.page.style import shrink

ROOT = Path(__file__).resolve().parent.parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}

# Asked in the run's own kernel when every cell has run: what the page says under its title.
RAN = """import datetime, json, torch, collage.runtime
print(json.dumps({"date": datetime.date.today().isoformat(),
                  "torch": torch.__version__.split("+")[0],
                  "device": collage.runtime.device().type}))"""


def normalise(notebook, name):
    """No times of day, no widget state, figures with a palette: a day's runs give the same file."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "remove-output" in cell.metadata.get("tags", []):
            cell["outputs"] = []  # live panels: widget state has no place in a file
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                small = shrink(base64.b64decode(data["image/png"]))
                if "collage" in cell.metadata.get("tags", []):  # drawn anew at the chapter's end
                    small = (ROOT / "assets" / "collages" / f"{name}.png").read_bytes()
                data["image/png"] = base64.b64encode(small).decode()


def run(path):
    """Run one; it is written only where every cell ran and every claim held."""
    os.environ.update(OMP_NUM_THREADS="1", COLLAGE_ASSETS=str(ROOT / "assets"))
    notebook = nbformat.read(path, as_version=4)
    begin = time.perf_counter()
    client = NotebookClient(notebook, timeout=600, record_timing=False, store_widget_state=False,
                            resources={"metadata": {"path": str(path.parent)}})  # fmt: skip
    notebook.cells.append(asked := nbformat.v4.new_code_cell(RAN))
    client.execute()
    notebook.cells.pop()
    normalise(notebook, path.stem)
    notebook.metadata["verified"] = json.loads(asked.outputs[-1]["text"])
    nbformat.write(notebook, path)
    took, size = time.perf_counter() - begin, path.stat().st_size / 1e6
    print(f"{path.relative_to(ROOT)}: {took:.0f} s, {size:.2f} MB", flush=True)


def main(argv):
    """Exit code 2 for a name that is no notebook or a bad seed shift, 1 where a cell failed."""
    check, names = "--check" in argv, [name for name in argv if name != "--check"]
    there = sorted(p.stem for p in (ROOT / "chapters").glob("*.ipynb"))
    for name in names or [""]:
        if name not in there:
            print(f"NAME: got {name!r}, wanted one of {', '.join(there)}", file=sys.stderr)
            return 2
    try:
        runtime.seed_shift()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for name in [] if check else names:
        try:
            run(ROOT / "chapters" / f"{name}.ipynb")
        except (CellExecutionError, CellControlSignal, DeadKernelError) as error:
            print(f"{name}: nothing was written, since a cell failed:\n{error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
