"""Convert between other people's formats and ours; source and target decide which way.

the original's dictionaries (a folder of pickles)  ->  vocabulary folder
its classes of genes (a pickle)                    ->  NAME.json, NAME.tsv or NAME.csv
tokenised cells (.dataset folder or .parquet)      ->  cell store, with --vocabulary
cell store                                         ->  NAME.dataset folder or NAME.parquet
a model saved by transformers (a directory)        ->  checkpoint, with --vocabulary
checkpoint, or the workdir of a training run       ->  a directory that transformers loads
an adapter of finetune or PEFT, with --base        ->  checkpoint, merged into its base

Examples:
  python -m geneformer_jax.convert --source=dictionaries/v1_gc30M --target=vocabulary
  python -m geneformer_jax.convert --source=cells.dataset --target=store --vocabulary=vocabulary
  python -m geneformer_jax.convert --source=Geneformer-V1-10M --target=checkpoint \\
      --vocabulary=dictionaries/v1_gc30M
"""

from pathlib import Path

from absl import flags

from geneformer_jax.common import command_line

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
    "Largest number of tokens of a cell in a new cell store; 2,048 for a V1 vocabulary and 4,096 "
    "for V2 if not given.",
    lower_bound=1,
)


def main() -> None:
    """Converts the source."""
    # Its libraries take a second to import, which --help should not wait for.
    from geneformer_jax.interop.run import Conversion

    Conversion(
        Path(_SOURCE.value),
        Path(_TARGET.value),
        Path(_VOCABULARY.value) if _VOCABULARY.value else None,
        base=_BASE.value,
        species=_SPECIES.value,
        max_length=_MAX_LENGTH.value,
    ).run()


if __name__ == "__main__":
    command_line.run(main, needed=("source", "target"))
