"""From the many spellings of a gene's id to its token, for all columns of a source at once.

An id is looked up, in upper case, in the vocabulary's mapping first (as in the original), then
among the gene ids themselves; Ensembl ids also without their version. Nearly all ids of a source
are gene ids already, or unknown: whole-array look-ups separate the two, and only the rest is
looked up one by one.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.tables import read_table

_ENSEMBL = r"ENS[A-Z]*\d{6,}"
_ENSEMBL_ID = re.compile(rf"{_ENSEMBL}(_PAR_Y)?", re.IGNORECASE)
_VERSIONED_ENSEMBL_ID = re.compile(rf"({_ENSEMBL})\.\d+(_PAR_Y)?", re.IGNORECASE)
_PLAIN_ENSEMBL_PATTERN = rf"^{_ENSEMBL}$"
_VERSION_PATTERN = rf"(?i)^({_ENSEMBL})\.\d+(_PAR_Y)?$"
# No blanks to strip, and no letter whose upper case is a matter of language.
_SIMPLE_PATTERN = r"^[!-~]*$"

# Human ids have no letters for the species; ENSGR is a human gene on the Y chromosome's PAR.
_ENSEMBL_GENE = re.compile(r"ENS([A-Z]*)GR?\d{6,}", re.IGNORECASE)
_ENSEMBL_GENE_PATTERN = r"(?i)^ENS[A-Z]*GR?\d{6,}"
_ENSEMBL_GENE_INSIDE = r"(?i)ENS[A-Z]*GR?\d{6,}"
_ENSEMBL_GENE_ALONE = rf"{_ENSEMBL_GENE_PATTERN}(\.\d+)?(_PAR_Y)?$"
_USUAL_HUMAN_START = "ENSG00000"
_NAMES = {
    "": "human",
    "MUS": "mouse",
    "RNO": "rat",
    "MMU": "macaque",
    "SSC": "pig",
    "DAR": "zebrafish",
}


def strip_version(gene_id: str) -> str:
    """Returns an Ensembl id without its version ("ENSG00000136574.12" -> "ENSG00000136574").

    Anything else, such as the symbol "RP11-34P13.7", is returned as it is, without outer blanks.
    """
    gene_id = gene_id.strip()
    match = _VERSIONED_ENSEMBL_ID.fullmatch(gene_id)
    return match[1] + (match[2] or "") if match else gene_id


def read_orthologs(path: Path | str) -> dict[str, str]:
    """Reads a table whose first two columns are a gene id and its ortholog in the vocabulary.

    A gene with several orthologs has none here, for its counts cannot be divided among them;
    several genes with the same ortholog are kept, and their counts are summed.

    Returns:
      Gene id in upper case, without version -> ortholog; "" for a gene with several.

    Raises:
      InputError: the table has fewer than two columns, or no pair.
    """
    table = read_table(path)
    if table.shape[1] < 2:
        raise InputError(
            f"{path} has {table.shape[1]} column; an ortholog table needs two, a gene id and its "
            "ortholog, separated by tabs (.csv: by commas)"
        )
    pairs = table.iloc[:, :2].set_axis(["gene", "ortholog"], axis=1)
    pairs = pairs.map(strip_version)
    pairs["gene"] = pairs["gene"].str.upper()
    pairs = pairs[(pairs["gene"] != "") & (pairs["ortholog"] != "")].drop_duplicates()
    pairs.loc[pairs["gene"].duplicated(keep=False), "ortholog"] = ""
    if not (pairs["ortholog"] != "").any():
        raise InputError(f"{path} has no gene with exactly one ortholog; check its two columns")
    return dict(zip(pairs["gene"], pairs["ortholog"], strict=True))


class GeneLookup:
    """Tables from gene ids and other ids to tokens."""

    def __init__(
        self,
        gene_ids: pa.ChunkedArray,
        first_token: int,
        others: pa.ChunkedArray,
        genes_of_others: pa.ChunkedArray,
    ):
        """Takes gene ids in the order of their tokens, and other ids in upper case with theirs."""
        self._ids, others = gene_ids.combine_chunks(), others.combine_chunks()
        self._first_token = first_token
        genes_of_others = genes_of_others.combine_chunks()
        # Looking up nothing would make a table of all ids first.
        genes = pc.index_in(genes_of_others, self._ids if len(genes_of_others) else others)
        self._others = others.filter(genes.is_valid())
        self._tokens_of_others = genes.drop_null().to_numpy() + np.int32(first_token)
        is_plain = pc.match_substring_regex(self._ids, _PLAIN_ENSEMBL_PATTERN)
        self._usual = self._ids.filter(is_plain)
        tokens = np.flatnonzero(is_plain).astype(np.int32) + np.int32(first_token)
        other = pc.index_in(self._usual, self._others)
        tokens[other.is_valid().to_numpy(zero_copy_only=False)] = self._tokens_of_others[
            other.drop_null().to_numpy()
        ]
        self._tokens_of_usual = np.append(tokens, np.int32(-1))
        self._known = pa.concat_arrays([pc.utf8_upper(self._ids), self._others])

    def tokens_of(
        self, ids: pa.StringArray, *, aliases: bool, symbols: Mapping[str, int]
    ) -> np.ndarray:
        """Finds tokens.

        Args:
          ids: [N] str.
          aliases: whether what is no Ensembl id is looked up among the other ids, too.
          symbols: in upper case, to tokens: where what is no Ensembl id is looked up at last.

        Returns:
          [N] int32, -1 where there is no such gene.
        """
        tokens = self._tokens_of_usual_ids(ids)
        rest = np.flatnonzero(tokens < 0)
        others = ids.take(pa.array(rest))
        known = self._known
        if symbols:
            known = pa.concat_arrays([known, pa.array(list(symbols), pa.string())])
        # What is in no table, with or without a version, need not be looked up.
        odd = pc.invert(pc.match_substring_regex(others, _SIMPLE_PATTERN))
        look = pc.or_(odd, pc.is_in(pc.utf8_upper(others), known)).to_numpy(zero_copy_only=False)
        dotted = np.flatnonzero(pc.match_substring(others, "."))
        if dotted.size:
            found, in_a_table = self._without_version(others.take(pa.array(dotted)), known)
            tokens[rest[dotted]] = found
            look[dotted] |= in_a_table & (found < 0)
        tables = [self._token_of_other] if aliases else []
        names = others.filter(pa.array(look)).to_pylist()
        for i, gene_id in zip(rest[look], names, strict=True):
            tokens[i] = self._token_of(gene_id, [*tables, symbols])
        return tokens

    def _without_version(
        self, ids: pa.StringArray, known: pa.StringArray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of ids that may end in a version, and whether any table has what is left."""
        plain = pc.replace_substring_regex(ids, _VERSION_PATTERN, r"\1\2")
        in_a_table = pc.is_in(pc.utf8_upper(plain), known)
        return self._tokens_of_usual_ids(plain), in_a_table.to_numpy(zero_copy_only=False)

    def _tokens_of_usual_ids(self, ids: pa.StringArray) -> np.ndarray:
        return self._tokens_of_usual[pc.index_in(ids, self._usual).fill_null(-1).to_numpy()]

    @cached_property
    def _token_of_id(self) -> Mapping[str, int]:
        return {gene: self._first_token + n for n, gene in enumerate(self._ids.to_pylist())}

    @cached_property
    def _token_of_other(self) -> Mapping[str, int]:
        tokens = self._tokens_of_others.tolist()
        return dict(zip(self._others.to_pylist(), tokens, strict=True))

    def _token_of(self, gene_id: str, tables: Sequence[Mapping[str, int]]) -> int:
        plain = strip_version(gene_id)
        # "A-923A4.1" is an alias and keeps its ending; an Ensembl id loses it in the second round.
        for name in dict.fromkeys((gene_id.strip(), plain)):
            upper = name.upper()
            places = [(self._token_of_id, name), *((table, upper) for table in tables)]
            if _ENSEMBL_ID.fullmatch(plain):
                places = [(self._token_of_other, upper), (self._token_of_id, upper), *places]
            for table, key in places:
                if key in table:
                    return table[key]
        return -1


