"""Names of genomes in front of gene ids, as Cell Ranger writes them for several references.

A reference made of two genomes has `GRCh38_ENSG00000243485` beside `mm10___ENSMUSG00000051951`, the
names filled up to one length; Seurat turns each underscore into a dash.
"""

import re

import numpy as np

_SPECIES = {
    "GRCH": "human",
    "HG": "human",
    "T2T-CHM": "human",
    "CHM": "human",
    "GRCM": "mouse",
    "MM": "mouse",
    "GRCR": "rat",
    "MRATBN": "rat",
    "RN": "rat",
    "GRCZ": "zebrafish",
    "DANRER": "zebrafish",
    "MMUL_": "macaque",
    "RHEMAC": "macaque",
    "SSCROFA": "pig",
    "SUSSCR": "pig",
}
_PREFIX = re.compile(rf"({'|'.join(_SPECIES)})\d+(?:\.p?\d+)*[_-]+(?=[^_-])", re.IGNORECASE)
_FIRST_LETTERS = np.array([ord(letter) for letter in {n[0] for n in _SPECIES}], np.uint32)
_LOWER = 0x20
# Of a reference with such names all genes have one; a few symbols look alike, such as "RN5-8S1".
_MIN_FRACTION = 0.1


def strip_genomes(names: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Takes the name of a genome off names of genes.

    Args:
      names: [genes] str (dtype U).

    Returns:
      ([genes] str without such names; [genes] str the species of the genome, '' where none was
      named, or None if nowhere).
    """
    if not names.size:
        return names, None
    letters = names.view(np.uint32).reshape(len(names), -1)[:, 0] & ~np.uint32(_LOWER)
    rows = np.flatnonzero(np.isin(letters, _FIRST_LETTERS))
    found = {row: match for row in rows if (match := _PREFIX.match(str(names[row])))}
    if len(found) < _MIN_FRACTION * len(names):
        return names, None
    names, species = names.copy(), np.full(len(names), "", "U9")
    for row, match in found.items():
        names[row] = names[row][match.end() :]
        species[row] = _SPECIES[match[1].upper()]
    return names, species
