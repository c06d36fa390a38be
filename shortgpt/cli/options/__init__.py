"""What options hold: their types, what a shell offers for them, and defaults from a file."""
