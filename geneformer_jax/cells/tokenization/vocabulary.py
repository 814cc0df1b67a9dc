"""The gene vocabulary: which genes are tokens, their medians, and how other ids map to them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geneformer_jax.cells.counts.options import SYMBOL_POLICIES
from geneformer_jax.cells.tokenization.gene_ids import GeneLookup
from geneformer_jax.common.arguments import require_path
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write, read_json, require_new_folder
from geneformer_jax.common.provenance import write_provenance

V1_SPECIAL_TOKENS = ("<pad>", "<mask>")
V2_SPECIAL_TOKENS = ("<pad>", "<mask>", "<cls>", "<eos>")
LARGEST_TOKEN = np.iinfo(np.uint16).max

_FORMAT = 1
_ASCII_END = 0x80
_DESCRIPTION, _GENES, _MAPPING = "vocabulary.json", "genes.parquet", "id_mapping.parquet"
_SYMBOLS_HASH = "symbols_hash"
_GENES_SCHEMA = pa.schema({"gene_id": pa.string(), "symbol": pa.string(), "median": pa.float64()})
_MAPPING_SCHEMA = pa.schema({"other_id": pa.string(), "gene_id": pa.string()})


@dataclass(frozen=True, eq=False)
class GeneVocabulary:
    """The genes a model knows, in token order, with their normalisation factors.

    The token id of gene i is `len(special_tokens) + i`, as in both of the original's vocabularies.

    Attributes:
      gene_ids: [G] str, Ensembl ids (any id is allowed), ascending and without repeats.
      symbols: [G] str, "" where unknown.
      medians: [G] float64, each gene's non-zero median of counts per 10,000 over a corpus.
      special_tokens: names of tokens 0..S-1; `V1_SPECIAL_TOKENS` or `V2_SPECIAL_TOKENS`.
      id_mapping: other id, alias or symbol in upper case -> gene id; may be empty.
      species: of the gene ids, e.g. "human".
    """

    gene_ids: np.ndarray
    symbols: np.ndarray
    medians: np.ndarray
    special_tokens: tuple[str, ...] = V1_SPECIAL_TOKENS
    id_mapping: Mapping[str, str] = field(default_factory=dict)
    species: str = "human"

    def __post_init__(self):
        for name in ("gene_ids", "symbols"):
            # Plain unicode whatever came in (object, pandas strings).
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.str_))
        object.__setattr__(self, "medians", np.asarray(self.medians, dtype=np.float64))
        object.__setattr__(self, "special_tokens", tuple(self.special_tokens))
        for array in (self.gene_ids, self.symbols, self.medians):
            array.setflags(write=False)
        self._check()

    def _check(self) -> None:
        ids = self.gene_ids
        if not len(ids) == len(self.symbols) == len(self.medians):
            raise InputError(
                f"a vocabulary of {len(ids)} gene ids has {len(self.symbols)} symbols and "
                f"{len(self.medians)} medians; there must be one of each per gene"
            )
        if len(ids) == 0:
            raise InputError("a vocabulary without genes cannot be used; check the gene ids")
        wrong = np.flatnonzero(ids[:-1] >= ids[1:])
        if wrong.size:
            raise InputError(
                f'gene ids must ascend without repeats, but "{ids[wrong[0] + 1]}" follows '
                f'"{ids[wrong[0]]}"; sort the genes and merge the repeated ones'
            )
        bad = np.flatnonzero(~(np.isfinite(self.medians) & (self.medians > 0)))
        if bad.size:
            raise InputError(
                f'the median of "{ids[bad[0]]}" is {self.medians[bad[0]]}; medians must be '
                "positive, leave such genes out"
            )
        if self.special_tokens not in (V1_SPECIAL_TOKENS, V2_SPECIAL_TOKENS):
            raise InputError(
                f"special tokens {list(self.special_tokens)} are not supported; they must be "
                f"{list(V1_SPECIAL_TOKENS)} or {list(V2_SPECIAL_TOKENS)}"
            )
        if self.size - 1 > LARGEST_TOKEN:
            raise InputError(
                f"{self.size:,} tokens do not fit into 16 bits ({LARGEST_TOKEN + 1:,}); keep fewer "
                "genes, for example by biotype or minimum number of cells"
            )

    def __repr__(self) -> str:
        special = " ".join(self.special_tokens)
        genes = f"{len(self.gene_ids):,} genes of {self.species}"
        return f"GeneVocabulary({genes}, {special}, {self.hash[:12]})"

    @property
    def size(self) -> int:
        """Number of tokens: special tokens and genes."""
        return len(self.special_tokens) + len(self.gene_ids)

    @property
    def pad_id(self) -> int:
        """Token that fills up a row."""
        return 0

    @property
    def mask_id(self) -> int:
        """Token that hides a gene in pretraining."""
        return 1

    @property
    def cls_id(self) -> int | None:
        """Token in front of a V2 cell; None in a V1 vocabulary."""
        return 2 if self.special_tokens == V2_SPECIAL_TOKENS else None

    @property
    def eos_id(self) -> int | None:
        """Token behind a V2 cell; None in a V1 vocabulary."""
        return 3 if self.special_tokens == V2_SPECIAL_TOKENS else None

    @property
    def special_per_cell(self) -> int:
        """How many tokens of a cell are no genes: 2 in V2, which frames each cell, else 0."""
        return sum(token is not None for token in (self.cls_id, self.eos_id))

    @property
    def first_gene_token(self) -> int:
        """Token of the first gene; all tokens from here on are genes."""
        return len(self.special_tokens)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all that decides tokens: ids, medians, special tokens, mapping, species."""
        digest = hashlib.sha256()
        mapping = [(name, self.id_mapping[name]) for name in sorted(self.id_mapping)]
        parts = (list(self.special_tokens), self.gene_ids.tolist(), mapping)
        digest.update(json.dumps([_FORMAT, self.species, *parts]).encode())
        digest.update(self.medians.astype("<f8").tobytes())
        return digest.hexdigest()

    @cached_property
    def _symbols_hash(self) -> str:
        """SHA-256 of the symbols, which decide no token of a gene id."""
        return hashlib.sha256(json.dumps(self.symbols.tolist()).encode()).hexdigest()

    def tokens_of(self, gene_ids, symbols: str = "mapping") -> np.ndarray:
        """Finds the tokens of gene ids as the original does, and of versioned Ensembl ids too.

        An id is looked up, in upper case, in `id_mapping` first (as in the original), then among
        the gene ids themselves; Ensembl ids also without their version.

        Args:
          gene_ids: [N] str, a list or an array (of Arrow, too); ids, aliases or symbols.
          symbols: what is not an Ensembl id is looked up in: "mapping" the mapping (as the
            original), "names" also `symbols` where a symbol stands for one gene only, "never" the
            gene ids alone.

        Returns:
          [N] int32, -1 where the vocabulary has no such gene.
        """
        if symbols not in SYMBOL_POLICIES:
            raise InputError(f'symbols "{symbols}" must be one of {", ".join(SYMBOL_POLICIES)}')
        if not isinstance(gene_ids, pa.Array):
            gene_ids = pa.array([str(each) for each in gene_ids], pa.string())
        return self._lookup.tokens_of(
            gene_ids,
            aliases=symbols != "never",
            symbols=self._token_of_symbol if symbols == "names" else {},
        )

    @cached_property
    def _lookup(self) -> GeneLookup:
        genes, mapping = self._genes["gene_id"], self._mapping
        return GeneLookup(genes, self.first_gene_token, mapping["other_id"], mapping["gene_id"])

    @cached_property
    def _genes(self) -> pa.Table:
        texts = {"gene_id": self.gene_ids.tolist(), "symbol": self.symbols.tolist()}
        return pa.table({**texts, "median": self.medians}, _GENES_SCHEMA)

    @cached_property
    def _mapping(self) -> pa.Table:
        columns = {"other_id": list(self.id_mapping), "gene_id": list(self.id_mapping.values())}
        return pa.table(columns, _MAPPING_SCHEMA)

    @cached_property
    def _token_of_symbol(self) -> Mapping[str, int]:
        names = pd.Series(np.char.upper(self.symbols))
        unique = names[(names != "") & ~names.duplicated(keep=False)]
        return {name: self.first_gene_token + int(i) for i, name in unique.items()}

    def gene_id_of(self, token: int) -> str:
        """Returns the gene id (or special token's name) of a token.

        Raises:
          InputError: there is no such token.
        """
        if not 0 <= token < self.size:
            raise InputError(f"token {token} is not in this vocabulary of {self.size:,} tokens")
        if token < self.first_gene_token:
            return self.special_tokens[token]
        return str(self.gene_ids[token - self.first_gene_token])

    def names_of(self, tokens) -> np.ndarray:
        """Returns [N] str: symbols where known, else gene ids, of [N] tokens."""
        tokens = np.asarray(tokens)
        wrong = tokens[(tokens < 0) | (tokens >= self.size)]
        if wrong.size:
            raise InputError(f"token {wrong[0]} is not in this vocabulary of {self.size:,} tokens")
        return self._names[tokens]

    @cached_property
    def _names(self) -> np.ndarray:
        genes = np.where(self.symbols == "", self.gene_ids, self.symbols)
        return np.concatenate([np.asarray(self.special_tokens), genes])

    def save(self, folder: Path | str, provenance: Mapping[str, Any] | None = None) -> None:
        """Writes vocabulary.json, genes.parquet and id_mapping.parquet into a new folder.

        Args:
          folder: new or empty.
          provenance: for a provenance.json beside them; see `common.provenance`.

        Raises:
          InputError: `folder` holds other files.
        """
        with atomic_write(require_new_folder(folder)) as aside:
            self.write_into(aside)
            if provenance is not None:
                write_provenance(aside, provenance)

    def write_into(self, folder: Path) -> None:
        """Writes the three files into `folder`, for callers that write a whole folder at once."""
        folder.mkdir(parents=True, exist_ok=True)
        # Ids hardly repeat, so that a dictionary of them would only cost time.
        for table, name in ((self._genes, _GENES), (self._mapping, _MAPPING)):
            pq.write_table(table, folder / name, use_dictionary=False, write_page_checksum=True)
        description = {
            "format": _FORMAT,
            "species": self.species,
            "special_tokens": list(self.special_tokens),
            "genes": len(self.gene_ids),
            "hash": self.hash,
            _SYMBOLS_HASH: self._symbols_hash,
        }
        (folder / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> "GeneVocabulary":
        """Reads a vocabulary written by `save` and checks its content hash.

        Symbols are not in the hash, but have one of their own (not in vocabularies written before
        there was one).

        Raises:
          InputError: the folder is no vocabulary, or its content was changed or damaged.
        """
        require_path("folder", folder, "a vocabulary folder")
        folder = Path(folder)
        if not (folder / _DESCRIPTION).is_file():
            raise InputError(
                f"{folder} is no vocabulary (it has no {_DESCRIPTION}); name a folder written by "
                "build_vocabulary or convert"
            )
        try:
            description = read_json(folder / _DESCRIPTION)
            # Cast, for other writers know other texts, and give an empty column no type.
            genes = _read(folder / _GENES).cast(_GENES_SCHEMA)
            mapping = _read(folder / _MAPPING).cast(_MAPPING_SCHEMA)
            vocabulary = cls(
                gene_ids=_texts(genes["gene_id"]),
                symbols=_texts(genes["symbol"]),
                medians=genes["median"].to_numpy(),
                special_tokens=tuple(description["special_tokens"]),
                id_mapping=dict(zip(*(column.to_pylist() for column in mapping), strict=True)),
                species=description["species"],
            )
            # As they were read, so that nothing need be made of them again.
            vocabulary.__dict__.update(_genes=genes, _mapping=mapping)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"the vocabulary in {folder} cannot be read ({reason}); write it anew"
            ) from error
        if description.get(_SYMBOLS_HASH, vocabulary._symbols_hash) != vocabulary._symbols_hash:
            raise InputError(
                f"the symbols of the vocabulary in {folder} were changed after it was written; "
                "write it anew"
            )
        return vocabulary._verified(description.get("hash"), str(folder))

    def _verified(self, expected: str | None, where: str) -> "GeneVocabulary":
        if self.hash != expected:
            raise InputError(
                f"the vocabulary in {where} was changed after it was written (content hash "
                f"{self.hash[:12]}, written down {str(expected)[:12]}); write it anew"
            )
        return self

    def to_json(self) -> str:
        """Returns the whole vocabulary as compact text, as kept in checkpoints."""
        content = {
            "format": _FORMAT,
            "species": self.species,
            "special_tokens": list(self.special_tokens),
            "gene_ids": self.gene_ids.tolist(),
            "symbols": self.symbols.tolist(),
            "medians": self.medians.tolist(),
            "id_mapping": dict(self.id_mapping),
            "hash": self.hash,
        }
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "GeneVocabulary":
        """Reads what `to_json` wrote and checks its content hash.

        Raises:
          InputError: `text` is no vocabulary, or its content was changed.
        """
        try:
            content = json.loads(text)
            vocabulary = cls(
                gene_ids=np.asarray(content["gene_ids"]),
                symbols=np.asarray(content["symbols"]),
                medians=np.asarray(content["medians"]),
                special_tokens=tuple(content["special_tokens"]),
                id_mapping=content["id_mapping"],
                species=content["species"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"this text is no vocabulary ({error}); write it anew") from error
        return vocabulary._verified(content.get("hash"), "this text")


def _read(path: Path) -> pa.Table:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(use_threads=False)


def _texts(column: pa.ChunkedArray) -> np.ndarray:
    """[n] str (dtype U); ASCII, as ids are, needs no Python object for each text."""
    texts = column.combine_chunks()
    content = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
    lengths = pc.binary_length(texts).to_numpy()
    if not content.size or content.max() >= _ASCII_END or len(content) != lengths.sum():
        return texts.to_numpy(zero_copy_only=False).astype(np.str_)
    letters = np.zeros((len(texts), lengths.max()), np.uint32)
    letters[np.arange(letters.shape[1]) < lengths[:, None]] = content
    return letters.view(f"U{letters.shape[1]}")[:, 0]
