"""PyTorch beside us on random models of odd shapes: outputs, loss and every gradient of a step."""

import dataclasses
import json
from typing import NamedTuple

import jax
import numpy as np
import pytest

from geneformer_jax.batches.loader import Batch
from geneformer_jax.interop.huggingface import read_model
from geneformer_jax.interop.weights.bert_layout import places
from geneformer_jax.interop.weights.conversion import bert_values
from geneformer_jax.model.encoder import encode, encode_all_layers, masked_gene_logits
from geneformer_jax.model.heads import head_module
from geneformer_jax.model.precision import precision_preset
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.training.objectives import masked_gene_sums

pytestmark = pytest.mark.parity
FLOAT32 = precision_preset("float32")
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
# Shape, our attention, PyTorch's attention.
CASES = [
    *((name, "xla", "eager" if name == "V1" else "sdpa") for name in SHAPES),
    ("V1", "chunked", "sdpa"),
    ("V2", "splash", "eager"),
]


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


@pytest.mark.parametrize(("name", "attention", "theirs"), CASES)
def test_outputs_loss_and_all_gradients_of_a_step(torch, tmp_path, name, attention, theirs):
    shape = SHAPES[name]
    bert = random_bert(torch, shape, "BertForMaskedLM", theirs, seed=len(name))
    bert.save_pretrained(tmp_path / "hf")
    model = read_model(tmp_path / "hf").model
    cells = random_cells(shape, np.random.default_rng(len(name)))
    expected = bert(
        input_ids=torch.from_numpy(cells.batch.tokens_BT).long(),
        attention_mask=torch.from_numpy(cells.real_BT).long(),
        labels=torch.from_numpy(cells.labels_BT),
        output_hidden_states=True,
    )
    expected.loss.backward()
    runtime = Runtime(attention=attention)

    @jax.jit
    def step(params, batch):
        def loss(params):
            sums = masked_gene_sums(model.config, params, batch, runtime)
            return sums.loss / sums.targets

        hidden = encode_all_layers(
            model.config, params, batch.tokens_BT, batch.lengths_B, runtime=runtime
        )
        logits = masked_gene_logits(model.config, params, hidden[-1], batch.positions_BM, FLOAT32)
        return hidden, logits, *jax.value_and_grad(loss)(params)

    hidden, logits, loss, gradients = step(model.params, cells.batch)
    real_BT = cells.real_BT
    for got, wanted in zip(hidden, expected.hidden_states, strict=True):
        wanted = wanted.detach().numpy()[real_BT]
        np.testing.assert_allclose(np.asarray(got)[real_BT], wanted, rtol=0, atol=2e-5)
    wanted = expected.logits.detach().numpy()
    wanted = np.take_along_axis(wanted, cells.batch.positions_BM[..., None], 1)
    slots = cells.batch.weights_BM > 0
    np.testing.assert_allclose(np.asarray(logits)[slots], wanted[slots], rtol=0, atol=2e-5)
    assert float(loss) == pytest.approx(expected.loss.item(), rel=2e-6)
    assert_gradients(model, gradients, dict(bert.named_parameters()))


def assert_gradients(model, gradients, parameters) -> None:
    wanted = places(model.config, model.head)
    assert {place.name for place in wanted} == set(parameters)
    largest = max(float(weight.grad.abs().max()) for weight in parameters.values())
    assert largest > 1e-3
    for place, got in zip(wanted, bert_values(wanted, gradients), strict=True):
        expected = parameters[place.name].grad.numpy()
        # Measured against the largest: the bias of the keys moves no softmax, so that both sides
        # are nothing but rounding there.
        atol = 2e-5 * largest
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=atol, err_msg=place.name)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("V2", "BertForSequenceClassification"), ("V1", "BertForTokenClassification")],
)
def test_classifiers_give_the_same_logits_and_gradients(torch, tmp_path, name, architecture):
    shape = SHAPES[name]
    bert = random_bert(torch, shape, architecture, "sdpa", seed=3, num_labels=3)
    bert.save_pretrained(tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["id2label"]
    model = read_model(tmp_path / "hf").model
    cells = random_cells(shape, np.random.default_rng(3))
    expected = bert(
        input_ids=torch.from_numpy(cells.batch.tokens_BT).long(),
        attention_mask=torch.from_numpy(cells.real_BT).long(),
    ).logits
    weight = np.random.default_rng(4).normal(size=expected.shape).astype(np.float32)
    if expected.ndim == 3:
        weight *= cells.real_BT[..., None]
    (expected * torch.from_numpy(weight)).sum().backward()

    @jax.jit
    def step(params):
        def weighed(params):
            batch = cells.batch
            hidden = encode(model.config, params, batch.tokens_BT, batch.lengths_B)
            head = head_module(model.config, model.head, params[model.head.kind], FLOAT32)
            logits = head(hidden)
            return (logits * weight).sum(), logits

        (_, logits), gradients = jax.value_and_grad(weighed, has_aux=True)(params)
        return logits, gradients

    logits, gradients = step(model.params)
    at = cells.real_BT if expected.ndim == 3 else slice(None)
    wanted = expected.detach().numpy()[at]
    np.testing.assert_allclose(np.asarray(logits)[at], wanted, rtol=0, atol=2e-5)
    assert_gradients(model, gradients, dict(bert.named_parameters()))
