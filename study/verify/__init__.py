"""Commands that check the tool itself: the benchmark and the reproduction of the source report."""
