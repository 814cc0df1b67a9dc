"""Adapters in the files of the library PEFT: adapter_config.json and adapter_model.safetensors.

Tensors are named as in the PyTorch model that PEFT wraps: of an adapted matrix W [out, in] two
factors, `NAME.lora_A.weight` [r, in] and `NAME.lora_B.weight` [out, r], whose product times a
scaling is added to W; and whole tensors of the modules that were trained beside them.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from geneformer_jax.common.errors import InputError
from geneformer_jax.interop.weights import safetensors
from geneformer_jax.interop.weights.bert_layout import ENCODER_PREFIX
from geneformer_jax.interop.weights.files import read_json
from geneformer_jax.model.heads import CELLS, GENES

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
POOLER = "bert.pooler.dense"
# What PEFT calls the tasks that BERT has classes for.
TASKS = {CELLS: "SEQ_CLS", GENES: "TOKEN_CLS"}
MODULES = {CELLS: ["classifier", "pooler"], GENES: ["classifier"]}
_WRAPPED = "base_model.model."
_ALL_LINEAR = "all-linear"
_FACTORS = (".lora_A.weight", ".lora_B.weight")
# Setting -> what it must be, where it is there, for the factors to be all there is.
_KINDS = {
    "base_model_name_or_path": str,
    "task_type": str,
    "rank_pattern": dict,
    "target_modules": list | str,
    "alpha_pattern": dict,
}
_PLAIN = {
    "use_dora": (False,),
    "bias": ("none",),
    "lora_bias": (False,),
    "use_qalora": (False,),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
}
# Ways to begin that change the base itself, on which the adapter then does not fit.
_MERGE = "merge it with PEFT (merge_and_unload) and save the whole model"
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class PeftAdapter(NamedTuple):
    """What an adapter holds, as numpy arrays by the names of BERT with a head.

    Attributes:
      task: "SEQ_CLS", "TOKEN_CLS", or another or None.
      base: name or path of the model it was trained on, or None.
      factors: module -> (A [r, in], B [out, r], scaling).
      whole: tensors of modules that were trained as a whole.
    """

    task: str | None
    base: str | None
    factors: dict[str, tuple[np.ndarray, np.ndarray, float]]
    whole: dict[str, np.ndarray]


def is_peft_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter of PEFT."""
    return (folder / CONFIG).is_file()


