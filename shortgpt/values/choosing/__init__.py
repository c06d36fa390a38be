"""Which blocks go by their scores, by runs or by a search, and how sure that is."""
