"""The results folder: written, recovered, locked and mirrored to a URI."""
