"""Constants that cards and models share, in a module that imports nothing, so that reading a card needs no torch."""

from __future__ import annotations

NATIVE_SOLVER = "own"
"""Name of the solver that an image generator brings itself: nobody else chooses it."""
