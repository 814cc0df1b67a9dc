"""The configurations that the project ships, and one of a toy run."""

import importlib.util
from pathlib import Path

from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.training.config import PretrainConfig, pretrain_config, typed_config

CONFIGS = [
    path
    for path in sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
    if "pretrain_config" in path.read_text()
]


def load(path: Path) -> PretrainConfig:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return typed_config(module.get_config())


def toy_config(store, **changes) -> PretrainConfig:
    """A run that the toy store can feed, with some fields changed: {"data.workers": 1}."""
    model = EncoderConfig(1, 2, 32, 4, 64, 256, dropout=0.1, attention_dropout=0.1)
    config = pretrain_config(model, vocabulary_size=0)
    config.data.store = str(store.folder)
    config.data.cells_per_batch = 8
    config.data.max_buckets = 2
    config.evaluation.held_out_cells = 24
    config.update_from_flattened_dict(changes)
    return typed_config(config)
