"""Low-rank adapters on disk: small folders that go on top of the weights they were trained with.

Those that fine-tuning writes are PEFT's files, which PEFT loads where BERT has a class for the
head, and beside them `adapter.json`: of which base, by the hash of its weights, with which head.
PEFT's own lack that; their head is known by the number of its classes.
"""

import dataclasses
import itertools
import json
import operator
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from geneformer_jax.common.config import fill
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write, require_new_folder
from geneformer_jax.common.log import logger
from geneformer_jax.common.provenance import write_provenance
from geneformer_jax.interop.weights import peft
from geneformer_jax.interop.weights.bert_layout import ENCODER_PREFIX, UNUSED, Place, places
from geneformer_jax.interop.weights.conversion import bert_values, leaf_at
from geneformer_jax.interop.weights.files import (
    is_huggingface_model,
    open_weights,
    read_json,
)
from geneformer_jax.interop.weights.peft import PeftAdapter
from geneformer_jax.model.config import EncoderConfig, LoraConfig
from geneformer_jax.model.encoder import Params
from geneformer_jax.model.heads import CELLS, HeadConfig
from geneformer_jax.model.lora import LORA
from geneformer_jax.model.pretrained import (
    PretrainedModel,
    abstract_weights,
    result_in,
    weights_hash,
)
from geneformer_jax.model.quantization import QuantizedWeight, has_adapter

_ADAPTER, _OLD_WEIGHTS = "adapter.json", "adapter.npz"
# Where the base was rounded, in which way.
_QUANTIZED = "quantization"
_ENCODER = ("embeddings", "blocks")
_LISTED = 4
# What adapter.json says: texts of the base, and the adapter's own parts.
_OF_BASE = ("source", "weights")
_OF_ADAPTER = ((HeadConfig, "head"), (LoraConfig, "lora"))


def save_adapter(
    trained: Params,
    lora: LoraConfig,
    model: PretrainedModel,
    base_hash: str,
    target: Path | str,
    provenance: Mapping[str, Any],
) -> Path:
    """Writes low-rank factors and a head.

    Args:
      trained: `lora` and the head's weights.
      lora: of what rank and where.
      model: the base with the new head; its encoder weights are not written.
      base_hash: `weights_hash` of the base.
      target: a new folder: adapter.json, adapter_model.safetensors, provenance.json, and
        adapter_config.json where PEFT has a model for the head.
      provenance: for provenance.json.

    Raises:
      InputError: the target holds other files.
    """
    target = require_new_folder(target)
    # Not as it was named from the folder of that time.
    source = str(Path(model.source).resolve()) if Path(model.source).exists() else model.source
    head, trained = model.head, jax.device_get(trained)
    base = {"source": source, "weights": base_hash, "vocabulary": model.vocabulary.hash}
    if model.quantization:
        base[_QUANTIZED] = model.quantization.kind
    stated = {
        "base": base,
        "lora": dataclasses.asdict(lora),
        "head": dataclasses.asdict(head),
        "step": model.step,
    }
    factors = dict(_factors_by_module(trained[LORA], places(model.config, None, bare=True)))
    settings = {}
    if head.as_original:
        modules = sorted({module.split(".", 4)[-1] for module in factors})
        settings = peft.lora_settings(lora.rank, lora.alpha, modules, head.kind, source)
    with atomic_write(target) as partial:
        partial.mkdir()
        peft.write_adapter(partial, factors, _head_tensors(trained, model.config, head), settings)
        (partial / _ADAPTER).write_text(json.dumps(stated, indent=2) + "\n")
        write_provenance(partial, provenance)
    return target


def _factors_by_module(
    factors: Params, wanted: list[Place]
) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Yields BERT's module and its two factors, A [r, in] and B [out, r], of each layer."""
    for place in wanted:
        _, name, *kind = (*place.path, "")[:3]
        if place.layer is None or name not in factors or kind != ["kernel"]:
            continue
        out, into = place.shape
        a, b = (factors[name][part]["kernel"][place.layer] for part in ("into", "out"))
        yield place.name.removesuffix(".weight"), (a.reshape(into, -1).T, b.reshape(-1, out).T)


