"""Run a chapter and keep its outputs, normalised: python -m tools.chapters chapters/sam.ipynb"""

import base64
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from collage.page.style import shrink

ROOT = Path(__file__).resolve().parent.parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}


def normalise(notebook, name):
    """No timestamps, no widget state, figures with a palette: the same run gives the same file."""
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
    os.environ.update(OMP_NUM_THREADS="1", COLLAGE_ASSETS=str(ROOT / "assets"))
    notebook = nbformat.read(path, as_version=4)
    begin = time.perf_counter()
    client = NotebookClient(notebook, timeout=600, record_timing=False, store_widget_state=False,
                            resources={"metadata": {"path": str(path.parent)}})  # fmt: skip
    client.execute()
    normalise(notebook, path.stem)
    nbformat.write(notebook, path)
    took, size = time.perf_counter() - begin, path.stat().st_size / 1e6
    print(f"{path.relative_to(ROOT)}: {took:.0f} s, {size:.2f} MB")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run(Path(name).resolve())
