"""Runs `pip install` in the environment of this interpreter, and says what it is waiting for.

    python launch/install.py --editable ".[demo]"

pip alone prints either hundreds of lines or none in several minutes. Here each large package has a
line when its download begins, and the end says how many there were.
"""

import re
import subprocess
import sys
import time

# Python compiles a module when it is first imported. Compiling all there are at once, as pip does,
# takes longer than everything else after the download, and most are never imported. Where Python
# may keep no compiled modules (PYTHONDONTWRITEBYTECODE), every command would compile them anew.
_LATER = () if sys.dont_write_bytecode else ("--no-compile",)
_OPTIONS = (*_LATER, "--progress-bar=off", "--disable-pip-version-check")
_FETCHED = re.compile(r"\s*(?:Downloading|Using cached) (\S+) \(([\d.]+) ([kMG]?)B\)")
_MEGABYTES = {"": 1e-6, "k": 1e-3, "M": 1.0, "G": 1e3}
_INSTALLING = "Installing collected packages: "
_WORTH_A_LINE = 5.0
_LINES_ON_FAILURE = 20


def main() -> None:
    """Installs; ends with pip's exit status."""
    began, megabytes, packages, said = time.monotonic(), 0.0, 0, []
    command = [sys.executable, "-m", "pip", "install", *_OPTIONS, *sys.argv[1:]]
    print(f"  pip works out what {sys.argv[-1]} needs", flush=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as pip:
        for line in pip.stdout:
            said.append(line)
            if (fetched := _FETCHED.match(line)) and not fetched[1].endswith(".metadata"):
                size = float(fetched[2]) * _MEGABYTES[fetched[3]]
                megabytes += size
                if size >= _WORTH_A_LINE:
                    name = " ".join(fetched[1].rpartition("/")[2].split("-")[:2])
                    print(f"  fetching {name} ({size:.0f} MB)", flush=True)
            elif line.startswith(_INSTALLING):
                packages = line.count(",") + 1
                print(f"  unpacking {packages} packages, about a minute", flush=True)
    if pip.returncode:
        print("".join(said[-_LINES_ON_FAILURE:]), end="")
        sys.exit(pip.returncode)
    seconds = time.monotonic() - began
    print(f"  {packages} packages, {megabytes:.0f} MB, in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
