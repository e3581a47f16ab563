"""Figures that compare stochastic, mini-batch and full-batch training."""
