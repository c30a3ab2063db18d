"""Scenes: a pair whose pictures can be checked exactly."""
