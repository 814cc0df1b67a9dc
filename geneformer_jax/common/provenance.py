"""provenance.json: how an output came to be; every output has one."""

import datetime
import functools
import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import (
    atomic_write,
    fingerprint,
    is_looked_at,
    read_json,
)

FILE_NAME = "provenance.json"
# Beside it, where a model was trained: its held-out figures and those of baselines, a row each.
HELD_OUT_TABLE, RESULTS_TABLE = "held_out.csv", "results.csv"
# What was computed, and in what time, among the counts.
THROUGHPUT = "throughput"
_WRITTEN_AT, _WEIGHTS = "written_at", "weights_sha256"
_WEIGHT_FILES, _ORBAX_WEIGHTS = (".safetensors", ".bin"), "params"
_PACKAGES = (
    "geneformer_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "numpy",
    "scipy",
    "anndata",
)


def describe_run(
    command: str,
    configuration: Mapping[str, Any],
    inputs: Iterable[Path | str],
    counts: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the provenance of an output as a JSON-able dict.

    Args:
      command: or function that writes the output, e.g. "tokenize".
      configuration: the resolved options; of a folder that is its "checkpoint" the weights are
        fingerprinted.
      inputs: files and folders that were read; each is fingerprinted.
      counts: what was kept, and what was dropped and why.
    """
    return {
        "command": command,
        "configuration": dict(configuration),
        "inputs": [fingerprint(path) for path in inputs],
        **_weights_of(configuration),
        "counts": dict(counts),
        "packages": _package_versions(),
        "python": platform.python_version(),
        "device": _device(),
        _WRITTEN_AT: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def without_times(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a provenance without when its output was written, and how fast.

    Files of data carry it so, that the same command writes the same bytes; its times are beside.
    """
    counts = {name: each for name, each in provenance["counts"].items() if name != THROUGHPUT}
    told = {name: each for name, each in provenance.items() if name != _WRITTEN_AT}
    return told | {"counts": counts}


def write_provenance(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Writes `provenance` (see `describe_run`) as `folder`/provenance.json, whole or not at all."""
    with atomic_write(folder / FILE_NAME) as aside:
        aside.write_text(json.dumps(provenance, indent=2, default=str) + "\n")


def read_provenance(folder: Path) -> dict[str, Any]:
    """Returns what `write_provenance` wrote into `folder`.

    Raises:
      InputError: it is damaged.
    """
    path, reason = folder / FILE_NAME, "it is cut or changed"
    try:
        if isinstance(content := read_json(path), dict):
            return content
    except ValueError as error:
        reason = str(error)
    raise InputError(f"{path} is damaged ({reason}); restore it from a copy")


def provenance_beside(output: Path) -> Path:
    """Where the provenance of an output lies that is one file."""
    return output.with_suffix(f".{FILE_NAME}")


def written_configuration(provenance: Path) -> dict[str, Any] | None:
    """Returns the configuration that a provenance file tells, or None if it cannot be told."""
    try:
        written = read_json(provenance)["configuration"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return written if isinstance(written, dict) else None


def require_own_provenance(output: Path) -> None:
    """Checks that an output would not take the provenance, and report, of another beside it.

    Raises:
      InputError: a file of the same name with another ending is there, and has them; or a file
        that is no provenance has its name.
    """
    provenance = provenance_beside(output)
    written = written_configuration(provenance)
    if written is None:
        if provenance.exists():
            raise InputError(
                f"{provenance} is no provenance of this package, and that of the output would "
                "replace it; move it, or give the output another name"
            )
        return
    other = output.with_name(Path(str(written.get("output"))).name)
    if other.name != output.name and other.exists():
        raise InputError(
            f"`output` {output} would replace the provenance of {other}, which has the same name "
            "but for its ending; choose another name"
        )


def require_same_inputs(
    output: Path, provenance: Path, configuration: Mapping[str, Any], names: Iterable[str]
) -> None:
    """Checks that an output that is there was made of what lies at the same paths now.

    The weights of its checkpoint are looked at too, which may have been trained further.

    Args:
      output: that is there.
      provenance: its provenance file.
      configuration: of the command.
      names: of the values that are paths of inputs, in the order in which the provenance tells
        them. What is gone is not looked at, nor a folder that the output lies in.

    Raises:
      InputError: one of them is another now.
    """
    try:
        written = read_json(provenance)
        told, weights = written["inputs"], written.get(_WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    paths = [configuration[name] for name in names if configuration.get(name)]
    changed = [path for path, before in zip(paths, told, strict=False)
               if is_looked_at(path, output) and fingerprint(path) != before]  # fmt: skip
    now = _weights_of(configuration).get(_WEIGHTS)
    # Outputs of earlier versions tell nothing of weights.
    if None not in (weights, now) and weights != now:
        changed.append(configuration["checkpoint"])
    if changed:
        raise InputError(
            f"{output} was made of {changed[0]} before it was changed; remove it or name another "
            "output"
        )


def _weights_of(configuration: Mapping[str, Any]) -> dict[str, str]:
    """A hash of what tells all files of weights in the folder of a checkpoint from others.

    Those are of safetensors, of PyTorch, and what Orbax writes as `params`. Nothing if the
    configuration names no folder on this machine.
    """
    named = configuration.get("checkpoint")
    if not isinstance(named, str | Path) or not named or not Path(named).expanduser().is_dir():
        return {}
    folder, digest = Path(named).expanduser(), hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if path.suffix in _WEIGHT_FILES and path.is_file():
            digest.update(f"{place} {fingerprint(path)}\n".encode())
        elif _ORBAX_WEIGHTS in place.parts and path.is_file():
            # Orbax draws the names of its files; a run may have very many of them.
            digest.update(f"{place} {path.stat().st_size}\n".encode())
    return {_WEIGHTS: digest.hexdigest()}


@functools.cache
def _package_versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _device() -> str:
    # Tokenising imports no JAX, and its provenance must not start one.
    jax = sys.modules.get("jax")
    if jax is None:
        return f"CPU ({platform.machine()})"
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
