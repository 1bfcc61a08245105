"""N-BEATS (Oreshkin et al., 2020; arXiv 1905.10437).

ensemble        the network, its ensembles and their training
forecasting     windows, measures, classical methods
fast/gradient   the gradient written out
"""

from collage.nbeats.ensemble import (
    CHUNK,
    LOSSES,
    Ensemble,
    Member,
    NBeats,
    forecast,
    grid,
    median,
    seasonal_basis,
    trend_basis,
)
from collage.nbeats.fast.gradient import Gradient
from collage.nbeats.forecasting import (
    arima,
    ets,
    mape,
    mape_loss,
    mase,
    mase_loss,
    naive,
    owa,
    seasonal_naive,
    smape,
    smape_loss,
    split,
    theta,
)

__all__ = [
    "CHUNK",
    "LOSSES",
    "Ensemble",
    "Gradient",
    "Member",
    "NBeats",
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
    "owa",
    "seasonal_basis",
    "seasonal_naive",
    "smape",
    "smape_loss",
    "split",
    "theta",
    "trend_basis",
]
