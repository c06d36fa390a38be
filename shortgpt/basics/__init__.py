"""What every wing stands on: values with JSON, statistics, block lists, inputs, plugin entries."""
