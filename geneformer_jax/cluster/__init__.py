"""The shares of a command, made by Ray's workers on one machine or many."""

from geneformer_jax.cluster.api import run

__all__ = ["run"]
