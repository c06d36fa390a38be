"""Checkpoints on disk: read, copied and written without a model in memory."""
