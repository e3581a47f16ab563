"""User code: copied with the study, and probed in a child process."""
