"""Edits of cells, planned, batched and encoded on all devices."""
