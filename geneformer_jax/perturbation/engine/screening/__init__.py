"""Deletions from a few passes of each cell, and the part of them that comes from later genes."""
