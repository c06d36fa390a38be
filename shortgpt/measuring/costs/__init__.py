"""What the blocks of a model cost."""
