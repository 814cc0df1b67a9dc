"""The folder of a run: it records which run it is of, and no other run goes on in it."""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import (
    atomic_write,
    read_json,
    remove,
    require_new_folder,
    writing,
)
from geneformer_jax.common.log import logger
from geneformer_jax.common.provenance import (
    FILE_NAME,
    require_same_inputs,
    write_provenance,
    written_configuration,
)

CONFIG = "config.json"
_NEW_WORKDIR = "name a new `workdir`"
_SHOWN_LETTERS = 100
# Differences that a message names.
_NAMED = 5
_STRETCH = 1 << 30
# What a lock file begins with that is not empty: others name files so too.
_OWN_LOCK = '{"geneformer_jax": '


def claim_workdir(
    workdir: Path, identity: Mapping[str, Any], provenance: Mapping[str, Any] | None = None
) -> None:
    """Begins a run's folder, or checks that it is of the same run.

    Args:
      workdir: a new folder, or that of the run.
      identity: what decides the result, as plain numbers and texts, nested or not.
      provenance: for provenance.json of a new folder; None leaves that for later.

    Raises:
      InputError: the folder is of another run, or holds something else.
    """

    def prepare(folder: Path) -> None:
        if provenance is not None:
            write_provenance(folder, provenance)

    claim_folder(workdir, identity, file=CONFIG, elsewhere=_NEW_WORKDIR, prepare=prepare)


def claim_folder(
    folder: Path,
    identity: Mapping[str, Any],
    *,
    file: str,
    elsewhere: str,
    settings: Mapping[str, Any] | None = None,
    prepare: Callable[[Path], None] | None = None,
    owner: str = "",
) -> dict[str, Any]:
    """Begins a folder, or checks that the same run began it; several processes may do so at once.

    Args:
      folder: a new folder, or that of the same run.
      identity: what decides the result, as plain numbers and texts, nested or not.
      file: name of the JSON file in the folder that keeps identity and settings.
      elsewhere: remedy where the folder is not of this run, such as "name a new folder".
      settings: of the beginning, which stay as they are whatever later runs would choose.
      prepare: writes what else a new folder must hold into the folder it is given.
      owner: of this process, where several processes may begin the folder at the same time.

    Returns:
      The settings that the folder was begun with.

    Raises:
      InputError: the folder is of another run, or holds something else.
    """
    settings = dict(settings or {})
    if not (folder / file).is_file():
        require_new_folder(folder, elsewhere)
        try:
            # As one folder, so that a run killed here leaves nothing that would be refused later.
            with atomic_write(folder, owner) as aside:
                aside.mkdir()
                if prepare is not None:
                    prepare(aside)
                content = {**as_json(identity), **as_json(settings)}
                (aside / file).write_text(json.dumps(content, indent=2) + "\n")
        except OSError:
            # A folder is never renamed onto one that holds something: another process was first.
            if not (folder / file).is_file():
                raise
    kept = _read(folder / file, elsewhere)
    settings = {name: kept.pop(name, settings[name]) for name in settings}
    if changes := list(_differences(kept, as_json(identity))):
        raise InputError(
            f"{folder} is of a run with {', '.join(changes)}; {elsewhere}, or give the same "
            "configuration to go on"
        )
    return settings


@contextlib.contextmanager
def sole_run(workdir: Path) -> Iterator[None]:
    """Keeps a second process of the same run out of its folder, where both would lose checkpoints.

    Raises:
      InputError: another process is at work there.
    """
    descriptor = lock_folder(workdir / ".lock", otherwise="name a new `workdir`")
    try:
        yield
    finally:
        os.close(descriptor)


