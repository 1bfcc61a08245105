"""N-BEATS (Oreshkin et al., 2020; arXiv 1905.10437): chapter 38.

core            the paper: bases, blocks, doubly residual stacking, losses, the median
ensemble        networks as torch modules, many of them as one
fit             their training
panels          panels of series, and windows on them
measures        the competitions' error measures
classical       naive forecasts, and what statsmodels fits
fast/gradient   the gradient written out
fast/compiled   the gradient as one compiled program
"""

from collage.nbeats.core import Member, median, seasonal_basis, trend_basis
from collage.nbeats.ensemble import Ensemble, NBeats, grid

__all__ = ["Ensemble", "Member", "NBeats", "grid", "median", "seasonal_basis", "trend_basis"]
