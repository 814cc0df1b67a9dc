"""Pretrained weights on disk: the only module of this package that reads and writes files."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from geneformer_jax.cells.links import require_plain_files
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.config import fill
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import aside_of, atomic_write, require_new_folder
from geneformer_jax.common.provenance import write_provenance
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Params, abstract_params
from geneformer_jax.model.heads import HeadConfig, init_head
from geneformer_jax.model.processes import by_first, is_first, wait_for_all
from geneformer_jax.model.quantization import (
    QuantizedWeight,
    codes_of,
    count_weights,
    quantize_rows,
    stored_bytes,
)

CHECKPOINTS = "checkpoints"
MASKED_GENE_HEAD = "masked_gene_head"
# Where fine-tuning puts its networks, and in each fold the model that it ends with.
NETWORKS, FOLD, RESULT = "networks", "fold_", "model"
_STEP_FILE = "_CHECKPOINT_METADATA"
_REMEDY = "name a checkpoint, or the workdir of a pretraining run"
_BARE = "bare"
_LISTED = 6
_KNOWN_SIZES = {25_426: " (V1)", 20_275: " (V2)"}


class StackedArray(NamedTuple):
    """Weights that are read in parts.

    Attributes:
      path: in `PretrainedModel.params`.
      shape: of the whole.
      parts: float arrays, which follow each other along the first axis.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    parts: Iterator[np.ndarray | jax.Array]


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How a model's weights were rounded as they were read.

    Attributes:
      kind: one of QUANTIZATIONS.
      of: `weights_hash` of the float weights.
    """

    kind: str
    of: str


@dataclasses.dataclass(frozen=True)
class PretrainedModel:
    """A trained encoder with the vocabulary its tokens mean something in.

    Attributes:
      config: shape of the model.
      params: float32 weights, see model.encoder; those of a quantised model are rounded.
      vocabulary: genes and medians it was trained with; None only for a bare weights folder.
      source: where it was read from.
      step: updates it was trained for, 0 where unknown.
      head: the classification head that `params` holds; None for the masked-gene head, or for an
        encoder alone.
      quantization: how the encoder's weights are rounded; None where they are float32.
    """

    config: EncoderConfig
    params: Params
    vocabulary: GeneVocabulary | None
    source: str
    step: int
    head: HeadConfig | None = None
    quantization: Quantization | None = None

    @property
    def is_bare(self) -> bool:
        """Whether it is an encoder without any head, which embeds but predicts nothing."""
        return self.head is None and MASKED_GENE_HEAD not in self.params

    def __repr__(self) -> str:
        shape, size = self.config, count_weights(self.params)
        head = "no head" if self.is_bare else self.head.kind if self.head else MASKED_GENE_HEAD
        rounded = f" in {self.quantization.kind}" if self.quantization else ""
        return (
            f"PretrainedModel({size:,} weights{rounded}: {shape.layers} layers of width "
            f"{shape.width}, {shape.vocabulary_size:,} tokens, {shape.positions:,} positions, "
            f"{head}; {self.source!r}, step {self.step:,})"
        )


def describe_model(
    config: EncoderConfig,
    vocabulary: GeneVocabulary,
    head: HeadConfig | None = None,
    bare: bool = False,
) -> dict[str, str]:
    """Returns the description saved beside a checkpoint's weights, as JSON texts.

    Args:
      config, vocabulary, head: of the model.
      bare: whether it has no head at all.
    """
    described = {
        "model": json.dumps(dataclasses.asdict(config)),
        "vocabulary": vocabulary.to_json(),
    }
    if head is not None:
        described["head"] = json.dumps(dataclasses.asdict(head))
    if bare:
        described[_BARE] = json.dumps(True)
    return described


def abstract_weights(config: EncoderConfig, head: HeadConfig | None, bare: bool = False) -> Params:
    """Returns shapes and types of a model's weights with its head, as `PretrainedModel` has them.

    Args:
      config: shape of the encoder.
      head: a classification head, which stands in the place of the masked-gene head, or None.
      bare: whether there is no head at all.
    """
    params = abstract_params(config)
    if bare or head is not None:
        del params[MASKED_GENE_HEAD]
    if head is not None:
        draw = functools.partial(init_head, config, head)
        params[head.kind] = jax.eval_shape(draw, jax.random.key(0))
    return params


def with_vocabulary(model: PretrainedModel, vocabulary: GeneVocabulary) -> PretrainedModel:
    """Returns the model with a vocabulary for one that carries none.

    Raises:
      InputError: the vocabulary has another number of tokens than the model, or is not the one
        that the model carries.
    """
    size, wanted = vocabulary.size, model.config.vocabulary_size
    if size != wanted:
        raise InputError(
            f"the model of {model.source} has {wanted:,} tokens{_KNOWN_SIZES.get(wanted, '')}, but "
            f"the vocabulary has {size:,}{_KNOWN_SIZES.get(size, '')}: every token would mean "
            "another gene; give the vocabulary that the model was trained with"
        )
    if model.vocabulary is not None and model.vocabulary.hash != vocabulary.hash:
        raise InputError(
            f"the model of {model.source} carries vocabulary {model.vocabulary.hash[:12]}, but "
            f"{vocabulary.hash[:12]} was given; leave the vocabulary out"
        )
    return dataclasses.replace(model, vocabulary=vocabulary)


def save_model(model: PretrainedModel, target: Path | str, provenance: Mapping[str, Any]) -> Path:
    """Writes a model as a checkpoint without optimizer state, which `load_model` reads.

    Args:
      model: with its vocabulary: a checkpoint always carries one.
      target: a new folder; the checkpoint is `target`/checkpoints/STEP, as in a run's workdir. The
        processes of a run all save the same model at the same time.
      provenance: for provenance.json, see common.provenance.describe_run.

    Raises:
      InputError: the target holds other files, or the model has no vocabulary, is quantised, or
        has weights that are NaN or infinite; or no checkpoint there could be read again.
    """
    target = require_new_folder(target)
    require_name_for_checkpoints(target)
    require_float(model)
    if wrong := describe_not_finite(model.params):
        raise InputError(
            f"{wrong}, so that the model would compute nothing; nothing is saved: train it with a "
            "lower learning rate"
        )
    if model.vocabulary is None:
        raise InputError(
            f"the model of {model.source} carries no vocabulary, without which its tokens mean "
            "nothing; give the one it was trained with"
        )
    context = ocp.Context()
    # Float weights hardly shrink, and compressing them takes as much memory again as they do.
    context.array.saving.use_compression = False
    # Orbax copies numpy arrays, all at once, before it writes them; but of several processes it
    # writes no arrays that one of them has for itself.
    as_saved = jnp.asarray if jax.process_count() == 1 else np.asarray
    items = {
        "params": jax.tree.map(as_saved, model.params),
        # An array among the texts: Orbax warns of an item that has none.
        "meta": describe_model(model.config, model.vocabulary, model.head, model.is_bare)
        | {"step": np.asarray(model.step)},
    }
    with _written_together(target) as partial:
        folder = partial.resolve() / CHECKPOINTS
        by_first(lambda: folder.mkdir(parents=True))
        with context:
            ocp.save_checkpointables(folder / str(model.step), items)
        by_first(lambda: write_provenance(partial, provenance))
    return target / CHECKPOINTS / str(model.step)


def require_name_for_checkpoints(folder: Path) -> None:
    """Raises InputError where Orbax would write checkpoints that nothing can read again.

    It looks for the parts of one by a pattern with the folder's path in it, in which brackets stand
    for a letter, and TensorStore takes a backslash for a slash.
    """
    path = str(folder.resolve())
    if {"[", "]"} <= {*path} or "\\" in path:
        raise InputError(
            f"{path} has brackets or a backslash in its name, and checkpoints that are written in "
            "such a folder cannot be read again; name another one"
        )


@contextlib.contextmanager
def _written_together(target: Path) -> Iterator[Path]:
    """Yields the path where all processes write a folder, which the first then renames."""
    with atomic_write(target) if is_first() else contextlib.nullcontext(aside_of(target)) as aside:
        yield aside
    wait_for_all()


def describe_quantization(model: PretrainedModel) -> str:
    """Returns a line on the memory of a quantised model's weights."""
    taken, whole = stored_bytes(model.params), 4 * count_weights(model.params)
    return (
        f"weights: rounded to {model.quantization.kind}, {taken / 2**20:,.1f} MiB "
        f"in place of {whole / 2**20:,.1f} ({taken / whole:.2f} of float32)"
    )


