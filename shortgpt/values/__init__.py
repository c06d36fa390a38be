"""Results as plain frozen data, and what they compute of themselves."""
