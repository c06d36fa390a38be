"""Making up for removed runs by linear maps that are folded into weights that stay."""