def read_adapter(folder: Path) -> PeftAdapter:
    """Reads an adapter of PEFT.

    Raises:
      InputError: it is of a kind that is not read, or a file is missing or damaged.
    """
    return read_factors(folder, read_config(folder))


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the settings of an adapter of PEFT.

    Raises:
      InputError: it is of a kind that is not read.
    """
    config = read_json(folder / CONFIG)
    _require_lora(config, folder)
    return config


def read_factors(folder: Path, config: Mapping[str, Any]) -> PeftAdapter:
    """Reads the weights of an adapter.

    Args:
      folder: of the adapter.
      config: as adapter_config.json has it: `r`, `lora_alpha`, and more where there is.

    Raises:
      InputError: a factor is missing, does not fit the settings or is none; a file is damaged.
    """
    if not (folder / WEIGHTS).is_file():
        raise InputError(
            f"{folder} has no {WEIGHTS}; save the adapter with safe_serialization=True, as PEFT "
            "does by default"
        )
    tensors = {_plain_name(n): t for n, t in safetensors.list_tensors(folder / WEIGHTS).items()}
    values = {name: _finite(tensor.read(), name, folder) for name, tensor in tensors.items()}
    modules = {name.removesuffix(end) for name in values for end in _FACTORS if name.endswith(end)}
    if not modules:
        raise InputError(f"{folder} holds no factors (lora_A, lora_B); it adapts nothing")
    _require_targets(config, sorted(modules), folder)
    factors = {module: _factors_of(module, values, config, folder) for module in sorted(modules)}
    used = {module + end for module in modules for end in _FACTORS}
    whole = {name: value for name, value in values.items() if name not in used}
    if unread := sorted(name for name in whole if "lora_" in name):
        raise InputError(
            f"{folder} holds {unread[0]}, which is no factor of a plain linear map; {_MERGE}"
        )
    named = config.get("task_type"), config.get("base_model_name_or_path")
    return PeftAdapter(*named, factors, whole)


def _require_lora(config: Mapping[str, Any], folder: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise InputError(
            f"{folder} is an adapter of kind {config.get('peft_type')}, but LORA is read; {_MERGE}"
        )
    for name, kind in _KINDS.items():
        if not isinstance(config.get(name), kind | None):
            raise InputError(
                f"{folder / CONFIG} has {name} {config[name]!r}; get it anew from its source"
            )
    for name, plain in _PLAIN.items():
        if name in config and config[name] not in plain:
            raise InputError(
                f"{folder / CONFIG} has {name} {config[name]!r}, which is not read; {_MERGE}"
            )
    begun = str(config.get("init_lora_weights", True)).lower()
    if begun.startswith(_CHANGED_BASE):
        raise InputError(
            f'{folder / CONFIG} has init_lora_weights "{begun}", which changed the base itself; '
            f"{_MERGE}"
        )


def _require_targets(config: Mapping[str, Any], modules: list[str], folder: Path) -> None:
    """Raises InputError where factors are of modules that the settings do not name."""
    targets = config.get("target_modules")
    if targets is None or targets == _ALL_LINEAR:
        return
    # As PEFT reads them: one text is a regular expression, those of a list are ends of names.
    pattern = targets if isinstance(targets, str) else "|".join(re.escape(str(t)) for t in targets)
    try:
        named = re.compile(rf"(.*\.)?({pattern})")
    except re.error as error:
        raise InputError(
            f"{folder / CONFIG} has target_modules {targets!r}, which is no regular expression "
            f"({error}); get it anew from its source"
        ) from error
    for module in modules:
        if not named.fullmatch(module):
            raise InputError(
                f"{folder} has factors of {module}, but {CONFIG} has target_modules {targets}; get "
                "both files of one adapter"
            )


def _plain_name(name: str) -> str:
    """Returns the name in BERT with a head: PEFT's own prefix taken off, BertModel's put back."""
    plain = name.removeprefix(_WRAPPED)
    is_bare = plain.startswith(("embeddings.", "encoder.", "pooler."))
    return ENCODER_PREFIX + plain if is_bare else plain


def _finite(value: np.ndarray, name: str, folder: Path) -> np.ndarray:
    value = value.astype(np.float32, copy=False)
    if not np.isfinite(value).all():
        raise InputError(f"{name} in {folder} holds NaN or infinite values; take an earlier save")
    return value


def _factors_of(
    module: str, values: Mapping[str, np.ndarray], config: Mapping[str, Any], folder: Path
) -> tuple[np.ndarray, np.ndarray, float]:
    pair = [values.get(module + end) for end in _FACTORS]
    if any(each is None or each.ndim != 2 for each in pair):
        raise InputError(f"{folder} has not both factors of {module}; get the adapter anew")
    into, out = pair
    rank = _setting(config, "r", "rank_pattern", module, folder)
    alpha = _setting(config, "lora_alpha", "alpha_pattern", module, folder)
    if len(into) != rank or out.shape[1] != rank:
        raise InputError(
            f"the factors of {module} in {folder} have ranks {len(into)} and {out.shape[1]}, but "
            f"{CONFIG} says {rank}; get both files of one adapter"
        )
    return into, out, alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _setting(
    config: Mapping[str, Any], name: str, pattern: str, module: str, folder: Path
) -> float:
    """Returns a setting of a module; patterns are regular expressions of its name's end."""
    own = (config.get(pattern) or {}).items()
    found = (value for key, value in own if re.fullmatch(rf"(.*\.)?({key})", module))
    value = next(found, config.get(name))
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise InputError(
            f"{folder / CONFIG} has {name} {value!r} for {module}; it must be finite and above 0"
        )
    return value


def write_adapter(
    folder: Path,
    factors: Mapping[str, tuple[np.ndarray, np.ndarray]],
    whole: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
) -> None:
    """Writes an adapter into a folder that is there.

    Args:
      folder: to write into.
      factors: module, as BERT with a head names it -> (A [r, in], B [out, r]).
      whole: tensors by name that were trained as a whole.
      config: further settings, see `lora_settings`; none, where PEFT has no model for the head, so
        that it does not take the folder for an adapter of its own.
    """
    tensors = {
        module + end: value
        for module, pair in factors.items()
        for end, value in zip(_FACTORS, pair, strict=True)
    }
    named = {_WRAPPED + name: value for name, value in {**tensors, **whole}.items()}
    safetensors.write_tensors(folder / WEIGHTS, named)
    if config:
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def lora_settings(
    rank: int, alpha: float, modules: list[str], kind: str, base: str
) -> dict[str, Any]:
    """Returns the settings of an adapter of a classifier.

    Args:
      rank, alpha: of the factors.
      modules: names of the adapted modules, as BERT with a head names them.
      kind: of the head, whose weights the adapter holds too.
      base: where the base is.
    """
    return {
        "peft_type": "LORA",
        "task_type": TASKS[kind],
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": modules,
        "modules_to_save": MODULES[kind],
    }
