"""The original package's dictionaries, read without trusting them.

The original keeps its vocabulary in four pickled dictionaries: token dictionary, gene medians, id
mapping and gene names. A pickle can name any function to be called while it is read. The reader
here looks up no name at all: the two numpy names that those files hold get stand-ins of ours, every
other name is refused, so nothing but the stand-ins is ever called. PyTorch's weights
(`weights.torch_bin`) are read by the same reader with other stand-ins.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write, require_new_folder, suffix_of
from geneformer_jax.common.provenance import describe_run, write_provenance
from geneformer_jax.interop.model_folders import vocabulary_folder
from geneformer_jax.interop.restricted_pickle import (
    LARGEST_FILE,
    STAND_INS,
    PickleSource,
    read_pickle,
)

PICKLES = (".pickle", ".pkl")
TOKEN_PATTERN = "*token_dictionary*.pkl"
_MEDIAN_PATTERN = "*gene_median_dictionary*.pkl"
_MAPPING_PATTERN = "*ensembl_mapping_dict*.pkl"
_NAME_PATTERN = "*gene_name_id_dict*.pkl"

_SPECIAL_TOKENS = (("<pad>", "<mask>"), ("<pad>", "<mask>", "<cls>", "<eos>"))


def read_dictionary(path: Path | str) -> dict[str, Any]:
    """Reads one pickled dictionary of the original, executing nothing that it names.

    Args:
      path: a pickle holding one dict from str to int, float or str; numpy numbers become Python's.

    Raises:
      InputError: the file names any global but numpy's scalar and dtype, is damaged, or is no such
        dictionary.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is no file; name a dictionary of the original package")
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(
            f"{path} is larger than 64 MiB, no dictionary of the original is; check it"
        )
    holds = "a dictionary of the original holds text and numbers"
    found = read_pickle(path.read_bytes(), PickleSource(path, holds, STAND_INS))
    if not isinstance(found, dict) or not found:
        raise InputError(f"{path} holds no dictionary with entries; name a dictionary file")
    for key, value in found.items():
        if type(key) is not str or type(value) not in (str, int, float):
            raise InputError(
                f"{path} holds an entry of {type(key).__name__} to {type(value).__name__}; "
                "only text to text or numbers is read"
            )
    return found


def holds_original_dictionaries(folder: Path | str) -> bool:
    """Whether `folder` looks like the original's dictionaries (it holds a token dictionary)."""
    folder = Path(folder)
    return folder.is_dir() and any(folder.glob(TOKEN_PATTERN))


def names_original_vocabulary(path: Path | str) -> bool:
    """Whether `path` is a folder with the original's dictionaries, or its token dictionary."""
    return holds_original_dictionaries(path) or Path(path).match(TOKEN_PATTERN)


def read_vocabulary(path: Path | str, species: str = "human") -> GeneVocabulary:
    """Reads a vocabulary, ours or the original's.

    Args:
      path: a vocabulary folder; or of the original, a folder with the dictionaries or its token
        dictionary, beside which the others lie; or the name of a model that comes with this
        package, "demo-blood".
      species: what the original's is of.

    Raises:
      InputError: it is no vocabulary, or damaged.
    """
    if names_original_vocabulary(path) or suffix_of(path) in PICKLES:
        return read_original_vocabulary(path, species)
    return GeneVocabulary.load(vocabulary_folder(path))


def read_original_vocabulary(folder: Path | str, species: str = "human") -> GeneVocabulary:
    """Reads the original's dictionaries (V1 or V2) as one vocabulary.

    The files are found by name: `*token_dictionary*.pkl` and `*gene_median_dictionary*.pkl` must be
    there; without `*ensembl_mapping_dict*.pkl` the id mapping is empty, without
    `*gene_name_id_dict*.pkl` all symbols are ''.

    Of the medians those of vocabulary genes are kept (V2's file is a superset). Of the id mapping
    those entries are kept that lead to a vocabulary gene, as the original does; entries that map an
    id to itself say nothing and are left out. If several names lead to one gene, its symbol is the
    alphabetically first; a name that is the gene id itself is no symbol.

    Args:
      folder: folder with the pickled dictionaries, not searched recursively; or the token
        dictionary in it: then the others are those whose names end alike ("_gc104M.pkl").
      species: what the vocabulary is of; the original's own is human.

    Raises:
      InputError: a file is missing, ambiguous or refused (see `read_dictionary`); a gene has no
        median; token ids are not special tokens first, then genes in ascending order of id.
    """
    folder, ending = Path(folder), ""
    token_file = folder if folder.is_file() else _find(folder, TOKEN_PATTERN)
    if folder.is_file():
        folder, ending = folder.parent, _ending(folder)
    tokens = read_dictionary(token_file)
    special_tokens, gene_ids = _split_tokens(tokens, folder)
    medians = read_dictionary(_find(folder, _MEDIAN_PATTERN, ending))
    mapping = _read_optional(folder, _MAPPING_PATTERN, ending)
    names = _read_optional(folder, _NAME_PATTERN, ending)
    known = set(gene_ids)
    return GeneVocabulary(
        gene_ids=np.array(gene_ids),
        symbols=_symbols(gene_ids, names),
        medians=_medians(gene_ids, medians, folder),
        special_tokens=special_tokens,
        id_mapping={
            other.upper(): gene
            for other, gene in mapping.items()
            if gene in known and other != gene
        },
        species=species,
    )


