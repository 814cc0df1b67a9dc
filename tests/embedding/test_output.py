"""Embeddings in files: killed and taken up again, and the same in every format."""

import dataclasses
import json

import anndata as ad
import jax
import numpy as np
import pandas as pd
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.embedding import output as embedding_output
from geneformer_jax.embedding.embedder import KEY, Embedded, Embedder
from geneformer_jax.embedding.output import table_path, write_output
from geneformer_jax.embedding.parts import EmbeddingParts, embedding_identity
from geneformer_jax.inference.cells import select_cells
from geneformer_jax.inference.resume.folder import parts_folder
from geneformer_jax.model.pretrained import PretrainedModel
from tests.helpers.toy import toy_model

PROVENANCE = json.dumps({"command": "embed", "configuration": {"seed": 1}})


@pytest.fixture(scope="module")
def model() -> PretrainedModel:
    return toy_model()


def small_parts(output, embedder: Embedder, identity=None) -> EmbeddingParts:
    identity = embedding_identity(embedder, identity or {})
    return EmbeddingParts(output, embedder, identity, max_cells=50, max_rows=1_000)


def embed(parts: EmbeddingParts, *shards: tuple[int, int]) -> Embedded:
    for shard in shards or [(0, 1)]:
        parts.make(shard)
    with parts.joined() as embedded:
        return embedded


@pytest.fixture
def embedder_of(model, toy_store):
    def make(mode: str = "cell", layer=-1, model=model) -> Embedder:
        cells = select_cells(toy_store, max_cells=120)
        return Embedder(
            model, cells, mode, layer, devices=jax.devices()[:1], tokens_per_device=1_024
        )

    return make


def kill_after(embedder: Embedder, name: str, parts: int) -> None:
    """Makes the embedder die in the middle of a later part."""
    work, calls = getattr(embedder, name), []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) > parts:
            raise KeyboardInterrupt
        return work(*arguments)

    setattr(embedder, name, dying)


@pytest.mark.parametrize("mode", ["cell", "occurrence", "gene"])
def test_a_killed_run_goes_on_to_the_same_result(embedder_of, tmp_path, mode):
    whole = embed(small_parts(tmp_path / "whole.npy", embedder_of(mode)))
    method = "genes" if mode == "gene" else "rows"
    first = embedder_of(mode)
    kill_after(first, method, parts=1)
    parts = small_parts(tmp_path / "out.npy", first)
    with pytest.raises(KeyboardInterrupt):
        parts.make()
    made = first.throughput.done
    assert 0 < made < 120
    again = embedder_of(mode)
    resumed = embed(small_parts(tmp_path / "out.npy", again))
    assert again.throughput.done == 120 - made, "began anew"
    np.testing.assert_array_equal(np.asarray(resumed.rows), np.asarray(whole.rows))
    pd.testing.assert_frame_equal(resumed.table, whole.table)


@pytest.mark.parametrize("mode", ["cell", "occurrence", "gene"])
def test_shares_in_any_order_give_the_same_result(embedder_of, tmp_path, mode):
    whole = embed(small_parts(tmp_path / "whole.npy", embedder_of(mode)))
    method = "genes" if mode == "gene" else "rows"
    killed = embedder_of(mode)
    kill_after(killed, method, parts=1)
    with pytest.raises(KeyboardInterrupt):
        small_parts(tmp_path / "out.npy", killed).make((1, 2))
    with pytest.raises(InputError, match="run the same command with `shard`=0/2"):
        embed(small_parts(tmp_path / "out.npy", embedder_of(mode)), (1, 2))
    shards = [(2, 3), (0, 2), (1, 120)]
    shared = embed(small_parts(tmp_path / "out.npy", embedder_of(mode)), *shards)
    np.testing.assert_array_equal(np.asarray(shared.rows), np.asarray(whole.rows))
    pd.testing.assert_frame_equal(shared.table, whole.table)


def test_more_shares_than_cells_are_refused(embedder_of, tmp_path):
    with pytest.raises(InputError, match="`shard` is 0/121, but there are only 120 cells"):
        small_parts(tmp_path / "out.npy", embedder_of()).make((0, 121))
    assert list(tmp_path.iterdir()) == []


def test_parts_give_what_one_pass_gives(embedder_of, tmp_path):
    embedder = embedder_of()
    with embedder.progress() as progress:
        expected = embedder.rows(0, 120, progress)
    rows = embed(small_parts(tmp_path / "out.npy", embedder)).rows
    np.testing.assert_allclose(rows, expected, atol=2e-6)


def test_other_devices_go_on_with_the_same_parts(embedder_of, tmp_path):
    output = tmp_path / "out.npy"
    first = embedder_of()
    kill_after(first, "rows", parts=1)
    with pytest.raises(KeyboardInterrupt):
        small_parts(output, first).make()
    again = Embedder(first.model, first.cells, devices=jax.devices()[:2])
    rows = embed(small_parts(output, again)).rows
    assert again.throughput.done == 70
    with again.progress() as progress:
        np.testing.assert_allclose(rows, again.rows(0, 120, progress), atol=2e-6)


