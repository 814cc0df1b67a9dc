"""Readers of raw counts: AnnData, loom, 10x; which one a path needs."""
