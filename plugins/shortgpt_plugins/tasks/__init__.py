"""Tasks that need no download: made from any text, or by a seeded generator."""
