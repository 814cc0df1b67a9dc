"""How every command starts: flags parsed, `--help` answered, bad input reported in one line.

A command is a module run with `python -m geneformer_jax.<command>`. It defines absl flags, a
`main()` without arguments, and ends with `command_line.run(main)`. Flags that several commands
share are defined here, in groups.
"""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TypeVar

from absl import flags

from geneformer_jax.common.arguments import MEANT_BY_LAYER
from geneformer_jax.common.command_help import command_help
from geneformer_jax.common.commands.about import answer
from geneformer_jax.common.commands.configurations import find_configuration
from geneformer_jax.common.commands.interrupts import note_interrupts, was_interrupted
from geneformer_jax.common.commands.summary import Summary
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.files import require_can_appear, system_error_in, url_of
from geneformer_jax.common.log import show_log

BAD_INPUT = 1
INTERRUPTED = 130
# What a shell reports of a program whose reader has gone, as in `| head`.
NOBODY_READS = 141
EXIT_STATUS = f"""\
Exit status: 0 done, or nothing left to do; {BAD_INPUT} bad input, one line on standard error (with a
traceback: a defect of this program); {INTERRUPTED} stopped by Ctrl-C, goes on when given again; \
{NOBODY_READS}
nobody reads what is printed. --version prints the version, --cite what to cite."""  # noqa: E501
# How ml_collections reports a key that a configuration does not have.
_NEAR_MATCH = re.compile(r'Did you mean "([^"]+)" instead of "([^"]+)"')
_ARGUMENT = re.compile(r"`([a-z_]\w*(?:\.[a-z_]\w*)*)`")
_HELP = re.compile(r"--?(h|help|helpfull|helpshort)")
_QUOTED = re.compile(r"'([^']+)'")
_LAYER = re.compile(r"--?layer(=|$)")
_JSON = re.compile(r"--?json(=(true|1))?", re.IGNORECASE)
_GIVEN = re.compile(r"--?(\w+)(?:=(.*))?", re.DOTALL)
_NOT_CLOSED = "Can't decrement id ref count"
# Flags of what is written.
_WRITTEN = ("output", "workdir", "report")
_MADE = (*_WRITTEN, "target")
# Flags of an input that is one path.
_INPUTS = ("cells", "reference", "query", "source")
# Flags that say nothing of what a command makes: other names, and who makes it.
_NOT_KEPT: set[str] = set()
# Flags of paths separated by commas.
_LISTS: set[str] = set()
# What a program asked for that runs this command.
_SUMMARIES: list[Summary] = []

T = TypeVar("T")
N = TypeVar("N", int, float)

# Flags defined here belong to the command that asks for them, and appear in its --help.
flags.disclaim_key_flags()


def run(
    main: Callable[[], None],
    needed: Sequence[str] = (),
    spared: Mapping[str, Sequence[str]] = MappingProxyType({}),
    more_help: Callable[[], list[str]] = list,
) -> None:
    """Parses the command line and runs `main`; never returns.

    Exit status: as the help says (`EXIT_STATUS`). Anything else is a defect of ours and shows its
    traceback. Messages name arguments of Python functions in backticks; they are shown as flags
    where the command has them.

    Args:
      main: the command's work.
      needed: flags that must be given; the help begins with them.
      spared: flag -> those of `needed` that need not be given beside it.
      more_help: returns lines that the help ends with.
    """
    note_interrupts()
    show_log(written=as_flags)
    _define_json()
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook, sys.unraisablehook = _tell, _tell_unraisable
    try:
        if (told := _told(needed, spared, more_help)) is None:
            with _at_once_if_interrupted(), _summary():
                sys.exit(_exit_status(main, needed, spared))
        print(told, flush=True)
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        sys.exit(NOBODY_READS)
    sys.exit(0)


@contextlib.contextmanager
def _at_once_if_interrupted() -> Iterator[None]:
    """Ends a process that Ctrl-C came to without what Python does at its end.

    Threads of JAX and grain that were left at work crash it then, or never let it end.
    """
    try:
        yield
    except SystemExit as ended:
        if not (was_interrupted() and isinstance(ended.code, int)):
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code)


def _define_json() -> None:
    # A process may run several commands, one after another.
    if "json" not in flags.FLAGS:
        flags.DEFINE_bool(
            "json", False, "Print one JSON document on what was done (outputs, provenance, error) "
            "on standard output, and all else on standard error.",
        )  # fmt: skip
        keep_out_of_configuration("json")


def note(name: str, value: object) -> None:
    """Adds a fact, a plain value, to the document that --json asks for."""
    for summary in _SUMMARIES:
        summary.facts[name] = value


