"""Small dictionaries as the original package pickles them."""

import pickle

import numpy as np

GENES = {"ENSG00000000003": 2.5, "ENSG00000000005": 0.5, "ENSG00000000419": 1.25}
FILES = {
    "token": "token_dictionary_gc30M.pkl",
    "median": "gene_median_dictionary_gc30M.pkl",
    "mapping": "ensembl_mapping_dict_gc30M.pkl",
    "names": "gene_name_id_dict_gc30M.pkl",
}


def small_dictionaries() -> dict[str, dict]:
    tokens = {"<pad>": 0, "<mask>": 1}
    tokens |= {gene: np.int16(2 + rank) for rank, gene in enumerate(GENES)}
    return {
        "token": tokens,
        "median": {gene: np.float64(median) for gene, median in GENES.items()}
        | {"ENSG99": np.float64(9.0)},
        "mapping": {gene: gene for gene in GENES}
        | {"TSPAN6": "ENSG00000000003", "OLDNAME": "ENSG99"},
        "names": {"TSPAN6": "ENSG00000000003", "TNMD": "ENSG00000000005", "GONE": "ENSG99"},
    }


def write_dictionaries(folder, dictionaries):
    folder.mkdir(exist_ok=True)
    for kind, content in dictionaries.items():
        (folder / FILES[kind]).write_bytes(pickle.dumps(content, protocol=4))
    return folder
