"""One pass over a model, and the sums taken at its boundaries."""
