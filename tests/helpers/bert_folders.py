"""Small models in the files of Hugging Face, made without our own writer, and how they are read."""

import json
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from geneformer_jax.common.errors import InputError
from geneformer_jax.interop import huggingface

V, D, N, F, L, T = 152, 16, 2, 24, 2, 12
CLASSES = {"BertForSequenceClassification": 3, "BertForTokenClassification": 2}
WORD = "bert.embeddings.word_embeddings.weight"


def settings(architecture: str = "BertForMaskedLM", **changes) -> dict:
    content = {
        "architectures": [architecture],
        "model_type": "bert",
        "hidden_act": "relu",
        "vocab_size": V,
        "num_hidden_layers": L,
        "hidden_size": D,
        "num_attention_heads": N,
        "intermediate_size": F,
        "max_position_embeddings": T,
        "type_vocab_size": 2,
        "hidden_dropout_prob": 0.02,
        "attention_probs_dropout_prob": 0.02,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    if architecture == "BertForSequenceClassification":
        content["id2label"] = {"0": "healthy", "1": "dilated", "2": "hypertrophic"}
    return content | changes


def tensors(architecture: str = "BertForMaskedLM", seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights, each name and shape written out as BERT has them."""
    shapes = {
        "bert.embeddings.word_embeddings.weight": (V, D),
        "bert.embeddings.position_embeddings.weight": (T, D),
        "bert.embeddings.token_type_embeddings.weight": (2, D),
        "bert.embeddings.LayerNorm.weight": (D,),
        "bert.embeddings.LayerNorm.bias": (D,),
    }
    for i in range(L):
        layer = f"bert.encoder.layer.{i}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{layer}.attention.{part}.weight"] = (D, D)
            shapes[f"{layer}.attention.{part}.bias"] = (D,)
        shapes[f"{layer}.intermediate.dense.weight"] = (F, D)
        shapes[f"{layer}.intermediate.dense.bias"] = (F,)
        shapes[f"{layer}.output.dense.weight"] = (D, F)
        shapes[f"{layer}.output.dense.bias"] = (D,)
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{layer}.{norm}.weight"] = (D,)
            shapes[f"{layer}.{norm}.bias"] = (D,)
    if architecture == "BertForMaskedLM":
        shapes["cls.predictions.bias"] = (V,)
        shapes["cls.predictions.transform.dense.weight"] = (D, D)
        shapes["cls.predictions.transform.dense.bias"] = (D,)
        shapes["cls.predictions.transform.LayerNorm.weight"] = (D,)
        shapes["cls.predictions.transform.LayerNorm.bias"] = (D,)
    else:
        shapes["classifier.weight"] = (CLASSES[architecture], D)
        shapes["classifier.bias"] = (CLASSES[architecture],)
    if architecture == "BertForSequenceClassification":
        shapes["bert.pooler.dense.weight"] = (D, D)
        shapes["bert.pooler.dense.bias"] = (D,)
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


def write_folder(
    folder: Path,
    weights: dict[str, np.ndarray] | None = None,
    architecture: str = "BertForMaskedLM",
    **changes,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings(architecture, **changes)))
    weights = tensors(architecture) if weights is None else weights
    save_file(weights, folder / "model.safetensors")
    return folder


def write_torch_file(path: Path, weights: dict[str, np.ndarray], **lies) -> Path:
    """Writes float32 tensors as PyTorch does, without PyTorch.

    `lies` change what the pickle records of every tensor: storage (a global), size, offset, shape,
    strides.
    """
    entries = b"".join(_torch_entry(i, *item, lies) for i, item in enumerate(weights.items()))
    ordered = b"ccollections\nOrderedDict\n(tR"
    content = b"\x80\x02" + ordered + b"(" + entries + b"u}V_metadata\n}sb."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        for i, value in enumerate(weights.values()):
            archive.writestr(f"archive/data/{i}", np.ascontiguousarray(value).tobytes())
        archive.writestr("archive/version", "3\n")
    return path


def _torch_entry(i: int, name: str, value: np.ndarray, lies: dict) -> bytes:
    strides = [stride // value.itemsize for stride in np.ascontiguousarray(value).strides]
    content = {
        "storage": "torch\nFloatStorage",
        "size": value.size,
        "offset": 0,
        "shape": value.shape,
        "strides": strides,
    }
    content |= lies

    def numbers(values) -> str:
        return "(" + "".join(f"I{number}\n" for number in values) + "t"

    storage = f"(Vstorage\nc{content['storage']}\nV{i}\nVcpu\nI{content['size']}\ntQ"
    place = f"I{content['offset']}\n" + numbers(content["shape"]) + numbers(content["strides"])
    hooks = "ccollections\nOrderedDict\n(tR"
    build = "ctorch._utils\n_rebuild_tensor_v2\n"
    return f"V{name}\n{build}({storage}{place}I00\n{hooks}tR".encode()


def read(folder):
    return huggingface.read_model(folder).model


def refusal(folder) -> str:
    """Returns the one-line error of reading a folder."""
    with pytest.raises(InputError) as raised:
        huggingface.read_model(folder)
    message = str(raised.value)
    assert "\n" not in message
    return message


def equal_params(one, other) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))
