"""Conversion between other people's formats and ours, chosen by what the source and target are."""

from dataclasses import dataclass, field
from pathlib import Path

from geneformer_jax.cells.store.layout import STORE
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import suffix_of
from geneformer_jax.common.log import logger
from geneformer_jax.common.provenance import describe_run
from geneformer_jax.interop import gene_classes, original_dictionaries, store_exchange
from geneformer_jax.interop.tokenized_datasets import is_tokenized_dataset
from geneformer_jax.interop.weights.files import is_huggingface_model

_VOCABULARY_FILE = "vocabulary.json"


@dataclass(frozen=True)
class Conversion:
    """One conversion.

    JAX takes seconds to import, so the conversions that do without it do not import it.

    Attributes:
      source: a file or folder.
      target: to write; nothing is overwritten.
      vocabulary: that tokenised cells were made with or a model was trained with: a vocabulary
        folder, or a folder of the original's dictionaries.
      base: for an adapter, the model it was trained on, if that has moved.
      species: of the original's dictionaries.
      max_length: largest number of tokens of a cell in a new store; None for the original's.
    """

    source: Path
    target: Path
    vocabulary: Path | None = None
    base: str | None = None
    species: str = "human"
    max_length: int | None = None
    _lines: list[str] = field(default_factory=list, init=False)

    def run(self) -> list[str]:
        """Finds out what the source is, and converts it.

        Returns:
          What was done, a sentence each.

        Raises:
          InputError: the source is nothing known or damaged, the target exists, or the conversion
            needs a vocabulary.
        """
        source = self.source
        if not source.exists():
            raise InputError(f"the source {source} does not exist; check the path")
        if is_huggingface_model(source):
            self._import_model()
        elif original_dictionaries.names_original_vocabulary(source):
            self._import_dictionaries()
        elif gene_classes.is_pickle(source):
            self._import_gene_classes()
        elif is_tokenized_dataset(source):
            self._import_cells()
        elif (source / STORE).is_file():
            self._export_cells()
        elif (source / _VOCABULARY_FILE).is_file():
            raise original_dictionaries.unwritable_dictionaries(self.target)
        elif source.is_dir():
            self._convert_checkpoint()
        else:
            raise self._unknown()
        return self._lines

    def _import_dictionaries(self) -> None:
        self._announce("the original's dictionaries", "a vocabulary")
        vocabulary = original_dictionaries.import_vocabulary(self.source, self.target, self.species)
        self._say(
            f"wrote {len(vocabulary.gene_ids):,} genes, {len(vocabulary.id_mapping):,} other ids "
            f"and {len(vocabulary.special_tokens)} special tokens to {self.target}"
        )

    def _import_gene_classes(self) -> None:
        self._announce("classes of genes", "a table")
        counts = gene_classes.import_gene_classes(self.source, self.target)
        listed = ", ".join(f"{name} ({number:,})" for name, number in counts.items())
        self._say(f"wrote classes of genes to {self.target}: {listed}")

    def _import_cells(self) -> None:
        vocabulary = self._vocabulary()
        if vocabulary is None:
            raise InputError(
                f"`vocabulary` must be given: the tokens in {self.source} mean nothing without the "
                "one they were made with"
            )
        self._announce("tokenised cells", "a cell store")
        counts = store_exchange.dataset_to_store(
            self.source, self.target, vocabulary, self.max_length
        )
        self._say(f"wrote {counts['cells']:,} cells to {self.target}")
        if not counts["states_vocabulary"]:
            self._say(
                f"{self.source} does not say which vocabulary it was made with: taken on trust "
                f"that it is {self.vocabulary}"
            )
        for reason, cells in counts["dropped"].items():
            self._say(f"cells left out, {reason}: {cells:,}")
        if names := counts["columns_left_out"]:
            self._say(f"columns left out: {', '.join(names)}")

    def _export_cells(self) -> None:
        if suffix_of(self.target) not in (".dataset", ".parquet"):
            raise InputError(
                f"the target {self.target} must end in .dataset or .parquet, the formats that a "
                "cell store is converted to"
            )
        self._announce("a cell store", "tokenised cells")
        counts = store_exchange.store_to_dataset(self.source, self.target)
        self._say(f"wrote {counts['cells']:,} cells to {self.target}")

    def _import_model(self) -> None:
        from geneformer_jax.interop import huggingface

        vocabulary = self._vocabulary()
        if vocabulary is None and not (self.source / huggingface.VOCABULARY).is_dir():
            raise InputError(
                "`vocabulary` must be given: a checkpoint carries the vocabulary it was trained "
                f"with, and {self.source} has none; name a vocabulary folder or the original's "
                "dictionaries"
            )
        self._announce("a model saved by transformers", "a checkpoint")
        counts = huggingface.import_model(self.source, self.target, vocabulary)
        self._say(f"{counts['architecture']}, released model: {counts['official']}")
        self._say(
            f"wrote {counts['weights']:,} weights from {counts['tensors']} tensors to {self.target}"
        )
        if counts["ignored"]:
            names = ", ".join(counts["ignored"])
            self._say(f"tensors left out, which change nothing: {names}")

    def _convert_checkpoint(self) -> None:
        from geneformer_jax.interop import huggingface
        from geneformer_jax.interop.adapters import find_adapter
        from geneformer_jax.model.pretrained import holds_checkpoint

        if find_adapter(self.source):
            self._merge_adapter()
            return
        if not holds_checkpoint(self.source):
            raise self._unknown()
        self._announce("a checkpoint", "a model for transformers")
        counts = huggingface.export_model(self.source, self.target)
        self._say(
            f"wrote {counts['weights']:,} weights as {counts['architecture']} to {self.target}"
        )

    def _merge_adapter(self) -> None:
        from geneformer_jax.interop.adapters import find_adapter, quantization_of_base
        from geneformer_jax.interop.load import load_model
        from geneformer_jax.model.pretrained import save_model

        rounded = quantization_of_base(find_adapter(self.source))
        if rounded and self.base is None:
            raise InputError(
                f"the adapter {self.source} was trained beside weights in {rounded}; on float32 "
                "ones it predicts a little differently: name its `base` to have it merged so"
            )
        self._announce("an adapter", "a checkpoint, the adapter merged into its base")
        model = load_model(self.source, base=self.base)
        configuration = {"source": self.source, "target": self.target}
        provenance = describe_run("convert", configuration, [self.source], {})
        self._say(f"wrote {save_model(model, self.target, provenance)}")

    def _say(self, line: str) -> None:
        logger.info(line)
        self._lines.append(line)

    def _vocabulary(self) -> GeneVocabulary | None:
        if self.vocabulary is None:
            return None
        return original_dictionaries.read_vocabulary(self.vocabulary, self.species)

    def _announce(self, kind: str, result: str) -> None:
        self._say(f"converting {self.source} ({kind}) to {self.target} ({result})")

    def _unknown(self) -> InputError:
        return InputError(
            f"the source {self.source} is none of the original's dictionaries, a .dataset folder, "
            "a .parquet file, a cell store, a model saved by transformers or a checkpoint; check "
            "the path"
        )
