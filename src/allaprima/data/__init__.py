"""Prompts in, pictures out."""