def lock_folder(
    path: Path,
    shard: tuple[int, int] = (0, 1),
    otherwise: str = "share the work with `shard`",
) -> int:
    """Keeps other processes from doing the same work in a folder; they let go when they end.

    Args:
      path: of the lock file.
      shard: (i, n), the i-th of n equal stretches of the work; processes whose stretches have
        nothing in common work side by side.
      otherwise: what can be done instead of waiting, by who does all of the work.

    Returns:
      Descriptor of the open file, which holds the lock until it is closed.

    Raises:
      InputError: another process is at work on some of it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    if _is_locked_by_another(descriptor, shard):
        os.close(descriptor)
        what, remedy = f"shard {shard[0]}/{shard[1]} of ", ""
        if shard[1] == 1:
            what, remedy = "", f", or {otherwise}"
        raise InputError(
            f"another process is at work on {what}{path.parent}; wait for it and run the same "
            f"command again{remedy}"
        )
    return descriptor


def _is_locked_by_another(descriptor: int, shard: tuple[int, int] = (0, 1)) -> bool:
    """Locks an open file for this process, unless another has locked some of the same work."""
    try:
        # Absent on Windows, where nothing is locked.
        import fcntl
    except ModuleNotFoundError:
        return False
    # Bytes of a file stand for the work, so that shares of different n get in each other's way.
    start, stop = (_STRETCH * each // shard[1] for each in (shard[0], shard[0] + 1))
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, stop - start, start)
    except OSError as error:
        # Some file systems of clusters know no locks.
        return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


@contextlib.contextmanager
def sole_writer(output: Path, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Keeps a second process from an output that is written at one go, and then told of.

    What a process wrote that was killed before it had told is removed, if it was given the same
    arguments: it is made again. Until then they stand in OUTPUT.lock.

    Raises:
      InputError: another process is writing the output, or the lock is a file of someone else.
    """
    lock = output.with_name(f"{output.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if _is_locked_by_another(descriptor):
            raise InputError(f"another process is writing {output}; wait for it")
        _require_own_lock(descriptor, lock)
        content = f"{_OWN_LOCK}{json.dumps(as_json(arguments))}}}".encode()
        if os.read(descriptor, len(content) + 1) == content:
            logger.info("%s is of a run that was killed before it ended: it is made again", output)
            remove(output)
        elif not output.is_file() and not (output.is_dir() and any(output.iterdir())):
            # Only here is what will be there of this command.
            with writing(lock):
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
                os.write(descriptor, content)
        try:
            yield
        except Exception:
            # Where nothing can be written, what came first is told.
            with contextlib.suppress(OSError):
                _let_go(lock, descriptor)
            raise
        # Not after Ctrl-C, which may come between output and report.
        _let_go(lock, descriptor)
    finally:
        os.close(descriptor)


def _require_own_lock(descriptor: int, lock: Path) -> None:
    held = os.read(descriptor, len(_OWN_LOCK))
    os.lseek(descriptor, 0, os.SEEK_SET)
    if not _OWN_LOCK.encode().startswith(held):
        raise InputError(
            f"{lock} is no lock of this package, which needs that name while it writes; move it, "
            "or give the output another name"
        )


def _let_go(lock: Path, descriptor: int) -> None:
    with writing(lock):
        # A process that has opened the file just now finds nothing in it.
        os.ftruncate(descriptor, 0)
        lock.unlink(missing_ok=True)


@contextlib.contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Waits until no other process is within such a block; removes the lock file at its end.

    Where files cannot be locked nobody waits.

    Raises:
      InputError: the file is someone else's.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _wait_for(lock)
    try:
        _require_own_lock(descriptor, lock)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _wait_for(lock: Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            import fcntl

            fcntl.lockf(descriptor, fcntl.LOCK_EX)
        except (ModuleNotFoundError, OSError):
            return descriptor
        # The one before has removed the file that was waited for: others wait for another by now.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor
        os.close(descriptor)


def is_finished(output: Path, configuration: Mapping[str, Any], inputs: Sequence[str] = ()) -> bool:
    """Returns whether a folder is there already, written whole with this configuration.

    Args:
      output: folder.
      configuration: of the command.
      inputs: names of those of its values that are paths of what is read.

    Raises:
      InputError: something else is there, or it was made of what has changed since.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    require_own(output, written_configuration(output / FILE_NAME), configuration, "folder")
    require_same_inputs(output, output / FILE_NAME, configuration, inputs)
    return True


def require_own(
    output: Path,
    written: Mapping[str, Any] | None,
    configuration: Mapping[str, Any],
    kind: str = "file",
) -> None:
    """Raises InputError if an output is not of this command; it names what is another.

    Args:
      output: that is there.
      written: configuration of the command that wrote it; None if that cannot be told.
      configuration: of this one.
      kind: what the output is, for the remedy.
    """
    changes = [] if written is None else list(_differences(written, as_json(configuration)))
    if written is None or changes:
        more = ", ..." if len(changes) > _NAMED else ""
        named = f" ({', '.join(changes[:_NAMED])}{more})" if changes else ""
        raise InputError(
            f"{output} is there and was not written by this command{named}; remove it or name "
            f"another {kind}"
        )


def as_json(value: Any) -> Any:
    """Returns a value as it comes back from a JSON file."""
    return json.loads(json.dumps(value, default=str))


def _read(path: Path, elsewhere: str) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged; {elsewhere}")
    return content


def _differences(kept: Mapping[str, Any], identity: Mapping[str, Any]) -> Iterator[str]:
    """Yields what differs, the values too where they are short enough to be read."""
    before, now = dict(_flat(kept)), dict(_flat(identity))
    for key in {**before, **now}:
        if before.get(key) == now.get(key):
            continue
        # What has its default may have been left out.
        was, given = (repr(of[key]) if key in of else "the default" for of in (before, now))
        text = f"{key} = {was}, not {given}"
        yield text if len(text) <= _SHOWN_LETTERS else f"another {key}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted names with their values."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
