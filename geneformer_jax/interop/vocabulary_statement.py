"""What a tokenised data set says about its vocabulary: the same token is another gene elsewhere.

A statement is the vocabulary's hash, after a name. In a parquet file it stands in the metadata of
the schema; in a `.dataset` folder in the description, which the library `datasets` keeps when rows
are selected, mapped or put together and saved again.
"""

import re
from pathlib import Path

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError

NAME = "geneformer_jax.vocabulary"
_STATEMENT = re.compile(rf"{re.escape(NAME)}: ([0-9a-f]{{64}})")


def statement(vocabulary: GeneVocabulary) -> str:
    """Returns the text that states a vocabulary."""
    return f"{NAME}: {vocabulary.hash}"


def check_statement(text: str, vocabulary: GeneVocabulary, path: Path) -> bool:
    """Checks what a data set states against the vocabulary that it is to be read with.

    Args:
      text: holds a statement for each data set that was put into this one, or none.
      vocabulary: to be read with.
      path: of the data set, for messages.

    Returns:
      Whether anything is stated; the original's data sets state nothing.

    Raises:
      InputError: another vocabulary is stated.
    """
    stated = set(_STATEMENT.findall(text))
    if others := sorted(stated - {vocabulary.hash}):
        raise InputError(
            f"{path} was tokenised with the vocabulary {others[0][:12]}, but "
            f"{vocabulary.hash[:12]} is given, in which its tokens are other genes or ranked "
            "otherwise; give the `vocabulary` it was tokenised with, or tokenise the counts anew"
        )
    return bool(stated)
