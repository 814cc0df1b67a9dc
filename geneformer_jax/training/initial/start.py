"""The state of a pretraining run before its first step."""

import dataclasses

import jax
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils

from geneformer_jax.common.errors import InputError
from geneformer_jax.interop.load import load_model
from geneformer_jax.model.encoder import Params
from geneformer_jax.training.initial.gene_components import gene_components
from geneformer_jax.training.run import Run
from geneformer_jax.training.state import TrainState, init_state


def start_state(run: Run) -> TrainState:
    """Returns the state before the first step: weights drawn, or those of `config.initial`.

    Raises:
      InputError: the initial checkpoint is of another shape of model, or another vocabulary; or
        there are too few cells for components of their genes.
    """
    placed = jax.tree.map(lambda leaf: leaf.sharding, run.abstract_state)
    # Each device draws only its own part.
    state = jax.jit(lambda: init_state(run.recipe), out_shardings=placed)()
    if run.config.initial:
        return _with_params(run, state, _initial_params(run))
    if run.config.initial_genes == "components":
        return _with_params(run, state, {"embeddings": {"word": {"embedding": _components(run)}}})
    return state


def _with_params(run: Run, state: TrainState, given: Params) -> TrainState:
    """Returns the state with some or all of its weights replaced, placed as before."""
    state = run.stored(state)
    flat = traverse_util.flatten_dict(state.params)
    new = {
        path: jax.device_put(value, flat[path].sharding)
        for path, value in traverse_util.flatten_dict(given).items()
    }
    params = traverse_util.unflatten_dict(flat | new)
    return run.at_work(state._replace(params=params))


def _components(run: Run) -> np.ndarray:
    """Returns the first process's components of genes: others may round otherwise."""
    shape = run.encoder.vocabulary_size, run.encoder.width
    if jax.process_index() == 0:
        table = gene_components(run.store, run.training_cells, shape[1], run.config.seed)
    else:
        table = np.zeros(shape, np.float32)
    return multihost_utils.broadcast_one_to_all(table)


def _initial_params(run: Run) -> Params:
    """Returns the weights of `config.initial`, which must be those of such a model."""
    model = load_model(run.config.initial)
    if model.vocabulary is None:
        raise InputError(
            f"`config.initial` {model.source} carries no vocabulary; convert it with its own "
            "`vocabulary`, and name the result"
        )
    if model.vocabulary.hash != run.store.vocabulary.hash:
        raise InputError(
            f"the store was tokenised with vocabulary {run.store.vocabulary.hash[:12]}, but "
            f"`config.initial` {model.source} was trained with {model.vocabulary.hash[:12]}; "
            "tokenize with that checkpoint's vocabulary"
        )
    if model.is_bare:
        raise InputError(
            f"`config.initial` {model.source} is an encoder without a head, but pretraining needs "
            "the one that predicts masked genes; name a checkpoint of masked gene prediction"
        )
    # Dropout is no property of the weights.
    rates = {"dropout": 0.0, "attention_dropout": 0.0}
    theirs, ours = (dataclasses.replace(each, **rates) for each in (model.config, run.encoder))
    if model.head is not None or theirs != ours:
        raise InputError(
            f"`config.initial` {model.source} holds another model ({model.config}) than "
            f"`config.model` asks for ({run.encoder}); set `config.model` to its shape"
        )
    return model.params
