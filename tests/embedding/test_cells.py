"""Which cells are embedded, and how they are laid out in batches."""

import dataclasses

import jax
import numpy as np
import pandas as pd
import pytest

from geneformer_jax.batches.plan import BatchPlan
from geneformer_jax.common.errors import InputError
from geneformer_jax.embedding.api import embed_cells
from geneformer_jax.embedding.embedder import KEY
from geneformer_jax.inference import batches
from geneformer_jax.inference.batches import lay_out, token_batches
from geneformer_jax.inference.cells import select_cells
from geneformer_jax.inference.filters import parse_filters
from geneformer_jax.model.config import EncoderConfig, preset
from geneformer_jax.model.precision import precision_preset
from geneformer_jax.model.runtime import Runtime, inference_runtime
from geneformer_jax.model.sharding import inference_mesh
from tests.helpers.toy import toy_model

CONFIG = EncoderConfig(152, 2, 16, 2, 32, 2_048)


@dataclasses.dataclass
class Cells:
    """Cells of which only columns and lengths matter; the tokens of cell i are all i + 2."""

    obs: pd.DataFrame
    lengths: np.ndarray
    vocabulary: object = None

    def read(self, indices) -> list[np.ndarray]:
        return [np.full(self.lengths[i], i + 2, np.uint16) for i in indices]


def labelled() -> Cells:
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(["a:1", "b", None, "b", "c d"]),
            "dose": [1.0, 2.5, np.nan, 1.0, 3.0],
            "treated": [True, False, True, False, True],
            "stage": ["G1|S", "G2/M", "G1|S", "G1", None],
            "tissue:part": ["a", "b:c", "a", "a", "b:c"],
            "cluster": [0, 1, 2, 0, 1],
        },
        index=[f"c{i}" for i in range(5)],
    )
    return Cells(obs, np.arange(1, 6))


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ([], [0, 1, 2, 3, 4]),
        (["kind:b"], [1, 3]),
        (["kind:a:1|c d"], [0, 4]),
        (["dose:1"], [0, 3]),
        (["dose:1.0|2.5"], [0, 1, 3]),
        (["treated:True"], [0, 2, 4]),
        (["kind:b", "dose:1"], [3]),
        # Values and names of columns are found as wholes first; a repeated column adds values.
        (["stage:G1|S"], [0, 2]),
        (["stage:G1|S|G1"], [0, 2, 3]),
        (["stage:G1|G2/M"], [1, 3]),
        (["stage:G1|S", "stage:G2/M"], [0, 1, 2]),
        (["tissue:part:b:c"], [1, 4]),
        (["tissue:part:a|b:c", "kind:b"], [1, 3]),
    ],
)
def test_cells_pass_every_filter_by_one_of_its_values(filters, kept):
    assert select_cells(labelled(), parse_filters(filters)).rows.tolist() == kept


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"treated": [True]}, [0, 2, 4]),
        ({"treated": np.True_}, [0, 2, 4]),
        ({"treated": "False"}, [1, 3]),
        ({"cluster": 1}, [1, 4]),
        ({"cluster": [np.int64(0), 2.0]}, [0, 2, 3]),
        ({"cluster": range(3), "kind": "c d"}, [4]),
        ({"dose": (1, 2.5)}, [0, 1, 3]),
        ({"kind": "a:1"}, [0]),
        ({"stage": ["G1|S"]}, [0, 2]),
        ({"kind": pd.Series(["b", "a:1"])}, [0, 1, 3]),
    ],
)
def test_filters_take_numbers_truth_values_and_single_ones(filters, kept):
    assert select_cells(labelled(), filters).rows.tolist() == kept


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ("kind:b", "`filters` is .*but maps obs columns to values"),
        (["kind:b"], "maps obs columns to values"),
        ({"kind": []}, "names no value"),
        ({"cluster": [7]}, 'column "cluster" has no value "7"; it has 0, 1, 2'),
        ({"cluster": ["low"]}, "holds numbers, but its filter is low"),
        ({"stage": ["G1", "G1|M"]}, 'has no value "G1|M"'),
        ({"kind": [None]}, 'has no value "None"'),
        ({"cluster": 0, "kind": "c d", "treated": [True]}, "no cell passes cluster: 0 and kind: c"),
    ],
)
def test_filters_that_cannot_be_meant_are_told_in_one_line(filters, words):
    with pytest.raises(InputError, match=words.replace("|", r"\|")) as told:
        select_cells(labelled(), filters)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["kind", ":b", "kind:", "kind:|"])
