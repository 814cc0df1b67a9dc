"""Geneformer as Hugging Face directories: config.json with safetensors or PyTorch weights."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.files import atomic_write, require_new_folder
from geneformer_jax.common.provenance import describe_run, write_provenance
from geneformer_jax.interop.model_folders import VOCABULARY
from geneformer_jax.interop.weights.bert_layout import (
    ENCODER_PREFIX,
    architecture_of,
    places,
    read_settings,
    write_settings,
)
from geneformer_jax.interop.weights.conversion import (
    bert_values,
    fill_params,
    match_tensors,
    read_arrays,
)
from geneformer_jax.interop.weights.files import CONFIG, WEIGHT_FILES, open_weights, read_json
from geneformer_jax.interop.weights.safetensors import write_tensors
from geneformer_jax.model.pretrained import (
    PretrainedModel,
    load_model,
    quantized_params,
    require_float,
    save_model,
    with_vocabulary,
)

# Of the released model.safetensors: size in bytes -> (name, SHA-256).
OFFICIAL = {
    41_183_536: ("V1-10M", "a5e33a757431643b3697de7ef6127950cdc49e06e58d4266b3a3ab191b683f14"),
    417_571_156: ("V2-104M", "fff5cba29ddd8792991fa77b4872246fbe548a178cebda3775cdc72b67780e7f"),
    1_265_455_076: ("V2-316M", "965ceccea81953d362081ef3843560a0e4fef88d396c28017881f1e94b1246f3"),
}


class ImportedModel(NamedTuple):
    """A model that transformers saved, and what became of its files.

    Attributes:
      model: its vocabulary is None where the folder has none; its step is 0.
      files: of the weights.
      tensors: how many they hold.
      ignored: names of those that change nothing.
    """

    model: PretrainedModel
    files: list[Path]
    tensors: int
    ignored: list[str]


def read_model(folder: Path | str, quantize: str | None = None) -> ImportedModel:
    """Reads a model that transformers saved; all weights become float32, or are quantised.

    Reads BertForMaskedLM, BertForSequenceClassification, BertForTokenClassification and BertModel
    (an encoder alone) from model.safetensors or pytorch_model.bin, whole or in parts. Besides the
    model, one stacked weight is held in memory at a time, or one tensor where they are quantised.

    Args:
      folder: holds config.json, the weights and, if this package wrote it, `vocabulary`.
      quantize: one of QUANTIZATIONS, to round the encoder's weights as they are read.

    Raises:
      InputError: a file is missing or damaged, the settings ask for what is not implemented, or
        tensors are missing, unexpected or of a wrong shape (all are named together).
    """
    folder = Path(folder)
    config, head, bare = read_settings(read_json(folder / CONFIG), str(folder / CONFIG))
    tensors, files = open_weights(folder)
    matched = match_tensors(tensors, config, head, str(folder), bare)
    arrays, quantization = read_arrays(matched, config, head, str(folder), bare), None
    if quantize:
        params, quantization = quantized_params(arrays, quantize)
    else:
        params = fill_params(arrays)
    model = PretrainedModel(config, params, None, str(folder), 0, head, quantization)
    if (folder / VOCABULARY).is_dir():
        model = with_vocabulary(model, GeneVocabulary.load(folder / VOCABULARY))
    return ImportedModel(model, files, len(tensors), matched.ignored)


def import_model(
    folder: Path | str, target: Path | str, vocabulary: GeneVocabulary | None = None
) -> dict[str, Any]:
    """Writes a model that transformers saved as a checkpoint, with its vocabulary.

    Args:
      folder: see `read_model`.
      target: a new folder.
      vocabulary: what its tokens mean; None only if the folder has it.

    Returns:
      Counts for a report: weights, tensors, those ignored by name, and which of the released
      models this is ("none" if it is another).

    Raises:
      InputError: as `read_model`; no vocabulary, or one of another size; the target holds files.
    """
    folder, target = Path(folder), require_new_folder(target)
    model, files, tensors, ignored = read_model(folder)
    if vocabulary is not None:
        model = with_vocabulary(model, vocabulary)
    counts = _count(model) | {
        "tensors": tensors,
        "ignored": ignored,
        "official": _official_name(files),
    }
    configuration = {"source": folder, "target": target}
    provenance = describe_run("convert", configuration, [folder / CONFIG, *files], counts)
    save_model(model, target, provenance)
    return counts


def export_model(source: Path | str, target: Path | str) -> dict[str, Any]:
    """Writes a checkpoint as a directory that transformers reads, with its vocabulary beside.

    Args:
      source: a checkpoint or training workdir, see model.pretrained.load_model.
      target: a new folder: config.json, model.safetensors (float32), vocabulary, provenance.json.

    Returns:
      Counts for a report.

    Raises:
      InputError: there is no checkpoint, or the target holds files.
    """
    return write_model(load_model(source), target, {"source": source, "target": target})


def write_model(
    model: PretrainedModel,
    target: Path | str,
    configuration: Mapping[str, Any],
    dtype: DTypeLike = np.float32,
) -> dict[str, Any]:
    """Writes a model as `export_model` does.

    Args:
      model: to write.
      target: a new folder.
      configuration: of the command, for the provenance.
      dtype: of the weights in the file.

    Returns:
      Counts for a report.

    Raises:
      InputError: BERT has no class for the model's head, the model is quantised, or the target
        holds files.
    """
    require_float(model)
    target = require_new_folder(target)
    wanted = places(model.config, model.head, model.is_bare)
    counts = _count(model) | {"tensors": len(wanted)}
    inputs = [Path(model.source)] if Path(model.source).exists() else []
    with atomic_write(target) as aside:
        aside.mkdir()
        settings = write_settings(model.config, model.head, model.is_bare)
        settings["torch_dtype"] = np.dtype(dtype).name
        (aside / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
        values = bert_values(wanted, model.params)
        if model.is_bare:
            values = {name.removeprefix(ENCODER_PREFIX): each for name, each in values.items()}
        write_tensors(aside / WEIGHT_FILES[0], values, dtype)
        if model.vocabulary is not None:
            model.vocabulary.write_into(aside / VOCABULARY)
        write_provenance(aside, describe_run("convert", configuration, inputs, counts))
    return counts


def _count(model: PretrainedModel) -> dict[str, Any]:
    wanted = places(model.config, model.head, model.is_bare)
    return {
        "architecture": architecture_of(model.head, model.is_bare),
        "weights": sum(math.prod(place.shape) for place in wanted),
    }


def _official_name(files: list[Path]) -> str:
    """Which of the released models a file is; hashes only files of the right size."""
    name, expected = OFFICIAL.get(files[0].stat().st_size, ("none", ""))
    if len(files) != 1 or not expected:
        return "none"
    with files[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return name if found == expected else f"none (of the size of {name}, but with other content)"
