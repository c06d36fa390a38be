"""Model types with a quirk of their own, a file each."""
