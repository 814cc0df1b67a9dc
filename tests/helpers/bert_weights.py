"""Weights of a reference model in our layout."""

import json
from pathlib import Path

import jax
import numpy as np

from geneformer_jax.model.config import EncoderConfig


def bert_weights(folder: Path) -> tuple[EncoderConfig, dict]:
    """Reads BERT's weights one by one: slow, obvious, and not the package's own way."""
    from safetensors.numpy import load_file

    settings = json.loads((folder / "config.json").read_text())
    names = ("vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads")
    names = (*names, "intermediate_size", "max_position_embeddings")
    config = EncoderConfig(*(settings[name] for name in names))
    weights = load_file(folder / "model.safetensors")
    D, N, H = config.width, config.heads, config.head_size

    def dense(name: str, kernel: tuple[int, ...] = (), bias: tuple[int, ...] = ()) -> dict:
        matrix = weights[f"{name}.weight"].T
        return {
            "kernel": matrix.reshape(kernel or matrix.shape),
            "bias": weights[f"{name}.bias"].reshape(bias or (-1,)),
        }

    def norm(name: str) -> dict:
        return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    def block(i: int) -> dict:
        layer = f"bert.encoder.layer.{i}"
        heads = {"kernel": (D, N, H), "bias": (N, H)}
        return {
            "query": dense(f"{layer}.attention.self.query", **heads),
            "key": dense(f"{layer}.attention.self.key", **heads),
            "value": dense(f"{layer}.attention.self.value", **heads),
            "attention_output": dense(f"{layer}.attention.output.dense", kernel=(N, H, D)),
            "attention_norm": norm(f"{layer}.attention.output.LayerNorm"),
            "up": dense(f"{layer}.intermediate.dense"),
            "down": dense(f"{layer}.output.dense"),
            "output_norm": norm(f"{layer}.output.LayerNorm"),
        }

    blocks = [block(i) for i in range(config.layers)]
    tables = {
        kind: {"embedding": weights[f"bert.embeddings.{kind}_embeddings.weight"]}
        for kind in ("word", "position", "token_type")
    }
    return config, {
        "embeddings": tables | {"norm": norm("bert.embeddings.LayerNorm")},
        "blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks),
        "masked_gene_head": {
            "transform": dense("cls.predictions.transform.dense"),
            "norm": norm("cls.predictions.transform.LayerNorm"),
            "bias": weights["cls.predictions.bias"],
        },
    }
