"""BERT in PyTorch with random weights, its cells and its gradients."""

import dataclasses
from typing import NamedTuple

import numpy as np

from geneformer_jax.batches.loader import Batch
from geneformer_jax.interop.weights.bert_layout import places
from geneformer_jax.interop.weights.conversion import bert_values

V1_SPECIAL, V2_SPECIAL = 2, 4


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of a model and of one batch for it."""

    vocabulary: int
    layers: int
    width: int
    heads: int
    feed_forward: int
    positions: int
    lengths: tuple[int, ...]
    padded: int
    special: int = V1_SPECIAL


SHAPES = {
    "one layer, one head": Shape(31, 1, 8, 1, 16, 16, (11, 4, 7), 11),
    "cells of one gene": Shape(19, 2, 12, 3, 24, 8, (1, 1, 1), 1),
    "full length": Shape(23, 2, 16, 2, 32, 13, (13, 5, 13), 13),
    "all padding but one": Shape(23, 2, 16, 2, 32, 13, (1,), 13),
    "V1": Shape(97, 3, 32, 2, 64, 40, (17, 3, 29, 8), 31),
    "V2": Shape(89, 3, 48, 3, 192, 37, (37, 9, 20), 37, V2_SPECIAL),
}


class Cells(NamedTuple):
    """A masked batch for both: ours as slots, theirs as labels of every position."""

    batch: Batch
    labels_BT: np.ndarray
    real_BT: np.ndarray


def random_cells(shape: Shape, rng: np.random.Generator) -> Cells:
    B, T, M = len(shape.lengths), shape.padded, max(1, shape.padded // 2)
    tokens_BT = np.zeros((B, T), np.int32)
    labels_BT = np.full((B, T), -100, np.int64)
    positions_BM, targets_BM = np.zeros((2, B, M), np.int32)
    weights_BM = np.zeros((B, M), np.float32)
    for row, length in enumerate(shape.lengths):
        genes = rng.integers(shape.special, shape.vocabulary, length)
        if shape.special == V2_SPECIAL:
            genes[[0, -1]] = 2, 3
        chosen = rng.permutation(length)[: rng.integers(1, min(M, length) + 1)]
        positions_BM[row, : chosen.size] = chosen
        targets_BM[row, : chosen.size] = labels_BT[row, chosen] = genes[chosen]
        weights_BM[row, : chosen.size] = 1
        # Of the chosen ones most are hidden, one in three stands as it is.
        genes[chosen[rng.random(chosen.size) < 0.67]] = 1
        tokens_BT[row, :length] = genes
    lengths_B = np.array(shape.lengths, np.int32)
    batch = Batch(
        tokens_BT, lengths_B, positions_BM, targets_BM, weights_BM, np.arange(B, dtype=np.int32)
    )
    return Cells(batch, labels_BT, np.arange(T) < lengths_B[:, None])


def random_bert(torch, shape: Shape, architecture: str, attention: str, seed: int, **settings):
    """A model of transformers in which no weight is 0 or 1."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=shape.vocabulary,
        num_hidden_layers=shape.layers,
        hidden_size=shape.width,
        num_attention_heads=shape.heads,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=shape.positions,
        hidden_act="relu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation=attention,
        **settings,
    )
    generator = torch.Generator().manual_seed(seed)
    model = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean = float(name.endswith("LayerNorm.weight"))
            spread = 0.1 if weight.ndim == 1 else 0.15
            weight.normal_(mean, spread, generator=generator)
    return model


def assert_gradients(model, gradients, parameters) -> None:
    wanted = places(model.config, model.head)
    assert {place.name for place in wanted} == set(parameters)
    largest = max(float(weight.grad.abs().max()) for weight in parameters.values())
    assert largest > 1e-3
    for name, got in bert_values(wanted, gradients).items():
        expected = parameters[name].grad.numpy()
        # Measured against the largest: the bias of the keys moves no softmax, so that both sides
        # are nothing but rounding there.
        atol = 2e-5 * largest
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=atol, err_msg=name)
