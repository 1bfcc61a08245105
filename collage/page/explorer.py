"""One drawing function, three ways to play with it.

demo        the idea itself, computed in the reader's browser: in the built book
flipbook    every frame drawn beforehand, plain HTML: works with no kernel at all
live        sliders of ipywidgets that draw anew: any setting, where a kernel runs
"""

from __future__ import annotations

import base64
import html
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from collage.page.claims import claims
from collage.page.style import picture, png, share_palette

if TYPE_CHECKING:
    from ipywidgets import VBox, Widget
    from matplotlib.figure import Figure

BOOK = "https://ml-collage.github.io/ml-collage/"  # as in _config.yml
Values = Sequence | Mapping[str, Any]  # of a slider: as they are, or by the label that it shows

# A range input sums its position times its stride with the others' and shows that frame.
_MOVE = (
    "const b=this.closest('.flipbook');"
    "let n=0;b.querySelectorAll('input').forEach(i=>{"
    "const t=i.dataset.names.split('|')[i.value];"
    "i.setAttribute('aria-valuetext',t);"
    "i.closest('label').querySelector('output').textContent=t;"
    "n+=i.value*i.dataset.stride});"
    "b.querySelectorAll('img').forEach((f,k)=>{f.hidden=k!==n})"
)


class demo:
    """The place of a live figure (assets/live/<paper>.js), and what is seen where it cannot run.

    In the built book a script replaces the picture by the running demo; in a notebook, in print
    and without scripts the picture stands, with a link to the page. figure: of matplotlib, closed.

    Raises ValueError for a paper that has no chapter. The picture is drawn at 100 dpi.

    >>> import matplotlib.pyplot as plt
    >>> demo("sam", "two wells", plt.figure(figsize=(1, 1)), alt="a square")
    demo: two wells
    """

    def __init__(self, paper: str, caption: str, figure: Figure, *, alt: str) -> None:
        claims(paper)  # refuses a name that is no chapter's
        self.paper, self.caption, self.alt = paper, caption, alt
        self.picture = png(figure)

    def __repr__(self) -> str:
        return f"demo: {self.caption}"

    def _repr_html_(self) -> str:
        return (
            f'<figure class="demo" id="demo" data-demo="{self.paper}" '
            'style="background:#FBFAF7;color:#222;padding:.6em .8em;max-width:56em;margin:0">'
            f'<img alt="{html.escape(self.alt)}" style="width:100%;height:auto" '
            f'src="data:image/png;base64,{base64.b64encode(self.picture).decode()}">'
            f"<figcaption>{html.escape(self.caption)} "
            f'<a class="demo-open" href="{BOOK}chapters/{self.paper}.html#demo">Move it yourself in the book.</a>'
            "</figcaption></figure>"
        )


