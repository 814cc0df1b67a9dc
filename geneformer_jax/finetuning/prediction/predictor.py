"""A fine-tuned network over ranges of cells."""

import numpy as np

from geneformer_jax.batches.labelled import (
    UNLABELLED,
    LabelledBatches,
    LabelledCells,
    Learning,
    unlabelled,
)
from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.arguments import require_type
from geneformer_jax.common.progress import Progress
from geneformer_jax.finetuning.classification.predictions import Outputs
from geneformer_jax.finetuning.config import TuningConfig
from geneformer_jax.finetuning.network.evaluation import compute_outputs
from geneformer_jax.finetuning.network.step import StepSpec, compile_steps
from geneformer_jax.inference.batches import lay_out
from geneformer_jax.inference.pipeline import Throughput
from geneformer_jax.model.config import MeshConfig, RuntimeConfig
from geneformer_jax.model.heads import GENES
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.training.config import OptimizerConfig


class Predictor:
    """Computes the outputs of ranges of cells, or of all genes in them, with the same programs.

    Attributes:
      model, cells: as given.
      mesh: devices.
      shape: of the batches.
      throughput: of all ranges so far.
    """

    def __init__(
        self,
        model: PretrainedModel,
        cells: EncodedCells,
        runtime: RuntimeConfig | None = None,
        tokens_per_device: int | None = None,
    ):
        """Lays out the batches; see `predict_cells`."""
        if runtime is not None:
            kinds = 'give a RuntimeConfig(precision="bfloat16"), or leave it out'
            require_type("runtime", runtime, RuntimeConfig, kinds)
        self.model, self.cells, self.throughput = model, cells, Throughput()
        # What is frozen may be quantised.
        tuning, quantized = TuningConfig(head_only=True), model.quantization is not None
        given = tuning, OptimizerConfig(), runtime or RuntimeConfig(), MeshConfig(), quantized
        lengths = np.asarray(cells.lengths)
        self._compiled = compile_steps(
            StepSpec(model.config, model.head, *given), int(np.max(lengths))
        )
        self.mesh = self._compiled.mesh
        self.shape = lay_out(lengths, model.config, self.mesh, tokens_per_device).shape
        self._sampling = Learning(self.shape, seed=0)

    @property
    def is_of_genes(self) -> bool:
        """Whether the model predicts genes."""
        return self.model.head.kind == GENES

    def outputs(self, start: int, stop: int, progress: Progress) -> Outputs:
        """Returns the outputs of cells `start` to before `stop`, in their order."""
        rows = np.arange(start, stop)
        labelled = LabelledCells(rows, self._every_gene()) if self.is_of_genes else unlabelled(rows)
        batches = LabelledBatches(self.cells, labelled, self._sampling, self.is_of_genes)
        head = self.model.head.kind
        frozen = dict(self.model.params)
        given = self._compiled, {head: frozen.pop(head)}, frozen, batches, 0
        with self.throughput.clock():
            return compute_outputs(*given, throughput=self.throughput, progress=progress)

    def _every_gene(self) -> np.ndarray:
        """Labels that are there for all genes, whatever they are."""
        vocabulary = self.cells.vocabulary
        labels = np.full(vocabulary.size, UNLABELLED, np.int32)
        labels[vocabulary.first_gene_token :] = 0
        return labels