def _head_tensors(
    trained: Params, config: EncoderConfig, head: HeadConfig
) -> dict[str, np.ndarray]:
    """Returns the head by BERT's names, or by ours where BERT has no class for it."""
    if head.as_original:
        own = [place for place in places(config, head) if place.path[0] == head.kind]
        return bert_values(own, trained)
    return traverse_util.flatten_dict({head.kind: trained[head.kind]}, sep=".")


def find_adapter(path: Path) -> Path | None:
    """Returns the adapter that `path` names, itself or that of a fine-tuned fold; None if none.

    Raises:
      InputError: there are several fine-tuned networks.
    """
    for folder in (path, result_in(path)):
        if (folder / _ADAPTER).is_file() or peft.is_peft_adapter(folder):
            return folder
    return None


def adapter_base(folder: Path) -> str | None:
    """Returns where the base of an adapter was when it was trained, or its name; None if unsaid.

    Raises:
      InputError: the adapter cannot be read.
    """
    if (folder / _ADAPTER).is_file():
        return _stated(folder)["base"]["source"]
    return peft.read_config(folder).get("base_model_name_or_path")


def quantization_of_base(folder: Path) -> str | None:
    """Returns how the base of an adapter was rounded when it was trained; None if not, or unsaid.

    Raises:
      InputError: the adapter cannot be read.
    """
    return _stated(folder)["base"].get(_QUANTIZED) if (folder / _ADAPTER).is_file() else None


def _tell_rounding(folder: Path, base: PretrainedModel) -> None:
    """Logs that an adapter goes on weights other than those it was trained beside."""
    trained, here = quantization_of_base(folder), base.quantization and base.quantization.kind
    if trained != here:
        remedy = f"`quantize`={trained} gives" if trained else "without `quantize` it is"
        logger.info(
            f"the adapter {folder} was trained beside weights in {trained or 'float32'} and goes "
            f"on top of the same in {here or 'float32'}: {remedy} the model that was trained"
        )


def apply_adapter(folder: Path, base: PretrainedModel) -> PretrainedModel:
    """Returns the base with an adapter merged into its weights, and the adapter's head.

    Beside quantised weights the factors stay by themselves: merged, they would be rounded too.

    Raises:
      InputError: the adapter was trained on other weights, of a kind that is not read, lacks what
        its head needs, or cannot be read; or the base is an adapter beside quantised weights.
    """
    if has_adapter(base.params):
        raise InputError(
            f"{base.source} is an adapter beside quantised weights, and no second one, such as "
            f"{folder}, goes on top of it; load it without `quantize`"
        )
    if not (folder / _ADAPTER).is_file():
        adapter = peft.read_adapter(folder)
        head = _head_of(adapter, base, folder)
        params = _merge(adapter, base, head, folder)
        return dataclasses.replace(base, params=params, head=head, source=str(folder))
    stated = _stated(folder)
    head, lora, step = _read_stated(stated, folder)
    if (found := weights_hash(base)) != stated["base"]["weights"]:
        raise InputError(
            f"the adapter {folder} goes on top of weights {stated['base']['weights'][:12]} (once "
            f"{stated['base']['source']}), but {base.source} has {found[:12]}; give its own base"
        )
    _tell_rounding(folder, base)
    adapter = _read_own(folder, lora, head, base)
    if head.as_original:
        params = _merge(adapter, base, head, folder)
    else:
        own = traverse_util.unflatten_dict(adapter.whole, sep=".")
        encoder = {name: base.params[name] for name in _ENCODER}
        bare = dataclasses.replace(base, params=encoder, head=None)
        params = _merge(adapter._replace(whole={}), bare, None, folder)
        params |= jax.tree.map(jnp.asarray, own)
    return dataclasses.replace(base, params=params, head=head, source=str(folder), step=step)


