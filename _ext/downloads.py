"""What a chapter offers to take home: its notebook, with and without outputs, and its script.

A line of links under the launch badges of each chapter; the notebook without outputs is made when
the book is built, the script is `chapters/scripts/<paper>.py`.
"""

import json
import shutil
from pathlib import Path

from docutils import nodes
from root import ROOT

SCRIPTS = ROOT / "chapters" / "scripts"
COLAB = "https://colab.research.google.com/"


def bare(text):
    """A notebook's text without its outputs and execution counts."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def weight(size):
    """Bytes as a reader reads them.

    >>> weight(51_000), weight(1_130_000)
    ('51 kB', '1.1 MB')
    """
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(1, round(size / 1e3))} kB"


def line(name):
    """The links of one chapter, seen from its page."""
    text = (ROOT / "chapters" / f"{name}.ipynb").read_text(encoding="utf-8")
    script = (SCRIPTS / f"{name}.py").read_text(encoding="utf-8")
    whole, small = (weight(len(t.encode())) for t in (text, bare(text)))
    return (
        '<p class="downloads">Download: '
        f'<a href="../_sources/chapters/{name}.ipynb" download>notebook with outputs</a> ({whole}) · '
        f'<a href="downloads/{name}.ipynb" download>without</a> ({small}) · '
        f'<a href="downloads/{name}.py" download>the method in one file</a>, '
        f"{len(script.splitlines())} lines that need nothing of this book</p>"
    )


def offer(app, doctree, page):
    """Add the line under the paragraph with the Colab badge, once a page."""
    folder, _, name = page.rpartition("/")
    if app.builder.name != "html" or folder != "chapters" or not (SCRIPTS / f"{name}.py").exists():
        return
    for reference in doctree.findall(nodes.reference):
        if reference.get("refuri", "").startswith(COLAB):
            badges = reference.parent
            place = badges.parent.index(badges) + 1
            badges.parent.insert(place, nodes.raw("", line(name), format="html"))
            return
    raise ValueError(f"{page}: no link to Colab, under which the downloads would stand")


def write(app, error):
    """The scripts and the notebooks without outputs, beside the chapters' pages."""
    if error or app.builder.name != "html":
        return
    folder = Path(app.outdir) / "chapters" / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    for script in SCRIPTS.glob("*.py"):
        shutil.copyfile(script, folder / script.name)
        text = (ROOT / "chapters" / f"{script.stem}.ipynb").read_text(encoding="utf-8")
        (folder / f"{script.stem}.ipynb").write_text(bare(text), encoding="utf-8")


def setup(app):
    app.connect("doctree-resolved", offer)
    app.connect("build-finished", write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
