"""The command convert on models, and how much memory a large one takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import geneformer_jax as gf
from geneformer_jax.common.errors import InputError
from geneformer_jax.interop import huggingface
from geneformer_jax.interop.original_dictionaries import read_original_vocabulary
from tests.helpers.bert_folders import tensors, write_folder
from tests.helpers.commands import assert_one_line, run_command
from tests.helpers.toy import toy_vocabulary

PROJECT = Path(__file__).resolve().parents[2]


def convert(monkeypatch, capsys, source, target, *more) -> tuple[int, str, str]:
    arguments = [f"--source={source}", f"--target={target}", *more]
    return run_command("convert", arguments, monkeypatch, capsys)


def test_a_model_goes_both_ways_with_its_vocabulary(tmp_path, monkeypatch, capsys):
    source = write_folder(tmp_path / "hf")
    vocabulary = toy_vocabulary()
    vocabulary.save(tmp_path / "vocabulary")
    status, output, _ = convert(
        monkeypatch,
        capsys,
        source,
        tmp_path / "checkpoint",
        f"--vocabulary={tmp_path / 'vocabulary'}",
    )
    assert status == 0
    assert "BertForMaskedLM, released model: none" in output
    assert gf.load_model(tmp_path / "checkpoint").vocabulary.hash == vocabulary.hash
    status, output, _ = convert(monkeypatch, capsys, tmp_path / "checkpoint", tmp_path / "back")
    assert status == 0
    weights = sum(value.size for value in tensors().values())
    assert f"wrote {weights:,} weights as BertForMaskedLM" in output
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(np.array_equal(back[name], value) for name, value in tensors().items())
    # What this package wrote needs no --vocabulary.
    status, _, _ = convert(monkeypatch, capsys, tmp_path / "back", tmp_path / "again")
    assert status == 0


def test_a_model_without_a_vocabulary_is_a_one_line_error(tmp_path, monkeypatch, capsys):
    source = write_folder(tmp_path / "hf")
    status, _, error = convert(monkeypatch, capsys, source, tmp_path / "checkpoint")
    assert status == 1
    assert_one_line(error)
    assert "--vocabulary must be given" in error


def test_a_folder_that_is_nothing_known_is_a_one_line_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    status, _, error = convert(monkeypatch, capsys, tmp_path / "empty", tmp_path / "out")
    assert status == 1
    assert_one_line(error)
    assert "a checkpoint; check the path" in error


@pytest.mark.reference_data
@pytest.mark.parametrize(("model", "other"), [("v1_tiny", "v2_gc104M"), ("v2_tiny", "v1_gc30M")])
def test_dictionaries_of_the_other_version_are_one_line_errors(
    tmp_path, monkeypatch, capsys, reference_dir, data_dir, model, other
):
    status, _, error = convert(
        monkeypatch,
        capsys,
        reference_dir / "models" / model,
        tmp_path / "checkpoint",
        f"--vocabulary={data_dir / 'dictionaries' / other}",
    )
    assert status == 1
    assert_one_line(error)
    assert "25,426" in error and "(V1)" in error and "20,275" in error and "(V2)" in error
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.reference_data
def test_v1_weights_with_v2_tokens_are_one_line_errors(tmp_path, reference_dir, data_dir):
    import anndata as ad

    dictionaries = data_dir / "dictionaries"
    v1 = read_original_vocabulary(dictionaries / "v1_gc30M")
    v2 = read_original_vocabulary(dictionaries / "v2_gc104M")
    source = reference_dir / "models" / "v1_tiny"
    counts = ad.AnnData(np.ones((1, 2), np.int32))
    counts.var_names = v2.gene_ids[[3, 5]]
    store = tmp_path / "store"
    from geneformer_jax.embedding.api import embed_cells
    from geneformer_jax.inference.cells import open_cells
    from tests.helpers.toy import make_store

    make_store(store, counts, v2)
    model = gf.load_model(source, v1)
    with pytest.raises(InputError, match="tokenised with vocabulary") as raised:
        embed_cells(model, open_cells(store, model), hidden_layer=0)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="25,426 tokens"):
        gf.load_model(source, v2)


CHILD = """
import re, sys
import jax
jax.devices()
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.interop.huggingface import export_model, import_model
import numpy as np
source, target, genes = sys.argv[1:]
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
before = peak()
if genes == "0":
    export_model(source, target)
else:
    ids = np.array([f"G{i:06d}" for i in range(int(genes))])
    vocabulary = GeneVocabulary(ids, np.full(int(genes), ""), np.ones(int(genes)))
    import_model(source, target, vocabulary)
print(before, peak())
"""


def growth(source: Path, target: Path, genes: int) -> int:
    """Bytes by which a process grows at most while it converts."""
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, source, target, str(genes)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = map(int, done.stdout.split()[-2:])
    return after - before


def large_folder(folder: Path, layers: int, width: int, vocabulary: int) -> Path:
    """A model of random weights, written with transformers' names."""
    from safetensors.numpy import save_file

    from geneformer_jax.interop.weights.bert_layout import places, write_settings
    from geneformer_jax.model.config import EncoderConfig

    config = EncoderConfig(vocabulary, layers, width, width // 64, 4 * width, 2048)
    rng = np.random.default_rng(0)
    weights = {
        place.name: rng.standard_normal(place.shape, np.float32) for place in places(config, None)
    }
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(write_settings(config, None)))
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory in /proc")
def test_converting_takes_little_more_memory_than_the_weights(tmp_path):
    source = large_folder(tmp_path / "hf", layers=12, width=512, vocabulary=20_002)
    size = (source / huggingface.WEIGHT_FILES[0]).stat().st_size
    assert size > 180 << 20
    taken = growth(source, tmp_path / "checkpoint", 20_000)
    assert size < taken < 2 * size
    taken = growth(tmp_path / "checkpoint", tmp_path / "back", 0)
    # Loading them, and a copy of the matrices, which are stored the other way round there.
    assert size < taken < 3.5 * size
    back = load_file(tmp_path / "back" / "model.safetensors")
    for name, value in load_file(source / "model.safetensors").items():
        np.testing.assert_array_equal(back[name], value)