def require_float(model: PretrainedModel) -> None:
    """Raises InputError if a model that is to be written, or trained whole, is quantised."""
    if model.quantization is not None:
        raise InputError(
            f"the weights of {model.source} are in {model.quantization.kind}, and float32 ones are "
            "needed here; load the model without `quantize`"
        )


def load_model(path: Path | str, quantize: str | None = None) -> PretrainedModel:
    """Loads a model from a checkpoint, or the newest checkpoint of a training workdir.

    Args:
      path: a checkpoint folder, the folder of a run's checkpoints, or the run's workdir; that of
        fine-tuning if it made one network.
      quantize: one of QUANTIZATIONS, to round the encoder's weights as they are read, one array
        after another.

    Raises:
      InputError: there is no checkpoint, there are several networks, or it cannot be read.
    """
    checkpoint, quantization = find_checkpoint(Path(path)), None
    require_plain_files(checkpoint)
    try:
        meta = ocp.load_checkpointables(checkpoint, {"meta": None})["meta"]
        config = fill(EncoderConfig, json.loads(meta["model"]))
        head = fill(HeadConfig, json.loads(meta["head"])) if "head" in meta else None
        sharding = SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract_weights(config, head, _BARE in meta),
        )
        if quantize:
            arrays = _arrays_of(checkpoint, abstract)
            params, quantization = quantized_params(arrays, quantize)
        else:
            params = ocp.load_checkpointables(checkpoint, {"params": abstract})["params"]
            _require_finite(params)
        vocabulary = GeneVocabulary.from_json(meta["vocabulary"])
        step = int(meta["step"]) if "step" in meta else int(checkpoint.name)
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"checkpoint {checkpoint} cannot be read ({type(error).__name__}: "
            f"{_shortened(error)}); it may be damaged: name an earlier one"
        ) from error
    return PretrainedModel(
        config=config,
        params=params,
        vocabulary=vocabulary,
        source=str(checkpoint),
        step=step,
        head=head,
        quantization=quantization,
    )


