"""Labels carried over: planted ones are found, none where nothing is, and strangers are told."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import geneformer_jax as gf
from geneformer_jax.common.errors import InputError
from geneformer_jax.label_transfer import prepare
from geneformer_jax.label_transfer.classifiers import CLASSIFIERS, measure_distances
from geneformer_jax.label_transfer.features import COUNTS, EMBEDDING, Features, count_features
from geneformer_jax.label_transfer.output import distance_figure
from geneformer_jax.label_transfer.scores import COMMONEST, HELD_OUT, QUERY
from geneformer_jax.label_transfer.transfer import transfer
from tests.helpers.toy import toy_cells, toy_model

LABELS = np.repeat(["B", "NK", "T"], (60, 50, 40)).astype(object)


def clouds(labels, distance, seed):
    """Cells in 8 dimensions, those of each label around a point of its own."""
    random = np.random.default_rng(seed)
    places = distance * np.eye(8)[np.unique(labels, return_inverse=True)[1]]
    return (places + random.normal(size=(len(labels), 8))).astype(np.float32)


def carried(distance, known=None, groups=None, seed=0):
    query = Features(clouds(LABELS, distance, seed), clouds(LABELS, distance, seed + 1))
    known = np.full(len(LABELS), None, object) if known is None else known
    return transfer({EMBEDDING: query, COUNTS: query}, LABELS.astype(str), known, groups)


def best(scores, cells_of):
    own = scores[(scores["cells_of"] == cells_of) & (scores["features"] == EMBEDDING)]
    return own["accuracy"].max()


def test_planted_labels_are_found():
    found = carried(8.0, known=LABELS)
    assert best(found.scores, HELD_OUT) == best(found.scores, QUERY) == 1
    assert (found.table["transferred_label"].astype(str) == LABELS).all()
    for name in CLASSIFIERS:
        assert (found.table[f"{EMBEDDING} {name}"].astype(str) == LABELS).all()
    by_label = found.by_label[found.by_label["classifier"] == "prototypes"]
    assert (by_label[["precision", "recall", "f1"]] == 1).all(axis=None)
    assert by_label.groupby("label")["cells"].first().to_dict() == {"B": 60, "NK": 50, "T": 40}


def test_nothing_is_found_where_nothing_is():
    accuracies = [best(carried(0.0, seed=seed).scores, HELD_OUT) for seed in (0, 2, 4)]
    # The best of three classifiers on 150 cells; the commonest label has 40 %.
    assert np.mean(accuracies) < 0.5


def test_what_must_be_beaten_stands_beside():
    scores = carried(2.0, known=LABELS).scores
    commonest = scores[scores["features"] == COMMONEST]
    assert set(commonest["cells_of"]) == {HELD_OUT, QUERY}
    assert commonest["accuracy"].tolist() == [0.4, 0.4]
    # F1 of a label that is always named: 2 * 0.4 / (1 + 0.4); of the two others 0.
    np.testing.assert_allclose(commonest["macro_f1"], 2 * 0.4 / 1.4 / 3)


def test_a_better_representation_is_told():
    query = np.full(len(LABELS), None, object)
    weak, strong = (Features(*(clouds(LABELS, d, seed) for seed in (0, 1))) for d in (0.5, 8.0))
    told = transfer({EMBEDDING: weak, COUNTS: strong}, LABELS.astype(str), query).verdict
    assert any(line.startswith(f"{COUNTS} did better than embeddings: prefer") for line in told)
    told = transfer({EMBEDDING: strong, COUNTS: weak}, LABELS.astype(str), query).verdict
    assert not any("did better" in line for line in told)


def test_groups_are_never_on_both_sides():
    """Labels that only the donor tells are not found in new donors."""
    donors = np.arange(len(LABELS)) % 10
    random = np.random.default_rng(0)
    own = random.normal(size=(10, 8))[donors] * 6
    cells = (own + random.normal(size=own.shape)).astype(np.float32)
    labels = np.where(donors % 2, "odd", "even").astype(str)
    known = np.full(len(labels), None, object)
    made = {EMBEDDING: Features(cells, cells)}
    free = transfer(made, labels, known)
    apart = transfer(made, labels, known, donors.astype(str))
    assert best(free.scores, HELD_OUT) > 0.95 > 0.75 > best(apart.scores, HELD_OUT)


def test_strangers_are_not_trusted():
    reference, near = clouds(LABELS, 3.0, 0), clouds(LABELS, 3.0, 1)
    far = near[:10] + 40
    found = measure_distances(reference, np.vstack([near, far]))
    assert found.is_trusted[:150].mean() > 0.95 and not found.is_trusted[150:].any()
    # The same by all distances.
    between = np.linalg.norm(reference[:, None] - reference[None], axis=2)
    own = np.sort(between, axis=1)[:, 1:16].mean(axis=1)
    assert found.limit == pytest.approx(np.quantile(own, 0.99), rel=1e-5)
    to_query = np.linalg.norm(near[:, None] - reference[None], axis=2)
    expected = np.sort(to_query, axis=1)[:, :15].mean(axis=1)
    np.testing.assert_allclose(found.query[:150], expected, rtol=1e-5)


def test_components_are_those_of_the_reference():
    random = np.random.default_rng(0)
    own, other = (random.poisson(0.5, (n, 20)).astype(float) for n in (30, 12))
    own[:, 4] = 0
    own, other = sparse.csr_matrix(own), sparse.csr_matrix(other)
    made = count_features(lambda rows: own[rows], lambda rows: other[rows], (30, 12))
    centred = own.toarray() - own.toarray().mean(axis=0)
    axes = np.linalg.svd(centred[:, np.arange(20) != 4], full_matrices=False)[2][:5]
    expected = (other.toarray() - own.toarray().mean(axis=0))[:, np.arange(20) != 4] @ axes.T
    np.testing.assert_allclose(np.abs(made.query_QD[:, :5]), np.abs(expected), atol=1e-6)


def test_a_reference_of_cells_that_are_all_alike_has_no_components():
    own = sparse.csr_matrix(np.tile([0.0, 2.0, 1.0], (30, 1)))
    with pytest.raises(InputError, match="all alike: they have no principal components"):
        count_features(lambda rows: own[rows], lambda rows: own[rows], (30, 12))


@pytest.fixture(scope="module")
def model():
    return toy_model(positions=160, layers=1, initializer_range=0.2)


def test_from_python(model):
    cells = toy_cells()
    reference, query = cells[:160].copy(), cells[160:].copy()
    reference.obs["kind"] = reference.obs["kind"].astype(object)
    reference.obs.iloc[:3, reference.obs.columns.get_loc("kind")] = [None, "rare", "rare"]
    found = gf.transfer_labels(model, reference, query, "kind")
    assert found.obs_names.equals(query.obs_names)
    assert found.obsm["X_geneformer"].shape == (80, model.config.width)
    result = found.uns["label_transfer"]
    sizes = result["scores"].groupby("cells_of")["cells"].first()
    assert sizes.to_dict() == {HELD_OUT: 157, QUERY: 80}
    assert set(result["scores"]["features"]) == {EMBEDDING, COUNTS, COMMONEST}
    right = (found.obs["transferred_label"].astype(str) == query.obs["kind"].astype(str)).mean()
    own = result["scores"].query("cells_of == 'query' and features == @EMBEDDING")
    assert right in own["accuracy"].to_numpy()


def test_large_references_are_drawn_from(model, monkeypatch):
    monkeypatch.setattr(prepare, "MAX_LEARNED_CELLS", 50)
    given = prepare.read_input(model, toy_cells(), toy_cells(20), "kind")
    assert len(given.labels) == len(given.reference.rows) == 50


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "knid"}, 'no obs column "knid" (did you mean "kind"?)'),
        ({"label": "one"}, 'has 1 labels of at least 5 cells in "one"; two are needed'),
        ({"label": "each"}, "has 0 labels of at least 5 cells"),
        ({"group": "pair"}, 'has 2 groups in "pair", but each of 5 folds needs one'),
        ({"group": "nobody"}, 'no obs column "nobody"'),
    ],
)
def test_what_cannot_be_learned(model, change, words):
    cells = toy_cells(40)
    cells.obs = cells.obs.assign(one="x", each=list(map(str, range(40))), pair=["p", "q"] * 20)
    with pytest.raises(InputError) as error:
        gf.transfer_labels(model, cells, cells, **{"label": "kind"} | change)
    assert words in str(error.value) and "\n" not in str(error.value)
    pd.testing.assert_index_equal(cells.obs_names, toy_cells(40).obs_names)


def test_the_histogram_of_distances_counts_the_cells_beyond_the_limit():
    distances = pd.Series([0.1, 0.2, 0.2, 0.9])
    axes = distance_figure(distances, 0.2).axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == 4
    assert axes.get_legend_handles_labels()[1] == ["limit of trust (cells beyond: 1)"]
    assert not axes.spines["top"].get_visible()
