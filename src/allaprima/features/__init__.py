"""Frozen feature networks shared by oracles and metrics."""
