"""What a notebook shows of our objects: one line that tells what it is."""

import dataclasses

import jax
import numpy as np
import pandas as pd
import pytest

from geneformer_jax.attention_analysis.api import HeadAttention
from geneformer_jax.cells.store.shorter_cells import ShorterCells
from geneformer_jax.cells.tokenization.tokenizer import tokenize_cells
from geneformer_jax.inference.cells import select_cells
from geneformer_jax.model.heads import CELLS, HeadConfig
from tests.helpers.toy import toy_cells, toy_model, toy_vocabulary


def shown(thing: object) -> str:
    text = repr(thing)
    assert "\n" not in text
    assert len(text) < 200
    return text


@pytest.fixture(scope="module")
def tokenized():
    return tokenize_cells(toy_cells(50), toy_vocabulary())


def test_cells_show_how_many_and_how_long(toy_store, tokenized):
    lengths = [len(cell) for cell in tokenized.read(np.arange(50))]
    expected = f"50 cells of {min(lengths)} to {max(lengths)} tokens"
    assert expected in shown(tokenized)
    assert expected in shown(tokenized.encodings)
    assert "10 cells of " in shown(select_cells(tokenized, max_cells=10))
    assert "50 cells of 9 to 9 tokens, 50 of them cut" in shown(ShorterCells(tokenized, 9))
    assert "240 cells of " in shown(toy_store)
    assert str(toy_store.folder) in shown(toy_store)


def test_a_vocabulary_shows_its_size_and_hash():
    vocabulary = toy_vocabulary()
    text = shown(vocabulary)
    assert "150 genes of human" in text and vocabulary.hash[:12] in text


def test_a_model_shows_its_size_and_what_it_predicts():
    model = toy_model(head=HeadConfig(CELLS, ("a", "b"), 0.0))
    assert CELLS in shown(model)
    weights = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    assert f"({weights:,} weights: 2 layers of width 16, 152 tokens" in shown(model)
    assert "masked_gene_head" in shown(toy_model())
    del model.params[CELLS]
    assert "no head" in shown(dataclasses.replace(model, head=None))


def test_attention_shows_lists_and_tables():
    tables = ("heads", "ranks", "layers", "thirds", "statements", "groups", "pairs")
    content = {name: pd.DataFrame({"list": ["mine", "mine", "theirs"]}) for name in tables}
    text = shown(
        HeadAttention(**content, comparisons=[], sums={}, group_names=(), skipped_groups={})
    )
    assert "mine, theirs" in text
    assert all(name in text for name in ("heads", "ranks", "groups", "pairs"))
