"""Probe batches, what a model gives for them, and when two answers are equal enough."""
