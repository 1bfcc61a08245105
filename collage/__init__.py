"""Performance-critical pieces of the ML Collage book, one module per paper.

Importing `collage` itself loads nothing: each module is imported by name,
for example ``from collage.sam import SAM``.
"""

__version__ = "0.1.0"
