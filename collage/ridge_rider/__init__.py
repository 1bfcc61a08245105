"""Ridge Rider (Parker-Holder et al., 2020; arXiv 2011.06505): chapter 40.

rides        ridges at a point, rides along them, plain descent
saddles      the point to start from
tree         rides from rides: a search
landscapes   losses to ride on
"""

from collage.ridge_rider.landscapes import Choices, Levers, Tanh, coloured
from collage.ridge_rider.rides import descend, ride, ridges
from collage.ridge_rider.saddles import saddle
from collage.ridge_rider.tree import search

__all__ = ["Choices", "Levers", "Tanh", "coloured", "descend", "ride", "ridges", "saddle", "search"]
