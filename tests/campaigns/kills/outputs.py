"""What a folder of outputs holds, byte for byte, but for the times that provenance tells."""

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# When it was written, and how long it took.
_TIMES = ("written_at", "throughput")
# Of lines of metrics.
_SPEEDS = ("cells_per_s", "tokens_per_s", "padded_tokens_per_s", "model_flops_per_s", "data_wait",
           "step_s")  # fmt: skip
_PROVENANCE = re.compile("(<summary>provenance.json</summary><pre>)(.*?)(</pre>)", re.DOTALL)


def contents(folder: Path) -> dict[str, bytes]:
    """Returns path below the folder -> bytes of each file, without times; b"" of empty folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            if not any(path.iterdir()):
                found[f"{name}/"] = b""
        else:
            found[name] = _timeless(path)
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
        return _PROVENANCE.sub(_timeless_part, content.decode()).encode()
    return content


def _timeless_part(of_page: re.Match[str]) -> str:
    return f"{of_page[1]}{_timeless_json(html.unescape(of_page[2]))}{of_page[3]}"


def _timeless_json(text: str) -> str:
    return json.dumps(_without_times(json.loads(text)))


def _without_times(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_times(each) for name, each in value.items() if name not in _TIMES}
    return value
