"""What models are worth on tasks: outcomes by item, what follows from them, and requirements on them."""
