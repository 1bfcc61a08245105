"""One visual language: a colour means the same thing in every figure of every chapter."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image as Picture

# Okabe and Ito's colour-blind-safe palette, with a job for each colour.
METHOD = "#D55E00"  # the paper's method
PLAIN = "#0072B2"  # plain gradient descent, SGD, truncated, cloned: the usual way
TUNED = "#56B4E9"  # the same baseline, tuned harder
OTHER = "#009E73"  # a second baseline or variant
EXTRA = "#CC79A7"  # a third one
TRUTH = "#000000"  # exact curves
DATA = "#8A8A8A"  # data, references
PAPER = "#FBFAF7"  # the light ground of every figure, opaque so that dark pages frame it
INK = "#222222"
TINTS = {1: "#E3EEF6", 2: "#F6EBDD"}  # Part I and Part II, for cards and slides
SURFACE = "YlGnBu_r"  # loss surfaces and other maps: dark is low

WIDTH = 7.2  # inches: a column of the page


def use() -> None:
    """Set the book's look for every figure that follows, and sharp PNGs in notebooks."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update({
        "figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.facecolor": PAPER,
        "figure.figsize": (WIDTH, 3.4), "figure.dpi": 100, "figure.constrained_layout.use": True,
        "font.size": 10.5, "axes.titlesize": 11, "axes.labelsize": 10.5,
        "axes.titleweight": "bold", "axes.titlelocation": "left",
        "xtick.labelsize": 9.5, "ytick.labelsize": 9.5, "legend.fontsize": 9.5,
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#777777",
        "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.grid": True, "grid.color": "#E4E1DA", "grid.linewidth": 0.8, "axes.axisbelow": True,
        "legend.frameon": False, "lines.linewidth": 2.0, "lines.markersize": 5.5,
        "axes.prop_cycle": cycler(color=[METHOD, PLAIN, OTHER, EXTRA, TUNED, DATA]),
        "image.cmap": SURFACE, "svg.hashsalt": "collage",
    })  # fmt: skip
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        get_ipython()  # type: ignore[name-defined]  # a name that notebooks have
        set_matplotlib_formats("retina")
    except (ImportError, NameError):
        pass


def picture(figure: Figure, dpi: float = 100) -> Picture:
    """Draw a figure as an RGB image of Pillow, and close it."""
    import matplotlib.pyplot as plt
    from PIL import Image

    raw = io.BytesIO()
    figure.savefig(raw, dpi=dpi, metadata={"Software": None})
    plt.close(figure)
    return Image.open(raw).convert("RGB")


def png(figure: Figure, dpi: float = 100, colours: int = 256) -> bytes:
    """Draw a figure as the bytes of a small PNG (a palette of `colours`), and close it."""
    return share_palette([picture(figure, dpi)], colours)[0]


def share_palette(images: Sequence[Picture], colours: int) -> list[bytes]:
    """PNGs of several pictures with one palette between them, so that colours do not jump."""
    from PIL import Image

    samples = images[:: max(1, len(images) // 6)]
    size = (max(image.width for image in samples), sum(image.height for image in samples))
    sheet = Image.new("RGB", size, PAPER)
    top = 0
    for image in samples:
        sheet.paste(image, (0, top))
        top += image.height
    palette = sheet.quantize(colours, Image.Quantize.MEDIANCUT)
    files = []
    for image in images:
        file = io.BytesIO()
        image.quantize(palette=palette, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        files.append(file.getvalue())
    return files


def shrink(data: bytes, colours: int = 256) -> bytes:
    """A PNG with a palette: a third of the size, the same to the eye."""
    from PIL import Image

    file = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        resolution = image.info.get("dpi")
        small = image.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
        small.save(file, "PNG", optimize=True, **({"dpi": resolution} if resolution else {}))
    return file.getvalue()
