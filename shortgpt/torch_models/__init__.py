"""A block sequence for models made of torch modules."""
