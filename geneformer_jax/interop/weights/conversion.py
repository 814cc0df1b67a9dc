"""BERT's tensors as our weights and back: each is used, reported as unused, or an error."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from geneformer_jax.common.errors import InputError
from geneformer_jax.interop.weights.bert_layout import (
    ENCODER_PREFIX,
    POSITION_IDS,
    TIED,
    UNUSED,
    WORD_EMBEDDING,
    Place,
    places,
)
from geneformer_jax.interop.weights.stored_tensor import FLOAT_TYPES, StoredTensor
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Params
from geneformer_jax.model.heads import HeadConfig
from geneformer_jax.model.pretrained import StackedArray, abstract_weights

_MAX_NAMES = 4
# What wrappers put in front of every name: data parallelism, and compiling.
_WRAPPERS = ("module.", "_orig_mod.")
_OLD_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class MatchedTensors(NamedTuple):
    """What a file's tensors are for.

    Attributes:
      used: each place with the tensor that fills it, in the order of `places`.
      ignored: names of tensors that change nothing.
    """

    used: list[tuple[Place, StoredTensor]]
    ignored: list[str]


def match_tensors(
    tensors: Mapping[str, StoredTensor],
    config: EncoderConfig,
    head: HeadConfig | None,
    where: str,
    bare: bool = False,
) -> MatchedTensors:
    """Finds the tensor for each of a model's weights; reads only those that must equal others.

    Norms may have their old names gamma and beta, all names what DistributedDataParallel and
    torch.compile put in front, and the decoder may be there or not; where it is, it must equal the
    word embedding.

    Args:
      tensors: of a file, by name.
      config: shape of the model.
      head: its classification head, None for the masked-gene head.
      where: the folder, for messages.
      bare: whether it has no head at all.

    Raises:
      InputError: naming all tensors that are missing, unexpected, of another shape, no floats, or
        different from what they must equal.
    """
    if config.layers > len(tensors):
        raise InputError(
            f"config.json in {where} has {config.layers:,} layers, but the weights are only "
            f"{len(tensors):,} tensors; get both of one model"
        )
    named = _with_new_names(tensors, where)
    tied = TIED if head is None and not bare else {}
    used, missing, wrong = [], [], []
    for place in places(config, head, bare):
        names = [name for name in (place.name, tied.get(place.name)) if name in named]
        wrong += [
            f"{name} {problem}" for name in names if (problem := _misfit(named[name], place.shape))
        ]
        if names:
            used.append((place, named[names[0]]))
        else:
            missing.append(place.name)
    wanted = {place.name for place, _ in used}
    wanted |= {tied[name] for name in wanted & set(tied)}
    ignored = sorted(set(named) & set(UNUSED) - wanted)
    unexpected = sorted(set(named) - wanted - set(ignored))
    _report({"missing": missing, "unexpected": unexpected, "wrong": wrong}, where)
    _check_copies(named, tied, where)
    _check_positions(named, config, where)
    return MatchedTensors(used, ignored)


def read_arrays(
    matched: MatchedTensors,
    config: EncoderConfig,
    head: HeadConfig | None,
    where: str,
    bare: bool = False,
) -> Iterator[StackedArray]:
    """Yields the weights of a model, sorted by their paths, as float32 tensors one after another.

    Raises:
      InputError: a tensor cannot be read, or holds NaN or infinite values.
    """
    shapes = abstract_weights(config, head, bare)
    used = sorted(matched.used, key=lambda pair: (pair[0].path, pair[0].layer or 0))
    for path, of_leaf in itertools.groupby(used, key=lambda pair: pair[0].path):
        shape = leaf_at(shapes, path).shape
        yield StackedArray(path, shape, _parts(of_leaf, shape, where))


def _parts(
    of_leaf: Iterable[tuple[Place, StoredTensor]], shape: tuple[int, ...], where: str
) -> Iterator[np.ndarray]:
    for place, tensor in of_leaf:
        value = tensor.read().astype(np.float32, copy=False)
        if not np.isfinite(value).all():
            raise InputError(
                f"{place.name} in {where} holds NaN or infinite values, with which no model "
                "computes; take an earlier save of it"
            )
        stacked = place.layer is not None
        yield place.as_ours(value, shape[1:])[None] if stacked else place.as_ours(value, shape)


def fill_params(arrays: Iterable[StackedArray]) -> Params:
    """Reads weights into float32 arrays on the default device; see `read_arrays`."""
    params = {}
    for array in arrays:
        # Rows of a stack may be read before the whole of it fits on a device: it is built here.
        leaf, filled = np.empty(array.shape, np.float32), 0
        for part in array.parts:
            leaf[filled : filled + len(part)] = part
            filled += len(part)
        params[array.path] = jnp.asarray(leaf)
    return traverse_util.unflatten_dict(params)


def bert_values(wanted: Iterable[Place], params: Params) -> dict[str, np.ndarray]:
    """Returns BERT's tensors by name, as views of our weights on the host."""
    values = {}
    for path, of_leaf in itertools.groupby(wanted, key=lambda place: place.path):
        leaf = np.asarray(leaf_at(params, path))
        values |= {place.name: place.take(leaf) for place in of_leaf}
    return values


