"""Models and adapters."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from safetensors.numpy import load_file

import geneformer_jax as gf
from geneformer_jax.interop import adapters
from geneformer_jax.model.config import LoraConfig
from geneformer_jax.model.heads import HeadConfig, init_head
from geneformer_jax.model.lora import init_lora
from geneformer_jax.model.pretrained import PretrainedModel, save_model, weights_hash
from geneformer_jax.training.checkpoint import Checkpoints
from geneformer_jax.training.config import CheckpointConfig
from geneformer_jax.training.state import TrainState
from tests.campaigns.readers.reader import Reader, Result
from tests.helpers.bert_folders import tensors, write_folder, write_torch_file
from tests.helpers.toy import toy_model, toy_vocabulary


def _weights_of(model: PretrainedModel) -> Result:
    leaves = traverse_util.flatten_dict(model.params, sep="/")
    arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    return arrays | {"config": repr(model.config), "head": repr(model.head)}


def _read_model(folder: Path) -> Result:
    model = gf.load_model(folder)
    vocabulary = model.vocabulary.hash if model.vocabulary else "none"
    return _weights_of(model) | {"vocabulary": vocabulary}


def _write_safetensors(folder: Path) -> Path:
    return write_folder(folder / "hf", architecture="BertForSequenceClassification")


def _plain_tensors(folder: Path) -> Result:
    """One table and one bias, which change neither shape nor order, as safetensors reads them."""
    held = load_file(folder / "model.safetensors")
    return {
        "embeddings/word/embedding": held["bert.embeddings.word_embeddings.weight"],
        "embeddings/norm/bias": held["bert.embeddings.LayerNorm.bias"],
    }


def _write_torch_bin(folder: Path) -> Path:
    path = write_folder(folder / "hf")
    (path / "model.safetensors").unlink()
    write_torch_file(path / "pytorch_model.bin", tensors())
    return path


def _write_checkpoint(folder: Path) -> Path:
    head = HeadConfig("cell_classifier", ("a", "b"), 0.1)
    save_model(toy_model(layers=1, head=head), folder / "model", {})
    return folder / "model"


def _write_adapter(folder: Path) -> Path:
    base = gf.load_model(write_folder(folder.resolve() / "base"))
    base = dataclasses.replace(base, vocabulary=toy_vocabulary(), source=str(folder / "base"))
    lora = LoraConfig(rank=2, alpha=3.0, targets=("query", "up"))
    head = HeadConfig("cell_classifier", ("a", "b", "c"), 0.1)
    factors = init_lora(base.config, lora, jax.random.key(0))
    trained = {"lora": factors, head.kind: init_head(base.config, head, jax.random.key(2))}
    model = dataclasses.replace(base, head=head, step=7)
    adapters.save_adapter(trained, lora, model, weights_hash(base), folder / "adapter", {})
    return folder / "adapter"


def _state() -> TrainState:
    params = toy_model(layers=1).params
    return TrainState(jnp.asarray(2, jnp.int32), params, optax.adamw(1e-3).init(params))


def _checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", CheckpointConfig(), {"format": "1"})


def _write_training(folder: Path) -> Path:
    (folder / "run").mkdir()
    with _checkpoints(folder / "run") as checkpoints:
        checkpoints.save(2, _state())
    return folder / "run"


def _read_training(folder: Path) -> Result:
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), _state()
    )
    with _checkpoints(folder) as checkpoints:
        state = checkpoints.restore_newest(target)
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


READERS = {
    "safetensors": Reader(_write_safetensors, _read_model, _plain_tensors),
    "torch bin": Reader(_write_torch_bin, _read_model),
    "checkpoint": Reader(_write_checkpoint, _read_model),
    "training checkpoint": Reader(_write_training, _read_training),
    "adapter": Reader(_write_adapter, _read_model),
}
