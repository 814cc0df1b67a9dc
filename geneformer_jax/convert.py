"""Converts between other people's formats and ours; which way, the source and the target say.

the original's dictionaries (a folder of pickles)  ->  vocabulary folder
tokenised cells (.dataset folder or .parquet)      ->  cell store, with --vocabulary
cell store                                         ->  NAME.dataset folder or NAME.parquet
a model saved by transformers (a directory)        ->  checkpoint, with --vocabulary
checkpoint, or the workdir of a training run       ->  a directory that transformers loads
a fine-tuned adapter                               ->  checkpoint, merged into its base

  python -m geneformer_jax.convert --source=PATH --target=PATH [--vocabulary=DIR]
"""

from pathlib import Path

from absl import flags

from geneformer_jax.cells.store.cell_store import STORE
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common import command_line
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.provenance import describe_run
from geneformer_jax.interop import original_dictionaries, store_exchange
from geneformer_jax.interop.tokenized_datasets import is_tokenized_dataset
from geneformer_jax.interop.weights.files import is_huggingface_model

_SOURCE = flags.DEFINE_string("source", None, "What to convert: a folder or file.")
_TARGET = flags.DEFINE_string("target", None, "Where to write it; nothing is overwritten.")
_VOCABULARY = flags.DEFINE_string(
    "vocabulary",
    None,
    "The vocabulary that tokenised cells were made with, or a model was trained with: a vocabulary "
    "folder, or a folder of the original's dictionaries.",
)
_BASE = flags.DEFINE_string(
    "base", None, "For an adapter: the model it was trained on, if that has moved."
)
_SPECIES = flags.DEFINE_string("species", "human", "What the original's dictionaries are of.")
_MAX_LENGTH = flags.DEFINE_integer(
    "max_length",
    None,
    "Most tokens of a cell in a new cell store; 2,048 for a V1 vocabulary and 4,096 for V2 if not "
    "given.",
    lower_bound=1,
)


def main() -> None:
    """Finds out what the source is and converts it."""
    command_line.require("source", "target")
    source, target = Path(_SOURCE.value), Path(_TARGET.value)
    if not source.exists():
        raise InputError(f"--source={source} does not exist; check the path")
    if is_huggingface_model(source):
        _convert_model(source, target)
    elif original_dictionaries.holds_original_dictionaries(source):
        _convert_dictionaries(source, target)
    elif is_tokenized_dataset(source):
        _convert_dataset(source, target)
    elif (source / STORE).is_file():
        _convert_store(source, target)
    elif (source / "vocabulary.json").is_file():
        original_dictionaries.refuse_to_write_dictionaries(target)
    elif source.is_dir():
        _convert_checkpoint(source, target)
    else:
        raise InputError(_unknown(source))


def _convert_dictionaries(source: Path, target: Path) -> None:
    _announce(source, "the original's dictionaries", target, "a vocabulary")
    vocabulary = original_dictionaries.import_vocabulary(source, target, _SPECIES.value)
    print(
        f"wrote {len(vocabulary.gene_ids):,} genes, {len(vocabulary.id_mapping):,} other ids and "
        f"{len(vocabulary.special_tokens)} special tokens to {target}"
    )


def _convert_dataset(source: Path, target: Path) -> None:
    if not _VOCABULARY.value:
        raise InputError(
            f"--vocabulary must be given: the tokens in {source} mean nothing without the one they "
            "were made with"
        )
    vocabulary = _vocabulary(Path(_VOCABULARY.value))
    _announce(source, "tokenised cells", target, "a cell store")
    counts = store_exchange.dataset_to_store(source, target, vocabulary, _MAX_LENGTH.value)
    print(f"wrote {counts['cells']:,} cells to {target}")
    for reason, cells in counts["dropped"].items():
        print(f"cells left out, {reason}: {cells:,}")
    _tell_columns(counts["columns_left_out"])


def _convert_store(source: Path, target: Path) -> None:
    if target.suffix not in (".dataset", ".parquet"):
        raise InputError(
            f"--target={target} must end in .dataset or .parquet, the formats that a cell store is "
            "converted to"
        )
    _announce(source, "a cell store", target, "tokenised cells")
    counts = store_exchange.store_to_dataset(source, target)
    print(f"wrote {counts['cells']:,} cells to {target}")
    _tell_columns(counts["columns_left_out"])


def _convert_model(source: Path, target: Path) -> None:
    # JAX takes seconds to import, which nothing else here should have to wait for.
    from geneformer_jax.interop import huggingface

    if not _VOCABULARY.value and not (source / huggingface.VOCABULARY).is_dir():
        raise InputError(
            f"--vocabulary must be given: a checkpoint carries the vocabulary it was trained with, "
            f"and {source} has none; name a vocabulary folder or the original's dictionaries"
        )
    vocabulary = _vocabulary(Path(_VOCABULARY.value)) if _VOCABULARY.value else None
    _announce(source, "a model saved by transformers", target, "a checkpoint")
    counts = huggingface.import_model(source, target, vocabulary)
    print(f"{counts['architecture']}, released model: {counts['official']}")
    print(f"wrote {counts['weights']:,} weights from {counts['tensors']} tensors to {target}")
    if counts["ignored"]:
        print(f"tensors left out, which change nothing: {', '.join(counts['ignored'])}")


def _convert_checkpoint(source: Path, target: Path) -> None:
    from geneformer_jax.interop import huggingface
    from geneformer_jax.model.pretrained import find_adapter, holds_checkpoint

    if find_adapter(source):
        _merge_adapter(source, target)
        return
    if not holds_checkpoint(source):
        raise InputError(_unknown(source))
    _announce(source, "a checkpoint", target, "a model for transformers")
    counts = huggingface.export_model(source, target)
    print(f"wrote {counts['weights']:,} weights as {counts['architecture']} to {target}")


def _merge_adapter(source: Path, target: Path) -> None:
    from geneformer_jax.interop.load import load_model
    from geneformer_jax.model.pretrained import save_model

    _announce(source, "an adapter", target, "a checkpoint, the adapter merged into its base")
    model = load_model(source, base=_BASE.value)
    story = describe_run("convert", {"source": source, "target": target}, [source], {})
    print(f"wrote {save_model(model, target, story)}")


def _vocabulary(folder: Path) -> GeneVocabulary:
    if original_dictionaries.holds_original_dictionaries(folder):
        return original_dictionaries.read_original_vocabulary(folder, _SPECIES.value)
    return GeneVocabulary.load(folder)


def _unknown(source: Path) -> str:
    return (
        f"--source={source} is none of the original's dictionaries, a .dataset folder, a .parquet "
        "file, a cell store, a model saved by transformers or a checkpoint; check the path"
    )


def _announce(source: Path, kind: str, target: Path, result: str) -> None:
    print(f"converting {source} ({kind}) to {target} ({result})", flush=True)


def _tell_columns(names: list[str]) -> None:
    if names:
        print(f"columns left out: {', '.join(names)}")


if __name__ == "__main__":
    command_line.run(main)
