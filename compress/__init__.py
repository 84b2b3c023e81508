"""Compress image classifiers: distil, prune, quantize, export, prove."""

__version__ = "0.1.0"
