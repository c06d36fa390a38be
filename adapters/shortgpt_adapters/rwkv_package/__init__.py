"""Checkpoints of the rwkv package."""
