"""Files of Hugging Face directories: every format is read, what is damaged or lies is refused."""

import errno
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from geneformer_jax.common.errors import InputError
from geneformer_jax.interop import huggingface
from geneformer_jax.interop.weights import safetensors
from geneformer_jax.interop.weights.safetensors import list_tensors, write_tensors
from tests.helpers.bert_folders import (
    WORD,
    D,
    equal_params,
    read,
    refusal,
    tensors,
    write_folder,
    write_torch_file,
)


def test_weights_in_parts_equal_the_whole(tmp_path):
    whole = read(write_folder(tmp_path / "whole"))
    for ending, write in (("safetensors", save_file), ("bin", None)):
        folder = write_folder(tmp_path / ending)
        (folder / "model.safetensors").unlink()
        names = sorted(tensors())
        places = {}
        for part, chosen in enumerate((names[::2], names[1::2])):
            file = f"model-{part}.{ending}"
            values = {name: tensors()[name] for name in chosen}
            write(values, folder / file) if write else write_torch_file(folder / file, values)
            places |= dict.fromkeys(chosen, file)
        stem = "model.safetensors" if ending == "safetensors" else "pytorch_model.bin"
        index = folder / f"{stem}.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
        assert equal_params(read(folder).params, whole.params)


def test_a_pytorch_file_equals_safetensors(tmp_path):
    whole = read(write_folder(tmp_path / "whole"))
    folder = write_folder(tmp_path / "bin")
    (folder / "model.safetensors").unlink()
    write_torch_file(folder / "pytorch_model.bin", tensors())
    assert equal_params(read(folder).params, whole.params)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_become_float32(tmp_path, kind):
    folder = write_folder(tmp_path / "hf")
    short = {name: value.astype(kind) for name, value in tensors().items()}
    save_file_of_any_type(folder / "model.safetensors", short)
    got = np.asarray(read(folder).params["embeddings"]["word"]["embedding"])
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, short[WORD].astype(np.float32))


def save_file_of_any_type(path, values):
    """Writes safetensors by hand: the library writes no bfloat16 from numpy."""
    codes = {"float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64"}
    header, data = {}, b""
    for name, value in values.items():
        start, data = len(data), data + value.tobytes()
        header[name] = {
            "dtype": codes[value.dtype.name],
            "shape": value.shape,
            "data_offsets": [start, len(data)],
        }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_arrays_of_any_strides_are_written_as_they_read(tmp_path):
    grid = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays = {
        "whole": grid,
        "transposed": grid.T,
        "stepped": grid[::2, 1::3],
        "reversed": grid[::-1],
        "column": grid[:, 2],
        "repeated": np.broadcast_to(grid[0], (3, 6)),
        "fortran": np.asfortranarray(grid),
        "float64": grid[1:].T.astype(np.float64) / 3,
        "big_endian": grid.astype(">f4"),
        "number": np.float32(7).reshape(()),
    }
    path = tmp_path / "model.safetensors"
    write_tensors(path, arrays)
    theirs, ours = load_file(path), list_tensors(path)
    assert set(theirs) == set(ours) == set(arrays)
    for name, array in arrays.items():
        for found in (theirs[name], ours[name].read()):
            assert found.dtype == np.float32
            assert found.shape == array.shape
            np.testing.assert_array_equal(found, array.astype(np.float32), err_msg=name)