def _read_own(
    folder: Path, lora: LoraConfig, head: HeadConfig, base: PretrainedModel
) -> PeftAdapter:
    """Reads the weights that fine-tuning wrote, now or before it wrote PEFT's files."""
    if not (folder / _OLD_WEIGHTS).is_file():
        return peft.read_factors(folder, {"r": lora.rank, "lora_alpha": lora.alpha})
    try:
        with np.load(folder / _OLD_WEIGHTS) as file:
            trained = traverse_util.unflatten_dict({n: file[n] for n in file.files}, sep="/")
        pairs = _factors_by_module(trained[LORA], places(base.config, None, bare=True))
        factors = {name: (*pair, lora.alpha / lora.rank) for name, pair in pairs}
        return PeftAdapter(None, None, factors, _head_tensors(trained, base.config, head))
    except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{folder / _OLD_WEIGHTS} cannot be read ({error}); restore it from a copy"
        ) from error


def _stated(folder: Path) -> dict[str, Any]:
    """Returns what is written of the base: where it was, and the hash of its weights."""
    stated = read_json(folder / _ADAPTER)
    base = stated.get("base")
    if not isinstance(base, dict) or not {str} == {type(base.get(n)) for n in _OF_BASE}:
        raise _damaged(folder, "it does not say of which base it is")
    return stated


def _read_stated(stated: dict[str, Any], folder: Path) -> tuple[HeadConfig, LoraConfig, int]:
    """Returns head, factors and step that an adapter says it has."""
    try:
        head, lora = (fill(kind, stated[name]) for kind, name in _OF_ADAPTER)
        return head, lora, operator.index(stated["step"])
    except (LookupError, TypeError, ValueError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, reason: object) -> InputError:
    return InputError(
        f"{folder / _ADAPTER} is damaged ({reason}); restore it from a copy, or train again"
    )


def _head_of(adapter: PeftAdapter, base: PretrainedModel, folder: Path) -> HeadConfig | None:
    """Returns the head of an adapter of PEFT, which says only how many classes it has."""
    kinds = {task: kind for kind, task in peft.TASKS.items()}
    classifier = adapter.whole.get("classifier.weight")
    if adapter.task not in kinds or classifier is None:
        if classifier is not None:
            raise InputError(
                f"{folder} holds a classifier, but its task_type is {adapter.task}; it must be one "
                f"of {', '.join(kinds)}: correct it in {peft.CONFIG}"
            )
        return base.head
    kind, classes = kinds[adapter.task], len(classifier)
    if base.head is not None and (base.head.kind, len(base.head.labels)) == (kind, classes):
        return base.head
    return HeadConfig(kind, tuple(f"LABEL_{n}" for n in range(classes)), base.config.dropout)


def _merge(
    adapter: PeftAdapter, base: PretrainedModel, head: HeadConfig | None, folder: Path
) -> Params:
    """Returns the weights of the base with the factors added, and whole tensors in their place."""
    wanted = {each.name: each for each in places(base.config, head, head is None and base.is_bare)}
    whole = {name: value for name, value in adapter.whole.items() if name in wanted}
    if head is not None and head != base.head and head.kind == CELLS:
        whole = _pooler_for(adapter, base, head, folder) | whole
    changed = {f"{module}.weight" for module in adapter.factors} | set(whole)
    _require_fit(adapter, whole, wanted, folder)
    params = _with_head(base, head)
    own = sorted((wanted[name] for name in changed), key=lambda place: place.path)
    for path, of_leaf in itertools.groupby(own, key=lambda place: place.path):
        if isinstance(kernel := leaf_at(params, path), QuantizedWeight):
            params = _replaced(params, path, _beside(kernel, list(of_leaf), adapter, folder))
            continue
        # A copy: JAX gives its arrays away for reading only.
        leaf = np.array(leaf_at(params, path), np.float32)
        for place in of_leaf:
            value = whole.get(place.name, place.take(leaf))
            place.put(value + _change(adapter, place), leaf)
        params = _replaced(params, path, jnp.asarray(leaf))
    return params


