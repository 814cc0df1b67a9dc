"""Extracts what heads attend to from ranges of cells, on all devices."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from geneformer_jax.attention_analysis.cell_groups import CellGroups
from geneformer_jax.attention_analysis.profile import attention_profile
from geneformer_jax.attention_analysis.sums import (
    AttentionTotals,
    CellMeasures,
    add_profile,
    find_chosen,
    measure_cells,
    place_genes,
)
from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.progress import Progress
from geneformer_jax.inference.batches import TokenBatch, lay_out, token_batches
from geneformer_jax.inference.finite import first_not_finite, not_finite
from geneformer_jax.inference.pipeline import Throughput, run_ahead
from geneformer_jax.model.attention.dispatch import require_profiled
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Params
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.model.sharding import BATCH, REPLICATED, inference_mesh, put_batch


class ForwardSpec(NamedTuple):
    """What the compiled forward pass depends on beside its arrays."""

    config: EncoderConfig
    runtime: Runtime
    mesh: Mesh
    first_gene_token: int
    chosen: tuple[int, ...]


class AttentionSums(NamedTuple):
    """Totals over cells (float64 and int64, on the host), and the measures of each cell."""

    totals: AttentionTotals
    cells: CellMeasures


class AttentionExtractor:
    """Extracts attention from ranges of cells, all with the same compiled programs.

    Attributes:
      model, cells, groups: as given.
      spec: what the forward pass is compiled for.
      layout: buckets and batches of the cells.
      throughput: of all ranges so far.
    """

    def __init__(
        self,
        model: PretrainedModel,
        cells: EncodedCells,
        groups: CellGroups,
        chosen: Sequence[int] = (),
        runtime: Runtime | None = None,
        *,
        devices: list[jax.Device] | None = None,
        tokens_per_device: int | None = None,
    ):
        """Lays out the batches and puts the weights on the devices; see `attend_cells`."""
        runtime = runtime or Runtime()
        require_profiled(runtime.attention)
        self.model, self.cells, self.groups = model, cells, groups
        mesh = inference_mesh(devices)
        first = cells.vocabulary.first_gene_token
        self.spec = ForwardSpec(model.config, runtime, mesh, first, tuple(map(int, chosen)))
        self.layout = lay_out(np.asarray(cells.lengths), model.config, mesh, tokens_per_device)
        encoder = {name: model.params[name] for name in ("embeddings", "blocks")}
        self._params = jax.device_put(encoder, NamedSharding(mesh, REPLICATED))
        self.throughput = Throughput()

    def empty(self) -> AttentionTotals:
        """Returns the totals of no cells."""
        config = self.model.config
        sizes = self.groups.sums, config.vocabulary_size, len(self.spec.chosen)
        return AttentionTotals.empty(*sizes, config.layers, config.heads)

    def run(self, start: int, stop: int, progress: Progress) -> AttentionSums:
        """Returns the attention in cells `start` to before `stop`."""
        mesh, throughput = self.spec.mesh, self.throughput
        by_device = jax.tree.map(lambda leaf: np.stack([leaf] * mesh.size), self.empty())
        totals = jax.device_put(by_device, NamedSharding(mesh, BATCH))
        measures = self._no_measures(stop - start)

        def add(batch: TokenBatch) -> CellMeasures:
            nonlocal totals
            groups = np.zeros(len(batch.tokens_BT), np.int32)
            groups[: len(batch.cells)] = self.groups.codes[batch.cells]
            (groups_B,) = put_batch((groups,), mesh)
            inputs = batch.tokens_BT, batch.lengths_B, groups_B
            with throughput.starting(batch.tokens_BT.shape):
                totals, measured = _add_cells(self.spec, totals, self._params, *inputs)
            return measured

        with throughput.clock():
            batches = token_batches(self.cells, self.layout, start, stop)
            for batch, measured in run_ahead(batches, add):
                cells = batch.cells
                wrong = first_not_finite(measured.breadth, cells)
                if wrong is not None:
                    raise not_finite(wrong, self.cells, self.model, self.spec.runtime.precision)
                for into, values in zip(measures, measured, strict=True):
                    into[cells - start] = values[: len(cells)]
                tokens = int(np.asarray(self.cells.lengths)[cells].sum())
                throughput.add(len(cells), tokens, batch.tokens_BT.size)
                progress.advance(len(cells), compiling=throughput.compiling)
            return AttentionSums(jax.tree.map(sum_devices, jax.device_get(totals)), measures)

    def _no_measures(self, cells: int) -> CellMeasures:
        L, N = self.model.config.layers, self.model.config.heads
        shapes = (cells, L), (cells, L, N), (cells, L, N)
        return CellMeasures(*(np.zeros(shape, np.float32) for shape in shapes))


def sum_devices(by_device: np.ndarray) -> np.ndarray:
    """Returns the sum over the leading axis of devices, int64 or float64."""
    wide = np.int64 if by_device.dtype.kind == "i" else np.float64
    return by_device.astype(wide).sum(axis=0)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add_cells(
    spec: ForwardSpec,
    totals: AttentionTotals,
    params: Params,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    groups_B: jax.Array,
) -> tuple[AttentionTotals, CellMeasures]:
    """Adds a batch to the totals that each device keeps of its own cells."""

    def on_device(totals, params, tokens_BT, lengths_B, groups_B):
        own = jax.tree.map(lambda leaf: leaf[0], totals)
        places = place_genes(tokens_BT, lengths_B, spec.first_gene_token)
        chosen_S = np.array(spec.chosen, np.int32)
        chosen_BS = find_chosen(tokens_BT, places.is_gene, chosen_S)
        profile = attention_profile(
            spec.config,
            params,
            tokens_BT,
            lengths_B,
            is_top_BT=places.is_top,
            chosen_BS=chosen_BS,
            runtime=spec.runtime,
        )
        inputs = places, tokens_BT, lengths_B, groups_B, chosen_BS
        added = jax.tree.map(lambda leaf: leaf[None], add_profile(own, profile, *inputs))
        return added, measure_cells(profile, places, lengths_B)

    specs = BATCH, REPLICATED, BATCH, BATCH, BATCH
    run = jax.shard_map(
        on_device, mesh=spec.mesh, in_specs=specs, out_specs=(BATCH, BATCH), check_vma=False
    )
    return run(totals, params, tokens_BT, lengths_B, groups_B)
