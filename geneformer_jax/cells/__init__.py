"""From raw counts to rank value encodings on disk. Imports no JAX."""