def test_a_damaged_part_is_computed_again(embedder_of, tmp_path, caplog):
    output = tmp_path / "out.npy"
    expected = np.array(embed(small_parts(output, embedder_of())).rows)
    kept = np.load(parts_folder(output) / "rows.npy", mmap_mode="r+")
    kept[60, 0, 3] += 1
    kept.flush()
    again = embedder_of()
    rows = embed(small_parts(output, again)).rows
    np.testing.assert_array_equal(rows, expected)
    assert again.throughput.done == 50
    assert "rows.npy is damaged or gone; its part is made again" in caplog.text


def test_a_damaged_array_is_named_in_one_line(embedder_of, tmp_path):
    output = tmp_path / "out.npy"
    embed(small_parts(output, embedder_of()))
    kept = parts_folder(output) / "rows.npy"
    whole = kept.read_bytes()
    for damaged in (b"", whole[:100], b"?" * len(whole)):
        kept.write_bytes(damaged)
        with pytest.raises(InputError, match="is damaged; remove") as caught:
            small_parts(output, embedder_of()).make()
        assert "\n" not in str(caught.value)


def test_parts_of_another_run_are_refused(embedder_of, model, tmp_path):
    output = tmp_path / "out.npy"
    small_parts(output, embedder_of(), {"seed": 1}).make((0, 120))
    with pytest.raises(InputError, match=r"layer = \[-1\], not \[0\].*remove it"):
        small_parts(output, embedder_of(layer=0), {"seed": 1}).make()
    with pytest.raises(InputError, match=r"command\.seed = 1, not 2"):
        small_parts(output, embedder_of(), {"seed": 2}).make()
    params = jax.tree.map(lambda leaf: leaf * 1.01, model.params)
    trained_on = dataclasses.replace(model, params=params)
    with pytest.raises(InputError, match="another weights"):
        small_parts(output, embedder_of(model=trained_on), {"seed": 1}).make()


def test_all_formats_hold_the_same(embedder_of, tmp_path):
    embedder = embedder_of(layer=[-1, 0])
    embedded = embed(small_parts(tmp_path / "any.npy", embedder))
    for suffix in embedding_output.SUFFIXES:
        write_output(embedded, tmp_path / f"out{suffix}", PROVENANCE)
    adata = ad.read_h5ad(tmp_path / "out.h5ad")
    table = pd.read_parquet(tmp_path / "out.parquet")
    rows = np.load(tmp_path / "out.npy")
    rows_table = pd.read_parquet(table_path(tmp_path / "out.npy"))
    assert rows.shape == (120, 2, 16)
    for k, layer in enumerate((-1, 0)):
        key = f"{KEY}_layer{layer}"
        np.testing.assert_array_equal(adata.obsm[key], rows[:, k])
        np.testing.assert_array_equal(np.stack(table[key]), rows[:, k])
    assert list(adata.obs_names) == list(table.index) == list(rows_table.index)
    assert list(adata.obs["kind"]) == list(table["kind"]) == list(rows_table["kind"])
    assert list(adata.obs_names) == list(embedder.cells.obs.index)


def test_one_layer_is_a_plain_array_and_groups_of_rows_join(embedder_of, tmp_path):
    embedded = embed(small_parts(tmp_path / "any.npy", embedder_of()))
    for suffix in (".npy", ".parquet"):
        write_output(embedded, tmp_path / f"out{suffix}", PROVENANCE, rows_at_once=7)
    rows = np.load(tmp_path / "out.npy")
    assert rows.shape == (120, 16)
    np.testing.assert_array_equal(rows, embedded.rows[:, 0])
    table = pd.read_parquet(tmp_path / "out.parquet")
    np.testing.assert_array_equal(np.stack(table[KEY]), rows)
    pd.testing.assert_frame_equal(table.drop(columns=KEY), embedded.table)


@pytest.mark.parametrize("suffix", embedding_output.SUFFIXES)
def test_only_what_the_same_command_wrote_is_written_over(embedder_of, tmp_path, suffix):
    output = tmp_path / f"out{suffix}"
    embedded = embed(small_parts(tmp_path / "any.npy", embedder_of()))
    embedding_output.check_output(output, {"seed": 1})
    write_output(embedded, output, PROVENANCE)
    embedding_output.check_output(output, {"seed": 1})
    with pytest.raises(InputError, match=r"written by this command \(seed = 1, not 2\);"):
        embedding_output.check_output(output, {"seed": 2})
    output.write_text("precious")
    table_path(output).unlink(missing_ok=True)
    with pytest.raises(InputError, match="was not written by this command"):
        embedding_output.check_output(output, {"seed": 1})
