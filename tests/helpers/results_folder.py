"""A folder with small results of every kind, written by what writes them but without a model."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd

from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.embedding.embedder import Embedded
from geneformer_jax.embedding.output import write_output
from geneformer_jax.finetuning.classification.predictions import write_predictions
from geneformer_jax.perturbation.statistics.modes.result import MIN_CELLS
from tests.helpers.toy import make_store, toy_cells, toy_vocabulary

CELLS, GENES = 60, 12
IDS = [f"ENSG{i:011d}" for i in range(GENES)]
SYMBOLS = [f"GENE{i}" for i in range(GENES)]
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
HOSTILE_COLUMN = "<img src=x onerror=alert(3)>"


def write_results(folder: Path) -> Path:
    """Writes a store, embeddings of cells and genes, a perturbation, a classifier and a run."""
    folder.mkdir(exist_ok=True)
    cells = toy_cells(CELLS)
    cells.obs[HOSTILE_COLUMN] = np.where(cells.obs["kind"] == "a", HOSTILE, "b")
    vocabulary = toy_vocabulary()
    named = np.array([f"GENE{i}" for i in range(len(vocabulary.gene_ids))])
    vocabulary = dataclasses.replace(vocabulary, symbols=named)
    store = make_store(folder / "store", cells, vocabulary, ("kind",))
    write_cells(folder / "cells.h5ad", store.obs.assign(**cells.obs))
    write_genes(folder / "genes.h5ad")
    write_perturbation(folder / "shifts")
    write_classifier(folder / "classes")
    write_run(folder / "run")
    return folder


def write_cells(path: Path, obs: pd.DataFrame, umap: bool = True) -> np.ndarray:
    """Writes embeddings of cells; returns their positions."""
    rng = np.random.default_rng(0)
    rows, positions = rng.normal(size=(len(obs), 1, 8)), rng.normal(size=(len(obs), 2))
    embedded = Embedded(rows.astype(np.float32), obs, (-1,))
    obsm = {"X_umap": positions.astype(np.float32)} if umap else {}
    write_output(embedded, path, _provenance("cell"), obsm)
    return obsm.get("X_umap", embedded.rows)


def write_genes(path: Path) -> np.ndarray:
    """Writes embeddings of genes and of a special token; returns those of the genes."""
    rows = np.random.default_rng(1).normal(size=(GENES + 1, 1, 8)).astype(np.float32)
    table = pd.DataFrame({"symbol": [*SYMBOLS, "<cls>"], "n_cells": range(GENES + 1)})
    table.index = pd.Index([*IDS, "<cls>"], name="gene_id")
    write_output(Embedded(rows, table, (-1,)), path, _provenance("gene"))
    return rows[:GENES, 0]


def _provenance(mode: str) -> str:
    return json.dumps({"counts": {"mode": mode, "hidden_layer": [-1]}})


def write_perturbation(folder: Path, means: bool = True) -> pd.DataFrame:
    """Writes a perturbation with gene shifts, as means or of each cell.

    Returns:
      The shifts of each cell: cell, perturbed, affected, value.
    """
    rng = np.random.default_rng(2)
    pairs = [(c, e, a) for c in range(4) for e in range(GENES) for a in range(GENES) if e != a]
    cells, edits, affected = (np.array(each) for each in zip(*pairs, strict=True))
    names = {"id": np.array(IDS), "symbol": np.array(SYMBOLS)}
    shifts = pd.DataFrame({
        "cell": cells, "perturbed": names["id"][edits], "perturbed_symbol": names["symbol"][edits],
        "affected": names["id"][affected], "affected_symbol": names["symbol"][affected],
        "value": rng.uniform(0.5, 1, len(pairs)).astype(np.float32),
    })  # fmt: skip
    (folder / "statistics").mkdir(parents=True)
    columns = {"perturbed": IDS, "perturbed_symbol": SYMBOLS, "cells": 4}
    pd.DataFrame(columns).to_parquet(folder / "edits.parquet")
    (folder / "provenance.json").write_text('{"command": "perturb"}')
    statistic().to_parquet(folder / "statistics" / "goal_state_shift.parquet")
    if means:
        by = ["perturbed", "perturbed_symbol", "affected", "affected_symbol"]
        table = shifts.groupby(by)["value"].agg(["mean", "std", "size"]).reset_index()
        table = table.rename(columns={"std": "sd", "size": "n"})
        table.to_parquet(folder / "gene_shift_means.parquet")
        table.assign(Affected="x", Ensembl_ID="x", Cosine_sim_mean=1.0).to_parquet(
            folder / "statistics" / "aggregate_gene_shifts.parquet"
        )
    else:
        (folder / "gene_shifts").mkdir()
        for part, rows in enumerate(np.array_split(np.arange(len(shifts)), 3)):
            path = folder / "gene_shifts" / f"part-{part:06d}.parquet"
            shifts.iloc[rows].to_parquet(path)
    return shifts


def statistic() -> pd.DataFrame:
    """A statistic that tests each edit, the last of them called by what is no text elsewhere."""
    shift = np.linspace(-0.01, 0.02, GENES)
    rate = np.logspace(-3, 0, GENES)
    return pd.DataFrame({
        "Gene_name": [*SYMBOLS[:-1], HOSTILE], "Ensembl_ID": IDS, "Shift_to_goal_end": shift,
        "Goal_end_FDR": rate, "N_Detections": MIN_CELLS, "Sig": (rate < 0.05).astype(int),
    })  # fmt: skip


def write_classifier(folder: Path) -> pd.DataFrame:
    """Writes what a classifier of genes leaves; returns its predictions for each gene and cell."""
    (folder / "predictions").mkdir(parents=True)
    first = np.random.default_rng(3).uniform(size=3 * GENES)
    rows = pd.DataFrame({
        "id": np.repeat(["c0", "c1", "c2"], GENES), "gene": IDS * 3, "fold": 0,
        "label": ["a", "b"] * (3 * GENES // 2), "predicted": np.where(first > 0.5, "a", "b"),
        "probability_a": first, "probability_b": 1 - first,
    })  # fmt: skip
    write_predictions(rows, folder / "predictions" / "Geneformer.parquet")
    pd.DataFrame({"id": IDS}).to_parquet(folder / "split.parquet")
    (folder / "labels.csv").write_text("id,class\n")
    (folder / "provenance.json").write_text("{}")
    return rows


def write_run(folder: Path) -> None:
    """Writes the metrics of a run that was killed while it wrote a line."""
    folder.mkdir(parents=True)
    rows = [{"step": step, "loss": 7.0 - step / 10} for step in (10, 20, 30)]
    rows.append({"step": 30, "held_out_loss": 4.5})
    text = "\n".join(map(json.dumps, rows))
    (folder / "metrics.jsonl").write_text(f'{text}\n{{"step": 40, "lo')


def ranks_the_slow_way(store: CellStore, gene: str) -> dict[str, int]:
    """Cell id -> rank of a gene among the genes of the cell, the highest being 1."""
    vocabulary = store.vocabulary
    found = {}
    for cell, tokens in zip(store.cell_ids, store.read(range(len(store))), strict=True):
        genes = [vocabulary.gene_id_of(int(token)) for token in tokens]
        genes = [each for each in genes if not each.startswith("<")]
        if gene in genes:
            found[str(cell)] = genes.index(gene) + 1
    return found
