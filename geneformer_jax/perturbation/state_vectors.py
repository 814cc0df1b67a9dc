"""The embeddings of cell states, towards which shifts are measured."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.cells.store.shorter_cells import shorten
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.embedding.embedder import Embedded, Embedder
from geneformer_jax.embedding.states import MEAN, StateEmbeddings, state_embeddings
from geneformer_jax.inference.cells import ChosenCells, select_cells
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.perturbation.cell_states import CellStates


def check_states(states: CellStates, cells: EncodedCells) -> None:
    """Raises InputError if the column of states, or one of them, does not occur."""
    for name in states.names:
        select_cells(cells, {states.column: [name]})


def start_cells(states: CellStates, cells: EncodedCells) -> EncodedCells:
    """Returns the cells of the start state, or all."""
    return select_cells(cells, {states.column: [states.start]}) if states.start else cells


def compute_states(
    model: PretrainedModel,
    cells: EncodedCells,
    states: CellStates,
    mode: str,
    hidden_layer: int,
    runtime: Runtime,
    devices: Sequence[jax.Device],
) -> StateEmbeddings:
    """Embeds the cells of the states; exact means, as the original's exact_mean."""
    own = select_cells(cells, {states.column: states.names})
    own = ChosenCells(shorten(own, model.config.positions), np.arange(len(own.rows)), own.dropped)
    embedder = Embedder(model, own, mode, hidden_layer, runtime, devices=list(devices))
    with embedder.progress("embed the states") as progress:
        rows = embedder.rows(0, len(own.rows), progress)
    embedded = Embedded(rows, embedder.table(), embedder.layers, embedder.facts())
    return state_embeddings(embedded, states.column)


def read_states(
    path: Path | str, states: CellStates, model: PretrainedModel, mode: str, hidden_layer: int
) -> StateEmbeddings:
    """Reads given state embeddings.

    Raises:
      InputError: they are of another model, column, mode or hidden layer, or lack a state.
    """
    given = StateEmbeddings.load(path)
    wanted = {"vocabulary_hash": model.vocabulary.hash, "mode": mode}
    for name, value in wanted.items():
        if given.facts.get(name) != value:
            raise InputError(
                f"{path} has state embeddings of {name} {given.facts.get(name)}, but {value} is "
                "needed; write them anew with embed --states, or leave them out to compute them"
            )
    if given.column != states.column:
        raise InputError(
            f'{path} has states of column "{given.column}", not "{states.column}"; name that one'
        )
    vectors = given.vectors(MEAN, hidden_layer)
    for name in states.names:
        if name not in vectors:
            raise InputError(
                f'{path} has no state "{name}"{did_you_mean(name, vectors)}; it has '
                f"{', '.join(vectors)}"
            )
    if (width := len(next(iter(vectors.values())))) != model.config.width:
        raise InputError(
            f"{path} has embeddings of width {width}, but the model has {model.config.width}; "
            "write them with this model"
        )
    return given


def unit_vectors(given: StateEmbeddings, states: CellStates, hidden_layer: int) -> np.ndarray:
    """Returns the states' mean embeddings at unit length, float32 [states, D]."""
    vectors = given.vectors(MEAN, hidden_layer)
    chosen = np.stack([vectors[name] for name in states.names]).astype(np.float64)
    return (chosen / np.linalg.norm(chosen, axis=1, keepdims=True)).astype(np.float32)