def are_ensembl_ids(ids: pa.StringArray) -> np.ndarray:
    """Returns bool [ids]: which are Ensembl ids of genes, with or without a version."""
    found = _usual_human(ids)
    rest = np.flatnonzero(~found)
    if rest.size:
        matches = pc.match_substring_regex(ids.take(pa.array(rest)), _ENSEMBL_GENE_PATTERN)
        found[rest] = matches.to_numpy(zero_copy_only=False)
    return found


def hold_ensembl_ids(ids: pa.StringArray) -> bool:
    """Whether most are a gene's Ensembl id and more, such as "ENSG00000243485|MIR1302-10"."""
    inside, whole = (
        pc.match_substring_regex(ids, pattern).to_numpy(zero_copy_only=False)
        for pattern in (_ENSEMBL_GENE_INSIDE, _ENSEMBL_GENE_ALONE)
    )
    return bool((inside & ~whole).mean() >= 0.5)


def species_of_each(ids: pa.StringArray) -> np.ndarray:
    """Returns [ids] str: the species of each Ensembl id, '' of what is none.

    "ENSXXXG" is a species that has no name here; `is_named_species` tells.
    """
    usual = _usual_human(ids)
    if usual.all():
        return np.full(len(ids), _NAMES[""])
    species = np.where(usual, _NAMES[""], "").astype("U32")
    for row in np.flatnonzero(~usual & are_ensembl_ids(ids)):
        code = _ENSEMBL_GENE.match(ids[row].as_py())[1].upper()
        species[row] = _NAMES.get(code, f"ENS{code}G")
    return species


def _usual_human(ids: pa.StringArray) -> np.ndarray:
    # One search over all ids takes a fraction of the time of one match for each.
    return pc.starts_with(ids, _USUAL_HUMAN_START).to_numpy(zero_copy_only=False)


def species_of(gene_ids: pa.StringArray) -> str | None:
    """Returns the commonest species of ids, as `species_of_each`; None if unknown."""
    each = species_of_each(gene_ids)
    names, numbers = np.unique(each[each != ""], return_counts=True)
    return str(names[numbers.argmax()]) if names.size else None


def is_named_species(species: str) -> bool:
    """Whether a species is one of those that references of two genomes are made of."""
    return species in _NAMES.values()
