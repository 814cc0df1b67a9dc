"""Reads what heads attend to off ranges of cells, on all devices."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

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
from geneformer_jax.inference.batches import lay_out, token_batches
from geneformer_jax.model.attention.dispatch import require_profiled
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Params
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.model.sharding import BATCH, REPLICATED, inference_mesh, put_batch


class Pass(NamedTuple):
    """What the compiled pass depends on beside its arrays."""

    config: EncoderConfig
    runtime: Runtime
    mesh: Mesh
    first_gene_token: int
    chosen: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class CellGroups:
    """Groups that cells are looked at by.

    Attributes:
      names: of the G groups.
      codes: int32 [cells] the group of each.
    """

    names: tuple[str, ...]
    codes: np.ndarray


class Attended(NamedTuple):
    """Totals over cells (float64 and int64, on the host), and the measures of each."""

    totals: AttentionTotals
    cells: CellMeasures


class AttentionExtractor:
    """Reads attention off ranges of cells, all with the same compiled programs."""

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
        self.pass_ = Pass(model.config, runtime, mesh, first, tuple(map(int, chosen)))
        self.layout = lay_out(np.asarray(cells.lengths), model.config, mesh, tokens_per_device)
        encoder = {name: model.params[name] for name in ("embeddings", "blocks")}
        self._params = jax.device_put(encoder, NamedSharding(mesh, REPLICATED))

    def empty(self) -> AttentionTotals:
        """Returns the totals of no cells."""
        config = self.model.config
        sizes = len(self.groups.names), config.vocabulary_size, len(self.pass_.chosen)
        return AttentionTotals.empty(*sizes, config.layers, config.heads)

    def run(self, start: int, stop: int, progress: Progress) -> Attended:
        """Returns the attention in cells `start` to before `stop`."""
        mesh = self.pass_.mesh
        sharing = jax.tree.map(lambda leaf: np.stack([leaf] * mesh.size), self.empty())
        totals = jax.device_put(sharing, NamedSharding(mesh, BATCH))
        waiting = None
        measures = self._no_measures(stop - start)
        for batch in token_batches(self.cells, self.layout, start, stop):
            groups = np.zeros(len(batch.tokens_BT), np.int32)
            groups[: len(batch.cells)] = self.groups.codes[batch.cells]
            (groups_B,) = put_batch((groups,), mesh)
            inputs = batch.tokens_BT, batch.lengths_B, groups_B
            totals, taken = _add_cells(self.pass_, totals, self._params, *inputs)
            # One batch behind, so that the devices compute while the next batch is read.
            _keep(measures, waiting, start)
            waiting = batch.cells, taken
            progress.advance(len(batch.cells))
        _keep(measures, waiting, start)
        return Attended(jax.tree.map(sum_devices, jax.device_get(totals)), measures)

    def _no_measures(self, cells: int) -> CellMeasures:
        L, N = self.model.config.layers, self.model.config.heads
        shapes = (cells, L), (cells, L, N), (cells, L, N)
        return CellMeasures(*(np.zeros(shape, np.float32) for shape in shapes))


def sum_devices(shared: np.ndarray) -> np.ndarray:
    """Returns the sum over the leading axis of devices, int64 or float64."""
    wide = np.int64 if shared.dtype.kind == "i" else np.float64
    return shared.astype(wide).sum(axis=0)


def _keep(measures: CellMeasures, taken: Any, start: int) -> None:
    if taken is not None:
        cells, of_batch = taken
        for into, values in zip(measures, jax.device_get(of_batch), strict=True):
            into[cells - start] = values[: len(cells)]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add_cells(
    pass_: Pass,
    totals: AttentionTotals,
    params: Params,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    groups_B: jax.Array,
) -> tuple[AttentionTotals, CellMeasures]:
    """Adds a batch to the totals that each device keeps of its own cells."""

    def on_device(totals, params, tokens_BT, lengths_B, groups_B):
        own = jax.tree.map(lambda leaf: leaf[0], totals)
        places = place_genes(tokens_BT, lengths_B, pass_.first_gene_token)
        chosen_S = np.array(pass_.chosen, np.int32)
        chosen_BS = find_chosen(tokens_BT, places.is_gene, chosen_S)
        profile = attention_profile(
            pass_.config,
            params,
            tokens_BT,
            lengths_B,
            is_top_BT=places.is_top,
            chosen_BS=chosen_BS,
            runtime=pass_.runtime,
        )
        inputs = places, tokens_BT, lengths_B, groups_B, chosen_BS
        added = jax.tree.map(lambda leaf: leaf[None], add_profile(own, profile, *inputs))
        return added, measure_cells(profile, places, lengths_B)

    specs = BATCH, REPLICATED, BATCH, BATCH, BATCH
    run = jax.shard_map(
        on_device, mesh=pass_.mesh, in_specs=specs, out_specs=(BATCH, BATCH), check_vma=False
    )
    return run(totals, params, tokens_BT, lengths_B, groups_B)
