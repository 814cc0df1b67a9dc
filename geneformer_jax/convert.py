"""Convert between other people's formats and ours; source and target decide which way.

the original's dictionaries (a folder of pickles)  ->  vocabulary folder
its classes of genes (a pickle)                    ->  NAME.json, NAME.tsv or NAME.csv
tokenised cells (.dataset folder or .parquet)      ->  cell store, with --vocabulary
cell store                                         ->  NAME.dataset folder or NAME.parquet
a model saved by transformers (a directory)        ->  checkpoint, with --vocabulary
checkpoint, or the workdir of a training run       ->  a directory that transformers loads
an adapter of finetune or PEFT, with --base        ->  checkpoint, merged into its base
any model                                          ->  hf://org/name, the Hugging Face hub

Examples:
  python -m geneformer_jax.convert --source=dictionaries/v1_gc30M --target=vocabulary
  python -m geneformer_jax.convert --source=cells.dataset --target=store --vocabulary=vocabulary
  python -m geneformer_jax.convert --source=Geneformer-V1-10M --target=checkpoint \\
      --vocabulary=dictionaries/v1_gc30M
"""

from pathlib import Path

from absl import flags

from geneformer_jax.common import command_line
from geneformer_jax.common.command_line import configuration
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import require_can_appear
from geneformer_jax.common.workdir import sole_writer

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
_LICENSE = flags.DEFINE_string(
    "license", "", "For hf://org/name: of the weights, by the hub's names, as cc-by-4.0."
)
_PRIVATE = flags.DEFINE_bool("private", False, "For hf://org/name: seen by its owners alone.")
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
    if _TARGET.value.startswith("hf:"):
        _push()
        return
    if _LICENSE.value or _PRIVATE.value:
        raise InputError("--license and --private are for --target=hf://org/name; leave them out")
    from geneformer_jax.interop.run import Conversion
    from geneformer_jax.reporting.command_reports import report_beside, write_conversion_report
    from geneformer_jax.reporting.index import require_own_page

    target = Path(_TARGET.value)
    conversion = Conversion(
        Path(_SOURCE.value),
        target,
        Path(_VOCABULARY.value) if _VOCABULARY.value else None,
        base=_BASE.value,
        species=_SPECIES.value,
        max_length=_MAX_LENGTH.value,
    )
    require_can_appear(target, "--target")
    require_own_page(report_beside(target))
    facts = {"command": "convert", "source": _SOURCE.value, "target": _TARGET.value}
    with sole_writer(target, configuration()):
        print(f"report: {write_conversion_report(target, conversion.run(), facts)}")


def _push() -> None:
    from geneformer_jax.interop.hub.upload import push_to_hub
    from geneformer_jax.interop.load import load_model

    model = load_model(_SOURCE.value, _VOCABULARY.value, _BASE.value)
    how = {"license": _LICENSE.value, "private": _PRIVATE.value}
    print(push_to_hub(model, _TARGET.value, **how))


if __name__ == "__main__":
    command_line.run(main, needed=("source", "target"))
