"""PyTorch beside us on random models of odd shapes: outputs, loss and every gradient of a step."""

import json

import jax
import numpy as np
import pytest

from geneformer_jax.interop.huggingface import read_model
from geneformer_jax.model.encoder import encode, encode_all_layers, masked_gene_logits
from geneformer_jax.model.heads import head_module
from geneformer_jax.model.precision import precision_preset
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.training.objectives.masked_genes import masked_gene_sums
from tests.helpers.torch_bert import SHAPES, assert_gradients, random_bert, random_cells

pytestmark = pytest.mark.parity
FLOAT32 = precision_preset("float32")


# Shape, our attention, PyTorch's attention.
CASES = [
    *((name, "xla", "eager" if name == "V1" else "sdpa") for name in SHAPES),
    ("V1", "chunked", "sdpa"),
    ("V2", "splash", "eager"),
]


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
