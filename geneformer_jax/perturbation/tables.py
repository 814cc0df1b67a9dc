"""What edits did, as tables a person can read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.perturbation.engine.edits import DELETE
from geneformer_jax.perturbation.engine.screening.settling import Settled
from geneformer_jax.perturbation.engine.shifts import Shifts
from geneformer_jax.perturbation.layout import JOINT, METHODS
from geneformer_jax.perturbation.statistics.moments import (
    GeneIndex,
    Moments,
    moments_of,
    pooled,
)
from geneformer_jax.perturbation.statistics.tables import STATE_SHIFT

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


def cells_by_edits(
    shifts: pd.DataFrame, measure: str, state: str, cell_ids: pd.Index
) -> pd.DataFrame:
    """Returns a table of shifts as cells by edits.

    Args:
      shifts: as `perturb_cells` returns them.
      measure, state: which of them.
      cell_ids: the rows, distinct; cells that were not perturbed have NaN, as edits not made in a
        cell have.

    Returns:
      float32 [cells, edits]; an edit is called by its symbol, or by its id where two edits have the
      same one or a file could not keep it.
    """
    rows = shifts[(shifts["measure"] == measure) & (shifts["state"] == state)]
    rows = rows.astype({"cell": str, "perturbed": str, "perturbed_symbol": str})
    table = rows.pivot(index="cell", columns="perturbed", values="value").reindex(cell_ids)
    symbols = rows.drop_duplicates("perturbed").set_index("perturbed")["perturbed_symbol"]
    symbols = symbols.reindex(table.columns)
    has_own = ~symbols.duplicated(keep=False) & (symbols != "") & ~symbols.str.contains("/")
    table.columns = symbols.where(has_own, symbols.index).tolist()
    return table.astype(np.float32)


def shifts_table(
    part: Shifts,
    names: Sequence[tuple[str, str]],
    edit: str,
    cell_ids: np.ndarray,
    vocabulary: GeneVocabulary,
) -> pa.Table:
    """Returns one row for each edit and measure; see the columns of `perturb_cells`.

    Args:
      part: what some edits did.
      names: (measure, state) of each value; behind these values may stand, for each state, the part
        of its shift that is re-ranking.
      edit: kind of the edits.
      cell_ids: ids of all cells.
      vocabulary: of the tokens.
    """
    measures, states = zip(*names, strict=True)
    edits = len(part.cells)
    rows = np.repeat(np.arange(edits), len(names))
    columns = _edit_columns(part, rows, edit, cell_ids, vocabulary)
    values_EM, reranking_ES = np.split(part.values_EM, [len(names)], axis=1)
    columns |= {
        "rank": pa.array(part.ranks_E[rows], pa.int32()),
        "measure": _repeated(measures, edits),
        "state": _repeated(states, edits),
        "value": pa.array(values_EM.reshape(-1), pa.float32()),
    }
    if reranking_ES.shape[1]:
        is_towards_state = np.array(measures) == STATE_SHIFT
        reranking_EM = np.full_like(values_EM, np.nan)
        reranking_EM[:, is_towards_state] = reranking_ES
        columns |= _parts_of(values_EM, reranking_EM)
    return pa.table(columns)


def _parts_of(values_EM: np.ndarray, reranking_EM: np.ndarray) -> dict[str, pa.Array]:
    """Returns the two columns that add up to `value`."""
    parts = {"reranking": reranking_EM, "removal": values_EM - reranking_EM}
    return {name: pa.array(each.reshape(-1), pa.float32()) for name, each in parts.items()}


def screened_table(
    settled: Settled,
    names: Sequence[tuple[str, str]],
    cell_ids: np.ndarray,
    vocabulary: GeneVocabulary,
) -> pa.Table:
    """Returns one row for each edit and value of a screen; see the columns of `perturb_cells`."""
    shifts_EM = settled.shifts.values_EM
    shifts_ES, reranking_ES = np.split(shifts_EM, 2, axis=1)
    shifts = settled.shifts._replace(values_EM=shifts_ES)
    table = shifts_table(shifts, names, DELETE, cell_ids, vocabulary)
    estimates = pa.array(settled.estimates_ES.reshape(-1), pa.float32())
    for name, column in (*_parts_of(shifts_ES, reranking_ES).items(), ("estimate", estimates)):
        table = table.append_column(name, column)
    exact_R, sampled_R = (
        np.repeat(each, len(names)) for each in (settled.is_exact_E, settled.is_sampled_E)
    )
    table = table.append_column("method", _dictionary(exact_R.astype(np.int32), METHODS))
    return table.append_column("sampled", pa.array(sampled_R))


def gene_shifts_table(
    part: Shifts, edit: str, cell_ids: np.ndarray, vocabulary: GeneVocabulary
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


def gene_means_table(part: Shifts, vocabulary: GeneVocabulary) -> pa.Table:
    """Returns mean, sum of squared deviations and number of the gene shifts, over the part's cells.

    One row for each pair of a set and an affected gene, by their ids.
    """
    which, ids, symbols = name_sets(part.sets_EK, vocabulary)
    pairs = which[part.gene_edits].astype(np.int64) * vocabulary.size + part.affected
    moments = moments_of(pairs, part.gene_values)
    sets, affected = np.divmod(moments.keys, vocabulary.size)
    genes, gene = np.unique(affected, return_inverse=True)
    names = np.array([vocabulary.gene_id_of(int(token)) for token in genes], object)
    table = pa.table(
        {
            "perturbed": pa.array(np.array(ids, object)[sets], pa.string()),
            "perturbed_symbol": pa.array(np.array(symbols, object)[sets], pa.string()),
            "affected": pa.array(names[gene], pa.string()),
            "affected_symbol": pa.array(vocabulary.names_of(affected), pa.string()),
            "mean": moments.means,
            "squares": moments.squares,
            "n": moments.counts,
        }
    )
    return table.sort_by([("perturbed", "ascending"), ("affected", "ascending")])


def merge_gene_means(parts: Sequence[pa.Table], edit: str) -> pa.Table:
    """Joins tables of `gene_means_table`, of different cells; population deviations."""
    rows = pa.concat_tables(parts).to_pandas()
    edits, affected = GeneIndex(), GeneIndex()
    edit_of = edits.add(rows["perturbed"], rows["perturbed_symbol"])
    gene_of = affected.add(rows["affected"], rows["affected_symbol"])
    numbers = (rows[name].to_numpy() for name in ("n", "mean", "squares"))
    moments = pooled([Moments(edit_of * len(affected) + gene_of, *numbers)])
    edit_of, gene_of = np.divmod(moments.keys, max(len(affected), 1))
    table = pd.DataFrame(
        {
            "edit": edit,
            "perturbed": edits.names[edit_of],
            "perturbed_symbol": edits.symbols[edit_of],
            "affected": affected.names[gene_of],
            "affected_symbol": affected.symbols[gene_of],
            "mean": moments.means,
            "sd": moments.deviations,
            "n": moments.counts,
        }
    ).sort_values(["perturbed", "affected"], ignore_index=True)
    texts = [name for name in table if name not in ("mean", "sd", "n")]
    merged = pa.Table.from_pandas(
        table.astype(dict.fromkeys(texts, "category")), preserve_index=False
    )
    numbers = [("mean", pa.float64()), ("sd", pa.float64()), ("n", pa.int64())]
    return merged.cast(pa.schema([(name, _TEXT) for name in texts] + numbers))


def write_table(table: pa.Table, path: Path) -> None:
    """Writes a table as one parquet file."""
    pq.write_table(table, path, **parquet_options(table.schema))


def parquet_options(schema: pa.Schema) -> dict[str, object]:
    """Returns how tables are written: numbers byte by byte, texts by dictionary, compressed."""
    numbers = [field.name for field in schema if pa.types.is_floating(field.type)]
    return {
        "compression": "zstd",
        "use_dictionary": [field.name for field in schema if field.name not in numbers],
        "use_byte_stream_split": numbers,
    }


def _edit_columns(
    part: Shifts, rows: np.ndarray, edit: str, cell_ids: np.ndarray, vocabulary: GeneVocabulary
) -> dict[str, pa.Array]:
    """Returns the columns that name the edit of each row; `rows` are numbers of edits."""
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
