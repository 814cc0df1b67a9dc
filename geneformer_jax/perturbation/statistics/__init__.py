"""Statistics of shifts: which edits move cells, where to, and how surely."""
