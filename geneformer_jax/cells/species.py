"""Whose genes they are, as Ensembl ids tell it: ENSG is human, ENSMUSG mouse, and so on."""

import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from geneformer_jax.common.errors import InputError

# Human ids have no letters for the species; ENSGR is a human gene on the Y chromosome's PAR.
_ENSEMBL_GENE = re.compile(r"^ENS([A-Z]*)GR?\d{6,}", re.IGNORECASE | re.MULTILINE)
_USUAL_HUMAN_START = "ENSG00000"
_NAMES = {
    "": "human",
    "MUS": "mouse",
    "RNO": "rat",
    "MMU": "macaque",
    "SSC": "pig",
    "DAR": "zebrafish",
}
# Some pipelines add a few genes of a virus or a transgene; more than this share is another species.
_LARGEST_STRAY_SHARE = 0.05


def species_of(gene_ids: pa.StringArray) -> str | None:
    """Returns the name of most ids' species ("ENSXXXG" if it has no name here), None if unknown."""
    return _most_common(_count(gene_ids))


def refuse_mixed_species(path: Path, gene_ids: pa.StringArray) -> str | None:
    """Returns `species_of` a file's gene ids; raises InputError if they are of several species."""
    counts = _count(gene_ids)
    common = {name: n for name, n in counts.items() if n > _LARGEST_STRAY_SHARE * counts.total()}
    if len(common) > 1:
        parts = ", ".join(f"{n:,} {name}" for name, n in common.items())
        raise InputError(
            f"{path} mixes the genes of several species ({parts}); a cell's total would mix them "
            "too: split the file by species"
        )
    return _most_common(counts)


def _most_common(counts: Counter[str]) -> str | None:
    return counts.most_common(1)[0][0] if counts else None


def _count(ids: pa.StringArray) -> Counter[str]:
    # One search over all ids takes a fraction of the time of one match for each.
    usual = pc.starts_with(ids, _USUAL_HUMAN_START)
    others = ids.filter(pc.invert(usual)).to_pylist()
    codes = Counter({"": usual.true_count})
    codes.update(_ENSEMBL_GENE.findall("\n".join(others)))
    names: Counter[str] = Counter()
    for code, number in codes.items():
        names[_NAMES.get(code.upper(), f"ENS{code.upper()}G")] += number
    return +names
