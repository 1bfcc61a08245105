"""N-BEATS (Oreshkin et al., 2020; arXiv 1905.10437): chapter 38.

ensemble        the network, many of them as one, and their training
members         who is in an ensemble; the bases of interpretable blocks
forecasts       fit and ask an ensemble of any size; the median
panels          panels of series, and windows on them
measures        error measures, and losses as one reads them (training has its own in `ensemble`)
classical       naive forecasts, and what statsmodels fits
fast/gradient   the gradient written out
"""

from collage.nbeats.classical import arima, ets, naive, naive2, seasonal_naive, theta
from collage.nbeats.ensemble import Ensemble, NBeats
from collage.nbeats.fast.gradient import Gradient
from collage.nbeats.forecasts import forecast, median
from collage.nbeats.measures import mape, mape_loss, mase, mase_loss, owa, smape, smape_loss
from collage.nbeats.members import LOSSES, Member, grid, seasonal_basis, trend_basis
from collage.nbeats.panels import Windows, split

__all__ = [
    "LOSSES",
    "Ensemble",
    "Gradient",
    "Member",
    "NBeats",
    "Windows",
    "arima",
    "ets",
    "forecast",
    "grid",
    "mape",
    "mape_loss",
    "mase",
    "mase_loss",
    "median",
    "naive",
    "naive2",
    "owa",
    "seasonal_basis",
    "seasonal_naive",
    "smape",
    "smape_loss",
    "split",
    "theta",
    "trend_basis",
]
