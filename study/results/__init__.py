"""The results folder: written, recovered, owned by one run at a time, and mirrored to a URI."""

CONFIRM = "confirm"
"""Folder of the confirmation within the study's results folder; a results folder itself."""