def note_outputs(arguments: Sequence[str]) -> None:
    """Adds what the flags of another command name as outputs, for one that runs it."""
    for summary in _SUMMARIES:
        summary.outputs.update(outputs_in(arguments))


def outputs_in(arguments: Sequence[str]) -> dict[str, str]:
    """Flag -> value of those flags of a command line that name outputs."""
    outputs = {}
    for place, argument in enumerate(arguments):
        given = _GIVEN.fullmatch(argument)
        if given and given[1] in _MADE:
            outputs[given[1]] = given[2] or "".join(arguments[place + 1 : place + 2])
    return outputs


def _told(
    needed: Sequence[str], spared: Mapping[str, Sequence[str]], more_help: Callable[[], list[str]]
) -> str | None:
    """What is printed for --help, --version and --cite; None for work to do."""
    given = sys.argv[1:]
    if any(map(_HELP.fullmatch, given)):
        return "\n".join([*_help(needed, spared), *more_help(), "", EXIT_STATUS])
    return next(filter(None, map(answer, given)), None)


@contextlib.contextmanager
def _summary() -> Iterator[None]:
    if not any(map(_JSON.fullmatch, sys.argv[1:])):
        yield
        return
    spec = sys.modules["__main__"].__spec__
    with Summary(spec.name.split(".")[1] if spec else os.path.basename(sys.argv[0])) as summary:
        _SUMMARIES.append(summary)
        try:
            yield
        finally:
            _SUMMARIES.remove(summary)


def _exit_status(
    main: Callable[[], None], needed: Sequence[str], spared: Mapping[str, Sequence[str]]
) -> int:
    try:
        parse(needed, spared)
        for summary in _SUMMARIES:
            made = {name: flags.FLAGS[name].value for name in _MADE if name in flags.FLAGS}
            summary.outputs = {name: path for name, path in made.items() if path}
        main()
        # Here rather than as Python ends, where nothing could answer that nobody reads.
        sys.stdout.flush()
    except InputError as error:
        _print_error(as_flags(str(error)))
        return BAD_INPUT
    except OSError as error:
        _print_error(explain(error))
        return BAD_INPUT
    except KeyboardInterrupt:
        _print_error("interrupted; run the same command again to go on")
        return INTERRUPTED
    return 0


def split_list(value: str) -> list[str]:
    """Splits a comma-separated flag value; empty parts are left out."""
    return [part.strip() for part in value.split(",") if part.strip()]


def parse_numbers(name: str, kind: type[N]) -> list[N]:
    """Returns the values of a flag that lists numbers.

    Raises:
      InputError: it lists something else.
    """
    try:
        return [kind(text) for text in split_list(flags.FLAGS[name].value)]
    except ValueError:
        wrong = f"--{name}={flags.FLAGS[name].value} must list numbers, separated by commas"
        raise InputError(wrong + _meant_by_layer(wrong)) from None


def require(*names: str) -> None:
    """Raises InputError if a flag that this command needs was not given."""
    missing = [name for name in names if not flags.FLAGS[name].value]
    if missing:
        listed = ", ".join(f"--{name}" for name in missing)
        raise InputError(f"{listed} must be given; see --help")


def show(lines: Iterable[str]) -> None:
    """Prints lines of the package, each as soon as it is there."""
    for line in lines:
        print(as_flags(line), flush=True)


def as_flags(message: str) -> str:
    """Writes the arguments that a message names in backticks as the flags of this command."""
    return _ARGUMENT.sub(lambda name: _as_flag(name[1]) or name[0], message)


def _as_flag(argument: str) -> str:
    # `config.task.folds` is a key of the flag --config.
    return f"--{argument}" if argument.partition(".")[0] in flags.FLAGS else ""


def _print_error(message: str) -> None:
    line = " ".join(message.split())
    for summary in _SUMMARIES:
        summary.tell_error(line)
    print(f"error: {line}", file=sys.stderr, flush=True)


def explain(error: OSError) -> str:
    """One line for what the operating system refused; re-raises what is not the user's to mend."""
    # Arrow names the file in its text alone.
    named = _QUOTED.search(str(error))
    where = error.filename or (named[1] if named else "the output folder")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left while writing {where}; free some and run the same command again"
    if error.errno == errno.EFBIG:
        return f"{where}: file too large here; raise that limit and run the same command again"
    if error.errno in (errno.EIO, errno.ESTALE):
        why = os.strerror(error.errno).lower()
        return f"the disk failed at {where} ({why}); check it and run the same command again"
    if error.errno == errno.ENOLCK:
        remedy = "set HDF5_USE_FILE_LOCKING=FALSE and run the same command again"
        return f"{where} lies where files cannot be locked; {remedy}"
    if error.errno == errno.EROFS:
        return f"{where} lies where nothing can be written; name another path"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"no permission for {where}; change its permissions or name another path"
    if error.errno == errno.ENOENT:
        return f"{where} does not exist; check the path"
    if error.errno in (errno.ENOTEMPTY, errno.EBUSY):
        # On a disk of several machines.
        what = "is in use, or holds what is not seen here yet"
        return f"{where} {what}; run the same command again in a minute"
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP):
        return f"{where}: {os.strerror(error.errno).lower()}; name another path"
    raise error


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not _is_repeated(error):
        sys.__excepthook__(kind, error, trace)


