"""Models that come with the package, and where a model's vocabulary lies."""

from pathlib import Path

# Beside weights that transformers reads.
VOCABULARY = "vocabulary"
SHIPPED = {"demo-blood": Path(__file__).parents[1] / "demo_blood"}


def model_folder(path: Path | str) -> Path:
    """Returns the folder of a model that comes with the package, or the path that was given.

    What lies there by that name goes first.
    """
    given = Path(path).expanduser()
    return given if given.exists() else SHIPPED.get(str(path), given)


def vocabulary_folder(path: Path | str) -> Path:
    """Returns the folder of such a model's vocabulary, or the path that was given."""
    folder = model_folder(path)
    return folder / VOCABULARY if folder in SHIPPED.values() else folder
