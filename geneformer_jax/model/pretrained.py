"""Pretrained weights from disk: the only part of this room that reads files."""

import dataclasses
import json
from pathlib import Path

import jax
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from geneformer_jax.cells.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Params, abstract_params

CHECKPOINTS = "checkpoints"
_STEP_FILE = "_CHECKPOINT_METADATA"
_REMEDY = "name a checkpoint, or the --workdir of a pretraining run"


@dataclasses.dataclass(frozen=True)
class PretrainedModel:
    """A trained encoder with the vocabulary its tokens mean something in.

    Attributes:
      config: shape of the model.
      params: float32 weights, see model.encoder.
      vocabulary: genes and medians it was trained with; None only for a bare weights folder.
      source: where it was read from.
      step: updates it was trained for.
    """

    config: EncoderConfig
    params: Params
    vocabulary: GeneVocabulary | None
    source: str
    step: int


def describe_model(config: EncoderConfig, vocabulary: GeneVocabulary) -> dict[str, str]:
    """Returns what a checkpoint must say of itself beside its weights, as JSON texts."""
    return {
        "model": json.dumps(dataclasses.asdict(config)),
        "vocabulary": vocabulary.to_json(),
    }


def load_model(path: Path | str) -> PretrainedModel:
    """Loads a model from a checkpoint, or the newest checkpoint of a training workdir.

    Args:
      path: a checkpoint folder, the folder of a run's checkpoints, or the run's workdir.

    Raises:
      InputError: there is no checkpoint, or it cannot be read.
    """
    checkpoint = find_checkpoint(Path(path))
    try:
        meta = ocp.load_checkpointables(checkpoint, {"meta": None})["meta"]
        config = EncoderConfig(**json.loads(meta["model"]))
        sharding = SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract_params(config),
        )
        params = ocp.load_checkpointables(checkpoint, {"params": abstract})["params"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"checkpoint {checkpoint} cannot be read ({type(error).__name__}: {error}); "
            "it may be damaged: name an earlier one"
        ) from error
    return PretrainedModel(
        config=config,
        params=params,
        vocabulary=GeneVocabulary.from_json(meta["vocabulary"]),
        source=str(checkpoint),
        step=int(checkpoint.name),
    )


def find_checkpoint(path: Path) -> Path:
    """Returns the checkpoint that `path` names: itself, or the newest one in it.

    Raises:
      InputError: there is none.
    """
    if not path.is_dir():
        raise InputError(f"no checkpoint at {path}: it is not a folder; {_REMEDY}")
    path = path.resolve()
    if (path / _STEP_FILE).is_file():
        return path
    for folder in (path, path / CHECKPOINTS):
        steps = [each for each in folder.glob("[0-9]*") if (each / _STEP_FILE).is_file()]
        if steps:
            return max(steps, key=lambda each: int(each.name))
    raise InputError(f"no checkpoint in {path}; {_REMEDY}")
