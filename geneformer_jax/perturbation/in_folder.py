"""A perturbation from Python that is written into a folder, as the command does it."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd

from geneformer_jax.cells.counts.options import CountArguments
from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.inference.cells import open_cells
from geneformer_jax.inference.resume.identity import identity_of
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.perturbation.config import MEANS, NONE, PerturbationOptions
from geneformer_jax.perturbation.layout import GENE_MEANS, GENE_SHIFTS, SHIFTS
from geneformer_jax.perturbation.model_controls import HowToRun, make_control, missing_controls
from geneformer_jax.perturbation.run import PerturbationRun
from geneformer_jax.perturbation.statistics.modes.result import MIN_CELLS
from geneformer_jax.perturbation.statistics.tables import parts_of, read_provenance, read_table


def perturb_into(
    output: Path,
    model: PretrainedModel,
    cells: EncodedCells | ad.AnnData | Path | str,
    options: PerturbationOptions,
    controls: Sequence[str],
    runtime: Runtime | None,
    tokens_per_device: int | None,
    reading: CountArguments,
) -> pd.DataFrame:
    """Makes what is missing of a run and its controls in a folder, and returns its table.

    Args:
      output: folder to write.
      model, cells, runtime, tokens_per_device, reading: see `perturb_cells`.
      options: of the run.
      controls: names of those that take further encodings, see `choose_controls`.

    Raises:
      InputError: see `perturb_cells`; the folder is another run's.
    """
    names = (runtime.precision.name, runtime.attention) if runtime else ("float32", "auto")
    how = HowToRun(cells, *names, tokens_per_device, reading=reading, min_cells=MIN_CELLS)
    opened = open_cells(cells, model, whole=options.refill, **reading)
    configuration = _named(options) | dict(reading) | identity_of(model, opened)
    run = PerturbationRun(output, options, configuration)
    missing = missing_controls(output, controls)
    if not run.is_complete() or missing:
        how.plan(run, model)
        if not run.is_complete():
            run.make()
            run.finish()
        for name in missing:
            make_control(name, output, run, configuration, how)
    return _read(output, options)


def _named(options: PerturbationOptions) -> dict[str, Any]:
    """Returns the options by name, without the one that follows from the plan."""
    names = [field.name for field in fields(options) if field.name != "reranking"]
    return {name: getattr(options, name) for name in names}


def _read(folder: Path, options: PerturbationOptions) -> pd.DataFrame:
    if options.gene_shifts == MEANS:
        table = read_table(folder / GENE_MEANS)
    else:
        kept = folder / (SHIFTS if options.gene_shifts == NONE else GENE_SHIFTS)
        table = join_tables([read_table(part) for part in parts_of(kept)])
    counts = read_provenance(folder)["counts"]
    table.attrs |= {name: counts[name] for name in ("genes_left_out", "left_out")}
    if accuracy := counts.get("screen", {}).get("accuracy"):
        table.attrs["screen_accuracy"] = accuracy
    return table


def join_tables(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Puts tables together, whose texts are categories of their own each."""
    texts = list(tables[0].select_dtypes("category"))
    as_text = dict.fromkeys(texts, "object")
    joined = pd.concat([table.astype(as_text) for table in tables], ignore_index=True)
    return joined.astype(dict.fromkeys(texts, "category"))
