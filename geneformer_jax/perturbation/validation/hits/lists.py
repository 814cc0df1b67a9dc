"""Reading what is compared: a statistic of perturbations, and the hits of a screen."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from geneformer_jax.cells.tokenization.gene_ids import strip_version
from geneformer_jax.common.arguments import describe, require_type
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.files import suffix_of
from geneformer_jax.common.tables import (
    GENE_COLUMNS,
    PARQUET_ERRORS,
    named_column,
    read_csv,
    read_id_table,
)
from geneformer_jax.perturbation.layout import JOINT

# Genes with the highest scores are taken for hits where a screen gives scores.
HIT_FRACTION = 0.1
GOAL_STATE_SHIFT = "goal_state_shift"
_IDS = ("Ensembl_ID", "Gene_name")
_YES, _NO = {"1", "true", "yes", "hit", "y", "t", "1.0"}, {"0", "false", "no", "n", "f", "0.0"}
_HIT_COLUMNS = ("hit", "hits", "is_hit", "score", "value", "class", "label")


class Reading(NamedTuple):
    """What a statistic says of a gene.

    Attributes:
      needs: columns that tell it from others.
      score: the higher, the more it is predicted to be a hit.
      called: whether it is predicted to be one.
      cells: column with the number of cells.
    """

    needs: tuple[str, ...]
    score: Callable[[pd.DataFrame], pd.Series]
    called: Callable[[pd.DataFrame], pd.Series]
    cells: str


READINGS: Mapping[str, Reading] = {
    GOAL_STATE_SHIFT: Reading(
        ("Shift_to_goal_end", "Sig"),
        lambda table: table["Shift_to_goal_end"],
        lambda table: (table["Sig"] == 1) & (table["Shift_to_goal_end"] > 0),
        "N_Detections",
    ),
    "vs_null": Reading(
        ("Test_vs_null_avg_shift", "Sig"),
        lambda table: table["Test_vs_null_avg_shift"].abs(),
        lambda table: table["Sig"] == 1,
        "N_Detections_test",
    ),
    "mixture_model": Reading(
        ("Test_avg_shift", "Impact_component"),
        lambda table: -table["Test_avg_shift"],
        lambda table: table["Impact_component"] == 1,
        "N_Detections",
    ),
}


class Compared(NamedTuple):
    """Genes that both sides have.

    Attributes:
      genes: `gene_id`, `symbol`, `score`, `called`, `hit`, `cells`, `mean_rank` (NaN where the
        statistic has no controls) and `measured` (the screen's score; NaN where it has none).
      statistic: name of it.
      left_out: reason -> number of genes.
    """

    genes: pd.DataFrame
    statistic: str
    left_out: dict[str, int]


def compare_lists(
    statistics: pd.DataFrame | Path | str,
    hits: pd.DataFrame | Path | str,
    score: str,
    min_cells: int,
) -> Compared:
    """Puts a statistic and a list of hits side by side; see `validate_hits`.

    Raises:
      InputError: a table cannot be read or has another form; or they share no hit, or no gene that
        is none.
    """
    name, predicted, sets = _read_statistics(statistics, score)
    listed = _read_hits(hits)
    row = _rows_of(predicted, listed)
    is_common = predicted["cells"].to_numpy() >= min_cells
    # Of a list of hits alone all other genes are none.
    is_screened = row.notna().to_numpy() | listed["hit"].isna().all()
    left_out = {
        "sets of several genes": sets,
        f"edited in fewer than {min_cells:,} cells": int((~is_common).sum()),
        "perturbed, but not in the screen": int((is_common & ~is_screened).sum()),
        "in the screen, but not perturbed": int((~listed.index.isin(row)).sum()),
    }
    kept = is_common & is_screened
    genes = _side_by_side(predicted[kept], listed.reindex(row[kept]))
    _require_both(genes["hit"], listed["name"])
    return Compared(genes, name, {reason: n for reason, n in left_out.items() if n})


def _rows_of(predicted: pd.DataFrame, listed: pd.DataFrame) -> pd.Series:
    """Returns the row of each predicted gene in the list, by id or symbol; NaN for none."""
    place = pd.Series(listed.index, listed["gene"])
    by_id, by_symbol = (predicted[name].map(_plain).map(place) for name in _IDS)
    return by_id.fillna(by_symbol)


def _side_by_side(predicted: pd.DataFrame, listed: pd.DataFrame) -> pd.DataFrame:
    """Returns the genes of `Compared`; rows of the two are of the same genes."""
    names = dict(zip(_IDS, ("gene_id", "symbol"), strict=True))
    genes = predicted.rename(columns=names).reset_index(drop=True)
    listed = listed.reset_index(drop=True)
    is_list_of_hits = listed["hit"].isna().all()
    genes["hit"] = listed["gene"].notna() if is_list_of_hits else listed["hit"].astype(bool)
    return genes.assign(measured=listed["measured"])


def _require_both(is_hit: pd.Series, names: pd.Series) -> None:
    if is_hit.all() or not is_hit.any():
        kind = "none of them is a hit" if not is_hit.any() else "all of them are hits"
        raise InputError(
            f"the statistic and the list of {len(names):,} genes (such as {names.iloc[0]}) share "
            f"{len(is_hit):,} genes, and {kind}; both kinds are needed: give `hits` of the same "
            "genes, by symbol or Ensembl id"
        )


def _read_statistics(given: pd.DataFrame | Path | str, score: str) -> tuple[str, pd.DataFrame, int]:
    """Returns (name, table of single genes, number of sets of several)."""
    what = "give a table that `perturbation_statistics` wrote, or its path"
    require_type("statistics", given, (pd.DataFrame, Path, str), what)
    table = given if isinstance(given, pd.DataFrame) else _read_written(Path(given).expanduser())
    name = next((n for n, each in READINGS.items() if {*_IDS, *each.needs} <= {*table}), None)
    if name is None:
        raise InputError(
            f"`statistics` has columns {', '.join(map(str, table.columns[:6]))}, ..., but those of "
            f"{', '.join(READINGS)} call genes; {what}"
        )
    is_set = table[_IDS[0]].astype(str).str.contains(JOINT, regex=False)
    if score and not (score in table and pd.api.types.is_numeric_dtype(table[score])):
        numbers = table.select_dtypes("number").columns
        raise InputError(
            f'`statistics` has no column of numbers "{score}"{did_you_mean(score, numbers)}; name '
            f"one of {', '.join(numbers)} by `score`"
        )
    table, reading = table[~is_set], READINGS[name]
    rows = pd.DataFrame(
        {
            **{each: table[each].astype(str) for each in _IDS},
            "score": (table[score] if score else reading.score(table)).astype(np.float64),
            "called": reading.called(table),
            "cells": table[reading.cells],
            "mean_rank": table.get("Mean_rank", np.nan),
        }
    ).dropna(subset="score")
    return name, rows.reset_index(drop=True), int(is_set.sum())


def _read_written(path: Path) -> pd.DataFrame:
    """Reads a table of statistics; of a perturbation's folder its shifts towards a goal."""
    if path.is_dir():
        path = path / "statistics" / f"{GOAL_STATE_SHIFT}.parquet"
    if not path.is_file():
        raise InputError(
            f"{path} does not exist; name a table of `statistics` that perturb wrote, such as "
            f"OUTPUT/statistics/{GOAL_STATE_SHIFT}.parquet"
        )
    try:
        return pd.read_parquet(path) if suffix_of(path) == ".parquet" else read_csv(path)
    except PARQUET_ERRORS as error:
        raise InputError(f"{path} is no table that can be read ({error}); write it anew") from error


def _read_hits(given: pd.DataFrame | Path | str) -> pd.DataFrame:
    """Returns `name`, `gene` (plain), `hit` (NaN where all are hits) and `measured`, each once."""
    require_type("hits", given, (pd.DataFrame, Path, str), "give a table of genes, or its path")
    path = "`hits`" if isinstance(given, pd.DataFrame) else Path(given).expanduser()
    table = given.astype(str) if isinstance(given, pd.DataFrame) else read_id_table(path)
    names = table[named_column(table, GENE_COLUMNS, "genes", path)]
    rows = pd.DataFrame(
        {"name": names, "gene": names.map(_plain), "hit": np.nan, "measured": np.nan}
    )
    if table.shape[1] > 1:
        values = table[named_column(table, _HIT_COLUMNS, "hits", path)].str.strip().str.lower()
        rows["hit"], rows["measured"] = _hits_of(values, path)
        rows = rows[rows["hit"].notna()]
    if rows.empty:
        raise InputError(f"{path} names no gene of which it says a hit or a score; fill it in")
    _require_one_say(rows, path)
    return rows.drop_duplicates("gene").reset_index(drop=True)


def _require_one_say(rows: pd.DataFrame, path: object) -> None:
    """Refuses a gene that is listed several times, with different hits or scores."""
    own = rows.groupby("gene")[["hit", "measured"]].nunique()
    several = own.index[(own > 1).any(axis=1)]
    if len(several):
        name = rows.loc[rows["gene"] == several[0], "name"].iloc[0]
        raise InputError(
            f"{path} lists {len(several):,} genes several times with different values, such as "
            f"{name}; list each gene once, as by the mean of its guides"
        )


def _hits_of(values: pd.Series, path: object) -> tuple[pd.Series, pd.Series | float]:
    """Returns (which are hits, scores); both NaN where a value is missing."""
    values = values.where(~values.isin(("", "nan", "na", "none")))
    known = values.dropna()
    if known.isin(_YES | _NO).all():
        return values.map(dict.fromkeys(_YES, True) | dict.fromkeys(_NO, False)), np.nan
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.notna().sum() < len(known):
        odd = numbers[known.index].isna()
        wrong = (known[odd & ~known.isin(_YES | _NO)].tolist() or known[odd].tolist())[0]
        raise InputError(
            f"{path} says {describe(wrong)} of a gene; give yes or no (1 or 0), or a score"
        )
    if numbers.nunique() == 1:
        raise InputError(
            f"{path} has the score {known.iloc[0]} for every gene, which tells no hits from others"
            "; give scores that differ, or yes and no (1 or 0)"
        )
    is_hit = numbers >= numbers.quantile(1 - HIT_FRACTION)
    return is_hit.astype(object).where(numbers.notna()), numbers


def _plain(name: object) -> str:
    return strip_version(str(name)).upper()
