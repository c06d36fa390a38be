"""The best set of blocks to remove, searched for."""
