"""What is computed of each cell: its hidden states, what stands for it, and class probabilities."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from geneformer_jax.model.attention.products import FLOAT32_PRODUCTS
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Params, encode
from geneformer_jax.model.heads import HeadConfig, head_module
from geneformer_jax.model.partial_encoding import first_token, run_blocks
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.perturbation.engine.edits import SpecialTokens
from geneformer_jax.perturbation.layout import CELL, CLS

REPLICATED = PartitionSpec()
# As in torch's cosine_similarity, against division by zero.
SMALLEST_NORM = 1e-8


@dataclass(frozen=True)
class ForwardSpec:
    """What is computed of each edit, and what a compiled pass depends on beside its arrays.

    Attributes:
      config: shape of the model.
      runtime: how to compute.
      mesh: devices that share the work.
      special: what surrounds the genes of a cell.
      mode: what stands for a cell: "cell", the mean of its genes, or "cls".
      hidden_layer: hidden state that is compared, counted back from the last (0).
      head: cell classifier whose probabilities are wanted, or None.
      gene_rows: shifts of single genes wanted of each edit: 0 for none, -1 for all, or the N lowest
        cosines.
      states: names of the cell states that shifts are measured towards.
      spread: whether each device has cells of its own, or all share the edits of the same cells.
      consecutive: "delete" or "overexpress" where the rows of each device are such edits of genes
        that follow each other in one cell, fillers last; these share the first block. "" otherwise.
      keep_positions: whether tokens keep the position numbers that they have in the original.
      together: rows encoded at a time above a shared first block, a divisor of each device's rows.
      cell_vectors: whether the shift of the cell's embedding, both at unit length, follows the
        measures of each edit, D values.
    """

    config: EncoderConfig
    runtime: Runtime
    mesh: Mesh
    special: SpecialTokens
    mode: str = CELL
    hidden_layer: int = -1
    head: HeadConfig | None = None
    gene_rows: int = 0
    # The same program serves states of other names.
    states: tuple[str, ...] = field(default=(), compare=False)
    spread: bool = False
    consecutive: str = ""
    together: int = 0
    keep_positions: bool = False
    cell_vectors: bool = False

    @property
    def measures(self) -> list[tuple[str, str]]:
        """(measure, state) of each value of an edit, in the order of `perturb_batch`."""
        names = [("mean_gene_cosine", ""), ("cell_cosine", "")]
        if self.mode != CELL:
            names = [("cls_cosine", "")]
        names += [("state_shift", state) for state in self.states]
        for when in ("before", "after"):
            labels = self.head.labels if self.head else ()
            names += [(f"class_probability_{when}", str(label)) for label in labels]
        return names

    @property
    def screened(self) -> list[tuple[str, str]]:
        """(measure, state) of each value that a screen estimates of an edit."""
        labels = self.head.labels if self.head else ()
        shifts = [("state_shift", state) for state in self.states]
        return shifts + [("class_probability_shift", str(label)) for label in labels]

    @property
    def depth(self) -> int:
        """Blocks below the hidden state that is compared."""
        return self.config.layers + self.hidden_layer

    @property
    def whole(self) -> bool:
        """Whether the asked hidden state is needed of all tokens, or of `<cls>` alone."""
        return self.needs_genes or self.head is not None or self.depth == 0

    @property
    def blocks(self) -> int:
        """Blocks that are run on all tokens, to reach the asked hidden state."""
        return self.depth if self.whole else self.depth - 1

    @property
    def needs_genes(self) -> bool:
        """Whether hidden states of all genes are needed, or only `<cls>`."""
        return self.mode == CELL or self.gene_rows != 0


def encode_cells(
    spec: ForwardSpec,
    params: Params,
    tokens_RT: jax.Array,
    lengths_R: jax.Array,
    started_RTD: jax.Array | None = None,
    first: int = 1,
    positions_RT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns float32 hidden states [R, T, D], cell embeddings [R, D], probabilities [R, L].

    Goes on from the hidden states that block `first` takes where these are given. Tokens stand at
    positions 0, 1, ... unless others are given.
    """
    to = {"lengths_B": lengths_R, "runtime": spec.runtime}
    if started_RTD is None:
        places = {"positions_BT": positions_RT, "layers": spec.blocks}
        hidden_RTD = encode(spec.config, params, tokens_RT, **places, **to)
    else:
        hidden_RTD = run_blocks(
            spec.config, params, started_RTD, first=first, last=spec.blocks, **to
        )
    last_RTD = hidden_RTD
    if spec.head is not None and spec.depth < spec.config.layers:
        bounds = {"first": spec.depth, "last": spec.config.layers}
        last_RTD = run_blocks(spec.config, params, hidden_RTD, **bounds, **to)
    classes_RL = class_probabilities(spec, params, last_RTD, lengths_R)
    if not spec.whole:
        cell_RD = first_token(spec.config, params, hidden_RTD, block=spec.blocks, **to)
        return hidden_RTD, cell_RD.astype(jnp.float32), classes_RL
    hidden_RTD = hidden_RTD.astype(jnp.float32)
    return hidden_RTD, pool_genes(spec, tokens_RT, hidden_RTD), classes_RL


def pool_genes(
    spec: ForwardSpec,
    tokens_RT: jax.Array,
    hidden_RTD: jax.Array,
    weights_RT: jax.Array | float = 1.0,
) -> jax.Array:
    """Returns what stands for each cell, [R, D]: `<cls>`, or the weighted mean of its genes."""
    if spec.mode == CLS:
        return hidden_RTD[:, 0]
    is_gene_RT = tokens_RT >= spec.special.first_gene_token
    weights_RT = weights_RT * is_gene_RT.astype(jnp.float32)
    sums_RD = jnp.einsum("RTD,RT->RD", hidden_RTD, weights_RT, precision=FLOAT32_PRODUCTS)
    totals_R = weights_RT.sum(axis=1)
    return sums_RD / jnp.where(totals_R > 0, totals_R, 1)[:, None]


def class_probabilities(
    spec: ForwardSpec,
    params: Params,
    last_RTD: jax.Array,
    lengths_R: jax.Array,
    bias_RT: jax.Array | None = None,
) -> jax.Array:
    """Returns the classifier's float32 probabilities [R, L], of no classes without one.

    With `bias_RT` tokens count more or less where the cell is pooled, see `Head`.
    """
    if spec.head is None:
        return jnp.zeros((len(last_RTD), 0), jnp.float32)
    weights = params[spec.head.kind]
    head = head_module(spec.config, spec.head, weights, spec.runtime.precision)
    logits_RL = head(last_RTD, lengths_R, attention=spec.runtime.attention, bias_BT=bias_RT)
    return jax.nn.softmax(logits_RL, axis=-1)


def cosines_with(states_SD: jax.Array, cell_RD: jax.Array) -> jax.Array:
    """Returns the cosines of cells with states, [R, S]; all are at unit length."""
    return jnp.matmul(cell_RD, states_SD.T, precision=FLOAT32_PRODUCTS)


def at_unit_length(x_RD: jax.Array) -> jax.Array:
    """Returns vectors at unit length, those near 0 shorter."""
    norm = jnp.linalg.norm(x_RD, axis=-1, keepdims=True)
    return x_RD / jnp.maximum(norm, SMALLEST_NORM)
