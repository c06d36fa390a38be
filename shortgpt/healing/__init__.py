"""Training what is left of a model."""
