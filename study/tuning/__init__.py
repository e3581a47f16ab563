"""Everything that knows of Optuna: the space, the searcher, samplers, storage, importance and the dashboard."""
