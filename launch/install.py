"""Installs into the environment of this interpreter, and says what it is waiting for.

    python launch/install.py --editable ".[demo]"

uv does it in a fraction of pip's time: it fetches and unpacks packages side by side, and names the
large ones as they come. It is put into the environment by pip, whose settings (index, proxy
certificate, constraints) it is given. Where there is no uv, pip does it all.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

_QUIETLY = ("--disable-pip-version-check", "--progress-bar=off")
# pip's setting -> uv's environment variable for the same.
_SETTINGS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "cert": "SSL_CERT_FILE",
}


def main() -> None:
    """Installs; ends with the exit status of uv or pip."""
    began = time.monotonic()
    pip = [sys.executable, "-m", "pip"]
    fetched = subprocess.run([*pip, "install", "--quiet", *_QUIETLY, "uv"], capture_output=True)
    uv = Path(sys.executable).with_name("uv")
    if fetched.returncode or not uv.exists():
        print("  uv cannot be had; pip takes longer, and says less", flush=True)
        command, variables = [*pip, "install", *_pip_options(), *sys.argv[1:]], {}
    else:
        print(f"  uv works out what {sys.argv[-1]} needs", flush=True)
        command = [str(uv), "pip", "install", "--python", sys.executable, *_uv_options()]
        command, variables = [*command, *sys.argv[1:]], settings_of_pip(pip)
    done = subprocess.run(command, env={**os.environ, **variables})
    if done.returncode:
        sys.exit(done.returncode)
    print(f"  installed in {time.monotonic() - began:.0f} s", flush=True)


def _pip_options() -> tuple[str, ...]:
    # Python compiles a module when it is first imported. Compiling all there are at once takes
    # longer than everything else after the download, and most are never imported. Where Python may
    # keep no compiled modules (PYTHONDONTWRITEBYTECODE), every command would compile them anew.
    return (*_QUIETLY, *(() if sys.dont_write_bytecode else ("--no-compile",)))


def _uv_options() -> tuple[str, ...]:
    # The newest of all indexes, as pip takes it, rather than of the first that has the package.
    compiled = ("--compile-bytecode",) if sys.dont_write_bytecode else ()
    return ("--index-strategy=unsafe-best-match", *compiled)


def settings_of_pip(pip: list[str]) -> dict[str, str]:
    """Returns pip's settings as variables for uv, but those that uv has been given already."""
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True).stdout
    found = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        variable = _SETTINGS.get(name.rpartition(".")[2])
        if variable and variable not in os.environ:
            found[variable] = value.strip("'\"").replace("\\n", " ")
    return found


if __name__ == "__main__":
    main()
