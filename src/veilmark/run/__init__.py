"""The first room: errors, config, run folders, checkpoints, seeds, locks, progress."""
