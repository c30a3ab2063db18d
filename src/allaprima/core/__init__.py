"""Errors, seeds, costs and the types every room shares."""
