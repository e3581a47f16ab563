"""The spec: what to search, how long, and on what."""
