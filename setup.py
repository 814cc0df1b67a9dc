"""Metadata lives in pyproject.toml; this file lets older tools install the package too."""

from setuptools import find_packages, setup

# The configurations lie beside the package, to be read and copied, and are installed within it.
CONFIGURATIONS = ["geneformer_jax.configs", "geneformer_jax.configs.tasks"]
setup(
    packages=[*find_packages(include=["geneformer_jax*"]), *CONFIGURATIONS],
    package_dir={"geneformer_jax.configs": "configs"},
)
