"""Weights in 8 or 4 bits: codes in blocks with a scale each, made floats where they are used.

qwix rounds and reads the codes. Its model transformation is not used: it leaves kernels that are
stacked over layers and scanned in float, as ours are, and a code of nf4 takes a byte of memory.
Here each row of a stack (a layer's kernel, a token's embedding) is cut into blocks of its own, so
that a scan or a look-up takes the codes of its row alone, and two nf4 codes share a byte.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.model.attention.products import FLOAT32_PRODUCTS
from geneformer_jax.model.config import QUANTIZATIONS

# As QLoRA's (Dettmers et al. 2023); with its scale, a weight takes 4.25 or 8.25 bits.
BLOCK = 64
# Values that are rounded at a time: few, so that what is freed between codes that stay is small.
_AT_A_TIME = 1 << 20


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("codes", "scales", "into", "out"),
    meta_fields=("row_shape",),
)
@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """A stack of rows of weights in few bits, and what an adapter adds to them; see `in_float`.

    A tree of arrays: all of them have the rows as their first axis, by which they are cut.

    Attributes:
      codes: int8 [rows, blocks, 64], or uint8 [rows, blocks, 32] with two nf4 codes in each: the
        even ones in the lower half.
      scales: bfloat16 [rows, blocks, 1], by which the codes are multiplied.
      row_shape: shape of a row in floats.
      into, out: float32 [rows, in, r] and [rows, r, out], an adapter's factors, whose product is
        added to each row; None if there is no adapter.
    """

    codes: jax.Array
    scales: jax.Array
    row_shape: tuple[int, ...]
    into: jax.Array | None = None
    out: jax.Array | None = None

    @property
    def weights(self) -> int:
        """Number of weights that are quantised."""
        return len(self.codes) * int(np.prod(self.row_shape))

    def adapted(self, into: jax.Array, out: jax.Array) -> "QuantizedWeight":
        """Returns the same with low-rank factors beside it."""
        return dataclasses.replace(self, into=into, out=out)

    def __getitem__(self, rows: Any) -> jax.Array:
        """Returns float32 rows [..., *row_shape] by their numbers [...]; of a table, no kernel."""
        return _floats(self.codes[rows], self.scales[rows], self.row_shape)


def check_quantization(kind: str) -> None:
    """Raises InputError if there is no such quantisation, or its library is not installed."""
    if kind not in QUANTIZATIONS:
        known = ", ".join(QUANTIZATIONS)
        hint = did_you_mean(str(kind), QUANTIZATIONS)
        raise InputError(f'`quantize` is "{kind}"{hint}; it must be one of {known}')
    if importlib.util.find_spec("qwix") is None:
        raise InputError(
            '`quantize` needs qwix, which is not installed: pip install "geneformer_jax[quantize]"'
        )


def codes_of(path: tuple[str, ...], kind: str) -> str | None:
    """Returns in which codes the weights at a path are kept, None for floats.

    An encoder's kernels and large tables are quantised. Norms, biases and heads are few, and stay
    in float. Of all kernels, `down` is the one whose rounding to nf4 moves cell embeddings most
    (benchmarks/LOG.md has the figures): it is in int8.
    """
    part, name, *rest = (*path, "", "")
    is_table = part == "embeddings" and name in ("word", "position")
    is_kernel = part == "blocks" and rest[0] == "kernel"
    if not (is_table or is_kernel):
        return None
    return "int8" if name == "down" else kind


def quantize_rows(
    parts: Iterable[np.ndarray | jax.Array], shape: tuple[int, ...], codes: str
) -> QuantizedWeight:
    """Rounds weights, some rows at a time; nothing is left of the floats.

    Args:
      parts: float32 [some rows, *row_shape], one after another.
      shape: [rows, *row_shape] of all.
      codes: one of QUANTIZATIONS.
    """
    rows, *row_shape = shape
    size = int(np.prod(row_shape))
    whole = jax.ShapeDtypeStruct((rows, size), jnp.float32)
    kinds = jax.eval_shape(functools.partial(_quantized, codes=codes), whole)
    made = [np.empty(kind.shape, kind.dtype) for kind in kinds]
    step, done = max(1, _AT_A_TIME // size), 0
    for part in map(np.asarray, parts):
        for start in range(0, len(part), step):
            some = part[start : start + step].reshape(-1, size)
            for array, rounded in zip(made, _quantized(some, codes=codes), strict=True):
                array[done : done + len(some)] = rounded
            done += len(some)
    return QuantizedWeight(*map(jnp.asarray, made), tuple(row_shape))


@functools.partial(jax.jit, static_argnames="codes")
def _quantized(rows_RS: jax.Array, codes: str) -> tuple[jax.Array, jax.Array]:
    """Returns codes and scales of rows, the last block of each filled up with zeros."""
    import qwix

    padded = jnp.pad(rows_RS, ((0, 0), (0, -rows_RS.shape[1] % BLOCK)))
    blocks = padded.reshape(len(rows_RS), -1, BLOCK)
    made = qwix.quantize(blocks, codes, channelwise_axes=(0, 1), scale_dtype=jnp.bfloat16)
    if codes == "int8":
        return made.qvalue, made.scale
    whole = made.qvalue.astype(jnp.uint8)
    return whole[..., ::2] | whole[..., 1::2] << 4, made.scale


def _floats(codes: jax.Array, scales: jax.Array, row_shape: tuple[int, ...]) -> jax.Array:
    """Returns float32 [..., *row_shape] of codes [..., blocks, 64 or 32]."""
    import qwix

    kind = "int8"
    if codes.dtype == jnp.uint8:
        kind = "nf4"
        halves = jnp.stack([codes & 15, codes >> 4], axis=-1)
        codes = halves.reshape(*codes.shape[:-1], BLOCK)
    blocks = qwix.dequantize(qwix.QArray(codes, scales.astype(jnp.float32), None, kind))
    rows = blocks.reshape(*blocks.shape[:-2], -1)[..., : int(np.prod(row_shape))]
    return rows.reshape(*rows.shape[:-1], *row_shape)


def in_float(row: Any) -> Any:
    """Returns one row of a stack, a tree of arrays, with floats in the place of codes.

    This is what a layer computes with, inside the loop over layers: no more than one layer's
    weights are floats at a time.
    """

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, QuantizedWeight):
            return leaf
        kernel = _floats(leaf.codes, leaf.scales, leaf.row_shape)
        if leaf.into is None:
            return kernel
        added = jnp.matmul(leaf.into, leaf.out, precision=FLOAT32_PRODUCTS)
        return kernel + added.reshape(kernel.shape)

    return jax.tree.map(whole, row, is_leaf=lambda leaf: isinstance(leaf, QuantizedWeight))


def count_weights(tree: Any) -> int:
    """Returns the number of weights in a tree, in whatever form they are kept."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, QuantizedWeight))
    return sum(
        leaf.weights if isinstance(leaf, QuantizedWeight) else int(np.prod(leaf.shape))
        for leaf in leaves
    )


def has_adapter(tree: Any) -> bool:
    """Whether an adapter stands beside quantised weights of a tree."""
    return any(
        isinstance(leaf, QuantizedWeight) and leaf.into is not None
        for leaf in jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, QuantizedWeight))
    )


def stored_bytes(tree: Any) -> int:
    """Returns the bytes that the arrays of a tree take where they lie."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
