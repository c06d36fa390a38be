"""Numbers that others published, as data: `--published NAME`."""
