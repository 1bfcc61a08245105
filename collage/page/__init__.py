"""What a reader sees: figures, slides, explorers, verdicts and exercises.

Only this part of the package imports matplotlib, ipywidgets and IPython, each where it is used.
"""

from collage.page.claims import claim, claims, conclude
from collage.page.exercises import check
from collage.page.explorer import demo, flipbook, live
from collage.page.records import record
from collage.page.slide import Slide
from collage.page.style import use

__all__ = [
    "Slide",
    "check",
    "claim",
    "claims",
    "conclude",
    "demo",
    "flipbook",
    "live",
    "record",
    "use",
]