def _beside(
    kernel: QuantizedWeight, own: list[Place], adapter: PeftAdapter, folder: Path
) -> QuantizedWeight:
    """Returns a quantised kernel with the factors of its layers beside it.

    Zeros stand where a layer has none, or fewer than another.
    """
    given = {place: adapter.factors.get(place.name.removesuffix(".weight")) for place in own}
    if replaced := [place.name for place, factors in given.items() if factors is None]:
        raise InputError(
            f"the adapter {folder} replaces {replaced[0]}, which is rounded in this base; load it "
            "without `quantize`"
        )
    layers, rank = len(kernel.codes), max(len(a) for a, _, _ in given.values())
    out_size, in_size = own[0].shape
    into = np.zeros((layers, in_size, rank), np.float32)
    out = np.zeros((layers, rank, out_size), np.float32)
    for place, (a, b, scaling) in given.items():
        into[place.layer, :, : len(a)] = a.T
        out[place.layer, : len(a)] = scaling * b.T
    return kernel.adapted(jnp.asarray(into), jnp.asarray(out))


def _pooler_for(
    adapter: PeftAdapter, base: PretrainedModel, head: HeadConfig, folder: Path
) -> dict[str, np.ndarray]:
    """Returns the pooler, without which a classifier of cells would read noise.

    PEFT leaves it out of an adapter unless it is asked for, and transformers draws it anew for a
    base that was trained on masked genes: then what the adapter was trained with is nowhere.
    """
    names = [f"{peft.POOLER}.{part}" for part in ("weight", "bias")]
    if set(names) <= set(adapter.whole):
        return {}
    if base.head is not None and base.head.kind == CELLS and base.head.as_original:
        poolers = [each for each in places(base.config, base.head) if each.name in names]
        return bert_values(poolers, base.params)
    if is_huggingface_model(base.source):
        tensors = open_weights(Path(base.source)).tensors
        ends = {name: name.removeprefix(ENCODER_PREFIX) for name in names}
        found = {n: tensors.get(n, tensors.get(end)) for n, end in ends.items()}
        if all(found.values()):
            return {name: tensor.read().astype(np.float32) for name, tensor in found.items()}
    raise InputError(
        f"the adapter {folder} classifies cells but holds no pooler, nor does {base.source}: the "
        "one it was trained with is lost, and with another its predictions would be others; give "
        "the base that has it, or train again with modules_to_save=['classifier', 'pooler']"
    )


def _require_fit(
    adapter: PeftAdapter,
    whole: Mapping[str, np.ndarray],
    wanted: Mapping[str, Place],
    folder: Path,
) -> None:
    """Raises InputError if the base has no such tensors, or of other shapes."""
    shapes = {f"{m}.weight": (len(b), a.shape[1]) for m, (a, b, _) in adapter.factors.items()}
    shapes |= {name: value.shape for name, value in {**adapter.whole, **whole}.items()}
    unknown = [name for name in shapes if name not in wanted and name not in UNUSED]
    wrong = [
        f"{name} is {list(shape)}, not {list(wanted[name].shape)}"
        for name, shape in shapes.items()
        if name in wanted and shape != wanted[name].shape
    ]
    if unknown or wrong:
        listed = ", ".join([*wrong, *(f"{name} is not there" for name in unknown)][:_LISTED])
        raise InputError(
            f"the adapter {folder} does not fit this base ({listed}); give the model it was "
            "trained on"
        )


def _with_head(base: PretrainedModel, head: HeadConfig | None) -> Params:
    """Returns the weights of the base with a head of zeros, unless it has that head already."""
    if head == base.head:
        return base.params
    shapes = abstract_weights(base.config, head)[head.kind]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return {name: base.params[name] for name in _ENCODER} | {head.kind: zeros}


def _change(adapter: PeftAdapter, place: Place) -> np.ndarray | float:
    module = place.name.removesuffix(".weight")
    if module == place.name or module not in adapter.factors:
        return 0.0
    into, out, scaling = adapter.factors[module]
    return scaling * (out @ into)


def _replaced(tree: Params, path: tuple[str, ...], leaf: jax.Array) -> Params:
    name, *rest = path
    return {**tree, name: _replaced(tree[name], tuple(rest), leaf) if rest else leaf}
