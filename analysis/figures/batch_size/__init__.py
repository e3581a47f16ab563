"""Figures against the batch size."""
