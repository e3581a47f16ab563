"""The report: its page, its verdict and its warnings."""
