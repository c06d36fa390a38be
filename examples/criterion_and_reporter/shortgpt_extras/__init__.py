"""A criterion and a report format for shortgpt."""
