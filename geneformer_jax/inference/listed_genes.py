"""Genes that people list, found in a vocabulary: those that are there are taken, the rest named."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.files import suffixes_of
from geneformer_jax.common.tables import (
    GENE_COLUMNS,
    SUFFIXES,
    is_heading,
    named_column,
    read_id_table,
)

UNKNOWN, UNEXPRESSED = "not in the vocabulary", "expressed in none of the cells"
_SHOWN = 10


class ListedGenes(NamedTuple):
    """Listed genes, as far as a vocabulary has them.

    Attributes:
      tokens: of those that it has, each once, in their order.
      unknown: the others, as they were written.
    """

    tokens: tuple[int, ...]
    unknown: tuple[str, ...]


def find_genes(vocabulary: GeneVocabulary, genes: str | Sequence[str]) -> ListedGenes:
    """Finds genes by id or symbol.

    Raises:
      InputError: none is named, or none of them is in the vocabulary (near matches are named).
    """
    names = [genes] if isinstance(genes, str) else [str(each).strip() for each in genes]
    names = list(dict.fromkeys(name for name in names if name))
    if not names:
        raise InputError('`genes` names no gene; name some, or "all"')
    tokens = vocabulary.tokens_of(names, symbols="names").tolist()
    first = vocabulary.first_gene_token
    unknown = [name for name, token in zip(names, tokens, strict=True) if token < first]
    if len(unknown) == len(names):
        known = [*vocabulary.gene_ids.tolist(), *vocabulary.symbols.tolist()]
        more = f" (nor are {len(names) - 1:,} others)" if len(names) > 1 else ""
        raise InputError(
            f'gene "{names[0]}" is not in the vocabulary of {len(vocabulary.gene_ids):,} genes'
            f"{more}{did_you_mean(names[0], known)}; give gene ids or symbols that are"
        )
    return ListedGenes(
        tuple(dict.fromkeys(token for token in tokens if token >= first)), tuple(unknown)
    )


def name_missing(
    vocabulary: GeneVocabulary,
    unknown: Sequence[str],
    absent: Sequence[int],
    why_absent: str = UNEXPRESSED,
) -> list[dict[str, str]]:
    """Returns `gene`, `symbol` and `reason` of each listed gene that is left out.

    Args:
      vocabulary: of the cells.
      unknown: genes that it has not.
      absent: tokens of genes that the cells have not.
      why_absent: the reason of these.
    """
    missing = [{"gene": name, "symbol": "", "reason": UNKNOWN} for name in unknown]
    for token in absent:
        gene, symbol = vocabulary.gene_id_of(token), str(vocabulary.names_of([token])[0])
        missing.append({"gene": gene, "symbol": symbol, "reason": why_absent})
    return missing


def describe_missing(missing: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns a line for each reason for which listed genes are left out; see `name_missing`."""
    lines = []
    for reason in dict.fromkeys(each["reason"] for each in missing):
        names = [each["symbol"] or each["gene"] for each in missing if each["reason"] == reason]
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        lines.append(f"listed genes left out, {reason}: {len(names):,} ({shown})")
    return lines


def read_genes(text: str) -> list[str]:
    """Reads genes separated by commas, or from the file that the text names.

    Raises:
      InputError: the file is not there or holds no gene.
    """
    path = Path(text).expanduser()
    if path.is_file() or ("," not in text and is_list_file(text)):
        return read_gene_list(path)
    return [name.strip() for name in text.split(",") if name.strip()]


def is_list_file(text: str) -> bool:
    """Whether a text names a file, there or not, and no gene."""
    path = Path(text)
    return path.is_file() or "/" in text or any(suffix in suffixes_of(path) for suffix in SUFFIXES)


def read_gene_list(path: Path | str) -> list[str]:
    """Reads genes from a file: a table with a column of genes, or text with some on each line.

    A first line that is a heading ("gene", "Ensembl ID") is left out, as is what follows a #.

    Raises:
      InputError: the file cannot be read or holds no gene.
    """
    path = Path(path)
    if any(suffix in suffixes_of(path) for suffix in SUFFIXES if suffix != ".txt"):
        table = read_id_table(path)
        return [name for name in table[named_column(table, GENE_COLUMNS, "genes", path)] if name]
    return [name for line in read_gene_lines(path) for name in line]


def read_gene_lines(path: Path | str) -> list[list[str]]:
    """Reads a text file with a set of genes on each line, separated by blanks or commas.

    Raises:
      InputError: the file cannot be read or holds no gene.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; write a file with a gene, or a set, on each line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text file; write gene ids or symbols into it") from None
    sets = list(filter(None, map(_names, _without_heading(lines))))
    if not sets:
        raise InputError(f"{path} names no gene; write gene ids or symbols on its lines")
    return sets


def _without_heading(lines: list[str]) -> Iterable[str]:
    cells = lines[0].replace("\t", ",").split(",") if lines else []
    return lines[1:] if cells and all(map(is_heading, cells)) else lines


def _names(line: str) -> list[str]:
    # Quotes, as spreadsheets put them around texts.
    return [name.strip("\"'") for name in line.partition("#")[0].replace(",", " ").split()]
