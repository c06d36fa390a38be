"""The rewrite of a config for the blocks that stay: rules, names, text."""
