"""Sharpness-aware minimisation (Foret et al., 2021; arXiv 2010.01412): chapter 36.

core        the paper: the perturbation, and the gradient found there
optimizer   the optimiser of torch
arguments   what it takes, checked
fused       its base optimiser on flat buffers
ensemble    many small networks at once
flat        parameters as views of one tensor
fast/compiled   a whole step as one compiled program
"""

from collage.sam.core import ascent, dual, gradient
from collage.sam.ensemble import Ensemble
from collage.sam.fast.compiled import compiled_step
from collage.sam.flat import Flat
from collage.sam.optimizer import SAM

__all__ = ["SAM", "Ensemble", "Flat", "ascent", "compiled_step", "dual", "gradient"]
