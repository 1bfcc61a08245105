"""Sharpness-aware minimisation (Foret et al., 2021; arXiv 2010.01412).

optimizer   the perturbation, the optimiser, ensembles
"""

from collage.sam.optimizer import SAM, Ensemble, ascent, dual, gradient

__all__ = ["SAM", "Ensemble", "ascent", "dual", "gradient"]
