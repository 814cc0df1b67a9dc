"""Models fetched from the Hugging Face hub by name."""

import re
from pathlib import Path

from geneformer_jax.common.errors import InputError
from geneformer_jax.interop.model_folders import VOCABULARY
from geneformer_jax.interop.weights.files import CONFIG, WEIGHT_FILES

NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*){1,2}", re.ASCII)
# The weights, their index and the parts of a model in several files: the first format there is.
_FORMATS = (
    (*WEIGHT_FILES[:2], "model-*.safetensors"),
    (*WEIGHT_FILES[2:], "pytorch_model-*.bin"),
)
_REMEDY = (
    "a local directory works without a network: gf.load_model(DIRECTORY), or "
    "python -m geneformer_jax.convert --source=DIRECTORY --target=CHECKPOINT"
)


def fetch(name: str) -> Path:
    """Downloads a model into the hub client's cache, or finds it there; returns its folder.

    Args:
      name: "org/name", or "org/name/folder" for a folder in it.

    Raises:
      InputError: there is no such model, or the hub cannot be reached.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise InputError(
            f'there is no folder {name}, and to look for "{name}" on the Hugging Face hub its '
            f'client is needed: pip install "geneformer_jax[huggingface]"; {_REMEDY}'
        ) from error
    org, model, *inside = name.split("/")
    prefix = "".join(f"{part}/" for part in inside)
    for files in _FORMATS:
        patterns = [prefix + each for each in (CONFIG, f"{VOCABULARY}/*", *files)]
        try:
            fetched = huggingface_hub.snapshot_download(f"{org}/{model}", allow_patterns=patterns)
        except troubles() as error:
            raise InputError(_why_not(name, error)) from error
        folder = Path(fetched, *inside)
        if any((folder / each).exists() for each in WEIGHT_FILES):
            return folder
    raise InputError(
        f'"{name}" on the Hugging Face hub holds no weights of a model there; name a folder in it '
        "that does, as org/name/folder"
    )


def troubles() -> tuple[type[Exception], ...]:
    """Returns what the hub's client raises."""
    from huggingface_hub import errors

    # Its errors stand on those of the library it talks through, another one in each version.
    return OSError, ValueError, RuntimeError, *errors.HfHubHTTPError.__bases__


def _why_not(name: str, error: Exception) -> str:
    from huggingface_hub import errors

    said = first_line(error)
    answered = (errors.HfHubHTTPError, errors.HFValidationError)
    if isinstance(error, answered):
        trouble = f'the Hugging Face hub does not give "{name}" ({said}); check the name'
    else:
        trouble = f"the Hugging Face hub cannot be reached, is there no network? ({said})"
    return f"there is no folder {name}, and {trouble}; {_REMEDY}"


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, shortened."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:120]
