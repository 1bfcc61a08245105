"""The collage: a paper on one 16:9 slide, drawn by its chapter from its own arrays."""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage.page import style
from collage.page.claims import Verdict, claims

if TYPE_CHECKING:
    from IPython.display import Image
    from matplotlib.axes import Axes

PIXELS, DPI = (1600, 900), 100


class Slide:
    """A slide of 1600 x 900: header, a mosaic of panels, a takeaway.

    >>> slide = Slide("sam", "ab", {"a": "The problem.", "b": "The idea."}, "One sentence.")
    >>> _ = slide["a"].plot([0, 1], [0, 1])
    >>> slide.figure.get_size_inches().tolist()
    [16.0, 9.0]
    >>> _ = slide.show()

    mosaic: as for `plt.subplot_mosaic`, read from left to right. captions: one line of at most
    twelve words for each panel. The number, title, authors and year come from claims.yml.
    Raises ValueError for a caption that is too long or a panel without one.
    """

    def __init__(
        self,
        chapter: str,
        mosaic: str,
        captions: dict[str, str],
        takeaway: str,
        widths: Sequence[float] | None = None,
    ) -> None:
        import matplotlib.pyplot as plt
        from matplotlib.figure import Figure

        entry = claims(chapter)
        for key, text in captions.items():
            if len(text.split()) > 12:
                raise ValueError(f"captions[{key!r}]: got {len(text.split())} words, wanted <= 12")
        self.chapter = chapter
        size = (PIXELS[0] / DPI, PIXELS[1] / DPI)
        big: Any = {"font.size": 15, "axes.titlesize": 17, "axes.labelsize": 15, "xtick.labelsize": 13,
               "ytick.labelsize": 13, "legend.fontsize": 14, "lines.linewidth": 3.2,
               "lines.markersize": 8, "figure.constrained_layout.use": False}  # fmt: skip
        self._rc = plt.rc_context(big)
        self._rc.__enter__()
        self.figure = Figure(size, dpi=DPI, facecolor=style.PAPER)  # not pyplot's: shown by show()
        band = plt.Rectangle((0, 0.875), 1, 0.125, transform=self.figure.transFigure,
                             color=style.TINTS[entry["part"]], zorder=-1)  # fmt: skip
        self.figure.add_artist(band)
        put = self.figure.text
        put(0.028, 0.937, str(entry["number"]), size=44, weight="bold", va="center",
            color=style.METHOD)  # fmt: skip
        title_size = min(23, 23 * 66 / len(entry["title"]))
        put(0.087, 0.957, entry["title"], size=title_size, weight="bold", va="center")
        put(0.087, 0.909, f"{entry['authors']}, {entry['year']}", size=16, va="center")
        put(0.972, 0.937, "ML Collage", size=16, va="center", ha="right", color="#555555")
        put(0.5, 0.045, textwrap.fill(takeaway, 110), size=21, ha="center", va="center",
            weight="bold", linespacing=1.3)  # fmt: skip
        self.axes = self.figure.subplot_mosaic(
            mosaic, gridspec_kw={"left": 0.055, "right": 0.978, "top": 0.835, "bottom": 0.215,
                                 "wspace": 0.34, "hspace": 0.72, "width_ratios": widths}
        )  # fmt: skip
        if set(self.axes) != set(captions):
            raise ValueError(f"captions: got {sorted(captions)}, wanted {sorted(self.axes)}")
        self._captions = captions

    def __getitem__(self, panel: str) -> Axes:
        return self.axes[panel]

    def show(self) -> Image:
        """Caption the panels and return the slide as a picture; `make chapters` also keeps it.

        The picture goes to $COLLAGE_ASSETS/collages/<chapter>.png where that is set.
        """
        self.figure.canvas.draw()
        to_figure = self.figure.transFigure.inverted()
        for key, text in self._captions.items():
            axes = self.axes[key]
            cell, drawn = axes.get_position(original=True), axes.get_tightbbox()
            bottom = cell.y0 if drawn is None else min(to_figure.transform_bbox(drawn).y0, cell.y0)
            columns = max(18, int(cell.width * 150))
            self.figure.text(cell.x0, bottom - 0.008, textwrap.fill(text, columns),
                             size=15, va="top", color="#333333", linespacing=1.15)  # fmt: skip
        folder = os.environ.get("COLLAGE_ASSETS")
        if folder:
            target = Path(folder) / "collages" / f"{self.chapter}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self._png(DPI))
        small = self._png(DPI / 2)
        self._rc.__exit__(None, None, None)
        return _picture(small)

    def _png(self, dpi: float) -> bytes:
        file = io.BytesIO()
        self.figure.savefig(file, dpi=dpi, metadata={"Software": None})
        return style.shrink(file.getvalue(), 96)


def preview(chapter: str) -> Image | Verdict:
    """The kept collage of a chapter, or a word about where it will be drawn (in Colab)."""
    kept = Path("..", "assets", "collages", f"{chapter}.png")
    if kept.exists():
        return _picture(kept.read_bytes())
    return Verdict("▧", "The collage is drawn from this chapter's arrays, at its end.", "open")


def _picture(data: bytes) -> Image:
    from IPython.display import Image

    return Image(data=data, format="png", width=800)
