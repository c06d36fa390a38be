"""Whether what was written is the model that it says it is."""
