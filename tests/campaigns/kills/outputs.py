"""What a folder of outputs holds, byte for byte, but for times.

Times are when an output was written and how fast it was made, in its provenance and in lines of
metrics. Of checkpoints the arrays count: Orbax draws the names of its files, and dates them. Files
of TensorBoard, which are named by the time, are left out.
"""

import hashlib
import html
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TIMES = ("written_at", "throughput")
_SPEEDS = ("cells_per_s", "tokens_per_s", "padded_tokens_per_s", "model_flops_per_s", "data_wait",
           "step_s")  # fmt: skip
_IN_PAGE = re.compile("(<summary>provenance.json</summary><pre>)(.*?)(</pre>)", re.DOTALL)
_TENSORBOARD, _CHECKPOINTS = "tensorboard", "checkpoints"


def contents(folder: Path) -> dict[str, bytes]:
    """Returns path below the folder -> bytes of each file, without times; b"" of empty folders."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name == _TENSORBOARD:
            continue
        if not path.is_dir():
            found[path.name] = _timeless(path)
        elif folder.name in (_CHECKPOINTS, "training") and path.name.isdigit():
            found[path.name] = _arrays(path)
        else:
            below = contents(path) or {"": b""}
            found |= {f"{path.name}/{name}": content for name, content in below.items()}
    return found


def differences(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> list[str]:
    """Returns a line for each file that is missing, should not be there, or differs."""
    missing = [f"no {name}" for name in expected if name not in found]
    more = [f"left over: {name}" for name in found if name not in expected]
    other = [f"another {name}" for name in found if found[name] != expected.get(name, found[name])]
    return [*missing, *more, *other]


def _timeless(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name.endswith("provenance.json"):
        return _timeless_json(content.decode()).encode()
    if path.suffix == ".html":
        return _IN_PAGE.sub(_timeless_part, content.decode()).encode()
    if path.name == "metrics.jsonl":
        rows = map(json.loads, content.splitlines())
        kept = [{name: row[name] for name in row if name not in _SPEEDS} for row in rows]
        return json.dumps(kept).encode()
    return content


def _timeless_part(of_page: re.Match[str]) -> str:
    return f"{of_page[1]}{_timeless_json(html.unescape(of_page[2]))}{of_page[3]}"


def _timeless_json(text: str) -> str:
    return json.dumps(_without_times(json.loads(text)))


def _without_times(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_times(each) for name, each in value.items() if name not in _TIMES}
    return value


def _arrays(checkpoint: Path) -> bytes:
    """Returns a digest of what a checkpoint holds; b"unreadable" where something of it is gone."""
    # Only some commands leave checkpoints, and JAX takes seconds to import.
    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    with warnings.catch_warnings():
        # Orbax warns that it takes the devices as the checkpoint names them.
        warnings.simplefilter("ignore", UserWarning)
        try:
            kept = ocp.load_checkpointables(checkpoint)
        except (OSError, KeyError, TypeError, ValueError):
            return b"unreadable"
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(kept):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()
