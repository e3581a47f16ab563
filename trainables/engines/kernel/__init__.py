"""The native kernel: its source in C, and how it is built."""
