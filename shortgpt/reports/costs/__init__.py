"""Costs as tables."""
