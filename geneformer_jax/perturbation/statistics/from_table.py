"""A table of shifts that is in memory, as a folder that statistics read."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from geneformer_jax.common.arguments import require_path
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write
from geneformer_jax.common.provenance import FILE_NAME
from geneformer_jax.perturbation.layout import SHIFTS
from geneformer_jax.perturbation.statistics.tables import problem_of_columns, problem_of_values

# What `perturb_cells` tells of a run in the attributes of its table.
RUN = "run"
_COLUMNS = ("cell", "edit", "perturbed", "perturbed_symbol", "rank", "measure", "state", "value")


def write_table_of_shifts(table: pd.DataFrame, output: Path | str | None) -> Path:
    """Writes what `perturb_cells` returned into a new folder, and returns that.

    Args:
      table: with the run's facts in `.attrs["run"]`; without them, as after joining tables, states
        must be named to statistics.
      output: the folder.

    Raises:
      InputError: no folder is named, or it is there already; or these are no shifts of cells.
    """
    require_path("output", output, "the folder to write a table and its statistics into")
    if missing := [name for name in _COLUMNS if name not in table]:
        raise InputError(
            f"the table has no column {', '.join(missing)}; give one of shifts of cells, as "
            "perturb_cells returns it without `gene_shifts`, or what it wrote into its `output`"
        )
    folder = Path(output).expanduser()
    if folder.exists():
        raise InputError(
            f"`output` {folder} is there already; give it in place of the table, or name another"
        )
    rows = pa.Table.from_pandas(table, preserve_index=False)
    own = rows.select(_COLUMNS)
    if problem := problem_of_columns(own.schema, _COLUMNS) or problem_of_values(own):
        raise InputError(f"the table {problem}; give one as perturb_cells returns it")
    with atomic_write(folder) as aside:
        (aside / SHIFTS).mkdir(parents=True)
        pq.write_table(rows, aside / SHIFTS / "part-000000.parquet", compression="zstd")
        facts: dict[str, Any] = {"counts": table.attrs.get(RUN, {})}
        (aside / FILE_NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return folder
