"""Performance-critical pieces of the ML Collage book: a room for each paper, `common` for what two share.

Importing `collage` itself loads nothing: each room is imported by name,
for example ``from collage.sam import SAM``.
"""

__version__ = "0.1.0"
