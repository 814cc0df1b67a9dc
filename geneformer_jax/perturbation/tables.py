"""What edits did, as tables a person can read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.files import atomic_write
from geneformer_jax.perturbation.engine.perturber import PartShifts
from geneformer_jax.perturbation.layout import JOINT

_TEXT = pa.dictionary(pa.int32(), pa.string())


def name_sets(sets_EK: np.ndarray, vocabulary: GeneVocabulary) -> tuple[np.ndarray, list, list]:
    """Names the sets of genes.

    Returns:
      (int32 [E] number of each edit's set among the different ones, their ids, their symbols).
    """
    different, which = np.unique(sets_EK, axis=0, return_inverse=True)
    ids, symbols = [], []
    for genes in different:
        genes = genes[genes >= 0]
        ids.append(JOINT.join(vocabulary.gene_id_of(int(token)) for token in genes))
        symbols.append(JOINT.join(vocabulary.names_of(genes)))
    return which.reshape(-1).astype(np.int32), ids, symbols


def shifts_table(
    part: PartShifts,
    names: Sequence[tuple[str, str]],
    edit: str,
    cell_ids: np.ndarray,
    vocabulary: GeneVocabulary,
) -> pa.Table:
    """Returns one row for each edit and measure; see the columns of `perturb_cells`.

    Args:
      part: what the edits did.
      names: (measure, state) of each value.
      edit: kind of the edits.
      cell_ids: ids of all cells.
      vocabulary: of the tokens.
    """
    measures, states = zip(*names, strict=True)
    edits = len(part.cells)
    columns = _edit_columns(
        part, np.repeat(np.arange(edits), len(names)), edit, cell_ids, vocabulary
    )
    columns |= {
        "measure": _repeated(measures, edits),
        "state": _repeated(states, edits),
        "value": pa.array(part.values_EM.reshape(-1), pa.float32()),
    }
    return pa.table(columns)


def gene_shifts_table(
    part: PartShifts, edit: str, cell_ids: np.ndarray, vocabulary: GeneVocabulary
) -> pa.Table:
    """Returns one row for each edit and affected gene."""
    columns = _edit_columns(part, part.gene_edits, edit, cell_ids, vocabulary)
    genes, which = np.unique(part.affected, return_inverse=True)
    which = which.astype(np.int32)
    columns |= {
        "affected": _dictionary(which, [vocabulary.gene_id_of(int(token)) for token in genes]),
        "affected_symbol": _dictionary(which, vocabulary.names_of(genes).tolist()),
        "value": pa.array(part.gene_values, pa.float32()),
    }
    return pa.table(columns)


def gene_means_table(part: PartShifts, vocabulary: GeneVocabulary) -> pa.Table:
    """Returns mean, sum of squared deviations and number of the gene shifts, over the part's cells.

    One row for each pair of a set and an affected gene, by their ids.
    """
    which, ids, symbols = name_sets(part.sets_EK, vocabulary)
    pairs = which[part.gene_edits].astype(np.int64) * vocabulary.size + part.affected
    pairs, pair = np.unique(pairs, return_inverse=True)
    values = part.gene_values.astype(np.float64)
    number = np.bincount(pair, minlength=len(pairs))
    mean = np.bincount(pair, values, len(pairs)) / number
    spread = np.bincount(pair, (values - mean[pair]) ** 2, len(pairs))
    sets, affected = pairs // vocabulary.size, pairs % vocabulary.size
    names = np.array([vocabulary.gene_id_of(int(token)) for token in np.unique(affected)], object)
    names = names[np.searchsorted(np.unique(affected), affected)]
    table = pa.table(
        {
            "perturbed": pa.array(np.array(ids, object)[sets], pa.string()),
            "perturbed_symbol": pa.array(np.array(symbols, object)[sets], pa.string()),
            "affected": pa.array(names, pa.string()),
            "affected_symbol": pa.array(vocabulary.names_of(affected), pa.string()),
            "mean": mean,
            "squares": spread,
            "n": number,
        }
    )
    return table.sort_by([("perturbed", "ascending"), ("affected", "ascending")])


def merge_gene_means(parts: Sequence[pa.Table], edit: str) -> pa.Table:
    """Puts together what parts of the cells tell of the same pairs; population deviations."""
    keys = ["perturbed", "perturbed_symbol", "affected", "affected_symbol"]
    rows = pd.concat([part.to_pandas() for part in parts], ignore_index=True)
    rows["sum"] = rows["mean"] * rows["n"]
    grouped = rows.groupby(keys, sort=False, observed=True)
    total = grouped[["n", "sum", "squares"]].sum()
    mean = total["sum"] / total["n"]
    # Squared deviations from the mean of all: those within parts and those of the parts' means.
    own_mean = mean.reindex(pd.MultiIndex.from_frame(rows[keys])).to_numpy()
    rows["between"] = rows["n"] * (rows["mean"] - own_mean) ** 2
    squares = total["squares"] + rows.groupby(keys, sort=False, observed=True)["between"].sum()
    table = pd.DataFrame({"mean": mean, "sd": np.sqrt(squares / total["n"]), "n": total["n"]})
    table = table.reset_index().sort_values(["perturbed", "affected"], ignore_index=True)
    table.insert(0, "edit", edit)
    for name in ("edit", *keys):
        table[name] = table[name].astype("category")
    merged = pa.Table.from_pandas(table, preserve_index=False)
    schema = [(name, _TEXT) for name in ("edit", *keys)]
    numbers = [("mean", pa.float64()), ("sd", pa.float64()), ("n", pa.int64())]
    return merged.cast(pa.schema(schema + numbers))


def write_table(table: pa.Table, path: Path) -> None:
    """Writes a table as one parquet file, whole or not at all."""
    with atomic_write(path) as aside:
        pq.write_table(table, aside, **parquet_options(table.schema))


def parquet_options(schema: pa.Schema) -> dict[str, object]:
    """How these tables are written: numbers byte by byte, texts by dictionary, all compressed."""
    numbers = [field.name for field in schema if pa.types.is_floating(field.type)]
    return {
        "compression": "zstd",
        "use_dictionary": [field.name for field in schema if field.name not in numbers],
        "use_byte_stream_split": numbers,
    }


def _edit_columns(
    part: PartShifts, rows: np.ndarray, edit: str, cell_ids: np.ndarray, vocabulary: GeneVocabulary
) -> dict[str, pa.Array]:
    """Returns the columns that say which edit each row is of; `rows` are numbers of edits."""
    which, ids, symbols = name_sets(part.sets_EK, vocabulary)
    cells, cell = np.unique(part.cells, return_inverse=True)
    return {
        "cell": _dictionary(cell[rows].astype(np.int32), [str(each) for each in cell_ids[cells]]),
        "edit": _dictionary(np.zeros(len(rows), np.int32), [edit]),
        "perturbed": _dictionary(which[rows], ids),
        "perturbed_symbol": _dictionary(which[rows], symbols),
    }


def _dictionary(indices: np.ndarray, values: Sequence[str]) -> pa.DictionaryArray:
    texts = pa.array([str(value) for value in values], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), texts)


def _repeated(texts: Sequence[str], times: int) -> pa.DictionaryArray:
    different = list(dict.fromkeys(texts))
    once = np.array([different.index(text) for text in texts], np.int32)
    return _dictionary(np.tile(once, times), different)
