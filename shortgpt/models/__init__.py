"""What the engine knows of a model: a sequence of blocks, its family, and how it is found and opened."""
