"""How every door starts: flags parsed, `--help` answered, bad input told in one line.

A door is a module run with `python -m geneformer_jax.<door>`. It defines absl flags, a `main()`
without arguments, and ends with `door.run(main)`.
"""

import errno
import os
import runpy
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import TypeVar

from absl import flags

from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.log import show_log

BAD_INPUT = 1
INTERRUPTED = 130
_CONFIG_PREFIX = "--config."

T = TypeVar("T")


def run(main: Callable[[], None]) -> None:
    """Parses the command line and runs `main`; never returns.

    Exit status: 0 done (also for `--help`), 1 bad input (one line on standard error), 130 stopped
    by Ctrl-C. Anything else is a defect of ours and shows its traceback.
    """
    show_log()
    try:
        _parse(sys.argv)
        main()
    except InputError as error:
        _say(str(error))
        sys.exit(BAD_INPUT)
    except OSError as error:
        _say(_explain(error))
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        _say("interrupted; run the same command again to go on")
        sys.exit(INTERRUPTED)
    sys.exit(0)


def split_list(value: str) -> list[str]:
    """Splits a comma-separated flag value; empty parts are left out."""
    return [part.strip() for part in value.split(",") if part.strip()]


def require(*names: str) -> None:
    """Raises InputError if a flag that this door needs was not given."""
    missing = [name for name in names if not flags.FLAGS[name].value]
    if missing:
        listed = ", ".join(f"--{name}" for name in missing)
        raise InputError(f"{listed} must be given; see --help")


def _say(message: str) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)


def _explain(error: OSError) -> str:
    """One line for what the operating system refused; re-raises what is not the user's to mend."""
    where = error.filename or "the output folder"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left while writing {where}; free some and run the same command again"
    if error.errno == errno.EFBIG:
        return f"{where}: file too large here; raise that limit and run the same command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission for {where}; change its permissions or name another path"
    if error.errno == errno.ENOENT:
        return f"{where} does not exist; check the path"
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return f"{where}: {os.strerror(error.errno).lower()}; name another path"
    raise error


def _parse(argv: Sequence[str]) -> None:
    if any(argument in ("--help", "-h", "-help", "--helpfull") for argument in argv[1:]):
        print(_help())
        sys.exit(0)
    config = _config_file(argv)
    if config and "config" in flags.FLAGS and not os.path.isfile(config):
        raise InputError(f"--config={config} is no file; name one, such as configs/quickstart.py")
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(_flag_mistake(argv, error)) from error
    except OSError as error:
        raise InputError(f"--config file cannot be read: {error}; check its path") from error
    if len(rest) > 1:
        raise InputError(f'"{rest[1]}" is not a flag: flags start with --; see --help')


def _flag_mistake(argv: Sequence[str], error: Exception) -> str:
    """Says which flag is wrong; for config keys, which key it may have meant."""
    known = _config_keys(argv)
    for argument in argv[1:]:
        name, _, value = argument.partition("=")
        if not name.startswith(_CONFIG_PREFIX) or not known:
            continue
        key = name.removeprefix(_CONFIG_PREFIX)
        if key not in known:
            remedy = "see the configuration file for its keys"
            return f'--config has no key "{key}"{did_you_mean(key, known)}; {remedy}'
        kind = type(known[key]).__name__
        if str(value) and str(value) in str(error):
            return f'{name} must be of type {kind}, but "{value}" was given'
    return f"{error}; see --help"


def _config_file(argv: Sequence[str]) -> str:
    """The value of --config on the command line, '' if it is not there."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if argument == "--config":
            return following
        if argument.startswith("--config="):
            return argument.removeprefix("--config=")
    return ""


def _config_keys(argv: Sequence[str]) -> dict[str, object]:
    """Dotted names and values of the configuration file named by --config, empty if it has none.

    The file is run anew: a wrong key leaves the door's own flag without a value.
    """
    if "config" not in flags.FLAGS or not _config_file(argv):
        return {}
    config = runpy.run_path(_config_file(argv))["get_config"]()
    keys: dict[str, object] = {}

    def walk(prefix: str, node: object) -> None:
        for name, value in node.items():
            if hasattr(value, "items"):
                walk(f"{prefix}{name}.", value)
            else:
                keys[prefix + name] = value

    walk("", config)
    return keys


def _help() -> str:
    door = sys.modules["__main__"]
    lines = [(door.__doc__ or "").strip(), "", "Flags:"]
    for flag in sorted(flags.FLAGS.get_key_flags_for_module(sys.argv[0]), key=lambda f: f.name):
        default = "" if flag.default in (None, "") else f"  (default: {flag.default})"
        lines.append(f"  --{flag.name}{default}")
        lines.append(textwrap.indent(textwrap.fill(flag.help or "", 92), " " * 6))
    return "\n".join(lines)


def configuration() -> dict[str, object]:
    """The values of all flags of the running door, for its provenance."""
    return {flag.name: flag.value for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}


def parse_shard(text: str) -> tuple[int, int]:
    """Reads "i/n" into (i, n); "" is all: (0, 1).

    Raises:
      InputError: another form, or i not in 0 .. n-1.
    """
    if not text:
        return 0, 1
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise InputError(f'--shard="{text}" must be i/n with i from 0 to n-1, such as 0/4')
    return int(first), int(second)


def shard_of(items: Sequence[T], share: tuple[int, int]) -> list[T]:
    """Returns every n-th item, starting from the i-th."""
    index, count = share
    return list(items[index::count])
