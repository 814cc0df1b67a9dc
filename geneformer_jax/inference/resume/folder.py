"""What an interrupted run leaves behind, and how the same command goes on with it.

Until an output is whole, its parts lie in the folder OUTPUT.parts:

  plan.json        which run this is; no other run goes on here
  records/NAME     for each finished part, the checksums of what belongs to it
  shares/N         empty; it says that the work was shared out into N
  lock             held by the processes that are at work here

A part is written first and recorded last, each whole or not at all, so a run may be killed at any
moment. A part that differs from its record is made again. Any number of processes may make
different parts.
"""

import contextlib
import json
import os
import weakref
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write, checksum, fsync_tree_entry, is_aside, remove
from geneformer_jax.common.log import logger
from geneformer_jax.common.shares import WHOLE, own_share, shares_of
from geneformer_jax.common.workdir import claim_folder, lock_folder

PLAN, RECORDS, SHARES, LOCK = "plan.json", "records", "shares", "lock"
# Parts, and shares, that a message names.
_NAMED = 5
_ELSEWHERE = "remove it to begin anew, or name another output"

Part = int | str


class PartsFolder:
    """The parts of an unfinished output.

    Attributes:
      folder: where they lie.
    """

    def __init__(self, folder: Path):
        """Names the folder, see `parts_folder`; nothing is written yet."""
        self.folder, self._shard = folder, WHOLE
        self._whole: set[Part] = set()
        self._unlock: Callable[[], object] = lambda: None

    @property
    def _owner(self) -> str:
        index, shares = self._shard
        return f"shard{index}of{shares}" if shares > 1 else ""

    def begin(
        self,
        identity: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
        prepare: Callable[[Path], None] | None = None,
        shard: tuple[int, int] = WHOLE,
    ) -> dict[str, Any]:
        """Begins the folder, or goes on in that of the same run; see `claim_folder`.

        It is locked until `let_go`, or the end of the process.

        Args:
          identity: everything that results depend on.
          settings: of the beginning, such as the size of the parts, which do not change later.
          prepare: writes what else a new folder must hold.
          shard: (i, n), the share that is going to be made, of n.

        Returns:
          The settings that the parts were begun with.

        Raises:
          InputError: the folder holds parts of another run, or something else; or another process
            is making the same parts.
        """
        self._shard = shard
        settings = claim_folder(
            self.folder,
            identity,
            file=PLAN,
            elsewhere=_ELSEWHERE,
            settings=settings,
            prepare=prepare,
            owner=self._owner,
        )
        self._unlock()
        lock = lock_folder(self.folder / LOCK, shard)
        self._unlock = weakref.finalize(self, os.close, lock)
        if shard != WHOLE:
            note = self.folder / SHARES / str(shard[1])
            note.parent.mkdir(exist_ok=True)
            note.touch()
        return settings

    @contextlib.contextmanager
    def at_work(self, *identity: Any, **given: Any) -> Iterator[dict[str, Any]]:
        """Begins the folder and yields its settings; lets it go afterwards; see `begin`."""
        try:
            yield self.begin(*identity, **given)
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Gives the lock back, so that other processes may go on."""
        self._unlock()

    def own(self, costs: Sequence[float]) -> range:
        """Returns the numbers of the parts of this share, given what each part costs."""
        own = own_share(costs, self._shard)
        if not own:
            index, shares = self._shard
            logger.info(f"shard {index}/{shares} has nothing to do (parts in all: {len(costs):,})")
        return own

    def missing(self, parts: Iterable[Part]) -> list[Part]:
        """Returns those of `parts` that are not made yet, or damaged (which is logged)."""
        return [part for part in parts if not self.is_done(part)]

    def require_whole(self, missing: Sequence[int], costs: Sequence[float]) -> None:
        """Raises InputError if parts are missing, which names them, and the shares that lack.

        Args:
          missing: their numbers.
          costs: of each part.
        """
        if not missing:
            return
        listed = ", ".join(map(str, missing[:_NAMED])) + (", ..." if missing[_NAMED:] else "")
        raise InputError(
            f"{len(missing):,} of {len(costs):,} parts are missing ({listed}): run the same "
            f"command with {self._remedy(costs, missing)}"
        )

    def _remedy(self, costs: Sequence[float], missing: Sequence[int]) -> str:
        """Names the shares of the missing parts, of as many as were begun last."""
        notes = sorted((self.folder / SHARES).glob("*"), key=lambda note: note.stat().st_mtime_ns)
        if not notes:
            return "neither `shard` nor `finish`"
        shares = int(notes[-1].name)
        of_parts = shares_of(costs, shares)
        lacking = sorted({of_parts[part] for part in missing})
        named = [f"`shard`={each}/{shares}" for each in lacking[:_NAMED]]
        more = f" and {len(lacking) - _NAMED:,} more" if lacking[_NAMED:] else ""
        return f"{', '.join(named)}{more}, and then with `finish`"

    def is_done(self, part: Part) -> bool:
        """Whether a part is there and its files are as recorded."""
        if part not in self._whole:
            kept = self.checksums(part)
            if kept is None:
                return False
            for name, wanted in kept.items():
                path = self.folder / name
                if not path.is_file() or checksum(path) != wanted:
                    log_damaged(path)
                    return False
            self._whole.add(part)
        return True

    def write(self, part: Part, files: Mapping[str, Callable[[Path], None]]) -> None:
        """Writes the files of a part, and records it.

        Args:
          part: its number or name.
          files: path below the folder -> function that writes the file at the path it is given.
        """
        for name, save in files.items():
            with atomic_write(self.folder / name) as aside:
                save(aside)
        self.record(part, {name: checksum(self.folder / name) for name in files})
        self._whole.add(part)

    def discard(self, part: Part) -> None:
        """Removes a part and its record, where they are."""
        kept = self.checksums(part) or {}
        # Never a record without its files, which would be told as damage.
        self._record_of(part).unlink(missing_ok=True)
        self._whole.discard(part)
        for name in kept:
            remove(self.folder / name)

    def record(self, part: Part, checksums: Mapping[str, str]) -> None:
        """Records a part as done; `write` does so by itself."""
        with atomic_write(self._record_of(part), self._owner) as aside:
            aside.write_text(json.dumps(checksums) + "\n")

    def checksums(self, part: Part) -> dict[str, str] | None:
        """Returns what is recorded of a part, or None if nothing readable is."""
        record = self._record_of(part)
        if not record.is_file():
            return None
        try:
            return dict(json.loads(record.read_text()))
        except (ValueError, TypeError):
            log_damaged(record)
            return None

    def listed_files(self, parts: Iterable[Part]) -> list[str]:
        """Returns the names of the files of parts that are done, all of which listings show.

        Raises:
          InputError: a listing lacks one, as where other machines' files are seen late.
        """
        names = []
        for part in parts:
            names += self.checksums(part) or [str(self._record_of(part).relative_to(self.folder))]
        folders = {(self.folder / name).parent for name in names}
        seen = {path for folder in folders for path in folder.glob("*")}
        for name in names:
            if self.folder / name not in seen:
                raise InputError(
                    f"{self.folder / name} is not seen here yet, though the parts are made: run "
                    "the same command again"
                )
        return names

    def save(self, name: str, save: Callable[[Path], None]) -> Path:
        """Writes and records a file that all processes share and make alike; returns its path.

        `is_done(name)` says afterwards whether it is there and as it was written.
        """
        with atomic_write(self.folder / name, self._owner) as aside:
            save(aside)
        self.record(name, {name: checksum(self.folder / name)})
        return self.folder / name

    def load(self, name: str) -> dict[str, np.ndarray]:
        """Returns the arrays of a file that `save_arrays` wrote.

        Raises:
          InputError: it is damaged.
        """
        try:
            # Zip files carry checksums of their own.
            with np.load(self.folder / name) as kept:
                return {each: kept[each] for each in kept.files}
        except (
            OSError,
            ValueError,
            KeyError,
            EOFError,
            AttributeError,
            TypeError,
            zipfile.BadZipFile,
        ):
            raise self.damaged(name) from None

    def damaged(self, name: str) -> InputError:
        """Returns the error of a damaged file without which the parts are lost."""
        return InputError(f"{self.folder / name} is damaged; remove {self.folder} to begin anew")

    def become(self, output: Path) -> None:
        """Gives the folder of finished parts its final name; see `tidy`."""
        os.replace(self.folder, output)
        self._unlock()
        fsync_tree_entry(output.parent)

    def remove(self) -> None:
        """Removes the folder, once the output is written elsewhere."""
        remove(self.folder)

    def _record_of(self, part: Part) -> Path:
        name = f"part-{part:06d}" if isinstance(part, int) else part
        return self.folder / RECORDS / f"{name}.json"


def parts_folder(output: Path) -> Path:
    """Where the parts of an unfinished output lie."""
    return output.with_name(output.name + ".parts")


def tidy(output: Path, *others: str) -> None:
    """Removes from a finished folder what served the resumption, and `others`."""
    # What killed processes wrote aside may have other names than the next ones remove.
    aside = [path.name for path in output.iterdir() if is_aside(path)]
    for name in (PLAN, RECORDS, SHARES, LOCK, *others, *aside):
        remove(output / name)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as one .npz, whatever the ending of the path."""
    with path.open("wb") as file:
        np.savez(file, **arrays)


def log_damaged(path: Path) -> None:
    """Logs that a part is made again because of this file."""
    logger.warning("%s is damaged or gone; its part is made again", path)
