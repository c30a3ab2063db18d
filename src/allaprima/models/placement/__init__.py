"""Devices, dtypes, backends and offloading of a card's networks."""
