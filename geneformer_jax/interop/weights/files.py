"""The files of a Hugging Face directory: settings, and weights in one file or in several."""

from pathlib import Path
from typing import Any, NamedTuple

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import read_json as json_of
from geneformer_jax.interop.weights import safetensors, torch_bin
from geneformer_jax.interop.weights.stored_tensor import StoredTensor

CONFIG = "config.json"
# The first that is there is read, as transformers does.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_LFS_POINTER = b"version https://git-lfs.github.com/spec"


class WeightFiles(NamedTuple):
    """The tensors of a directory and the files that hold them."""

    tensors: dict[str, StoredTensor]
    files: list[Path]


def is_huggingface_model(folder: Path | str) -> bool:
    """Whether `folder` looks like a model that transformers saved, whole or not."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        return False
    if any((folder / name).exists() for name in WEIGHT_FILES):
        return True
    try:
        return "architectures" in read_json(folder / CONFIG)
    except InputError:
        return False


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
      InputError: the file is missing or holds no JSON object.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; a model needs it beside its weights, get it too")
    try:
        content = json_of(path)
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}); get it anew from its source") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object; get it anew from its source")
    return content


def open_weights(folder: Path) -> WeightFiles:
    """Lists the tensors in a directory; reads no values.

    Raises:
      InputError: there are no weights, a part of them is missing, or a file is damaged.
    """
    first = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if first is None:
        raise InputError(
            f"{folder} holds no weights ({' or '.join(WEIGHT_FILES[::2])}); name a folder that does"
        )
    if first.suffix != ".json":
        return WeightFiles(_list_tensors(first), [first])
    places = _read_index(first)
    files = [folder / name for name in sorted(set(places.values()))]
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        if not file.is_file():
            raise InputError(f"{first} names {file.name}, which is not there; get it too")
        tensors |= _list_tensors(file)
    absent = [name for name in places if name not in tensors]
    if absent:
        raise InputError(
            f"{first} names {absent[0]} and {len(absent) - 1} other tensors that are not in its "
            "files; get all files of the model anew"
        )
    return WeightFiles(tensors, files)


def _read_index(path: Path) -> dict[str, str]:
    """Returns file name by tensor name."""
    places = read_json(path).get("weight_map")
    texts = isinstance(places, dict) and all(type(name) is str for name in places.values())
    names = set(places.values()) if texts else set()
    plain = all(Path(name).name == name for name in names)
    if not plain or not names:
        raise InputError(f"{path} must name files beside it and no others; get it anew")
    return places


def _list_tensors(path: Path) -> dict[str, StoredTensor]:
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise InputError(
            f"{path} is only git's pointer to the weights; fetch them with: git lfs pull"
        )
    return (torch_bin if path.suffix == ".bin" else safetensors).list_tensors(path)
