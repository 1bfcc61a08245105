"""Ridge Rider (Parker-Holder et al., 2020; arXiv 2011.06505): chapter 40.

core         rides: along a ridge and, after each step, along the one that continues it
starts       where rides start: a saddle, and the ridges there; and plain descent
tree         rides from rides: a search
landscapes   losses to ride on
"""

from collage.ridge_rider.core import ride
from collage.ridge_rider.starts import descend, ridges, saddle
from collage.ridge_rider.tree import search

__all__ = ["descend", "ride", "ridges", "saddle", "search"]
