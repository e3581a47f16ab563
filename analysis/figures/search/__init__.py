"""Figures of the search: its trials, its hyperparameters and its cost."""
