"""What is measured of a model: scores, quality, the effect of a removal."""
