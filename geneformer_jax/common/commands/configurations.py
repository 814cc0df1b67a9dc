"""Configurations for `--config`: files of the user's, and those that come with the package."""

import os
from pathlib import Path

from geneformer_jax.common.errors import InputError, did_you_mean

_PACKAGE = Path(__file__).parents[2]
# Installed, they lie in the package (see setup.py); in the project's folder, beside it.
_INSTALLED, _PROJECT = _PACKAGE / "configs", _PACKAGE.parent / "configs"


def configurations() -> dict[str, Path]:
    """Returns the files of the configurations that come with the package, by name in their order.

    A name is the path below the folder `configs` without its suffix, such as "tasks/dosage".
    """
    folder = _INSTALLED if _INSTALLED.is_dir() else _PROJECT
    files = (path for path in folder.rglob("*.py") if path.stem != "__init__")
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(files)}


def find_configuration(given: str) -> str:
    """Returns the path of a configuration, with what follows a colon, an argument of the file.

    Args:
      given: a file; where there is none, the name of one that comes with the package, which may be
        written as its file: "quickstart" and "configs/quickstart.py" are the same.

    Raises:
      InputError: it is neither.
    """
    path, colon, argument = os.path.expanduser(given).partition(":")
    if os.path.isfile(path):
        return path + colon + argument
    known = configurations()
    name = os.path.normpath(path).removeprefix("configs/").removesuffix(".py")
    if name not in known:
        near = did_you_mean(name, known)
        raise InputError(
            f'`config` is "{given}", which is no file and no configuration of the package{near}; '
            f"name a file, or one of {', '.join(known)}"
        )
    return str(known[name]) + colon + argument
