"""Models of the mamba-ssm library."""
