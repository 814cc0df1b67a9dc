"""The original's perturbation experiments, and the same run by the package."""

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.interop.huggingface import read_model
from geneformer_jax.interop.original_dictionaries import read_original_vocabulary
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.perturbation.config import PerturbationOptions
from geneformer_jax.perturbation.engine.perturber import Perturber
from geneformer_jax.perturbation.prepare import make_plan, make_spec, resolve_edits


@dataclass(frozen=True, eq=False)
class GivenCells:
    """Cells of which the tokens are known."""

    tokens: list[np.ndarray]
    obs: pd.DataFrame
    vocabulary: GeneVocabulary

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(each) for each in self.tokens], np.int32)

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        return [self.tokens[i] for i in indices]


@functools.cache
def index(reference: Path) -> dict:
    return json.loads((reference / "perturb" / "index.json").read_text())


@functools.cache
def model_of(reference: Path, data: Path, version: str) -> PretrainedModel:
    folder = {"V1": "v1_gc30M", "V2": "v2_gc104M"}[version]
    vocabulary = read_original_vocabulary(data / "dictionaries" / folder)
    model = read_model(reference / "models" / f"{version.lower()}_tiny").model
    return replace(model, vocabulary=vocabulary)


@functools.cache
def _tokens(reference: Path, version: str) -> pd.Series:
    table = pd.read_parquet(reference / f"tokens_{version.lower()}.parquet")
    return table.set_index("cell_id")["input_ids"]


def cells_of(reference: Path, data: Path, name: str) -> GivenCells:
    version = index(reference)[name]["model_version"]
    inputs = pd.read_parquet(reference / "perturb" / "inputs.parquet")
    inputs = inputs[inputs["experiment"] == name]
    whole = _tokens(reference, version)
    tokens = [
        np.asarray(whole[cell] if cut is None else cut, np.uint16)
        for cell, cut in zip(inputs["cell_id"], inputs["input_ids"], strict=True)
    ]
    obs = pd.DataFrame({"label": inputs["label"].to_numpy()}, index=inputs["cell_id"].to_numpy())
    return GivenCells(tokens, obs, model_of(reference, data, version).vocabulary)


def table_of(reference: Path, name: str) -> pd.DataFrame:
    table = pd.read_parquet(reference / "perturb" / f"{name}.parquet")
    return table.astype({"cell_id": str, "state": str, "perturbed": str})


def options_of(reference: Path, name: str) -> PerturbationOptions:
    """The experiment's arguments in our words."""
    given = index(reference)[name]["args"]
    together = given["genes_to_perturb"] != "all"
    return PerturbationOptions(
        edit=given["perturb_type"],
        genes=given["genes_to_perturb"],
        combine="together" if together else "each",
        anchor=given.get("anchor_gene"),
        mode=given["emb_mode"].removesuffix("_and_gene"),
        hidden_layer=given.get("emb_layer", -1),
        gene_shifts="full" if given["emb_mode"].endswith("_and_gene") else "none",
    )


def run(
    reference: Path, data: Path, name: str, tag: str = "", truncation: str = "original"
) -> pd.DataFrame:
    """Runs an experiment; returns a table like the original's, tokens for genes.

    `tag` names the state embeddings of an experiment with states.
    """
    options = replace(options_of(reference, name), truncation=truncation)
    model = model_of(reference, data, index(reference)[name]["model_version"])
    cells = cells_of(reference, data, name)
    states, vectors = _states(reference, name, tag)
    spec = replace(make_spec(model, options), states=states)
    plan = make_plan(cells, options, spec, *resolve_edits(model, options))
    perturber = Perturber(model, plan, spec, vectors)
    with perturber.progress(plan.edits) as progress:
        shifts = perturber.shifts(0, plan.edits, progress)
    perturbed = np.array([_joined(genes) for genes in shifts.sets_EK])
    cell_ids = plan.cells.obs.index.to_numpy()[shifts.cells]
    wanted = {"cell": "mean_gene_cosine", "cls": "cls_cosine"}[options.mode]
    tables = []
    for column, (measure, state) in enumerate(spec.measures):
        if measure == ("state_shift" if states else wanted):
            values = shifts.values_EM[:, column]
            tables.append(_table(cell_ids, state, perturbed, -1, values))
    edits = shifts.gene_edits
    tables.append(
        _table(cell_ids[edits], "", perturbed[edits], shifts.affected, shifts.gene_values)
    )
    return pd.concat(tables, ignore_index=True)


def _states(reference: Path, name: str, tag: str) -> tuple[tuple[str, ...], np.ndarray | None]:
    given = index(reference)[name]["args"].get("cell_states_to_model")
    if given is None:
        return (), None
    names = given["start_state"], given["goal_state"], *given["alt_states"]
    vectors = np.load(reference / "perturb" / "state_embeddings.npz")
    stacked = np.stack([vectors[f"{tag}|{state}"] for state in names])
    return names, stacked / np.linalg.norm(stacked, axis=1, keepdims=True)


def _joined(genes: np.ndarray) -> str:
    return ",".join(str(token) for token in genes if token >= 0)


def _table(cell_ids, state, perturbed, affected, values) -> pd.DataFrame:
    columns = {"cell_id": cell_ids, "state": state, "perturbed": perturbed}
    return pd.DataFrame({**columns, "affected": affected, "value": values})
