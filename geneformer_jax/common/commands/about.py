"""Which version this is, and what to cite; every command says so."""

import sys

# Of the package that this module is in, which has been imported by now.
VERSION = sys.modules[__name__.partition(".")[0]].__version__
_CITATION = f"""\
Geneformer, its architecture and method:
  Theodoris, C. V. et al. Transfer learning enables predictions in network biology.
  Nature 618, 616-624 (2023). https://doi.org/10.1038/s41586-023-06139-9
The V2 models:
  Chen, H. et al. Nature Computational Science (2026). https://doi.org/10.1038/s43588-026-00972-4
This software:
  geneformer_jax, version {VERSION}. Apache-2.0.
Cite the sources of the cells, and of a pretrained model, too."""
ANSWERS = {"--version": f"geneformer_jax {VERSION}", "--cite": _CITATION}


def answer(argument: str) -> str | None:
    """Returns what is printed for --version or --cite; None for any other argument."""
    return ANSWERS.get(f"--{argument.lstrip('-')}") if argument.startswith("-") else None
