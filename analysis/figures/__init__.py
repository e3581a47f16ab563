"""The figures of the report: one module each, which computes the numbers, draws them and writes the caption."""
