"""Ridge Rider (Parker-Holder et al., 2020; arXiv 2011.06505).

rides        saddles, ridges, rides, searches
landscapes   losses to ride on
"""

from collage.ridge_rider.landscapes import Choices, Levers, Tanh, coloured
from collage.ridge_rider.rides import descend, ride, ridges, saddle, search

__all__ = ["Choices", "Levers", "Tanh", "coloured", "descend", "ride", "ridges", "saddle", "search"]
