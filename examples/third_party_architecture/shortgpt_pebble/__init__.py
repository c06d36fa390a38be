"""Pebble for shortgpt: `model` stands for somebody's own library, `catalog`, `adapter` and `loader` make it known."""