def leaf_at(tree: Params, path: tuple[str, ...]):
    """Returns the leaf of a nested dict at a path."""
    for name in path:
        tree = tree[name]
    return tree


def _with_new_names(tensors: Mapping[str, StoredTensor], where: str) -> dict[str, StoredTensor]:
    """Returns the tensors under the names that BERT with a head gives them at present."""
    named = {}
    prefix = _prefix_of_all(tensors)
    without_head = f"{prefix}{WORD_EMBEDDING.removeprefix(ENCODER_PREFIX)}" in tensors
    for name, tensor in tensors.items():
        new = (ENCODER_PREFIX if without_head else "") + name.removeprefix(prefix)
        for old, now in _OLD_ENDINGS.items():
            new = new.removesuffix(old) + now if new.endswith(old) else new
        if new in named:
            raise InputError(f"{where} holds {new} under its old and its new name; remove one")
        named[new] = tensor
    return named


def _prefix_of_all(names: Iterable[str]) -> str:
    """Returns what wrappers put in front of all names, one around the other; "" if none did."""
    prefix, names = "", list(names)
    while wrapper := next((w for w in _WRAPPERS if _all_start(names, prefix + w)), ""):
        prefix += wrapper
    return prefix


def _all_start(names: list[str], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


def _misfit(tensor: StoredTensor, shape: tuple[int, ...]) -> str:
    """Describes what is wrong with a tensor; '' if nothing is."""
    if tensor.shape != shape:
        return f"is {list(tensor.shape)}, not {list(shape)}"
    if tensor.number_type not in FLOAT_TYPES:
        return f"holds {tensor.number_type}, not floats"
    return ""


def _report(problems: Mapping[str, list[str]], where: str) -> None:
    described = []
    for kind, names in problems.items():
        if names:
            more = len(names) - _MAX_NAMES
            listed = ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
            described.append(f"{len(names)} {kind} ({listed})")
    if described:
        raise InputError(
            f"the tensors in {where} do not fit its config.json: {'; '.join(described)}; get "
            "both of one model"
        )


def _check_copies(named: Mapping[str, StoredTensor], tied: Mapping[str, str], where: str) -> None:
    for name, copy in tied.items():
        if name in named and copy in named:
            one, other = named[name].read(), named[copy].read()
            if not np.array_equal(one, other):
                raise InputError(
                    f"{copy} in {where} differs from {name}: this decoder is not tied to the "
                    "embedding, as it is in every published Geneformer, and cannot be represented; "
                    "train it tied"
                )


def _check_positions(named: Mapping[str, StoredTensor], config: EncoderConfig, where: str) -> None:
    ids = named.get(POSITION_IDS)
    if ids is None:
        return
    if ids.shape != (1, config.positions) or (ids.read()[0] != np.arange(config.positions)).any():
        raise InputError(
            f"{POSITION_IDS} in {where} is not 0 to {config.positions - 1}, the only positions "
            "that are implemented; get config.json and weights of one model"
        )
