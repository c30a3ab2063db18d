"""Held-out scores to thresholds within a budget."""
