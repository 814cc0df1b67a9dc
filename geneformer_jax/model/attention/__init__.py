"""Attention over padded or packed cells: implementations, and which one a device gets."""
