"""What a running study shows: display, status and trackers."""
