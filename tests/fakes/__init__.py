"""Stand-ins for what a study runs on: Ray Tune, its nodes and the disk, in one process."""
