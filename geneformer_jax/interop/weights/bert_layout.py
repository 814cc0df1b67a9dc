"""How BERT's tensors and settings are named in Hugging Face files, and where they stand in ours.

One table serves both directions: reading and writing cannot drift apart.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from geneformer_jax.common.errors import InputError
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.heads import HeadConfig

BARE = "BertModel"
ARCHITECTURES = {
    BARE: None,
    "BertForMaskedLM": None,
    "BertForSequenceClassification": "cell_classifier",
    "BertForTokenClassification": "gene_classifier",
}
WORD_EMBEDDING = "bert.embeddings.word_embeddings.weight"
# A second name of the same weights: BERT's decoder is its word embedding.
TIED = {
    WORD_EMBEDDING: "cls.predictions.decoder.weight",
    "cls.predictions.bias": "cls.predictions.decoder.bias",
}
# Of all encoder tensors in the other classes; BertModel saves them without.
ENCODER_PREFIX = "bert."
# What may lie in a file and changes nothing: positions are always 0, 1, 2..., token types always 0,
# and only a cell classifier has a use for the pooler.
POSITION_IDS = "bert.embeddings.position_ids"
UNUSED = (
    POSITION_IDS,
    "bert.embeddings.token_type_ids",
    "bert.pooler.dense.weight",
    "bert.pooler.dense.bias",
)

# Attribute of EncoderConfig -> setting, with BERT's default where it has one.
_SIZES = {
    "vocabulary_size": "vocab_size",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
    "positions": "max_position_embeddings",
}
_OPTIONAL = {
    "dropout": ("hidden_dropout_prob", 0.1),
    "attention_dropout": ("attention_probs_dropout_prob", 0.1),
    "initializer_range": ("initializer_range", 0.02),
    "layer_norm_eps": ("layer_norm_eps", 1e-12),
    "pad_token": ("pad_token_id", 0),
    "token_types": ("type_vocab_size", 2),
}
# Setting -> (the one value whose mathematics is implemented here, what BERT takes without it).
_IMPLEMENTED = {
    "model_type": ("bert", None),
    "hidden_act": ("relu", "gelu"),
    "position_embedding_type": ("absolute", "absolute"),
    "is_decoder": (False, False),
    "is_encoder_decoder": (False, False),
    "add_cross_attention": (False, False),
    "pruned_heads": ({}, {}),
}


class Place(NamedTuple):
    """One tensor of BERT's and where it stands in our weights.

    Attributes:
      name: in a Hugging Face file.
      shape: there; matrices are [out, in].
      path: of the leaf in our weights.
      layer: row of the leaf, None for leaves that are not stacked.
      transposed: whether our leaf is the matrix the other way round.
    """

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    layer: int | None = None
    transposed: bool = False

    def put(self, value: np.ndarray, leaf: np.ndarray) -> None:
        """Writes BERT's tensor into its place in the leaf."""
        part = leaf if self.layer is None else leaf[self.layer]
        part[...] = self.as_ours(value, part.shape)

    def as_ours(self, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Returns BERT's tensor as a leaf, or a row of one, of the shape has it."""
        return (value.T if self.transposed else value).reshape(shape)

    def take(self, leaf: np.ndarray) -> np.ndarray:
        """Returns BERT's tensor out of the leaf."""
        part = leaf if self.layer is None else leaf[self.layer]
        return part.reshape(self.shape[::-1]).T if self.transposed else part.reshape(self.shape)


def architecture_of(head: HeadConfig | None, bare: bool = False) -> str:
    """Returns the name of BERT's class with this head, or without any; InputError if none is."""
    if bare:
        return BARE
    if head is not None and not head.as_original:
        raise InputError(
            f"BERT has no class for this head ({head.kind}, pooling {head.pooling}, extra layer "
            f"{head.extra_layer}, targets {len(head.outputs)}), so it cannot become a Hugging Face "
            "model; fine-tune with the original's head for that"
        )
    kinds = {kind: name for name, kind in ARCHITECTURES.items() if name != BARE}
    return kinds[None if head is None else head.kind]


def places(config: EncoderConfig, head: HeadConfig | None, bare: bool = False) -> list[Place]:
    """Returns every tensor of a model, those of one leaf one after another.

    Args:
      config: shape of the encoder.
      head: a classification head; None for the masked-gene head.
      bare: whether there is no head at all.
    """
    D = config.width
    found = [
        *_tables(config),
        *_norm("bert.embeddings.LayerNorm", D, ("embeddings", "norm")),
        *_blocks(config),
    ]
    if bare:
        return found
    if head is None:
        transform = "cls.predictions.transform"
        ours = "masked_gene_head"
        found += _dense(f"{transform}.dense", (D, D), (ours, "transform"))
        found += _norm(f"{transform}.LayerNorm", D, (ours, "norm"))
        found.append(Place("cls.predictions.bias", (config.vocabulary_size,), (ours, "bias")))
    else:
        if head.kind == "cell_classifier":
            found += _dense("bert.pooler.dense", (D, D), (head.kind, "pooler"))
        found += _dense("classifier", (len(head.labels), D), (head.kind, "classifier"))
    return found


def _tables(config: EncoderConfig) -> list[Place]:
    rows = {
        "word": config.vocabulary_size,
        "position": config.positions,
        "token_type": config.token_types,
    }
    return [
        Place(
            f"bert.embeddings.{kind}_embeddings.weight",
            (size, config.width),
            ("embeddings", kind, "embedding"),
        )
        for kind, size in rows.items()
    ]


def _blocks(config: EncoderConfig) -> list[Place]:
    D, F = config.width, config.feed_forward
    parts = {
        "query": ("attention.self.query", (D, D)),
        "key": ("attention.self.key", (D, D)),
        "value": ("attention.self.value", (D, D)),
        "attention_output": ("attention.output.dense", (D, D)),
        "up": ("intermediate.dense", (F, D)),
        "down": ("output.dense", (D, F)),
    }
    norms = {"attention_norm": "attention.output.LayerNorm", "output_norm": "output.LayerNorm"}
    found = []
    for i in range(config.layers):
        layer = f"bert.encoder.layer.{i}."
        for ours, (name, shape) in parts.items():
            found += _dense(layer + name, shape, ("blocks", ours), i)
        for ours, name in norms.items():
            found += _norm(layer + name, D, ("blocks", ours), i)
    return sorted(found, key=lambda place: (place.path, place.layer))


def _dense(
    name: str, shape: tuple[int, int], path: tuple[str, ...], layer: int | None = None
) -> list[Place]:
    return [
        Place(f"{name}.weight", shape, (*path, "kernel"), layer, transposed=True),
        Place(f"{name}.bias", shape[:1], (*path, "bias"), layer),
    ]


def _norm(name: str, width: int, path: tuple[str, ...], layer: int | None = None) -> list[Place]:
    return [
        Place(f"{name}.weight", (width,), (*path, "scale"), layer),
        Place(f"{name}.bias", (width,), (*path, "bias"), layer),
    ]


def read_settings(
    content: Mapping[str, Any], where: str
) -> tuple[EncoderConfig, HeadConfig | None, bool]:
    """Reads the content of a config.json.

    Args:
      content: of the file, a JSON object.
      where: the file, for messages.

    Returns:
      Shape of the encoder, classification head (None for the masked-gene head), whether there is no
      head at all.

    Raises:
      InputError: it is of another model, or asks for what is not implemented.
    """
    architecture = _architecture(content, where)
    kind = ARCHITECTURES[architecture]
    if content.get("quantization_config") is not None:
        raise InputError(
            f"{where} is of weights in 8 or 4 bits; load the model in floats with transformers and "
            "save it again"
        )
    for name, (implemented, default) in _IMPLEMENTED.items():
        if (value := content.get(name, default)) != implemented:
            raise InputError(
                f'{where} has {name} "{value}", but only "{implemented}", as in every published '
                "Geneformer, is implemented; convert such a model"
            )
    settings = {ours: _number(content, name, int, where) for ours, name in _SIZES.items()}
    for ours, (name, default) in _OPTIONAL.items():
        settings[ours] = _number({name: default} | dict(content), name, type(default), where)
    config = EncoderConfig(**settings)
    if kind is None:
        return config, None, architecture == BARE
    dropout = _head_dropout(content, config, where)
    return config, HeadConfig(kind, _labels(content, where), dropout), False


def _architecture(content: Mapping[str, Any], where: str) -> str:
    names = content.get("architectures")
    # Whatever a file holds there, which need not be a text.
    known = [each for each in ARCHITECTURES if [each] == names]
    if known:
        return known[0]
    raise InputError(
        f"{where} has architectures {names}; it must name one of {', '.join(ARCHITECTURES)}"
    )


def _number(content: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    value = content.get(name)
    right = (int, float) if kind is float else (int,)
    if type(value) not in right:
        raise InputError(
            f"{where} has {name} {value!r}; it must be {'a' if kind is float else 'a whole'} number"
        )
    return kind(value)


def _head_dropout(content: Mapping[str, Any], config: EncoderConfig, where: str) -> float:
    if content.get("classifier_dropout") is None:
        return config.dropout
    return _number(content, "classifier_dropout", float, where)


def _labels(content: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Names of the classes; without any, transformers takes two classes LABEL_0 and LABEL_1."""
    names = content.get("id2label")
    if names is None:
        count = _number({"num_labels": 2} | dict(content), "num_labels", int, where)
        names = {i: f"LABEL_{i}" for i in range(count)}
    try:
        by_number = {int(number): str(label) for number, label in names.items()}
    except (AttributeError, TypeError, ValueError):
        by_number = {}
    if not by_number or sorted(by_number) != list(range(len(by_number))):
        raise InputError(f"{where} has id2label {names}; it must number the classes 0, 1, 2...")
    return tuple(by_number[number] for number in sorted(by_number))


def write_settings(
    config: EncoderConfig, head: HeadConfig | None, bare: bool = False
) -> dict[str, Any]:
    """Returns the content of a config.json that transformers reads."""
    content: dict[str, Any] = {
        "architectures": [architecture_of(head, bare)],
        "model_type": "bert",
        "hidden_act": "relu",
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    content |= {name: getattr(config, ours) for ours, name in _SIZES.items()}
    content |= {name: getattr(config, ours) for ours, (name, _) in _OPTIONAL.items()}
    if head is not None:
        content["classifier_dropout"] = head.dropout
        content["id2label"] = {str(i): label for i, label in enumerate(head.labels)}
        content["label2id"] = {label: i for i, label in enumerate(head.labels)}
    return content
