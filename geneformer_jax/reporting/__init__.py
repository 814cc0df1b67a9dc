"""Reports and figures in one style, and the report on a corpus."""
