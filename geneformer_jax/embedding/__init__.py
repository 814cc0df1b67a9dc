"""Embeddings of cells, genes and cell states, and how good they are."""
