"""What is searched and where it runs: spec, space, search, results tables, commands."""