def _arrays_of(checkpoint: Path, abstract: Params) -> Iterator[StackedArray]:
    """Yields the arrays of a checkpoint, sorted by their paths, each read when it is asked for."""
    for path, leaf in sorted(traverse_util.flatten_dict(abstract).items()):
        yield StackedArray(path, leaf.shape, _read_array(checkpoint, path, leaf))


def _read_array(checkpoint: Path, path: tuple[str, ...], leaf: Any) -> Iterator[jax.Array]:
    # A generator, which keeps no array that its user has done with.
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    wanted = {"params": traverse_util.unflatten_dict({path: leaf})}
    with context:
        found = ocp.load_checkpointables(checkpoint, wanted)["params"]
    _require_finite(found)
    yield from jax.tree.leaves(found)


def _require_finite(params: Params) -> None:
    if wrong := describe_not_finite(params):
        raise ValueError(wrong)


def describe_not_finite(params: Params) -> str:
    """Returns in words which weights are NaN or infinite, and in which layer; "" for none."""
    for path, leaf in sorted(traverse_util.flatten_dict(params).items()):
        if isinstance(leaf, QuantizedWeight) or np.isfinite(leaf).all():
            continue
        name, at = "/".join(path), ""
        if path[0] == "blocks":
            is_finite = np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
            at = f" of layer {int(np.argmin(is_finite)) + 1}"
        return f"weights {name}{at} are NaN or infinite"
    return ""


