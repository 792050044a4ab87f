"""A run on disk: its config, its checkpoints, and who may write to it."""
