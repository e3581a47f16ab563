"""Everything that knows of Optuna: the space, the searcher, samplers, storage, importance and the dashboard."""

JOURNAL = "optuna.journal"
"""Optuna's storage in a results folder, unless the spec names a database."""