def test_written_weights_have_the_permissions_of_other_files(tmp_path):
    (tmp_path / "other").touch()
    write_tensors(tmp_path / "model.safetensors", {"a": np.ones(3, np.float32)})
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_weights_are_written_where_files_have_no_permissions(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    write_tensors(tmp_path / "model.safetensors", {"a": np.ones(3, np.float32)})
    assert load_file(tmp_path / "model.safetensors")["a"].tolist() == [1.0] * 3


def test_a_failed_write_is_an_error_of_the_system(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors, "save_file", full)
    with pytest.raises(OSError) as caught:
        write_tensors(tmp_path / "model.safetensors", {"a": np.ones(3, np.float32)})
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", None, "is missing"),
        ("config.json", b"{", "is no JSON"),
        ("config.json", b"[1]", "no JSON object"),
        ("model.safetensors", None, "holds no weights"),
        ("model.safetensors", "folder", "holds no weights"),
        ("pytorch_model.bin", "folder", "holds no weights"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("model.safetensors", b"\x00" * 20, "no whole safetensors file"),
        ("model.safetensors", "half", "no whole safetensors file"),
        ("pytorch_model.bin", b"\x80\x02}q\x00.", "no file of PyTorch 1.6"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../b.safetensors"}}', "beside it"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "b.safetensors"}}', "not there"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 3}}', "beside it"),
        ("model.safetensors.index.json", b'{"weight_map": {}}', "beside it"),
    ],
)
def test_missing_and_damaged_files_are_one_line_errors(tmp_path, file, content, words):
    folder = write_folder(tmp_path / "hf")
    whole = (folder / "model.safetensors").read_bytes()
    if file != "config.json":
        (folder / "model.safetensors").unlink()
    if content is None:
        (folder / file).unlink(missing_ok=True)
    elif content == "folder":
        (folder / file).mkdir()
    else:
        (folder / file).write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    assert words in refusal(folder)


@pytest.mark.parametrize(
    ("lies", "words"),
    [
        ({"storage": "os\nsystem"}, "asks for os.system"),
        ({"storage": "torch.nn.modules\nLinear"}, "asks for torch.nn.modules.Linear"),
        ({"storage": "collections\nOrderedDict"}, "no readable pickle"),
        ({"offset": 1}, "beyond its storage"),
        ({"offset": -1}, "no known way"),
        ({"strides": (10**12, 10**12)}, "no readable pickle"),
        ({"size": 10**6}, "bytes, not"),
        ({"size": -5}, "no readable pickle"),
    ],
)
def test_pytorch_files_that_lie_are_refused(tmp_path, lies, words):
    folder = write_folder(tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    write_torch_file(folder / "pytorch_model.bin", tensors(), **lies)
    assert words in refusal(folder)


def test_damaged_pytorch_files_are_one_line_errors(tmp_path):
    folder = write_folder(tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    file = write_torch_file(folder / "pytorch_model.bin", tensors())
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        # The pickle at the start and the list of members at the end are where damage misleads.
        for at in rng.integers(0, 8_000, 3) - rng.choice([0, 8_000]):
            damaged[at] = rng.integers(256)
        file.write_bytes(damaged if rng.random() < 0.8 else damaged[: rng.integers(len(whole))])
        try:
            huggingface.read_model(folder)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 100


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
def test_pytorchs_own_files_are_read(tmp_path, torch, kind):
    folder = write_folder(tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    weights = {
        name: torch.from_numpy(value).to(getattr(torch, kind)) for name, value in tensors().items()
    }
    # A view of a larger storage, a transposed matrix, a parameter and a shared storage.
    name = "bert.encoder.layer.0.output.dense.weight"
    weights[name] = weights[name].T.contiguous().T
    name = "bert.encoder.layer.0.output.dense.bias"
    weights[name] = torch.cat([weights[name], weights[name]])[D:]
    weights["bert.embeddings.LayerNorm.bias"] = torch.nn.Parameter(
        weights["bert.embeddings.LayerNorm.bias"]
    )
    weights["cls.predictions.decoder.weight"] = weights[WORD]
    torch.save(weights, folder / "pytorch_model.bin")
    expected = {name: value.detach().float().numpy() for name, value in weights.items()}
    plain = read(write_folder(tmp_path / "plain", {k: v.copy() for k, v in expected.items()}))
    assert equal_params(read(folder).params, plain.params)


@pytest.mark.parity
def test_an_old_pytorch_file_is_refused(tmp_path, torch):
    folder = write_folder(tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    torch.save(
        {"a": torch.ones(2)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    assert "save the model again" in refusal(folder)
