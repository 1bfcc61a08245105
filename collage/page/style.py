"""One visual language: a colour means the same thing in every figure of every chapter."""

import io

import matplotlib as mpl
import matplotlib.pyplot as plt

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


def use():
    """Set the book's look for every figure that follows, and sharp PNGs in notebooks."""
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
        "axes.prop_cycle": mpl.cycler(color=[METHOD, PLAIN, OTHER, EXTRA, TUNED, DATA]),
        "image.cmap": SURFACE, "svg.hashsalt": "collage",
    })  # fmt: skip
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        get_ipython()
        set_matplotlib_formats("retina")
    except (ImportError, NameError):
        pass


def picture(figure, dpi=100):
    """A figure as an RGB image of Pillow, and closed."""
    from PIL import Image

    raw = io.BytesIO()
    figure.savefig(raw, dpi=dpi, metadata={"Software": None})
    plt.close(figure)
    return Image.open(raw).convert("RGB")


def png(figure, dpi=100, colours=256):
    """A figure as the bytes of a small PNG (palette of `colours`), and closed."""
    return share_palette([picture(figure, dpi)], colours)[0]


def share_palette(images, colours):
    """PNGs of several pictures with one palette between them, so that colours do not jump."""
    from PIL import Image

    some = images[:: max(1, len(images) // 6)]
    sheet = Image.new("RGB", (max(i.width for i in some), sum(i.height for i in some)), PAPER)
    top = 0
    for image in some:
        sheet.paste(image, (0, top))
        top += image.height
    palette = sheet.quantize(colours, Image.Quantize.MEDIANCUT)
    found = []
    for image in images:
        out = io.BytesIO()
        image.quantize(palette=palette, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        found.append(out.getvalue())
    return found


def shrink(data, colours=256):
    """A PNG with a palette: a third of the size, the same to the eye."""
    from PIL import Image

    out = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        resolution = image.info.get("dpi")
        small = image.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
        small.save(out, "PNG", optimize=True, **({"dpi": resolution} if resolution else {}))
    return out.getvalue()
