"""What heads attend to over many cells, against the whole matrices of each cell."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import jensenshannon

from geneformer_jax.attention_analysis import run, statistics
from geneformer_jax.attention_analysis.api import (
    AttentionQuery,
    attend_cells,
    prepare,
    read_pairs,
    tabulate,
)
from geneformer_jax.attention_analysis.gene_lists import compare_lists, read_gene_lists
from geneformer_jax.attention_analysis.sums import RANK_EDGES
from geneformer_jax.cells.tokenization.tokenizer import tokenize_cells
from geneformer_jax.cells.tokenization.vocabulary import V2_SPECIAL_TOKENS
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.progress import Progress
from geneformer_jax.inference.random_control import MODEL, RANDOM
from geneformer_jax.model.attention.dispatch import PROFILED, attention_weights
from geneformer_jax.model.encoder import encode_all_layers
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import profiled_runtime
from tests.helpers.toy import toy_cells, toy_model

CELLS, LAYERS, HEADS = 30, 3, 2
GENES = [f"ENSG{number:011d}" for number in (3, 10, 40, 80, 100)]


@pytest.fixture(scope="module")
def model() -> PretrainedModel:
    shape = {"layers": LAYERS, "heads": HEADS, "feed_forward": 16, "positions": 192}
    return toy_model(7, V2_SPECIAL_TOKENS, **shape, initializer_range=0.4)


@pytest.fixture(scope="module")
def cells(model):
    return tokenize_cells(toy_cells(CELLS), model.vocabulary)


@pytest.fixture(scope="module")
def found(model, cells):
    return attend_cells(model, cells, GENES, groupby="kind", pairs=GENES[:3], control=True)


@pytest.fixture(scope="module")
def slow(model, cells):
    """(group, tokens, every weight [L, N, T, T] in float64) of each cell; T is its own."""
    made = []
    for cell, tokens in enumerate(cells.read(np.arange(len(cells.lengths)))):
        n = len(tokens)
        padded = np.zeros((1, 192), np.int32)
        padded[0, :n] = tokens
        lengths_B = np.array([n], np.int32)
        weights = np.asarray(_all_weights(model.config, model.params, padded, lengths_B))
        weights = weights[:, 0, :, :n, :n].astype(np.float64)
        made.append((cells.obs["kind"].iloc[cell], tokens.astype(int), weights))
    return made


@functools.partial(jax.jit, static_argnums=0)
def _all_weights(config, params, tokens_BT, lengths_B):
    hidden = encode_all_layers(config, params, tokens_BT, lengths_B)
    weights = []
    for layer in range(config.layers):
        one = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
        project = functools.partial(jnp.einsum, "btd,dnh->btnh", hidden[layer])
        q, k = (project(one[name]["kernel"]) + one[name]["bias"] for name in ("query", "key"))
        weights.append(attention_weights(q, k, lengths_B))
    return jnp.stack(weights)


def test_gene_means_are_those_of_the_whole_matrices(found, model, slow):
    received = {}
    for _, tokens, weights in slow:
        for position, token in enumerate(tokens):
            row = weights[:, :, position]
            entropy = -(row * np.log(np.where(row > 0, row, 1))).sum(-1)
            genes = (tokens >= model.vocabulary.first_gene_token).sum()
            first = 1  # <cls> stands before the first gene
            to_top = row[:, :, first : first + int(np.ceil(0.1 * genes))].sum(-1)
            relative = weights[:, :, :, position].mean(2) * len(tokens)
            received.setdefault(token, []).append((relative, entropy, to_top, position))
    totals = statistics.of_all_groups(found.sums[MODEL].totals)
    means = statistics.gene_means(totals)
    some = [token for token in received if token >= model.vocabulary.first_gene_token]
    assert np.flatnonzero(means.cells).tolist() == sorted(some), "special tokens are no genes"
    for token in some:
        relative, entropy, to_top, position = map(np.array, zip(*received[token], strict=True))
        assert means.cells[token] == len(relative)
        compare = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
        compare(means.received[token], relative.mean(0))
        compare(means.breadth[token], np.exp(entropy.mean(0)))
        compare(means.to_top[token], to_top.mean(0))
        compare(means.rank[token], position.mean())  # <cls> at 0, the first gene is rank 1
        if len(relative) > 1:
            np.testing.assert_allclose(
                means.deviation[token], relative.std(0, ddof=1), rtol=1e-3, atol=1e-4
            )


def test_expected_by_rank_is_the_mean_of_all_genes_there(found, model, slow):
    edges = np.array(RANK_EDGES)
    at_bin, of_gene = {}, {}
    for group, tokens, weights in slow:
        if group != "b":
            continue
        for position, token in enumerate(tokens):
            if token >= model.vocabulary.first_gene_token:
                bin_ = int(np.searchsorted(edges, position, side="right")) - 1
                relative = weights[:, :, :, position].mean(2) * len(tokens)
                at_bin.setdefault(bin_, []).append(relative)
                of_gene.setdefault(token, []).append(bin_)
    group = found.group_names.index("b")
    means = statistics.gene_means(found.sums[MODEL].totals, group)
    for token, bins in of_gene.items():
        wanted = np.mean([np.mean(at_bin[bin_], axis=0) for bin_ in bins], axis=0)
        np.testing.assert_allclose(means.expected[token], wanted, rtol=2e-5)
    ranks = found.ranks[(found.ranks["group"] == "b") & (found.ranks["model"] == MODEL)]
    first = ranks[ranks["rank_from"] == 1].sort_values(["layer", "head"])
    wanted = np.mean(at_bin[0], axis=0).ravel()
    np.testing.assert_allclose(first["received"], wanted, rtol=2e-5)
    np.testing.assert_allclose(first["received_sd"], np.std(at_bin[0], axis=0).ravel(), rtol=1e-3)


def test_measures_of_cells_are_those_of_the_whole_matrices(found, model, slow):
    measures = found.sums[MODEL].cells
    for cell, (_, tokens, weights) in enumerate(slow):
        received, n = weights.mean(2), len(tokens)
        entropy = -(weights * np.log(weights)).sum(-1).mean(-1)
        np.testing.assert_allclose(measures.breadth[cell], np.exp(entropy) / n, rtol=1e-5)
        genes = (tokens >= model.vocabulary.first_gene_token).sum()
        top = received[:, :, 1 : 1 + int(np.ceil(0.1 * genes))].sum(-1)
        np.testing.assert_allclose(measures.top[cell], top, rtol=1e-5)
        distances = [jensenshannon(*received[layer], base=2) for layer in range(LAYERS)]
        np.testing.assert_allclose(measures.diversity[cell], distances, rtol=1e-3)


def test_pairs_are_entries_of_the_whole_matrices(found, model, slow):
    chosen = model.vocabulary.tokens_of(GENES[:3])
    sums, counts = np.zeros((3, 3, LAYERS, HEADS)), np.zeros((3, 3), int)
    for _, tokens, weights in slow:
        at = {token: np.flatnonzero(tokens == token) for token in chosen}
        for i, query in enumerate(chosen):
            for j, key in enumerate(chosen):
                if len(at[query]) and len(at[key]):
                    counts[i, j] += 1
                    sums[i, j] += weights[:, :, at[query][0], at[key][0]] * len(tokens)
    table = found.pairs[found.pairs["model"] == MODEL]
    assert counts.max() > 5
    for i in range(3):
        for j in range(3):
            rows = table[(table["query"] == GENES[i]) & (table["key"] == GENES[j])]
            assert rows["n_cells"].eq(counts[i, j]).all()
            wanted = (sums[i, j] / max(counts[i, j], 1)).ravel()
            ordered = rows.sort_values(["layer", "head"])["weight"]
            np.testing.assert_allclose(ordered, wanted[: len(ordered)], rtol=1e-4)


@pytest.mark.parametrize(
    ("backend", "longest", "chosen"),
    [("cpu", 2_048, "by_head"), ("gpu", 512, "xla"), ("tpu", 513, "chunked")],
)
def test_auto_takes_what_holds_its_weights(monkeypatch, backend, longest, chosen):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    runtime, line = profiled_runtime(longest, "float32", "auto")
    assert runtime.attention == chosen
    assert f"attention {chosen} (" in line and "fused kernels" in line


@pytest.mark.parametrize("attention", PROFILED)
def test_devices_chunks_and_batches_change_nothing(found, model, cells, attention):
    runtime, _ = profiled_runtime(600, "float32", attention)
    query = AttentionQuery({"listed genes": GENES}, "kind", GENES[:3])
    extractors = prepare(
        model, cells, query, runtime, devices=jax.devices()[:4], tokens_per_device=300
    )
    with Progress(CELLS, "attend", "cells") as progress:
        again = extractors[MODEL].run(0, CELLS, progress)
    assert extractors[MODEL].throughput.done == CELLS
    assert extractors[MODEL].throughput.tokens == cells.lengths.sum()
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(compare, again.totals, found.sums[MODEL].totals)
    jax.tree.map(compare, again.cells, found.sums[MODEL].cells)


def test_a_run_in_parts_goes_on_after_a_kill_to_the_same_tables(
    found, model, cells, tmp_path, monkeypatch
):
    query = AttentionQuery({"listed genes": GENES}, "kind", GENES[:3])
    extractors = prepare(model, cells, query, devices=jax.devices()[:1])
    extractor = extractors[MODEL]

    def open_parts(identity="of this run"):
        return run.AttentionParts(tmp_path / "parts", extractor, {"command": identity}, 7)

    extract, calls = type(extractor).run, []

    def killed(self, start, stop, progress):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(start)
        return extract(self, start, stop, progress)

    monkeypatch.setattr(type(extractor), "run", killed)
    with pytest.raises(KeyboardInterrupt):
        open_parts().extract(MODEL)
    monkeypatch.setattr(type(extractor), "run", extract)
    open_parts().extract(MODEL)
    assert calls == [0, 7]
    sums = joined(open_parts())
    got = tabulate(query, extractor, {MODEL: sums})
    wanted = found.heads[found.heads["model"] == MODEL].reset_index(drop=True)
    pd.testing.assert_frame_equal(got.heads, wanted, rtol=1e-4)
    with pytest.raises(InputError, match="command = 'of this run', not 'of another'"):
        open_parts("of another").extract(MODEL)
    # Damaged totals are made again of the same cells.
    next((tmp_path / "parts" / "totals").iterdir()).write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(InputError, match="parts are missing"):
        joined(open_parts())
    open_parts().extract(MODEL)
    jax.tree.map(np.testing.assert_array_equal, joined(open_parts()), sums)


def joined(parts):
    with parts.joined() as sums:
        return sums


def test_shares_in_any_order_give_the_same_sums(model, cells, tmp_path):
    query = AttentionQuery({"listed genes": GENES}, "kind", GENES[:3])
    extractor = prepare(model, cells, query, devices=jax.devices()[:1])[MODEL]
    whole, shared = (
        run.AttentionParts(tmp_path / name, extractor, {}, 7) for name in ("whole", "shared")
    )
    whole.extract(MODEL)
    for shard in ((1, 2), (0, 4)):
        shared.extract(MODEL, shard)
    with pytest.raises(InputError, match="run the same command with `shard`=1/4, and then"):
        joined(shared)
    shared.extract(MODEL, (0, 2))
    jax.tree.map(np.testing.assert_array_equal, joined(shared), joined(whole))


def test_control_is_another_model_over_the_same_cells(found):
    assert set(found.heads["model"]) == {MODEL, RANDOM}
    learned, drawn = (found.sums[name].totals for name in (MODEL, RANDOM))
    np.testing.assert_array_equal(learned.gene_bins, drawn.gene_bins)
    assert np.abs(learned.gene_sums - drawn.gene_sums).max() > 0.1


def test_counts_may_be_in_a_layer(found, model):
    adata = toy_cells(CELLS)
    adata.layers["raw counts"] = adata.X.copy()
    adata.X = np.log1p(adata.X.toarray())
    options = {"groupby": "kind", "pairs": GENES[:3], "counts_layer": "raw counts"}
    again = attend_cells(model, adata, GENES, **options)
    wanted = found.heads[found.heads["model"] == MODEL].reset_index(drop=True)
    pd.testing.assert_frame_equal(again.heads, wanted)


def test_groups_are_summarised_apart(found, cells):
    assert found.group_names == ("a", "b")
    sizes = cells.obs["kind"].value_counts()
    totals = found.sums[MODEL].totals
    for group, name in enumerate(found.group_names):
        assert totals.gene_cells[group].max() <= sizes[name]
        assert totals.rank_cells[group][0] == sizes[name], "each cell has one first gene"
    tables = list(found.gene_tables(*_names(found, cells)))
    assert [table["group"].iloc[0] for table in tables] == ["all cells", "a", "b"]


def _names(found, cells):
    vocabulary = cells.vocabulary
    ids = np.array([vocabulary.gene_id_of(token) for token in range(vocabulary.size)], object)
    return ids, np.full(vocabulary.size, "", object)


def test_bad_input_is_refused(model, cells, tmp_path):
    with pytest.raises(InputError, match="none of the 2 genes of listed is in the vocabulary"):
        prepare(model, cells, AttentionQuery({"listed": ["Xkr4", "Sox17"]}))
    with pytest.raises(InputError, match="list listed holds no gene"):
        prepare(model, cells, AttentionQuery({"listed": []}))
    with pytest.raises(InputError, match='gene "nobody" is not in the vocabulary'):
        prepare(model, cells, AttentionQuery({"listed": GENES}, pairs=("nobody",)))
    with pytest.raises(InputError, match='"cudnn" never holds its weights'):
        profiled_runtime(100, "float32", "cudnn")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(InputError, match="holds no row"):
        read_gene_lists(str(empty))


def test_lists_are_read_from_files(tmp_path, model):
    (tmp_path / "factors.txt").write_text("\n".join(GENES) + "\n")
    classes = pd.DataFrame({"class": ["up", "up", "down"], "ensembl_id": GENES[:3]})
    classes.to_csv(tmp_path / "classes.tsv", sep="\t", index=False)
    lists = read_gene_lists(f"{tmp_path}/factors.txt, {tmp_path}/classes.tsv")
    assert lists == {"factors": GENES, "up": GENES[:2], "down": GENES[2:3]}
    assert read_pairs("A, B") == ("A", "B")
    assert read_pairs(str(tmp_path / "factors.txt")) == tuple(GENES)


def test_two_lists_are_compared_with_each_other_too(model):
    every = [f"ENSG{number:011d}" for number in range(150)]
    cells_of = np.full(model.vocabulary.size, 2)
    cells_of[model.vocabulary.tokens_of([every[1]])] = 1
    lists = {"up": every[:6], "down": [every[5], *every[20:25], "unheard_of"]}
    up, down, both = compare_lists(lists, model.vocabulary, cells_of, min_cells=2)
    assert (len(up.first), len(up.not_found), up.unknown) == (5, 1, ())
    assert [each["reason"] for each in up.missing(model.vocabulary)] == [
        "expressed in fewer than 2 of the cells"
    ]
    assert (len(down.first), len(down.not_found), down.unknown) == (6, 0, ("unheard_of",))
    assert len(up.second) == 150 - 1 - 5
    assert both.title == "up vs down"
    assert (len(both.first), len(both.second)) == (4, 5), "the gene on both lists is left out"
