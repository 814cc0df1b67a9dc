"""Models by name: local folders first, then the hub, and what is said when there is neither."""

import shutil
import typing

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors

import geneformer_jax as gf
from geneformer_jax.common.errors import InputError
from geneformer_jax.model.pretrained import save_model
from tests.helpers.bert_folders import tensors, write_folder, write_torch_file
from tests.helpers.toy import toy_model

TRANSPORT_ERROR = errors.HfHubHTTPError.__bases__[0]


class NotFound:
    """As much of an answer of the hub as its client's errors look at."""

    headers: typing.ClassVar = {}
    request = None


def refusal(name) -> str:
    with pytest.raises(InputError) as raised:
        gf.load_model(name)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Stands in for the hub's client: a folder per repository; notes what was asked for."""
    asked = []

    def download(name, *, allow_patterns):
        asked.append((name, allow_patterns))
        target = tmp_path / f"cache{len(asked)}"
        target.mkdir()
        for file in sorted((tmp_path / "hub" / name).rglob("*")):
            relative = file.relative_to(tmp_path / "hub" / name)
            if any(relative.match(pattern) for pattern in allow_patterns):
                (target / relative).parent.mkdir(exist_ok=True)
                shutil.copy(file, target / relative)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub", asked


def word_embedding(model) -> np.ndarray:
    return np.asarray(model.params["embeddings"]["word"]["embedding"])


def test_a_checkpoint_whose_description_is_nested_too_deeply(tmp_path):
    folder = save_model(toy_model(), tmp_path / "model", {})
    (folder / "_CHECKPOINT_METADATA").write_text('{"a":' * 10_000 + "1" + "}" * 10_000)
    assert "cannot be read (RecursionError" in refusal(str(folder))


def test_no_checkpoint_is_written_where_it_could_not_be_read(tmp_path):
    for name in ("lab [1]/model", "a\\b/model"):
        with pytest.raises(InputError, match="brackets or a backslash in its name"):
            save_model(toy_model(), tmp_path / name, {})
        assert not list(tmp_path.iterdir())
    for name in ("lab {1} *?#%20|&$~'", "half [", "line\nbreak"):
        written = save_model(toy_model(), tmp_path / name, {})
        assert gf.load_model(str(written)).step == 0


def test_a_name_is_fetched_from_the_hub(hub):
    folder, asked = hub
    write_folder(folder / "org" / "name")
    expected = tensors()["bert.embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(word_embedding(gf.load_model("org/name")), expected)
    assert [name for name, _ in asked] == ["org/name"]
    write_folder(folder / "org" / "several" / "V1-10M", tensors(seed=1))
    got = word_embedding(gf.load_model("org/several/V1-10M"))
    expected = tensors(seed=1)["bert.embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(got, expected)


def test_pytorch_files_are_fetched_where_there_is_nothing_else(hub):
    folder, asked = hub
    (write_folder(folder / "org" / "old") / "model.safetensors").unlink()
    write_torch_file(folder / "org" / "old" / "pytorch_model.bin", tensors())
    expected = tensors()["bert.embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(word_embedding(gf.load_model("org/old")), expected)
    assert len(asked) == 2


def test_a_repository_without_weights_is_an_error(hub):
    folder, _ = hub
    (folder / "org" / "data").mkdir(parents=True)
    assert "holds no weights" in refusal("org/data")


def test_a_local_folder_goes_before_the_hub(hub, tmp_path):
    _, asked = hub
    write_folder(tmp_path / "org" / "name")
    assert gf.load_model("org/name").source == "org/name"
    assert asked == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.LocalEntryNotFoundError("Got: ConnectError\nmore"), "no network"),
        (errors.OfflineModeIsEnabled("offline mode is enabled"), "no network"),
        (TRANSPORT_ERROR("[Errno -2] Name or service not known"), "no network"),
        (TimeoutError("timed out"), "no network"),
        (
            errors.RepositoryNotFoundError(
                "404 Client Error\n\nRepository Not Found",
                response=NotFound(),
            ),
            'does not give "org/name" (404 Client Error); check the name',
        ),
        (errors.HFValidationError("Repo id must"), "check the name"),
    ],
)
def test_what_the_hub_does_not_give_is_a_one_line_error(monkeypatch, tmp_path, error, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.chdir(tmp_path)
    message = refusal("org/name")
    assert words in message
    assert "--source=DIRECTORY" in message
    assert "there is no folder org/name" in message


def test_without_the_hubs_client_its_install_command_is_named(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    assert 'pip install "geneformer_jax[huggingface]"' in refusal("org/name")


@pytest.mark.parametrize("name", ["none", "/no/such/folder", "../org/name", "a/b/c/d", "org/na me"])
def test_what_is_no_hub_name_is_a_folder_that_is_not_there(hub, name):
    _, asked = hub
    assert "no checkpoint at" in refusal(name)
    assert asked == []
