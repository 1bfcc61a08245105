"""The gradient of an ensemble, written out."""
