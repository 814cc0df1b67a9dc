"""What a validation writes: tables, figures, provenance and a page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from geneformer_jax.common.files import atomic_write
from geneformer_jax.common.provenance import write_provenance
from geneformer_jax.common.tables import write_csv
from geneformer_jax.perturbation.validation.api import Validation
from geneformer_jax.perturbation.validation.report import draw, write_report
from geneformer_jax.reporting.figures import save_figure

TABLES = ("summary", "drf", "results", "agg_results", "perturbations", "left_out")


def write_validation(folder: Path, validation: Validation, provenance: Mapping[str, Any]) -> None:
    """Writes all files of a validation into a folder."""
    files = []
    for name in TABLES:
        table: pd.DataFrame = getattr(validation, name)
        if len(table):
            files.append(folder / f"{name}.csv")
            with atomic_write(files[-1]) as aside:
                write_csv(table, aside)
    drawings = draw(validation)
    for drawing in drawings:
        files += save_figure(drawing.figure, folder / drawing.name)
    write_provenance(folder, provenance)
    write_report(folder, validation, drawings, [path.name for path in files], provenance)
