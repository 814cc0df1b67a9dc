"""From the many ways of writing a gene's id to its token, for all columns of a source at once.

An id is looked up, in upper case, in the vocabulary's mapping first (as in the original), then
among the gene ids themselves; Ensembl ids also without their version. Nearly all ids of a source
are gene ids as they stand, or unknown: both are told apart by whole-array look-ups, and only what
is left is looked at one by one.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_ENSEMBL = r"ENS[A-Z]*\d{6,}"
_ENSEMBL_ID = re.compile(rf"{_ENSEMBL}(_PAR_Y)?", re.IGNORECASE)
_VERSIONED_ENSEMBL_ID = re.compile(rf"({_ENSEMBL})\.\d+(_PAR_Y)?", re.IGNORECASE)
_PLAIN_ENSEMBL_PATTERN = rf"^{_ENSEMBL}$"
_VERSION_PATTERN = rf"(?i)^({_ENSEMBL})\.\d+(_PAR_Y)?$"
# No blanks to strip, and no letter whose upper case is a matter of language.
_SIMPLE_PATTERN = r"^[!-~]*$"


def strip_version(gene_id: str) -> str:
    """Returns an Ensembl id without its version ("ENSG00000136574.12" -> "ENSG00000136574").

    Anything else, such as the symbol "RP11-34P13.7", is returned as it is, without outer blanks.
    """
    gene_id = gene_id.strip()
    match = _VERSIONED_ENSEMBL_ID.fullmatch(gene_id)
    return match[1] + (match[2] or "") if match else gene_id


class GeneLookup:
    """Tables from ids, aliases and symbols to tokens."""

    def __init__(self, ids: Mapping[str, int], aliases: Mapping[str, int]):
        """Takes the tokens of gene ids, and of other ids, aliases and symbols in upper case."""
        self._ids, self._aliases = ids, aliases
        genes = pa.array(list(ids), pa.string())
        self._usual = genes.filter(pc.match_substring_regex(genes, _PLAIN_ENSEMBL_PATTERN))
        tokens = [aliases.get(gene, ids[gene]) for gene in self._usual.to_pylist()]
        self._usual_tokens = np.array([*tokens, -1], np.int32)
        self._known = pa.concat_arrays([pc.utf8_upper(genes), pa.array(list(aliases), pa.string())])

    def tokens_of(self, gene_ids: Sequence[str], tables: Sequence[Mapping[str, int]]) -> np.ndarray:
        """Finds tokens.

        Args:
          gene_ids: [N] str.
          tables: names in upper case to tokens, for what is no Ensembl id.

        Returns:
          [N] int32, -1 where there is no such gene.
        """
        ids = pa.array(gene_ids, pa.string())
        tokens = self._usual_tokens_of(ids)
        rest = np.flatnonzero(tokens < 0)
        others = ids.take(pa.array(rest))
        plain = pc.replace_substring_regex(others, _VERSION_PATTERN, r"\1\2")
        found = self._usual_tokens_of(plain)
        simple = pc.match_substring_regex(others, _SIMPLE_PATTERN).to_numpy(zero_copy_only=False)
        as_written, without_version = (self._is_known(each, tables) for each in (others, plain))
        # What is in no table, with or without a version, need not be looked at.
        for i in np.flatnonzero(~simple | as_written | (without_version & (found < 0))):
            found[i] = self._token_of(others[i].as_py(), tables)
        tokens[rest] = found
        return tokens

    def _usual_tokens_of(self, ids: pa.StringArray) -> np.ndarray:
        return self._usual_tokens[pc.index_in(ids, self._usual).fill_null(-1).to_numpy()]

    def _is_known(self, ids: pa.StringArray, tables: Sequence[Mapping[str, int]]) -> np.ndarray:
        upper = pc.utf8_upper(ids)
        known = pc.is_in(upper, self._known).to_numpy(zero_copy_only=False)
        for table in tables:
            if table is not self._aliases:
                known = known | np.fromiter(map(table.__contains__, upper.to_pylist()), bool)
        return known

    def _token_of(self, gene_id: str, tables: Sequence[Mapping[str, int]]) -> int:
        plain = strip_version(gene_id)
        # "A-923A4.1" is an alias and keeps its ending; an Ensembl id loses it in the second round.
        for name in dict.fromkeys((gene_id.strip(), plain)):
            upper = name.upper()
            places = [(self._ids, name), *((table, upper) for table in tables)]
            if _ENSEMBL_ID.fullmatch(plain):
                places = [(self._aliases, upper), (self._ids, upper), *places]
            for table, key in places:
                if key in table:
                    return table[key]
        return -1