def _tell_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    if not _is_repeated(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def _is_repeated(error: BaseException | None) -> bool:
    """Whether this is what h5py prints of every object of a file that could not be written."""
    return str(error).startswith(_NOT_CLOSED) and system_error_in(error) is not None


def parse(
    needed: Sequence[str] = (), spared: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> None:
    """Reads the flags in `sys.argv`; see `run`.

    Raises:
      InputError: a flag is mistyped, or missing.
    """
    _parse(_configuration_found(_braces_joined(sys.argv)))
    given = [flag for flag in spared if flags.FLAGS[flag].value]
    freed = {name for flag in given for name in spared[flag]}
    require(*(name for name in needed if name not in freed))


def _parse(argv: Sequence[str]) -> None:
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        near = did_you_mean(error.flagname.replace("-", "_"), flags.FLAGS)
        remedy = _meant_by_layer(str(error)) or "; see --help"
        raise InputError(f"--{error.flagname} is no flag{near}{remedy}") from error
    except flags.Error as error:
        # ml_collections puts a whole traceback into the message of a file that raises TypeError.
        what = str(error).strip().splitlines()[-1] if "Traceback" in str(error) else str(error)
        raise InputError(f"{what}{_meant_by_layer(what) or '; see --help'}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(_explain_config(error)) from error
    except OSError as error:
        raise InputError(f"--config file cannot be read: {error}; check its path") from error
    except Exception as error:
        # Of what runs here, only a configuration file of the user's raises other errors.
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"--config names a file that does not run: {what}; mend it") from error
    if len(rest) > 1:
        raise InputError(f'"{rest[1]}" is not a flag: flags start with --; see --help')
    _expand_home()
    _require_outputs()


def _braces_joined(argv: Sequence[str]) -> list[str]:
    """Returns a command line in which a list of paths is one flag again.

    Shells make flags side by side of --counts={a,b}.h5ad, of which the last would count alone.

    Raises:
      InputError: they do so of an input that is one path.
    """
    result: list[str] = []
    before = ""
    for argument in argv:
        given = _GIVEN.fullmatch(argument)
        name = given[1] if given and given[2] is not None else ""
        if name not in {*_INPUTS, *_LISTS} or name != before:
            result.append(argument)
        elif name in _LISTS:
            result[-1] += f",{given[2]}"
        else:
            raise InputError(f"{result[-1]} {argument}: --{name} is one path; give one of them")
        before = name
    return result


def _configuration_found(argv: Sequence[str]) -> list[str]:
    """Returns a command line whose --config names a file.

    Raises:
      InputError: it names neither a file nor a configuration that comes with the package.
    """
    result = list(argv)
    for place, argument in enumerate(argv):
        given = _GIVEN.fullmatch(argument)
        if not given or given[1] != "config" or "config" not in flags.FLAGS:
            continue
        if given[2] is not None:
            result[place] = f"--config={find_configuration(given[2])}"
        elif argv[place + 1 :]:
            result[place + 1] = find_configuration(argv[place + 1])
    return result


def _require_outputs() -> None:
    """Refuses outputs that cannot appear, such as a folder that is called as a URL's scheme."""
    given = {name: flags.FLAGS[name].value for name in _WRITTEN if name in flags.FLAGS}
    for name, value in given.items():
        if url_of(value or ""):
            raise InputError(
                f"--{name}={value} is a URL, and outputs are written to disk, "
                "where they appear when they are whole; name a path, and copy what is finished"
            )
        if not value:
            continue
        # What lies beside an output is called after it.
        if os.path.basename(value.rstrip("/")) in ("", ".", ".."):
            flags.FLAGS[name].value = value = os.path.abspath(value)
        require_can_appear(value, f"--{name}")


def _meant_by_layer(message: str) -> str:
    """What to give in place of --layer, where it was given and the message is on it."""
    given = "layer" in message and any(map(_LAYER.match, sys.argv[1:]))
    return f"; {MEANT_BY_LAYER}" if given and "counts_layer" in flags.FLAGS else ""


def _expand_home() -> None:
    """Puts the home folder for a first ~, which a shell leaves as it is behind --flag=."""
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
        if isinstance(flag.value, str) and (flag.value == "~" or flag.value.startswith("~/")):
            flag.value = os.path.expanduser(flag.value)


def _explain_config(error: Exception) -> str:
    """One line for a key that the configuration file does not have, with the near match."""
    if near := _NEAR_MATCH.search(str(error)):
        what = f'key "{near[2]}", did you mean "{near[1]}"?'
    elif "'get_config" in str(error):
        what = "function get_config() in its file, which returns the configuration"
    else:
        what = "such key: " + str(error).strip("'\"\\")
    return f"--config has no {what}; see the configuration file for its keys"


def _help(needed: Sequence[str], spared: Mapping[str, Sequence[str]]) -> list[str]:
    purpose = sys.modules["__main__"].__doc__ or ""
    known = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    return command_help(purpose, known, needed, spared)


def _output_is_closed() -> bool:
    """Whether nobody reads standard output any more; what is left for it is thrown away then."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except BrokenPipeError:
        # Python flushes once more as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def model_flags() -> None:
    """Defines the flags of a command that uses a pretrained model: which one."""
    flags.DEFINE_string(
        "checkpoint", "", "Checkpoint, or workdir of a run (its newest, or its one network)."
    )
    flags.DEFINE_string(
        "vocabulary", "", "Vocabulary folder, or the original's dictionaries, for a checkpoint "
        "that carries none.",
    )  # fmt: skip
    flags.DEFINE_string(
        "base", "", "For an adapter: the model it was trained on, if that has moved."
    )
    flags.DEFINE_string(
        "quantize", "", "int8 or nf4: round the encoder's weights to 8 or 4 bits; they take 0.26 "
        "or 0.18 of the memory, and results change a little.",
    )  # fmt: skip


def model_arguments() -> dict[str, str | None]:
    """Returns the arguments of `load_model` that the flags of `model_flags` give.

    Raises:
      InputError: no checkpoint is given, but what is said of one; it would be passed over.
    """
    given = {name: flags.FLAGS[name].value or None for name in ("vocabulary", "base", "quantize")}
    unused = [f"--{name}={value}" for name, value in given.items() if value]
    if unused and not flags.FLAGS.checkpoint:
        raise InputError(
            f"{', '.join(unused)} without --checkpoint: there is no model that it is said of; name "
            "--checkpoint, or leave it out"
        )
    return {"path": flags.FLAGS.checkpoint, **given}


def cell_flags() -> None:
    """Defines the flags of a command that takes cells: from where, and which of them."""
    flags.DEFINE_string("cells", "", "Cell store, tokenised dataset (.dataset) or raw counts.")
    flags.DEFINE_multi_string(
        "filter", [], "column:value|value: only cells with such a value (one with a | in it is "
        "found as a whole); if repeated for several columns, all must pass.",
    )  # fmt: skip
    flags.DEFINE_integer("max_cells", None, "Draw this number of cells at random.", lower_bound=1)
    flags.DEFINE_integer("seed", 42, "Of the draw; 42 draws the cells that the original keeps.")


def device_flags() -> None:
    """Defines the flags of a command that computes on devices: how."""
    flags.DEFINE_string("precision", "float32", "float32, bfloat16 or float16.")
    flags.DEFINE_string(
        "attention", "auto", "Attention implementation; auto chooses for the device."
    )
    flags.DEFINE_integer(
        "tokens_per_device", None, "Padded tokens in a batch; default 2,048 on CPUs and 131,072 on "
        "accelerators. Fewer take less memory.", lower_bound=1,
    )  # fmt: skip


def process_flags() -> None:
    """Defines the flags of a command that trains in several processes at once."""
    flags.DEFINE_integer(
        "processes", 1, "Processes of this run; 0 takes what Slurm or the TPU slice states.",
        lower_bound=0,
    )  # fmt: skip
    flags.DEFINE_integer("process", 0, "Which of them this is, from 0.")
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, where all processes meet.")


def processes() -> tuple[int, int, str]:
    """Returns the values of the flags that `process_flags` defines."""
    return tuple(flags.FLAGS[name].value for name in ("processes", "process", "coordinator"))


def list_flag(name: str) -> None:
    """Says that a flag lists paths, and may be given several times."""
    _LISTS.add(name)


def alias_flag(name: str, of: str) -> None:
    """Defines another name of a flag, such as an older one."""
    flags.DEFINE_alias(name, of)
    keep_out_of_configuration(name)


def keep_out_of_configuration(*names: str) -> None:
    """Leaves flags out of `configuration`, on which no output depends."""
    _NOT_KEPT.update(names)


def configuration() -> dict[str, object]:
    """The values of the running command's flags that its output depends on, for the provenance."""
    own = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    return {flag.name: flag.value for flag in own if flag.name not in _NOT_KEPT}


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
