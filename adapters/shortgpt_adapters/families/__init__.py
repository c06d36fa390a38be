"""Model types of transformers that are declared, not looked for."""
