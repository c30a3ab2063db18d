"""A word that cards and painters share; here, so that reading a card needs no torch."""

from __future__ import annotations

OWN = "own"
"""Name of the solver that a painter brings itself: nobody else chooses it."""
