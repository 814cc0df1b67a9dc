"""Folders of shifts as a perturbation leaves them, made up."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

GENES, CELLS = 8, 12
STATES = {"column": "kind", "start": "a", "goal": "b", "alternatives": ["c"]}


def shifts(offset: float = 0.0) -> pd.DataFrame:
    """All single genes and all pairs of the first five, in two measures, towards three states."""
    rng = np.random.default_rng(0)
    names = [f"G{i}" for i in range(GENES)]
    edits = [*names, *(f"G{i}+G{j}" for i in range(5) for j in range(i + 1, 5))]
    rows = []
    for cell in range(CELLS):
        for edit in edits:
            strength = sum(0.01 * (1 + int(gene[1:])) for gene in edit.split("+")) + offset
            value = 1 - strength * rng.uniform(0.8, 1.2)
            row = {"cell": f"c{cell}", "edit": "delete", "perturbed": edit}
            row["perturbed_symbol"] = edit.replace("G", "gene")
            rows.append({**row, "measure": "mean_gene_cosine", "state": "", "value": value})
            rows += [
                {**row, "measure": "state_shift", "state": state, "value": sign * (1 - value)}
                for state, sign in (("a", -1), ("b", 1), ("c", 0.5))
            ]
    return pd.DataFrame(rows)


def gene_shifts(frame: pd.DataFrame) -> pd.DataFrame:
    cells = frame[frame["measure"] == "mean_gene_cosine"].drop(columns=["measure", "state"])
    affected = pd.DataFrame({"affected": [f"G{i}" for i in range(GENES)]})
    affected["affected_symbol"] = affected["affected"].str.replace("G", "gene")
    rows = cells.merge(affected, how="cross")
    number = rows["affected"].str[1:].astype(int)
    return rows.assign(value=rows["value"] * np.where(number % 2, 0.99, 0.8 + 0.001 * number))


def write_parts(folder: Path, frame: pd.DataFrame, parts: int = 3) -> None:
    """Parts as perturb writes them: text as dictionaries that differ between parts."""
    folder.mkdir(parents=True)
    for i, rows in enumerate(np.array_split(np.arange(len(frame)), parts)):
        part = frame.iloc[rows].astype({"value": np.float32})
        table = pa.Table.from_pandas(part, preserve_index=False)
        for column, field in enumerate(table.schema):
            if not pa.types.is_floating(field.type):
                text = table[field.name].cast(pa.string()).dictionary_encode()
                table = table.set_column(column, field.name, text)
        pq.write_table(table, folder / f"part-{i:06d}.parquet")


def write_run(folder: Path, frame: pd.DataFrame, with_genes: bool = True) -> Path:
    write_parts(folder / "shifts", frame)
    if with_genes:
        write_parts(folder / "gene_shifts", gene_shifts(frame))
    (folder / "provenance.json").write_text(json.dumps({"counts": {"states": STATES}}))
    return folder
