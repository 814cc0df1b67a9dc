"""Fine-tuning from Python: counts in an AnnData layer, resumption, and a quiet notebook."""

import numpy as np
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.finetuning.prediction.api import predict_cells
from geneformer_jax.finetuning.run import finetune_cells
from geneformer_jax.model.pretrained import load_model
from tests.helpers.labelled_tasks import quick_config, save_base
from tests.helpers.toy import toy_cells


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load_model(save_base(tmp_path_factory.mktemp("base") / "run"))


@pytest.mark.slow
def test_an_anndata_is_learned_and_predicted_from_its_layer(base, tmp_path, capsys):
    cells = toy_cells()
    cells.layers["counts"] = cells.X.copy()
    cells.X = cells.X.log1p()
    config = quick_config(epochs=3)
    keys = {"labels_key": "kind", "workdir": tmp_path / "run", "config": config}
    model = finetune_cells(base, cells, **keys, counts_layer="counts")
    assert model.head.labels == ("a", "b")
    predicted = predict_cells(model, cells, counts_layer="counts")
    right = predicted.obs["predicted_label"].astype(str) == cells.obs["kind"]
    assert right.mean() > 0.8
    assert capsys.readouterr().out == ""
    again = finetune_cells(base, cells, **keys, counts_layer="counts")
    np.testing.assert_array_equal(
        again.params["cell_classifier"]["classifier"]["kernel"],
        model.params["cell_classifier"]["classifier"]["kernel"],
    )
    with pytest.raises(InputError, match="seed = 42, not 7"):
        config.seed = 7
        finetune_cells(base, cells, **keys, counts_layer="counts")
    with pytest.raises(InputError, match='did you mean "kind"'):
        finetune_cells(base, cells, "kin", tmp_path / "other", counts_layer="counts")


@pytest.mark.slow
def test_an_adapter_comes_back_merged_into_the_model_it_was_given(base, tmp_path):
    config = quick_config(steps=2, **{"tuning.lora_rank": 2, "stopping.best": False})
    model = finetune_cells(base, toy_cells(), "kind", tmp_path / "run", config=config)
    assert model.head.labels == ("a", "b")
    embeddings = model.params["embeddings"]["word"]["embedding"]
    np.testing.assert_array_equal(embeddings, base.params["embeddings"]["word"]["embedding"])
    assert len(predict_cells(model, toy_cells()).obs["predicted_label"]) == 240
