"""Weights that somebody brings, found again in a network."""