def test_filters_of_another_form_are_refused(text):
    with pytest.raises(InputError, match="must have the form"):
        parse_filters([text])


def test_filters_that_exclude_each_other_are_refused():
    with pytest.raises(InputError, match="no cell passes kind: c d and dose: 1 together"):
        select_cells(labelled(), {"kind": ["c d"], "dose": ["1"]})


def test_a_seed_draws_the_same_cells_again_and_another_draws_others():
    cells = Cells(pd.DataFrame(index=range(100)), np.ones(100, int))
    first = select_cells(cells, max_cells=20, seed=1).rows
    assert len(set(first)) == 20 and (np.diff(first) > 0).all()
    np.testing.assert_array_equal(first, select_cells(cells, max_cells=20, seed=1).rows)
    assert set(first) != set(select_cells(cells, max_cells=20, seed=2).rows)
    assert len(select_cells(cells, max_cells=1_000).rows) == 100


@pytest.mark.parametrize("devices", [1, 8])
def test_every_cell_is_in_one_batch_that_the_devices_share(devices, monkeypatch):
    monkeypatch.setattr(batches, "SPEED", {"cpu": 1e5})
    lengths = np.random.default_rng(0).integers(1, 400, 150)
    cells = Cells(pd.DataFrame(index=range(150)), lengths)
    mesh = inference_mesh(jax.devices()[:devices])
    layout = lay_out(lengths, CONFIG, mesh, tokens_per_device=2_048)
    seen, shapes = [], set()
    for batch in token_batches(cells, layout, 10, 140):
        tokens, rows = np.asarray(batch.tokens_BT), len(batch.cells)
        assert len(tokens) % devices == 0
        assert len(tokens) // devices * tokens.shape[1] <= max(2_048, tokens.shape[1])
        shapes.add(tokens.shape)
        seen += batch.cells.tolist()
        for row, cell in enumerate(batch.cells):
            expected = np.pad(cells.read([cell])[0], (0, tokens.shape[1] - lengths[cell]))
            np.testing.assert_array_equal(tokens[row], expected)
        np.testing.assert_array_equal(batch.lengths_B[:rows], lengths[batch.cells])
        assert not np.asarray(batch.lengths_B)[rows:].any()
    assert sorted(seen) == list(range(10, 140))
    assert 2 < len(shapes) <= len(layout.shape.buckets)


def test_padding_of_many_cells_is_below_a_twentieth():
    lengths = np.random.default_rng(0).lognormal(6.6, 0.4, 50_000).clip(100, 2_048).astype(int)
    mesh = inference_mesh(jax.devices()[:1])
    layout = lay_out(lengths, preset("v1_10m"), mesh)
    assert BatchPlan(lengths, layout.shape, seed=0).padding < 0.05
    # Little work is not worth many programs.
    assert len(lay_out(lengths[:20], preset("v1_10m"), mesh).shape.buckets) <= 2


def test_no_tokens_make_no_batch():
    with pytest.raises(InputError, match="tokens_per_device` is 0"):
        lay_out(np.array([5]), CONFIG, inference_mesh(), tokens_per_device=0)


@pytest.mark.parametrize(
    ("options", "least", "most"),
    [({"attention": "chunked"}, 0, 2e-6), ({"precision": "bfloat16"}, 1e-4, 0.05)],
)
def test_other_ways_to_compute_give_nearly_the_same(toy_store, options, least, most):
    model = toy_model(positions=2_048)
    cells = select_cells(toy_store, max_cells=12)
    given = {"devices": jax.devices()[:1]}
    exact = embed_cells(model, cells, **given).obsm[KEY]
    runtime = Runtime(
        precision=precision_preset(options.get("precision", "float32")),
        attention=options.get("attention", "xla"),
    )
    other = embed_cells(model, cells, runtime=runtime, **given).obsm[KEY]
    assert least <= np.abs(exact - other).max() < most
    assert other.dtype == np.float32


def test_the_choice_of_attention_and_precision_is_reported():
    runtime, line = inference_runtime(CONFIG, 2_000, "bfloat16")
    assert runtime.precision.name == "bfloat16"
    assert f"attention {runtime.attention}" in line and "bfloat16" in line
    asked, line = inference_runtime(CONFIG, 2_000, attention="xla")
    assert asked.attention == "xla" and "asked for" in line
    with pytest.raises(InputError, match="needs an NVIDIA GPU"):
        inference_runtime(CONFIG, 2_000, attention="cudnn")
