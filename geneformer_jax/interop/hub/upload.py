"""Models put on the Hugging Face hub, with a card."""

import tempfile
import warnings
from pathlib import Path

from geneformer_jax.common.arguments import require_type
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import checksum
from geneformer_jax.common.log import logger
from geneformer_jax.interop.hub.card import write_card
from geneformer_jax.interop.hub.download import NAME, first_line, troubles
from geneformer_jax.interop.huggingface import write_model
from geneformer_jax.interop.load import load_model
from geneformer_jax.interop.weights.files import WEIGHT_FILES
from geneformer_jax.model.pretrained import PretrainedModel

PREFIX = "hf://"
# What the hub itself puts into a new repository.
_OF_THE_HUB = {".gitattributes"}


def push_to_hub(
    model: PretrainedModel | Path | str,
    name: str,
    *,
    license: str = "",
    private: bool = False,
) -> str:
    """Puts a model on the Hugging Face hub: weights, vocabulary and a model card.

    The card is made from the provenance of the model's run: its data, its training, held-out
    figures beside their baselines, limits, how to cite. Given again after an interruption, what is
    there already is not sent again.

    Args:
      model: to put there, or where it is, see `load_model`.
      name: "org/name", also with hf:// in front; a repository of that name must be new, empty, or
        hold the same weights.
      license: of the weights, by the hub's short names, such as "cc-by-4.0".
      private: whether a new repository is seen by its owners alone.

    Returns:
      The address of the model.

    Raises:
      InputError: the model has a head that BERT has no class for or carries no vocabulary; the name
        is none, taken, or not allowed; the hub cannot be reached.
    """
    require_type("name", name, str, "give it as org/name")
    require_type("license", license, str, 'give its short name on the hub, such as "cc-by-4.0"')
    require_type("private", private, bool, "give True or False")
    name = name.removeprefix(PREFIX)
    if NAME.fullmatch(name) is None or name.count("/") != 1:
        raise InputError(f'"{name}" is no name on the hub; give it as org/name')
    api = _client()
    if not isinstance(model, PretrainedModel):
        model = load_model(model)
    if model.vocabulary is None:
        raise InputError(
            f"the model of {model.source} carries no vocabulary, without which nobody can use it; "
            "give the one it was trained with: gf.load_model(PATH, VOCABULARY)"
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        write_model(model, folder, {"target": f"{PREFIX}{name}"})
        write_card(model, folder, name, license)
        try:
            api.create_repo(name, private=private, exist_ok=True)
            _require_own(api, name, folder)
            logger.info(f"sending {model.source} to {name}")
            with warnings.catch_warnings():
                # Of the vocabulary's tables, which it takes for a data set.
                warnings.filterwarnings("ignore", "It seems that you are about to commit a data")
                api.upload_folder(repo_id=name, folder_path=folder, commit_message="Model and card")
        except InputError:
            raise
        except troubles() as error:
            raise InputError(_why_not_sent(name, error)) from error
    return f"{api.endpoint}/{name}"


def _client():
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise InputError(
            "to put a model on the Hugging Face hub its client is needed: "
            'pip install "geneformer_jax[huggingface]"'
        ) from error
    return huggingface_hub.HfApi()


def _require_own(api, name: str, folder: Path) -> None:
    """Raises InputError if the repository holds other things than this model."""
    there = set(api.list_repo_files(name)) - _OF_THE_HUB
    if not there:
        return
    (weights,) = WEIGHT_FILES[:1]
    found = api.get_paths_info(name, [weights]) if weights in there else []
    if not found or getattr(found[0].lfs, "sha256", "") != checksum(folder / weights):
        raise InputError(
            f"{name} is there and holds other files ({', '.join(sorted(there)[:3])}), and nothing "
            "is overwritten; give another name"
        )


def _why_not_sent(name: str, error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = first_line(error)
    if status in (401, 403):
        return (
            f"the hub does not allow {name} to be written ({said}); log in as somebody who may: "
            "hf auth login, or a token with write access in HF_TOKEN"
        )
    return (
        f"{name} was not sent to its end ({said}); give the same command again: what has arrived "
        "is not sent twice"
    )
