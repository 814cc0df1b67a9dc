"""A model from wherever it is: a checkpoint, a Hugging Face directory, or the hub."""

from pathlib import Path

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.arguments import require_path, require_type
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import logger
from geneformer_jax.interop import adapters, huggingface
from geneformer_jax.interop.hub import download
from geneformer_jax.interop.model_folders import model_folder
from geneformer_jax.interop.original_dictionaries import read_vocabulary
from geneformer_jax.interop.weights.files import is_huggingface_model
from geneformer_jax.model import pretrained
from geneformer_jax.model.pretrained import (
    PretrainedModel,
    describe_quantization,
    with_vocabulary,
)
from geneformer_jax.model.quantization import check_quantization


def load_model(
    path: Path | str,
    vocabulary: GeneVocabulary | Path | str | None = None,
    base: Path | str | None = None,
    quantize: str | None = None,
) -> PretrainedModel:
    """Loads a model.

    Args:
      path: a checkpoint, the workdir of a training run (its newest checkpoint, or the one network
        that fine-tuning made), a directory that transformers saved, or the name of one on the
        Hugging Face hub: "org/name", or "org/name/folder" for a folder in it; or a fine-tuned
        adapter, which is merged into its base. "demo-blood" is a small model of blood cells that
        comes with this package.
      vocabulary: what the model's tokens mean, or its folder, or the original's dictionaries (see
        `read_vocabulary`); for a model that carries none, as what transformers saved.
      base: for an adapter, the model it was trained on, if that is no longer where it was.
      quantize: "int8" (0.26 of the memory of float32 weights) or "nf4" (0.18): rounds the encoder's
        kernels and tables as they are read, a tensor at a time; what is computed is in float. An
        adapter stays in float beside them. Needs the extra `quantize`.

    Returns:
      The model, on the first local device. Its vocabulary is None if it carries none and none is
      given.

    Raises:
      InputError: there is no such model, it cannot be read or fetched, there are several, the
        vocabulary is not its own, or there is no such quantisation.
    """
    require_path("path", path, "a checkpoint, a workdir or a model that transformers saved")
    if vocabulary is not None:
        kinds = (GeneVocabulary, str, Path)
        require_type("vocabulary", vocabulary, kinds, "give a GeneVocabulary or its folder")
    if quantize is not None:
        check_quantization(quantize)
    model = _load(path, vocabulary, base, quantize)
    if quantize is not None:
        logger.info(describe_quantization(model))
    return model


def _load(
    path: Path | str,
    vocabulary: GeneVocabulary | Path | str | None,
    base: Path | str | None,
    quantize: str | None,
) -> PretrainedModel:
    folder = model_folder(path)
    if (adapter := adapters.find_adapter(folder)) is not None:
        base = base or adapters.adapter_base(adapter)
        if base is None:
            raise InputError(f"the adapter {adapter} does not say what it goes on; name `base`")
        if not model_folder(base).exists() and not download.NAME.fullmatch(str(base)):
            raise InputError(
                f"the adapter {adapter} goes on top of {base}, which is not there; name it by "
                "`base`"
            )
        return adapters.apply_adapter(adapter, _load(base, vocabulary, None, quantize))
    if base is not None:
        raise InputError(f"a base is given, but {folder} is no adapter; leave it out")
    if not folder.exists() and download.NAME.fullmatch(str(path)):
        folder = download.fetch(str(path))
    if is_huggingface_model(folder):
        model = huggingface.read_model(folder, quantize).model
    else:
        model = pretrained.load_model(folder, quantize)
    if vocabulary is None:
        return model
    if not isinstance(vocabulary, GeneVocabulary):
        vocabulary = read_vocabulary(vocabulary)
    return with_vocabulary(model, vocabulary)
