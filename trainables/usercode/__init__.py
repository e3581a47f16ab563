"""User code as trials use it: imported, and probed in a child process."""