class flipbook:
    """Sliders over frames drawn beforehand.

    draw(**values) returns a matplotlib figure; each slider is name=[values] or
    name={label: value}. Displays itself as HTML with one range input for each slider (mouse,
    touch and arrow keys), the frames embedded; the first frame is what print and previews show,
    or the one at `start` ({name: position}). alt(**labels) describes a frame in words.

    >>> import matplotlib.pyplot as plt
    >>> book = flipbook(lambda a, b: plt.figure(figsize=(1, 1)), "two sliders", a=[1, 2], b=[3, 4, 5])
    >>> len(book.frames), book._repr_html_().count("<input")
    (6, 2)
    """

    def __init__(
        self,
        draw: Callable[..., Figure],
        caption: str,
        *,
        alt: Callable[..., str] | None = None,
        start: Mapping[str, int] | None = None,
        dpi: float = 100,
        colours: int = 72,
        **sliders: Values,
    ) -> None:
        if not sliders:
            raise ValueError("sliders: got none, wanted name=[values] at least once")
        self.caption = caption
        self.sliders = {name: _labelled(name, values) for name, values in sliders.items()}
        self.start = {name: (start or {}).get(name, 0) for name in self.sliders}
        figures, self.alts = [], []
        for labels in itertools.product(*self.sliders.values()):
            named = dict(zip(self.sliders, labels, strict=True))
            values = {name: self.sliders[name][label] for name, label in named.items()}
            figures.append(picture(draw(**values), dpi))
            words = ", ".join(f"{_title(name)} {label}" for name, label in named.items())
            self.alts.append(alt(**named) if alt else f"{caption}: {words}")
        self.frames = share_palette(figures, colours)

    def __repr__(self) -> str:
        return f"flipbook: {self.caption} ({len(self.frames)} frames)"

    def _repr_html_(self) -> str:
        inputs, stride, first = [], len(self.frames), 0
        for name, values in self.sliders.items():
            stride //= len(values)
            at = self.start[name]
            first += at * stride
            names = html.escape("|".join(values))
            current = html.escape(list(values)[at])
            inputs.append(
                f'<label style="display:flex;gap:.6em;align-items:center;flex:1 1 15em">'
                f"<span>{html.escape(_title(name))}</span>"
                f'<input type="range" min="0" max="{len(values) - 1}" step="1" value="{at}" '
                f'data-stride="{stride}" data-names="{names}" aria-valuetext="{current}" '
                f'style="flex:1;min-width:6em" oninput="{html.escape(_MOVE)}">'
                f'<output style="min-width:{max(map(len, values)) + 1}ch">{current}</output>'
                "</label>"
            )
        images = [
            f'<img alt="{html.escape(alt)}" style="width:100%;height:auto"'
            f"{'' if i == first else ' hidden'} "
            f'src="data:image/png;base64,{base64.b64encode(frame).decode()}">'
            for i, (frame, alt) in enumerate(zip(self.frames, self.alts, strict=True))
        ]
        return (
            '<div class="flipbook" role="group" '
            f'aria-label="{html.escape(self.caption)}" style="background:#FBFAF7;color:#222;'
            'padding:.6em .8em;max-width:56em"><div style="display:flex;flex-wrap:wrap;'
            f'gap:.4em 1.6em">{"".join(inputs)}</div>{"".join(images)}</div>'
        )


def live(
    draw: Callable[..., Figure], caption: str, *, dpi: float = 100, **controls: Widget
) -> VBox:
    """A panel that draws anew for any setting; needs a kernel (Jupyter, Colab).

    draw as in `flipbook`; each control is name=widget of ipywidgets. Returns the panel, whose
    picture is a `widgets.Image`; where drawing fails, the reason stands under it.
    """
    import ipywidgets as widgets

    image = widgets.Image(format="png", layout=widgets.Layout(width="100%", max_width="54em"))
    note = widgets.HTML()
    for name, control in controls.items():
        control.description = control.description or _title(name)

    def redraw(change: object = None) -> None:
        try:
            values = {name: control.value for name, control in controls.items()}
            image.value = png(draw(**values), dpi, 256)
            note.value = ""
        except Exception as error:  # a callback has nowhere else to say it
            note.value = f"<b>{html.escape(type(error).__name__)}</b>: {html.escape(str(error))}"

    for control in controls.values():
        control.observe(redraw, "value")
    redraw()
    box = widgets.HBox(list(controls.values()), layout=widgets.Layout(flex_flow="row wrap"))
    return widgets.VBox([widgets.HTML(f"<b>{html.escape(caption)}</b>"), box, image, note])


def _labelled(name: str, values: Values) -> dict[str, Any]:
    """A slider's values by what it shows for each."""
    if isinstance(values, Mapping):
        named = dict(values)
    else:
        named = {f"{value:g}" if _is_number(value) else str(value): value for value in values}
    if not named or any("|" in label for label in named):
        raise ValueError(f"{name}: got {list(named)}, wanted at least one label, none with '|'")
    return named


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _title(name: str) -> str:
    return name.replace("_", " ")