def quantized_params(arrays: Iterable[StackedArray], kind: str) -> tuple[Params, Quantization]:
    """Rounds weights as they come, so that those in float32 are never there all at once.

    Args:
      arrays: all weights of a model, sorted by their paths.
      kind: one of QUANTIZATIONS.

    Returns:
      (weights, how they are rounded).
    """
    digest, params = _WeightsDigest(), {}
    for array in arrays:
        parts = digest.passing(array)
        if codes := codes_of(array.path, kind):
            params[array.path] = quantize_rows(parts, array.shape, codes)
        else:
            params[array.path] = jnp.concatenate([jnp.asarray(part) for part in parts])
    return traverse_util.unflatten_dict(params), Quantization(kind, digest.hexdigest())


def _shortened(error: Exception) -> str:
    """An error on one line; Orbax quotes whole trees of weights."""
    return textwrap.shorten(str(error), 200)


def holds_checkpoint(path: Path) -> bool:
    """Whether `load_model` finds a checkpoint at `path`."""
    try:
        find_checkpoint(path)
    except InputError:
        return False
    return True


def find_checkpoint(path: Path) -> Path:
    """Returns the checkpoint that `path` names: itself, or the newest one in it.

    Raises:
      InputError: there is none, or one in each of several fine-tuned networks.
    """
    if not path.is_dir():
        raise InputError(f"no checkpoint at {path}: it is not a folder; {_REMEDY}")
    path = path.resolve()
    if (path / _STEP_FILE).is_file():
        return path
    for folder in (path, path / CHECKPOINTS, result_in(path) / CHECKPOINTS):
        steps = [each for each in folder.glob("[0-9]*") if (each / _STEP_FILE).is_file()]
        if steps:
            return max(steps, key=lambda each: int(each.name))
    raise InputError(f"no checkpoint in {path}; {_REMEDY}")


def folds_in(path: Path) -> list[Path]:
    """Returns the fine-tuned networks in the workdir of a run, or in a folder inside it."""
    inside = (f"{NETWORKS}/*/{FOLD}*", f"*/{FOLD}*", f"{FOLD}*")
    return sorted(each.parent for names in inside for each in path.glob(f"{names}/{RESULT}"))


def result_in(path: Path) -> Path:
    """Returns where the one network of a fine-tuning run, or a fold of it, has its model.

    Raises:
      InputError: there are several networks.
    """
    return _fold_in(path) / RESULT


def _fold_in(path: Path) -> Path:
    """Returns the one network of a fine-tuning run; any other folder as it is."""
    folds = folds_in(path)
    if len(folds) > 1:
        names = [str(fold.relative_to(path)) for fold in folds[:_LISTED]]
        more = ", ..." if len(folds) > _LISTED else ""
        raise InputError(
            f"{path} holds {len(folds)} fine-tuned networks; name one of them, as in {folds[0]}: "
            f"{', '.join(names)}{more}"
        )
    return folds[0] if folds else path


def weights_hash(model: PretrainedModel) -> str:
    """Returns a SHA-256 of an encoder's weights in float32; heads play no part."""
    if model.quantization is not None:
        return model.quantization.of
    digest = _WeightsDigest()
    for path, leaf in sorted(traverse_util.flatten_dict(model.params).items()):
        for _ in digest.passing(StackedArray(path, leaf.shape, iter([leaf]))):
            pass
    return digest.hexdigest()


class _WeightsDigest:
    """The hash of an encoder's weights, which pass by sorted by their paths."""

    def __init__(self):
        self._digest = hashlib.sha256()
        self.hexdigest = self._digest.hexdigest

    def passing(self, array: StackedArray) -> Iterator[np.ndarray | jax.Array]:
        """Yields the parts of an array when they are in the hash."""
        counts = array.path[0] in ("embeddings", "blocks")
        if counts:
            name = "".join(f"[{part!r}]" for part in array.path)
            self._digest.update(f"{name} {array.shape}".encode())
        for part in array.parts:
            if counts:
                self._digest.update(np.ascontiguousarray(part, np.float32).data)
            yield part