def import_vocabulary(
    folder: Path | str, target: Path | str, species: str = "human"
) -> GeneVocabulary:
    """Writes the original's dictionaries as a vocabulary folder with its provenance.

    Args:
      folder: see `read_original_vocabulary`.
      target: a new folder.
      species: what the vocabulary is of.

    Raises:
      InputError: as `read_original_vocabulary`, or the target holds other files.
    """
    target = require_new_folder(target)
    vocabulary = read_original_vocabulary(folder, species)
    counts = {
        "genes": len(vocabulary.gene_ids),
        "without_symbol": int((vocabulary.symbols == "").sum()),
        "other_ids": len(vocabulary.id_mapping),
    }
    configuration = {"source": folder, "target": target, "species": species}
    with atomic_write(target) as aside:
        vocabulary.write_into(aside)
        write_provenance(aside, describe_run("convert", configuration, [Path(folder)], counts))
    return vocabulary


def unwritable_dictionaries(target: Path | str) -> InputError:
    """Returns the error of writing a vocabulary as the original's pickles."""
    return InputError(
        f"{target} cannot be written: the original's dictionaries are pickles, which this package "
        "never writes; give the original the tokenised cells instead "
        "(convert --source=STORE --target=NAME.dataset)"
    )


def _ending(token_file: Path) -> str:
    """What the names of the dictionaries of one version have in common, such as "_gc104M.pkl"."""
    return re.sub(r".*token_dictionary", "", token_file.name)


def _find(folder: Path, pattern: str, ending: str = "", required: bool = True) -> Path | None:
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
        found = [path for path in found if ending and path.name.endswith(ending)] or found
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(
            f"{folder} holds several {pattern} ({names}); leave one of them there, or name the "
            "token dictionary of the version that is meant"
        )
    if not found and required:
        raise InputError(f"{folder} holds no {pattern}; name the folder with the dictionaries")
    return found[0] if found else None


def _read_optional(folder: Path, pattern: str, ending: str) -> dict[str, str]:
    path = _find(folder, pattern, ending, required=False)
    content = {} if path is None else read_dictionary(path)
    for key, value in content.items():
        if type(value) is not str:
            raise InputError(f'{path} maps "{key}" to {value!r}; a gene id is needed there')
    return content


def _split_tokens(tokens: Mapping[str, Any], folder: Path) -> tuple[tuple[str, ...], list[str]]:
    """Special tokens and gene ids in token order, checked to be numbered as ours are."""
    for name, token in tokens.items():
        if type(token) is not int:
            raise InputError(
                f"the token dictionary in {folder} gives {name} the token {token!r}; "
                "a whole number is needed"
            )
    special = tuple(sorted((name for name in tokens if name.startswith("<")), key=tokens.get))
    if special not in _SPECIAL_TOKENS:
        found = ", ".join(special) or "none"
        raise InputError(
            f"the token dictionary in {folder} has the special tokens {found}; "
            "<pad>, <mask> (V1), or <pad>, <mask>, <cls>, <eos> (V2) are read"
        )
    genes = sorted(name for name in tokens if not name.startswith("<"))
    if not genes:
        raise InputError(f"the token dictionary in {folder} holds no genes; check the file")
    for token, name in enumerate([*special, *genes]):
        if tokens[name] != token:
            raise InputError(
                f"the token dictionary in {folder} gives {name} the token {tokens[name]!r}, not "
                f"{token}: genes must follow the special tokens in ascending order of id; "
                "only dictionaries numbered so are read"
            )
    return special, genes


def _medians(gene_ids: list[str], medians: Mapping[str, Any], folder: Path) -> np.ndarray:
    """Medians [G] float64 of the vocabulary's genes; raises InputError for one without."""
    for gene in gene_ids:
        median = medians.get(gene)
        if type(median) not in (int, float) or not 0 < median < float("inf"):
            stated = "no median" if median is None else f"the median {median!r}"
            raise InputError(
                f"the median dictionary in {folder} has {stated} for {gene}; every gene of the "
                "token dictionary needs a positive one, so use dictionaries of one version"
            )
    return np.array([medians[gene] for gene in gene_ids], np.float64)


def _symbols(gene_ids: list[str], names: Mapping[str, str]) -> np.ndarray:
    """Symbols [G]: the alphabetically first name of each gene, '' where it has none."""
    symbols: dict[str, str] = {}
    for name in sorted(names, reverse=True):
        if name != names[name]:
            symbols[names[name]] = name
    return np.array([symbols.get(gene, "") for gene in gene_ids])
