"""Models of transformers: opened, looked at, streamed."""
