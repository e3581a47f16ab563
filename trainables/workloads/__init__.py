"""What a trial trains on, what it trains, and what judges it: data, models, losses and metrics."""
